"""Best alignments: the library and the oracles run on the same batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import oracles
from cases import ArcsBatch, Array, Lengths
from oracles_alignment import Best

import jax_rnnt


def bounds_of(lengths: Lengths) -> list[oracles.Bounds]:
    t1, u1, t0, u0 = lengths
    return [oracles.Bounds(*map(int, row)) for row in zip(t0, t1, u0, u1, strict=True)]


def as_keywords(lengths: Lengths) -> dict[str, Any]:
    """As keyword arguments, those that are given."""
    return {name: value for name, value in lengths._asdict().items() if value is not None}


def spoiled(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random arcs in the first half of the utterances, in the second those of few exact values,
    with many equally good paths; some of all forbidden, some bad.
    """
    planes = -rng.exponential(size=(2, *shape))
    ties = planes[:, shape[0] // 2 :]
    ties[:] = -rng.integers(0, 3, ties.shape) / 4
    planes[rng.random(planes.shape) < 0.05] = -np.inf
    planes[rng.random(planes.shape) < 0.05] = -3e7
    planes[rng.random(planes.shape) < 0.003] = np.nan
    planes[rng.random(planes.shape) < 0.003] = 2e6
    return planes


@functools.cache
def _compiled(implementation: str, items: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    options: Any = {"implementation": implementation, **dict(items)}
    return jax.jit(
        lambda batch: jax_rnnt.rnnt_align_from_arcs(
            *batch[:2], **as_keywords(batch.lengths), **options
        )
    )


def align_arcs(batch: ArcsBatch, implementation: str, **options: Any) -> jax_rnnt.Alignment:
    """Jitted `rnnt_align_from_arcs`."""
    return jax.device_get(_compiled(implementation, tuple(options.items()))(batch))


def assert_best(found: Any, wanted: Sequence[Best], tolerance: float = 1e-12) -> None:
    scores = np.array([best.score for best in wanted])
    np.testing.assert_allclose(found.score, scores, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(found.frames, [best.frames for best in wanted])
    assert found.frames.dtype == np.int32


def normalised_arcs(
    logits: Array, labels: Array, w: oracles.Bounds, blank_id: int, normalization: str
) -> tuple[Array, Array]:
    """Arcs `(T, U+1)` of one utterance's logits."""
    wanted = np.zeros(logits.shape[1], np.int64)
    wanted[w.u0 : w.u1] = labels[w.u0 : w.u1]
    with np.errstate(invalid="ignore"):
        return oracles.arcs_and_jacobians(logits, wanted, blank_id, normalization)[:2]


def normalised_best_arcs(
    logits: Array, w: oracles.Bounds, blank_id: int, normalization: str
) -> tuple[Array, Array, Array]:
    """Arcs `(T, U+1)` whose label is the best class, and that class."""
    others = np.where(np.arange(logits.shape[-1]) == blank_id, -np.inf, logits)
    best = others.argmax(-1)
    blank, label = np.zeros((2, *best.shape))
    for t in range(len(logits)):
        arcs = normalised_arcs(logits[t : t + 1], best[t], w, blank_id, normalization)
        blank[t], label[t] = arcs[0][0], arcs[1][0]
    return blank, np.where(others.max(-1) == -np.inf, -np.inf, label), best
