"""Calls of ops that write their result over their first operand.

XLA keeps that right whatever else needs the operand: it copies what must stay, such as arguments of
the program that are not donated. So it is worth it only for operands that need not stay.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.interpreters import mlir

from . import jax_versions


def pays_in_place(ctx: mlir.LoweringRuleContext, operand: mlir.ir.Value) -> bool:
    """Whether an operand is likely one that nothing else needs.

    Where it comes from is not known here: this may well be in a function whose calls are lowered
    later. But what cannot be an argument that the program must keep has been computed, as the
    output of a joint network is.
    """
    if not jax_versions.is_for_one_device(ctx):
        return False  # the partitioner forgets what is in place
    if jax_versions.is_for_export(ctx):
        return False  # programs that are kept cannot rely on "LayoutConstraint" below
    operand_type: Any = operand.type
    devices = jax_versions.num_partitions(ctx)
    return operand_type.has_static_shape and not any(
        _may_be(operand_type, argument, devices) for argument in jax_versions.kept_arguments(ctx)
    )


def _may_be(operand: Any, argument: Any, devices: int) -> bool:
    """Whether an operand may be that argument, reshaped, or what one device has of it."""
    if not isinstance(argument, mlir.ir.RankedTensorType):
        return False
    if operand.element_type != argument.element_type:
        return False
    if not argument.has_static_shape:
        return True
    parts, rest = divmod(math.prod(argument.shape), max(1, math.prod(operand.shape)))
    return rest == 0 and parts > 0 and devices % parts == 0


def apart_from_its_copy(ctx: mlir.LoweringRuleContext, operand: mlir.ir.Value) -> mlir.ir.Value:
    """The first operand for a call on a CPU whose result takes its memory.

    For such a call XLA makes a copy of the operand, to drop it later where nothing needs it. On a
    CPU it merges operations before that, and the copy would be one with what computes the operand.
    Asking for a layout, the one that it has anyway, keeps the two apart until then.
    """
    aval = ctx.avals_in[0]
    constraint = jax.ffi.ffi_lowering("LayoutConstraint", api_version=1)
    (result,) = constraint(ctx.replace(avals_in=[aval], avals_out=[aval]), operand)
    assert isinstance(result, mlir.ir.Value)
    return result
