"""Random keys for dropout in a joint network: one for each cell, whatever computes it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp


def keys_of_utterances(
    rng: jax.Array | None, batch: tuple[int, ...]
) -> tuple[jax.Array | None, str | None]:
    """A random key for each utterance as integers `(*batch, words)`, and their implementation."""
    if rng is None:
        return None, None
    if not isinstance(rng, jax.Array):
        raise TypeError(f"rng is {rng!r}; expected a random key, as jax.random.key(0).")
    is_key = jnp.issubdtype(rng.dtype, jax.dtypes.prng_key)
    key: Any = rng if is_key else jax.random.wrap_key_data(rng)
    if key.shape != ():
        raise ValueError(f"rng has shape {key.shape}; expected a single key.")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(math.prod(batch)))
    data = jax.random.key_data(keys)
    return data.reshape(*batch, data.shape[-1]), str(jax.random.key_impl(key))


def keys_of_cells(
    utterances: jax.Array, key_impl: str | None, frames: jax.Array, positions: jax.Array
) -> jax.Array:
    """A random key for each cell, which depends on its utterance's, its frame and its position.

    `(*batch, frames, positions)`, of the `(*batch, words)` integers of the utterances' keys,
    `(*batch, frames)` and `(*batch, frames, positions)`.
    """
    size = math.prod(frames.shape[:-1])
    each = jax.vmap(jax.random.fold_in, (None, 0))
    data = utterances.reshape(size, utterances.shape[-1])
    of_utterances = jax.random.wrap_key_data(data, impl=key_impl)
    of_frames = jax.vmap(each)(of_utterances, frames.reshape(size, frames.shape[-1]))
    of_cells = jax.vmap(jax.vmap(each))(of_frames, positions.reshape(size, *positions.shape[-2:]))
    return of_cells.reshape(positions.shape)
