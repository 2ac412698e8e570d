"""Numerical functions in pure JAX that know nothing of transducers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def accumulator_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype of arcs, recursions and losses for logits of `dtype`."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def axis_index(ndim: int, axis: int, size: int) -> jax.Array:
    """Indices along one axis, shaped to broadcast against arrays of `ndim` dimensions."""
    shape = [1] * ndim
    shape[axis] = size
    return lax.broadcasted_iota(jnp.int32, shape, axis % ndim)


def shift_right(x: jax.Array, fill: float) -> jax.Array:
    """Element u - 1 at u."""
    return jnp.concatenate([jnp.full_like(x[..., :1], fill), x[..., :-1]], axis=-1)


def shift_left(x: jax.Array, fill: float) -> jax.Array:
    """Element u + 1 at u."""
    return jnp.concatenate([x[..., 1:], jnp.full_like(x[..., :1], fill)], axis=-1)


def two_sum(total: tuple[jax.Array, jax.Array], term: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Adds to an unevaluated sum of two numbers, with Knuth's exact error of the addition."""
    high, low = total
    new = high + term
    added = new - high
    return new, low + ((high - (new - added)) + (term - added))


def log_denominator(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The logarithm of the sum of exp(x), as the maximum and the rest; NaN where x has +inf."""
    top = lax.stop_gradient(jnp.max(x, axis=-1))
    bad = ~(top < jnp.inf)
    x = jnp.where(bad[..., None], 0, x)  # whose derivative is zero, not zero times NaN
    shift = jnp.where(bad | (top == -jnp.inf), 0, top)
    total = jnp.sum(jnp.exp(x - shift[..., None]), axis=-1)
    log_sum = jnp.where(total == 0, -jnp.inf, jnp.log(jnp.where(total == 0, 1, total)))
    return jnp.where(bad, jnp.nan, shift), jnp.where(bad, jnp.nan, log_sum)


def log_ratio(score: jax.Array, top: jax.Array, log_sum: jax.Array) -> jax.Array:
    """`score - (top + log_sum)` without rounding the sum to the size of large scores.

    -inf for a forbidden class, also where all classes are.
    """
    forbidden = (score == -jnp.inf) & ~jnp.isnan(log_sum)
    return jnp.where(forbidden, -jnp.inf, (score - top) - jnp.where(forbidden, 0, log_sum))
