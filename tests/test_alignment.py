"""Best alignments and best labels.

Against all paths of tiny lattices and bands, and a plain recursion on larger ones.
`oracles_alignment` says which path it is where several are equally good.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pruned_cases
import pytest
from alignment_cases import (
    align_arcs,
    as_keywords,
    assert_best,
    bounds_of,
    normalised_arcs,
    normalised_best_arcs,
    spoiled,
)
from cases import ArcsBatch, Lengths, Options, each_topology, random_arcs, random_batch
from factored_cases import random_factored
from oracles_alignment import by_enumeration, by_recursion
from oracles_factored import FactoredBatch

import jax_rnnt
from jax_rnnt.lattice import banded_best_path
from jax_rnnt.types import LatticeOptions

NORMALIZATIONS = ["softmax", "none", "hat"]


@pytest.mark.parametrize("options", **each_topology)
def test_all_paths(implementation: str, options: Options) -> None:
    """With begins, utterances without frames, forbidden and bad arcs, and ties."""
    rng = np.random.default_rng(0)
    size = 64
    lengths = random_arcs(rng, size, 5, 3, **options).lengths
    arcs = spoiled(rng, size, 5, 4)
    # The pure-JAX implementation is compiled for one of them.
    for dtype, penalty in [(np.float64, 0.5), (np.float32, 0.0)][
        : 1 + (implementation == "native")
    ]:
        wanted = [
            by_enumeration(blank, oracles.penalised(label, w, penalty), w, 3, **options)
            for blank, label, w in zip(*arcs, bounds_of(lengths), strict=True)
        ]
        batch = ArcsBatch(*arcs.astype(dtype), lengths)
        found = align_arcs(batch, implementation, delay_penalty=penalty, **options)
        assert_best(found, wanted, 1e-12 if dtype == np.float64 else 1e-6)
        assert np.isnan(found.score).sum() > 1 and np.isfinite(found.score).sum() > size / 4


@pytest.mark.parametrize("topology", pruned_cases.TOPOLOGIES)
def test_all_paths_of_bands(implementation: str, topology: Any) -> None:
    """Bands as pruning makes them, and bands of any shape; with and without a path."""
    rng = np.random.default_rng(1)
    size, frames, labels, width = 64, 5, 4, 3
    batch = pruned_cases.random_pruned(rng, size, frames, labels, width, 2, topology=topology)
    t1, u1, t0, u0 = batch.lengths
    starts = batch.ranges[..., 0].copy()
    steps = rng.integers(-1, 3, (size // 4, frames))
    starts[::4] = steps.cumsum(1) - 1
    arcs = spoiled(rng, size, frames, width)
    wanted = [
        by_enumeration(blank, label, w, labels, topology, starts=start)
        for blank, label, w, start in zip(*arcs, bounds_of(batch.lengths), starts, strict=True)
    ]
    options = LatticeOptions(topology, implementation=implementation)  # type: ignore[arg-type]
    bounds = np.stack([t0, t1, u0, u1], axis=-1)
    function = jax.jit(partial(banded_best_path, options, labels))
    assert_best(jax.device_get(function(*arcs, starts, bounds)), wanted)


SHAPES = [(4, 1, 0), (4, 9, 0), (4, 1, 4), (3, 70, 37), (2, 20, 90), (2, 3, 1100)]


@pytest.mark.parametrize("options", **each_topology)
def test_recursion(implementation: str, options: Options) -> None:
    """Larger lattices, in which one path is the best; wide ones take several rounds of a block."""
    rng = np.random.default_rng(2)
    for shape in SHAPES if implementation == "native" else SHAPES[3:4]:
        batch = random_arcs(rng, *shape, **options)
        wanted = [
            by_recursion(blank, label, w, **options)
            for blank, label, w in zip(*batch[:2], bounds_of(batch.lengths), strict=True)
        ]
        assert_best(align_arcs(batch, implementation, **options), wanted)
        if implementation == "native":
            single = ArcsBatch(*(x.astype(np.float32) for x in batch[:2]), batch.lengths)
            found = align_arcs(single, implementation, **options)
            scores = [best.score for best in wanted]
            np.testing.assert_allclose(found.score, scores, rtol=1e-5, atol=1e-5)


def test_rows_beyond_shared_memory() -> None:
    """So many labels that a row of a GPU's block does not fit on chip."""
    batch = random_arcs(np.random.default_rng(3), 1, 2, 3000, topology="regular")
    (w,) = bounds_of(batch.lengths)
    wanted = by_recursion(batch.blank[0], batch.label[0], w)
    assert_best(align_arcs(batch, "native", topology="regular"), [wanted])


