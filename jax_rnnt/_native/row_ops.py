"""Taking rows of an array, which has no kernel, and their sums, its transpose, which has.

Both are linear in their first operand, and differentiable in both modes, any number of times.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad

from .. import row_sums_reference as in_jax
from .jax_versions import align_varying_axes
from .primitive import native_primitive

_take_rows_p = native_primitive(
    "jax_rnnt_take_rows",
    core_ndim=2,
    outputs=lambda x, numbers: [((*numbers.shape, x.shape[-1]), x.dtype)],
    fallback=lambda *operands: [in_jax.take_rows(*operands)],
    attributes=lambda: {},
)

_row_sums_p = native_primitive(
    "jax_rnnt_row_sums",
    core_ndim=2,
    outputs=lambda values, numbers, num_sums: [((num_sums, values.shape[-1]), values.dtype)],
    fallback=lambda *operands, **params: [in_jax.row_sums(*operands, **params)],
    attributes=lambda num_sums: {},
)


def take_rows(x: jax.Array, numbers: jax.Array) -> jax.Array:
    """`row_sums_reference.take_rows`, whose gradient by `x` is summed by the native kernel.

    The kernel adds rows in their order, in float32 (float64) and rounded once: on a GPU, too, the
    gradient does not change from run to run.
    """
    return _take_rows_p.bind(*align_varying_axes(x, numbers), native=False)[0]


def row_sums(values: jax.Array, numbers: jax.Array, *, num_sums: int) -> jax.Array:
    """`row_sums_reference.row_sums` by the native kernel."""
    operands = align_varying_axes(values, numbers)
    return _row_sums_p.bind(*operands, num_sums=num_sums, native=False)[0]


def _define_derivatives(primitive: Primitive, transposed: Any) -> None:
    """`transposed` maps a cotangent, the numbers and the first operand's type to its cotangent."""

    def jvp(primals: Any, tangents: Any, **params: Any) -> Any:
        tangent = ad.instantiate_zeros(tangents[0])
        return primitive.bind(*primals, **params), primitive.bind(tangent, primals[1], **params)

    def transpose(cotangents: Any, x: Any, numbers: jax.Array, **params: Any) -> Any:
        del params
        return [transposed(ad.instantiate_zeros(cotangents[0]), numbers, x.aval), None]

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose


_define_derivatives(
    _take_rows_p,
    lambda cotangent, numbers, x: row_sums(cotangent, numbers, num_sums=x.shape[-2]),
)
_define_derivatives(_row_sums_p, lambda cotangent, numbers, values: take_rows(cotangent, numbers))
