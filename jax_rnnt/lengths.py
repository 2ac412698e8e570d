"""Lengths from the masks that other libraries describe a batch with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from . import validation
from .bounds import not_wrapped
from .types import Array


def lengths_from_paddings(paddings: Array, *, check: bool = True) -> jax.Array:
    """Lengths of right-padded sequences, from paddings as `optax.ctc_loss` takes them.

    Args:
      paddings: `(*batch, N)` floating point, integer or bool: 1 (or True) where padded, 0 before.
      check: raise an error for bad values if they are known, which waits for them.

    Returns:
      `(*batch,)` int32: for paddings of frames the `logit_lengths` of the losses, for those of
      labels their `label_lengths`. -1, for which they return NaN, where bad paddings could not be
      checked.

    Raises:
      TypeError, ValueError: `paddings` has the wrong dtype or shape; with `check`, it has a value
        other than 0 and 1, or a 0 after a 1.
    """
    array = validation.as_array("paddings", paddings)
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.int32)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise TypeError(f"paddings has dtype {array.dtype}; expected numbers or bool.")
    if array.ndim < 1:
        raise ValueError("paddings has shape (); expected (*batch, N), at least 1 dimension.")
    if validation.static_bool("check", check):
        _check_known_paddings(array)
    mask = jnp.asarray(not_wrapped(array))
    padded = mask != 0
    lengths = array.shape[-1] - jnp.sum(padded, axis=-1, dtype=jnp.int32)
    resumed = jnp.any(padded[..., :-1] & ~padded[..., 1:], axis=-1)
    bad = resumed | jnp.any(padded & (mask != 1), axis=-1)
    return jnp.where(bad, -1, lengths)


def _check_known_paddings(paddings: Array) -> None:
    """Raises ValueError if they are not zeros and then ones."""
    if not validation.is_known(paddings):
        return
    values = np.asarray(jax.device_get(paddings))
    good = (values == 0) | (values == 1)
    expected = "1 where padded and 0 elsewhere"
    validation.raise_or_checkify(good, "paddings", values, expected)
    good = (values[..., :-1] == 0) | (values[..., 1:] != 0)
    good = np.pad(good, [(0, 0)] * (good.ndim - 1) + [(1, 0)], constant_values=True)
    expected = "1 as before it: padding is at the end"
    validation.raise_or_checkify(good, "paddings", values, expected)
