"""Rows of an array by their numbers, in pure JAX, and the sums that are the gradient of that."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .numerics import accumulator_dtype


def take_rows(x: jax.Array, numbers: jax.Array) -> jax.Array:
    """`x[..., numbers[n], :]` for all n.

    Args:
      x: `(*batch, R, C)` floating point.
      numbers: `(*batch, N)` int32 in [0, R).

    Returns:
      `(*batch, N, C)`.
    """
    return jnp.take_along_axis(x, numbers[..., None], axis=-2, mode="promise_in_bounds")


def row_sums(values: jax.Array, numbers: jax.Array, *, num_sums: int) -> jax.Array:
    """The sum of the rows of each number: `take_rows` transposed.

    Args:
      values: `(*batch, N, C)` floating point.
      numbers: `(*batch, N)` int32 in [0, num_sums).

    Returns:
      `(*batch, num_sums, C)` in the dtype of `values`, summed in float32 (float64).
    """
    *batch, _, C = values.shape
    wide = values.astype(accumulator_dtype(values.dtype))
    x = jax.ShapeDtypeStruct((*batch, num_sums, C), wide.dtype)
    (sums,) = jax.linear_transpose(lambda x: take_rows(x, numbers), x)(wide)
    return sums.astype(values.dtype)
