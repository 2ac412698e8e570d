"""Numbers `mantissa * 2**exponent` with an integer exponent each, for probabilities of long paths.

Rounding does not grow with the logarithm, as it does in the log domain, and there are 5e8 nats of
range below the likeliest number of a row. Exponents are constants to differentiation: all
derivatives go through the mantissas, to any order.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

FORBIDDEN_LOG_PROB = -1e7
"""Log-probabilities below count as -inf, in every implementation."""

EXCESSIVE_LOG_PROB = 1e6
"""Log-probabilities above are bad input, in every implementation."""

DEAD = -3 * 2**28
"""Exponent of zeros, and the lowest there is: what falls below becomes zero. Two of them can be
added without overflow."""

_INT32_MIN = -(2**31)

# log(2) is 0.693359375 minus these two, the first of 9 bits.
_LN2_MIDDLE = float.fromhex("0x1.bdp-13")
_LN2_REST = 1.9046542999577679e-9


class Extended(NamedTuple):
    """Nonnegative numbers; a NaN is a NaN mantissa."""

    mantissa: jax.Array  # float32 or float64
    exponent: jax.Array  # int32


def exp(x: jax.Array) -> Extended:
    """exp of log-probabilities; NaN for NaN and excessive ones."""
    bounded = jnp.clip(x, FORBIDDEN_LOG_PROB, EXCESSIVE_LOG_PROB)
    quotient = lax.stop_gradient(jnp.round(bounded * 1.4426950408889634))
    remainder = _minus_multiple_of_ln2(bounded, quotient)
    mantissa = jnp.where(x <= EXCESSIVE_LOG_PROB, jnp.exp(remainder), jnp.nan)
    exponent = jnp.where(jnp.isnan(quotient), 0, quotient).astype(jnp.int32)
    forbidden = x < FORBIDDEN_LOG_PROB
    return Extended(jnp.where(forbidden, 0, mantissa), jnp.where(forbidden, DEAD, exponent))


def _minus_multiple_of_ln2(x: jax.Array, n: jax.Array) -> jax.Array:
    """`x - n * log(2)` for the nearest integer n, also where products are rounded.

    ln 2 is in three parts and n, of up to 24 bits, in two of at most 12, the upper one 0 for small
    n: products with the first parts, of 10 and 9 bits, are exact, as are the differences.
    """
    upper = lax.stop_gradient(jnp.round(n * 2.0**-12)) * 2.0**12
    lower = n - upper
    rest = (x - upper * 0.693359375) - lower * 0.693359375
    rest = (rest + upper * _LN2_MIDDLE) + lower * _LN2_MIDDLE
    return rest + n * _LN2_REST


def multiply(x: Extended, y: Extended) -> Extended:
    """x * y; the exponent may be below DEAD until the next `normalise`."""
    return Extended(x.mantissa * y.mantissa, x.exponent + y.exponent)


def add(x: Extended, y: Extended) -> Extended:
    """x + y."""
    top = jnp.maximum(x.exponent, y.exponent)
    dtype = x.mantissa.dtype
    x_aligned = x.mantissa * exp2(x.exponent - top, dtype)
    y_aligned = y.mantissa * exp2(y.exponent - top, dtype)
    total = x_aligned + y_aligned
    # A zero must not keep a high exponent: it would push its neighbours out of range.
    return Extended(total, jnp.where(total == 0, DEAD, top))


def normalise(row: Extended) -> tuple[Extended, jax.Array]:
    """Mantissas in [1, 2), and exponents relative to the largest of the row, which is returned."""
    shift, positive = _excess(row)
    exponent = row.exponent + shift
    largest = jnp.max(jnp.where(positive, exponent, _INT32_MIN), axis=-1, keepdims=True)
    largest = jnp.where(largest == _INT32_MIN, 0, largest)
    relative = jnp.where(positive, exponent - largest, DEAD)
    return _shifted(row.mantissa, shift, relative), largest[..., 0]


def normalise_each(row: Extended) -> Extended:
    """Mantissas in [1, 2), and exponents as they are then."""
    shift, positive = _excess(row)
    return _shifted(row.mantissa, shift, jnp.where(positive, row.exponent + shift, DEAD))


def _excess(row: Extended) -> tuple[jax.Array, jax.Array]:
    """By which powers of two mantissas exceed [1, 2), and where they are neither zero nor NaN."""
    dtype = row.mantissa.dtype
    info = jnp.finfo(dtype)
    bias, integer = int(info.maxexp) - 1, jnp.int64 if info.bits == 64 else jnp.int32
    raw = lax.bitcast_convert_type(lax.stop_gradient(row.mantissa), integer)
    shift = (raw >> int(info.nmant)).astype(jnp.int32) - bias
    positive = (shift > -bias) & (shift <= bias)
    return jnp.where(positive, shift, 0), positive


def _shifted(mantissa: jax.Array, shift: jax.Array, exponent: jax.Array) -> Extended:
    """Mantissas divided by powers of two; zeros for exponents below DEAD."""
    out_of_range = exponent < DEAD
    # Times 0, which keeps a NaN: out of range means no path, not one with another probability.
    scale = exp2(-shift, mantissa.dtype) * jnp.where(out_of_range, 0.0, 1.0)
    return Extended(mantissa * scale, jnp.where(out_of_range, DEAD, exponent))


def relative_to_largest(*rows: Extended) -> list[jax.Array]:
    """The numbers of all rows divided by the power of two that keeps the largest in float range."""
    exponents = [jnp.where(x.mantissa == 0, 2 * DEAD, x.exponent) for x in rows]
    top = jnp.max(jnp.stack(exponents), axis=(0, -1), keepdims=True)[0]
    return [
        x.mantissa * exp2(e - top, x.mantissa.dtype) for x, e in zip(rows, exponents, strict=True)
    ]


def exp2(n: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """2**n for integers, 0 below the normal numbers, built from bits."""
    info = jnp.finfo(dtype)
    bias, integer = int(info.maxexp) - 1, jnp.int64 if info.bits == 64 else jnp.int32
    biased = jnp.clip(n, -bias, bias).astype(integer) + bias
    return lax.bitcast_convert_type(biased << int(info.nmant), dtype)


def log(mantissa: jax.Array, exponent: tuple[jax.Array, jax.Array]) -> jax.Array:
    """log(mantissa * 2**exponent) with the exponent an unevaluated sum; -inf for 0."""
    log_mantissa = jnp.log(jnp.where(mantissa == 0, 1, mantissa))
    high, low = exponent
    result = high * 0.6931471805599453 + (low * 0.6931471805599453 + log_mantissa)
    return jnp.where(mantissa == 0, -jnp.inf, result)


def shift_right(row: Extended, count: int = 1) -> Extended:
    """Element u - count at u."""
    first = row.exponent[..., :count]
    exponent = jnp.concatenate([jnp.full_like(first, DEAD), row.exponent[..., :-count]], axis=-1)
    zero = jnp.zeros_like(row.mantissa[..., :count])
    return Extended(jnp.concatenate([zero, row.mantissa[..., :-count]], axis=-1), exponent)


def shift_left(row: Extended) -> Extended:
    """Element u + 1 at u."""
    last = row.exponent[..., :1]
    exponent = jnp.concatenate([row.exponent[..., 1:], jnp.full_like(last, DEAD)], axis=-1)
    zero = jnp.zeros_like(row.mantissa[..., :1])
    return Extended(jnp.concatenate([row.mantissa[..., 1:], zero], axis=-1), exponent)
