"""Calls of ops that write their result over their first operand.

XLA keeps that right whatever else needs the operand: it copies what must stay, such as arguments of
the program that are not donated. So it is worth it only for operands that need not stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.extend.mlir.dialects import stablehlo
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
        return False  # nothing is known of the callers, which see arguments of the program only
    operand_type: Any = operand.type
    devices = jax_versions.num_partitions(ctx)
    return operand_type.has_static_shape and not any(
        _may_be(operand_type, argument, devices) for argument in jax_versions.arguments_kept(ctx)
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


def call_in_place(
    target: str,
    ctx: mlir.LoweringRuleContext,
    operands: Sequence[mlir.ir.Value],
    attributes: Mapping[str, Any],
) -> Sequence[Any]:
    """Calls `target`, whose only result takes the memory of the first operand.

    To a call that asks for the layouts of its buffers, XLA gives a copy of such an operand, to drop
    it later; but on a CPU that copy has become one with the operation before it by then. So this
    one asks for none. The first operand gets its layout from the value it is, and with it the
    result, which is the same buffer; the others are flat.
    """
    aval = ctx.avals_in[0]
    row_major = jax.ffi.ffi_lowering("LayoutConstraint", api_version=1)
    (first,) = row_major(ctx.replace(avals_in=[aval], avals_out=[aval]), operands[0])
    call = jax.ffi.ffi_lowering(
        target,
        skip_ffi_layout_processing=True,
        operand_output_aliases={0: 0},
        result_types=[operands[0].type],
    )
    return call(ctx, first, *map(_flat, operands[1:]), **attributes)


def _flat(x: mlir.ir.Value) -> mlir.ir.Value:
    tensor_type: Any = x.type
    shape = [math.prod(tensor_type.shape)]
    return stablehlo.reshape(mlir.ir.RankedTensorType.get(shape, tensor_type.element_type), x)
