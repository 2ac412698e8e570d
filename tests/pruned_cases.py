"""Random batches for the pruned loss, and the library run on them, as in cases.py."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import oracles_pruned
from cases import WHOLE, Array, Lengths, random_batch

import jax_rnnt

TOPOLOGIES = ["regular", "modified", "constrained"]


class PrunedBatch(NamedTuple):
    """Arguments of `rnnt_loss_pruned`."""

    logits: Array
    labels: Array
    ranges: Array
    lengths: Lengths = WHOLE
    where: Array | None = None


def random_pruned(
    rng: np.random.Generator,
    batch: int,
    frames: int,
    labels: int,
    s_range: int,
    classes: int,
    **options: Any,
) -> PrunedBatch:
    """Normal logits in bands that random posteriors choose; every utterance has a path."""
    size = min(s_range, labels + 1)
    whole = random_batch(rng, batch, frames, size - 1, classes, **options)
    topology = options.get("topology", "regular")
    names = {k: v for k, v in options.items() if k in ("topology", "blank_id")}
    full = random_batch(rng, batch, frames, labels, classes, **names)
    lengths = np.array(full.lengths)
    if topology == "regular":  # labels that the band lets through
        t1, u1, t0, u0 = lengths
        lengths[1] = np.minimum(u1, u0 + (size - 1) * (t1 - t0))
    ranges = random_ranges(rng, frames, labels, size, lengths, topology)
    return PrunedBatch(whole.logits, full.labels, ranges, Lengths(*lengths))


def random_ranges(
    rng: np.random.Generator, frames: int, labels: int, size: int, lengths: Array, topology: str
) -> np.ndarray:
    """By the oracle from random posteriors; anything in padding."""
    rows = []
    for t1, u1, t0, u0 in lengths.T:
        w = oracles.Bounds(t0, t1, u0, u1)
        blank, label = rng.exponential(size=(2, frames, labels + 1))
        starts = np.array(oracles_pruned.prune_starts(blank, label, w, size, topology), np.int32)
        padding = (np.arange(frames) < t0) | (np.arange(frames) >= t1)
        rows.append(np.where(padding, rng.integers(-5, labels + 9, frames), starts))
    starts = np.array(rows, np.int32).reshape(len(lengths.T), frames, 1)
    return starts + np.arange(size, dtype=np.int32)


def pruned_function(implementation: str = "auto", **options: Any) -> Callable[..., jax.Array]:
    """`(logits, labels, ranges, lengths, where) -> losses` with everything else fixed."""

    def loss(
        logits: Array,
        labels: Array,
        ranges: Array,
        lengths: Lengths = WHOLE,
        where: Array | None = None,
    ) -> jax.Array:
        return jax_rnnt.rnnt_loss_pruned(
            logits,
            labels,
            ranges,
            lengths.logit_lengths,
            lengths.label_lengths,
            logit_begins=lengths.logit_begins,
            label_begins=lengths.label_begins,
            where=where,
            implementation=implementation,
            **options,
        )

    return loss


@functools.cache
def _compiled(implementation: str, items: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    function = pruned_function(implementation, **dict(items))

    def run(batch: PrunedBatch, cotangent: Array | None) -> tuple[jax.Array, jax.Array]:
        loss, vjp = jax.vjp(lambda x: function(x, *batch[1:]), batch.logits)
        return loss, vjp(jnp.ones_like(loss) if cotangent is None else cotangent)[0]

    return jax.jit(run)


def run_pruned(
    batch: PrunedBatch, implementation: str, cotangent: Array | None = None, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Jitted loss and its gradient by the logits."""
    return jax.device_get(_compiled(implementation, tuple(options.items()))(batch, cotangent))


def expected_pruned(batch: PrunedBatch, **options: Any) -> oracles.LogitsResult:
    """The float64 oracle on the batch."""
    return oracles_pruned.pruned_loss(
        np.asarray(batch.logits), batch.labels, batch.ranges, tuple(batch.lengths), **options
    )


def used_cells(batch: PrunedBatch, topology: str) -> np.ndarray:
    """Blank and label arcs of all utterances that are on some path, (2, B, T, S)."""
    size = batch.logits.shape[2]
    bounds = [
        oracles.Bounds(*map(int, row)) for row in zip(*_in_order_of_bounds(batch), strict=True)
    ]
    masks = [
        oracles_pruned.used_arcs(ranges[:, 0], size, w, topology)
        for ranges, w in zip(batch.ranges, bounds, strict=True)
    ]
    return np.stack([np.array(m) for m in zip(*masks, strict=True)])


def _in_order_of_bounds(batch: PrunedBatch) -> tuple[Array, ...]:
    t1, u1, t0, u0 = batch.lengths
    return t0, t1, u0, u1