def test_reduced_precision() -> None:
    """bfloat16 arcs are float32 arcs of the same value."""
    batch = random_arcs(np.random.default_rng(4), 4, 6, 4, dtype=jnp.bfloat16)
    wide = ArcsBatch(*(x.astype(np.float32) for x in batch[:2]), batch.lengths)
    found, wanted = (align_arcs(b, "native") for b in (batch, wide))
    assert found.score.dtype == np.float32
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


# ------------------------------------------------------------------------------------- from scores


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_logits(implementation: str, normalization: str) -> None:
    """`rnnt_align`, and the same of the additive joiner's halves."""
    rng = np.random.default_rng(5)
    options: Any = {"normalization": normalization, "blank_id": 2, "implementation": implementation}
    batch = random_factored(rng, 6, 7, 4, 5, blank_id=2)
    logits = batch.am[:, :, None] + batch.lm[:, None]
    wanted = [
        by_recursion(*normalised_arcs(x, labels, w, 2, normalization), w)
        for x, labels, w in zip(logits, batch.labels, bounds_of(batch.lengths), strict=True)
    ]
    found = jax_rnnt.rnnt_align(logits, batch.labels, **as_keywords(batch.lengths), **options)
    assert_best(jax.device_get(found), wanted)
    if implementation == "native":  # the arcs are the same code in both
        found = jax_rnnt.rnnt_align_simple(*batch[:3], **as_keywords(batch.lengths), **options)
        assert_best(jax.device_get(found), wanted)
        loss = jax_rnnt.rnnt_loss(logits, batch.labels, **as_keywords(batch.lengths), **options)
        assert (found.score <= -loss + 1e-12).all()


@pytest.mark.parametrize("topology", pruned_cases.TOPOLOGIES)
def test_pruned(topology: Any) -> None:
    """`rnnt_align_pruned`: with all label positions it is `rnnt_align`; else no better."""
    rng = np.random.default_rng(6)
    batch = random_batch(rng, 6, 7, 4, 5, topology=topology)
    arguments = batch.labels, as_keywords(batch.lengths) | {"topology": topology}
    whole = jax_rnnt.rnnt_align(batch.logits, arguments[0], **arguments[1])
    every = np.broadcast_to(np.arange(5), (6, 7, 5))
    found = jax_rnnt.rnnt_align_pruned(batch.logits, arguments[0], every, **arguments[1])
    jax.tree.map(np.testing.assert_array_equal, found, whole)

    pruned = pruned_cases.random_pruned(rng, 6, 7, 4, 3, 5, topology=topology)
    found = jax_rnnt.rnnt_align_pruned(
        *pruned[:3], **as_keywords(pruned.lengths), topology=topology, delay_penalty=0.5
    )
    wanted = []
    rows = zip(*pruned[:3], bounds_of(pruned.lengths), strict=True)
    for logits, labels, ranges, w in rows:
        dense, starts = np.zeros((7, 5, 5)), np.clip(ranges[:, 0], 0, 2)
        for t, start in enumerate(starts):
            dense[t, start : start + 3] = logits[t]
        blank, label = normalised_arcs(dense, labels, w, 0, "softmax")
        label = oracles.penalised(label, w, 0.5)
        columns = starts[:, None] + np.arange(3)
        band = (np.take_along_axis(x, columns, 1) for x in (blank, label))
        wanted.append(by_enumeration(*band, w, 4, topology, starts=starts))
    assert_best(jax.device_get(found), wanted)


