"""Random batches of packed rows, and the library run on them, as in cases.py.

A batch is made padded, for the oracle, and packed here, independently of the library.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
from cases import Array, random_batch

import jax_rnnt


class PackedBatch(NamedTuple):
    """Arguments of `rnnt_loss_packed`."""

    logits: Array
    labels: Array
    logit_lengths: Array
    label_lengths: Array
    where: Array | None = None


def pack(
    padded: Array, logit_lengths: Array, label_lengths: Array, rows: int, fill: float = 0.0
) -> np.ndarray:
    """The valid cells of a padded array `(B, T, U+1, ...)`, one by one, then `fill`."""
    padded = np.asarray(padded)
    packed = np.full((rows, *padded.shape[3:]), fill, padded.dtype)
    cells = [
        (b, t, u)
        for b in range(len(padded))
        for t in range(logit_lengths[b])
        for u in range(label_lengths[b] + 1)
    ]
    for row, cell in enumerate(cells):
        packed[row] = padded[cell]
    return packed


def rows_of(batch: PackedBatch, b: int) -> slice:
    """The rows of one utterance."""
    counts = np.asarray(batch.logit_lengths) * (np.asarray(batch.label_lengths) + 1)
    end = int(np.cumsum(counts)[b])
    return slice(end - int(counts[b]), end)


def random_packed(
    rng: np.random.Generator,
    batch: int,
    frames: int,
    labels: int,
    classes: int,
    *,
    spare: int = 3,
    dtype: Any = np.float64,
    **options: Any,
) -> tuple[PackedBatch, oracles.LogitsResult]:
    """A batch with `spare` rows of NaN at its end, and what the oracle makes of it, packed."""
    padded = random_batch(rng, batch, frames, labels, classes, dtype=dtype, **options)
    t1, u1, t0, u0 = padded.lengths
    lengths = t1 - t0, u1 - u0
    rows = int((lengths[0] * (lengths[1] + 1)).sum()) + spare
    wanted = oracles.logits_loss(np.asarray(padded.logits), padded.labels, *lengths, **options)
    logits = pack(padded.logits, *lengths, rows, fill=np.nan)
    grad = pack(wanted.grad, *lengths, rows)
    return PackedBatch(logits, padded.labels, *lengths), oracles.LogitsResult(wanted.loss, grad)


def packed_function(implementation: str = "auto", **options: Any) -> Callable[..., jax.Array]:
    """`(logits, labels, logit_lengths, label_lengths, where) -> losses`, all else fixed."""

    def loss(*arguments: Any) -> jax.Array:
        batch = PackedBatch(*arguments)
        return jax_rnnt.rnnt_loss_packed(
            *batch[:4], where=batch.where, implementation=implementation, **options
        )

    return loss


@functools.cache
def _compiled(implementation: str, items: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    function = packed_function(implementation, **dict(items))

    def run(batch: PackedBatch, cotangent: Array | None) -> tuple[jax.Array, jax.Array]:
        loss, vjp = jax.vjp(lambda x: function(x, *batch[1:]), batch.logits)
        return loss, vjp(jnp.ones_like(loss) if cotangent is None else cotangent)[0]

    return jax.jit(run)


def run_packed(
    batch: PackedBatch, implementation: str, cotangent: Array | None = None, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Jitted loss and its gradient by the logits."""
    return jax.device_get(_compiled(implementation, tuple(options.items()))(batch, cotangent))
