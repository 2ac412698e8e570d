"""Best alignments: against all paths of tiny lattices and bands, and against a plain recursion."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import oracles_alignment
import pytest
from cases import (
    TOPOLOGIES,
    ArcsBatch,
    Options,
    Ranges,
    each_topology,
    random_arcs,
    random_batch,
)
from oracles_alignment import Best, by_enumeration, by_recursion
from pruned_cases import random_pruned

import jax_rnnt
from jax_rnnt.lattice import banded_best_path
from jax_rnnt.types import LatticeOptions


def windows(ranges: Ranges) -> list[oracles.Window]:
    t1, u1, t0, u0 = ranges
    return [oracles.Window(*map(int, row)) for row in zip(t0, t1, u0, u1, strict=True)]


def lengths(ranges: Ranges) -> dict[str, Any]:
    return {k: v for k, v in ranges._asdict().items() if v is not None}


def align_arcs(batch: ArcsBatch, implementation: str, **options: Any) -> jax_rnnt.Alignment:
    found = jax_rnnt.rnnt_align_from_arcs(
        batch.blank,
        batch.label,
        **lengths(batch.ranges),
        implementation=implementation,  # type: ignore[arg-type]
        **options,
    )
    return jax.device_get(found)


def assert_best(found: jax_rnnt.Alignment, wanted: list[Best], tolerance: float = 1e-12) -> None:
    scores = np.array([best.score for best in wanted])
    np.testing.assert_allclose(found.score, scores, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(found.frames, [best.frames for best in wanted])
    assert found.frames.dtype == np.int32


def tied(rng: np.random.Generator, batch: ArcsBatch) -> ArcsBatch:
    """Arcs of few different values, whose sums are exact: many paths are equally good."""
    blank, label = -rng.integers(0, 3, (2, *batch.blank.shape)) / 4
    return batch._replace(
        blank=blank.astype(batch.blank.dtype), label=label.astype(batch.label.dtype)
    )


@pytest.mark.parametrize("options", **each_topology)
def test_all_paths(implementation: str, options: Options) -> None:
    """Random, tied, forbidden and bad arcs, with begins, an empty window, and a delay penalty."""
    rng = np.random.default_rng(0)
    for dtype in (np.float64, np.float32):
        for penalty in (0.0, 0.5):
            batch = random_arcs(rng, 24, 5, 3, dtype=dtype, **options)
            ties = tied(rng, batch)
            planes = [
                np.concatenate([x, y]) for x, y in zip(batch[:2], ties[:2], strict=True)
            ]
            for plane in planes:
                plane[rng.random(plane.shape) < 0.1] = -np.inf
                plane[rng.random(plane.shape) < 0.01] = rng.choice([np.nan, np.inf, 2e6])
                plane[rng.random(plane.shape) < 0.05] = -3e7
            ranges = Ranges(*(np.tile(x, 2) for x in batch.ranges))
            batch = ArcsBatch(planes[0], planes[1], ranges)
            wanted = []
            for blank, label, w in zip(*planes, windows(ranges), strict=True):
                label = oracles.penalised(label.astype(np.float64), w, penalty)
                blank = blank.astype(np.float64)
                wanted.append(by_enumeration(blank, label, w, 3, **options))
            found = align_arcs(batch, implementation, delay_penalty=penalty, **options)
            assert_best(found, wanted, 1e-12 if dtype == np.float64 else 1e-6)