# ------------------------------------------------------------------------------------- best labels


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_best_labels(normalization: Any) -> None:
    """All paths, each label arc with its best class; forbidden classes, and frames without any."""
    rng = np.random.default_rng(7)
    batch = random_factored(rng, 12, 4, 3, 5, scale=2.0)
    am, lm = batch.am, batch.lm
    am[rng.random(am.shape) < 0.1] = -np.inf
    am[3, :, :4] = am[4, 1, :4] = -np.inf  # blank, 4, is all there is
    logits = am[:, :, None] + lm[:, None]
    wanted, classes = [], []
    for x, w in zip(logits, bounds_of(batch.lengths), strict=True):
        blank, label, best = normalised_best_arcs(x, w, 4, normalization)
        wanted.append(by_enumeration(blank, label, w, 3))
        frames = wanted[-1].frames
        classes.append(np.where(frames >= 0, best[frames, np.arange(3)], -1))
    options: Any = as_keywords(batch.lengths) | {"blank_id": -1, "normalization": normalization}
    for found in (
        jax_rnnt.rnnt_best_labels(logits, **options),
        jax_rnnt.rnnt_best_labels_simple(am, lm, **options),
    ):
        assert_best(jax.device_get(found), wanted)
        np.testing.assert_array_equal(found.labels, classes)
        assert found.labels.dtype == jnp.int32
    assert np.isneginf(found.score[3])


def test_best_labels_ties() -> None:
    """The first of equally good classes; a label only where it is better than blank."""
    logits = jnp.zeros((1, 4, 3, 4))
    options: Any = {"normalization": "none"}  # sums without rounding
    found = jax_rnnt.rnnt_best_labels(logits, blank_id=1, **options)
    np.testing.assert_array_equal(found.labels, [[0, 0]])
    np.testing.assert_array_equal(found.frames, [[0, 0]])
    found = jax_rnnt.rnnt_best_labels_simple(logits[:, :, 0], logits[:, 0], **options)
    np.testing.assert_array_equal(found.labels, [[1, 1]])


def test_blank_alone() -> None:
    """One class: no labels, or no alignment."""
    found = jax_rnnt.rnnt_best_labels(jnp.zeros((2, 3, 2, 1)), label_lengths=np.array([0, 1]))
    np.testing.assert_array_equal(found.score, [0, -np.inf])
    np.testing.assert_array_equal(found.labels, [[-1], [-1]])


# ----------------------------------------------------------------------------------- special cases


def test_nothing_to_align(implementation: str) -> None:
    """No frames, no labels, neither; left out; more labels than frames; lengths out of range."""
    logit_lengths = np.array([0, 3, 0, 3, 3, 4, -1])
    label_lengths = np.array([2, 0, 0, 2, 2, 2, 2])
    where = np.arange(7) != 3
    planes = jnp.full((2, 7, 3, 3), -1.0)
    options: Any = {"topology": "modified", "implementation": implementation, "check": False}
    found = jax_rnnt.rnnt_align_from_arcs(
        *planes, logit_lengths, label_lengths, where=where, **options
    )
    np.testing.assert_array_equal(found.score, [-np.inf, -3, 0, 0, -3, np.nan, np.nan])
    wanted = np.full((7, 2), -1)
    wanted[4] = 0, 1
    np.testing.assert_array_equal(found.frames, wanted)
    for shape in ((2, 0, 3), (2, 3, 1), (0, 3, 3)):
        empty = jnp.zeros(shape)
        alone = jax_rnnt.rnnt_align_from_arcs(empty, empty, **options)
        assert alone.score.shape == shape[:1] and alone.frames.shape == (shape[0], shape[2] - 1)
        np.testing.assert_array_equal(alone.score, np.full(shape[0], 0 if shape[1] else -np.inf))


def test_bad_label_and_padding(implementation: str) -> None:
    """An utterance with a bad label gets NaN; NaN in padding has no effect."""
    batch = random_batch(np.random.default_rng(8), 4, 5, 3, 6)
    lengths = Lengths(np.array([5, 4, 3, 5]), np.array([3, 2, 1, 2]))
    align: Any = partial(jax_rnnt.rnnt_align, implementation=implementation, check=False)
    clean = align(batch.logits, batch.labels, **as_keywords(lengths))
    logits, labels = batch.logits.copy(), batch.labels.copy()
    logits[1, 4:], logits[2, :, 2:] = np.nan, np.nan
    labels[3, 1] = 6
    found = align(logits, labels, **as_keywords(lengths))
    assert np.isnan(found.score[3]) and (found.frames[3] == -1).all()
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[:3], y[:3]), found, clean)


FUNCTIONS: dict[str, Any] = {
    "rnnt_align": lambda batch, logits, **o: jax_rnnt.rnnt_align(logits, batch.labels, **o),
    "rnnt_align_simple": lambda batch, logits, **o: jax_rnnt.rnnt_align_simple(
        logits[:, :, 0], batch.lm, batch.labels, **o
    ),
    "rnnt_align_pruned": lambda batch, logits, **o: jax_rnnt.rnnt_align_pruned(
        logits, batch.labels, np.broadcast_to(np.arange(4), logits.shape[:3]), **o
    ),
    "rnnt_align_from_arcs": lambda batch, logits, **o: jax_rnnt.rnnt_align_from_arcs(
        logits[..., 0], logits[..., 1], **o
    ),
    "rnnt_best_labels": lambda batch, logits, **o: jax_rnnt.rnnt_best_labels(logits, **o),
    "rnnt_best_labels_simple": lambda batch, logits, **o: jax_rnnt.rnnt_best_labels_simple(
        logits[:, :, 0], batch.lm, **o
    ),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_label_windows(function: str) -> None:
    """All paths that emit each label in its window; some utterances have none."""
    rng = np.random.default_rng(10)
    batch = random_factored(rng, 16, 5, 3, 4)
    batch.lm[:, 0] = 0  # `am` is the first column of the logits
    begins = rng.integers(-1, 4, (16, 3, 1))
    label_windows = np.concatenate([begins, begins + rng.integers(0, 5, begins.shape)], axis=-1)
    logits = batch.am[:, :, None] + batch.lm[:, None]
    wanted = []
    rows = zip(logits, batch.labels, bounds_of(batch.lengths), label_windows, strict=True)
    for x, labels, w, (first, end) in ((*row[:3], row[3].T) for row in rows):
        if function == "rnnt_align_from_arcs":
            blank, label = x[..., 0], x[..., 1].copy()
        elif function.startswith("rnnt_best_labels"):
            blank, label, _ = normalised_best_arcs(x, w, 0, "softmax")
        else:
            blank, label = normalised_arcs(x, labels, w, 0, "softmax")
        t = np.arange(5)[:, None]
        label[:, :3][(t < first) | (t >= end)] = -np.inf
        wanted.append(by_enumeration(blank, label, w, 3))
    options: Any = as_keywords(batch.lengths) | {"label_windows": label_windows}
    found = FUNCTIONS[function](FactoredBatch(*batch[:3], Lengths()), logits, **options)
    assert_best(jax.device_get(found), wanted)
    assert 2 < np.isfinite(found.score).sum() < 14


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_arguments(function: Any) -> None:
    """Constants to differentiation; bad arguments are named."""
    batch = random_factored(np.random.default_rng(9), 2, 5, 3, 6)
    batch = FactoredBatch(*batch[:3], Lengths())
    logits = batch.am[:, :, None] + batch.lm[:, None]
    gradient = jax.grad(lambda x: function(batch, x).score.sum())(logits)
    np.testing.assert_array_equal(gradient, np.zeros_like(logits))
    with pytest.raises(ValueError, match=r"logit_lengths\[1\] is 6; expected .* T = 5"):
        function(batch, logits, logit_lengths=np.array([1, 6]))
    with pytest.raises(ValueError, match=r"topology is 'other'; expected one of 'regular'"):
        function(batch, logits, topology="other")
    with pytest.raises(TypeError, match="dtype int"):
        function(batch, logits.astype(np.int32))
