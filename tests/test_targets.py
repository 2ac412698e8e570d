"""Every instruction set that the processor has, not only the one that is chosen: the kernels are
compiled once for each, with vectors of another width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from alignment_cases import align_arcs, assert_best, bounds_of
from cases import (
    ArcsBatch,
    Options,
    each_topology,
    expected,
    random_arcs,
    random_batch,
    run,
    valid_cells,
)
from factored_cases import random_factored, run_factored
from oracles_alignment import by_recursion
from oracles_factored import FactoredBatch, FactoredResult, simple_loss, smoothed_loss
from packed_cases import random_packed
from pruned_cases import TOPOLOGIES, random_pruned
from test_in_place import check_same_numbers
from test_packed import check_packed, check_skewed
from test_packed_alignment import check_packed_paths
from test_pruning import check_pruned
from test_regressions import IMPROBABLE, check_improbable_paths
from test_values import check_dtype

from jax_rnnt._native import _cpu
from jax_rnnt.arcs import arcs_bwd
from jax_rnnt.types import ArcsOptions

pytestmark = pytest.mark.cpu_only("about the instruction sets of CPUs")

DTYPES = [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16]


@pytest.fixture(params=_cpu.available_targets())
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kernels of one instruction set, for the length of a test."""
    before = _cpu.active_target()
    _cpu.select_target(request.param)
    yield request.param
    _cpu.select_target(before)


def test_selection(target: str) -> None:
    """The choice is visible; a name that is not available is an error that lists those that are."""
    assert _cpu.active_target() == target
    with pytest.raises(ValueError, match=f"sse9.*{target}"):
        _cpu.select_target("sse9")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("normalization", ["softmax", "none", "hat"])
def test_rows(target: str, dtype: Any, normalization: str) -> None:
    """Rows shorter and longer than a vector and than a block of vectors."""
    rng = np.random.default_rng(0)
    options: Options = {"normalization": normalization}
    for classes in (2, 5, 20, 70, 300, 1500):
        batch = random_batch(rng, 6, 5, 3, classes, scale=2.0, dtype=dtype, **options)
        check_dtype(batch, "native", dtype, options)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: jnp.dtype(d).name)
def test_in_place(target: str, dtype: Any) -> None:
    """The gradient in the memory of the logits: rows in groups, and in parts."""
    check_same_numbers([2, 28, 129, 1025], dtype, "hat")
    check_same_numbers([16, 50, 250, 1026], dtype, "softmax")


# Labels a frame has one more row than, and classes: around multiples of all vector widths, and of
# the 64 rows and 128 classes up to which rows are taken together.
SHAPES = [
    (0, 2),
    (8, 2),
    (14, 5),
    (15, 16),
    (16, 17),
    (30, 28),
    (19, 33),
    (68, 64),
    (9, 128),
    (9, 129),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("normalization", ["softmax", "hat"])
def test_short_rows(target: str, shape: tuple[int, int], normalization: str) -> None:
    """Rows that are taken together: NaN in the rows around them, classes and rows that are -inf."""
    labels, classes = shape
    rng = np.random.default_rng(2)
    options: Options = {"normalization": normalization, "blank_id": classes - 2}
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
        batch = random_batch(rng, 8, 4, labels, classes, scale=2.0, dtype=dtype, **options)
        if labels:
            batch.logits[2:5][rng.random(batch.logits[2:5].shape) < 0.03] = -np.inf
            batch.logits[5:, 1, labels // 2] = -np.inf
        wanted = expected(batch, **options)
        assert np.isfinite(wanted.loss).sum() > 2
        batch.logits[~valid_cells(batch)] = np.nan
        loss, grad = run(batch, "native", **options)
        np.testing.assert_allclose(loss, wanted.loss, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(grad, wanted.grad, rtol=0, atol=tolerance)


def test_exponentials(target: str) -> None:
    """In units in the last place: 1.3 + 2/3 |x| with AVX-512, 1 with AVX2, 2 without FMA.

    With one blank arc of weight 1 and a denominator of 1, the gradient by other classes is exp(x).
    """
    x = np.linspace(-87, 0, 200_001, dtype=np.float32)
    plane = np.zeros((1, 1, 1), np.float32)
    labels, cotangents = np.zeros((1, 0), np.int32), np.ones(1, np.float32)
    logits = jnp.asarray(np.concatenate([[0], x]).astype(np.float32)[None, None, None])
    operands = (labels, plane, plane + 1, plane, cotangents)
    gradient = arcs_bwd(ArcsOptions(), logits, *map(jnp.asarray, operands))
    found = np.asarray(gradient, np.float64)[0, 0, 0, 1:]
    wanted = np.exp(x.astype(np.float64))
    ulps = np.abs(found / wanted - 1) * 2.0**23
    bound = {"avx512": 1.3 + np.abs(x) * 2 / 3, "avx2": 1.0}.get(target, 2.0)
    assert (ulps <= bound).all(), (ulps / bound).max()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda d: jnp.dtype(d).name)
def test_large_gradients(target: str, dtype: Any) -> None:
    """Gradients of more than 16 MB leave in whole cache lines: rows that begin anywhere in one and
    are shorter or longer than what is collected, frames and whole utterances of zeros between them.
    """
    rng = np.random.default_rng(5)
    for frames, labels, classes in ((120, 4, 3001), (60, 510, 67)):
        frames *= 4 // jnp.dtype(dtype).itemsize
        batch = random_batch(rng, 3, frames, labels, classes, scale=2.0, dtype=dtype)
        assert batch.logits.nbytes > 1 << 24
        check_dtype(batch, "native", dtype, {"clamp": 0.3})
        check_dtype(batch, "native", dtype, {})


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize(
    "options",
    [
        {"topology": "regular", "delay_penalty": 0.1},
        {"topology": "modified", "final_blank": True},
        {"topology": "constrained", "fastemit_lambda": 0.1},
    ],
    ids=lambda o: o["topology"],
)
def test_lattices(target: str, dtype: Any, options: Options) -> None:
    """Lattices of several blocks of fronts, longer than high and higher than long."""
    rng = np.random.default_rng(1)
    for frames, labels in ((90, 37), (40, 70), (70, 3)):
        batch = random_batch(rng, 4, frames, labels, 4, scale=2.0, dtype=dtype, **options)
        check_dtype(batch, "native", dtype, options)


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=lambda d: np.dtype(d).name)
def test_packed_rows(target: str, dtype: Any) -> None:
    """Rows of all utterances taken together, and lattices of few labels or few frames."""
    for classes in (2, 17, 67):
        batch, wanted = random_packed(np.random.default_rng(4), 5, 30, 12, classes, dtype=dtype)
        check_packed(batch, wanted, "native", {})
    check_skewed([70, 1, 33], [0, 0, 1], 3, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_bands(target: str, topology: str, dtype: Any) -> None:
    """Batches that fill some lanes, all and more; bands of several tiles of frames."""
    rng = np.random.default_rng(3)
    options: Options = {"topology": topology, "delay_penalty": 0.1, "fastemit_lambda": 0.1}
    for count, frames, labels, s_range in ((1, 40, 20, 4), (5, 17, 9, 3), (18, 33, 12, 7)):
        batch = random_pruned(
            rng, count, frames, labels, s_range, 5, dtype=dtype, scale=2.0, **options
        )
        check_pruned(batch, "native", dtype, **options)


@pytest.mark.parametrize("options", **each_topology)
def test_best_paths(target: str, options: Options) -> None:
    """Rows of labels shorter and longer than a vector."""
    rng = np.random.default_rng(4)
    for labels in (0, 3, 8, 16, 37):
        batch = random_arcs(rng, 3, 40, labels, **options)
        wanted = [
            by_recursion(blank, label, w, **options)
            for blank, label, w in zip(*batch[:2], bounds_of(batch.lengths), strict=True)
        ]
        for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
            planes = (x.astype(dtype) for x in batch[:2])
            found = align_arcs(ArcsBatch(*planes, batch.lengths), "native", **options)
            assert_best(found, wanted, tolerance)
    check_packed_paths([40, 0, 7], [37, 3, 0], options)


# Sizes on either side of the blocks that are multiplied at a time: 48 frames, 144 label positions,
# 1024 bytes of classes, and tiles of 6 rows.
BLOCKS = [(49, 5, 259), (13, 143, 17), (7, 150, 130)]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("sizes", BLOCKS, ids=str)
def test_additive_joiner(target: str, sizes: tuple[int, int, int], dtype: Any) -> None:
    """Values and gradients: NaN outside, forbidden classes, halves that peak far apart."""
    rng = np.random.default_rng(6)
    frames, labels, classes = sizes
    for normalization in ("softmax", "hat", "none"):
        options: Options = {"normalization": normalization, "blank_id": classes - 2}
        options |= {"fastemit_lambda": 0.1}
        batch = random_factored(rng, 4, frames, labels, classes, scale=2.0, dtype=dtype, **options)
        am, lm = batch[:2]
        scores = am[..., classes - 2].copy(), lm.copy()
        am[rng.random(am.shape) < 0.02] = -np.inf
        lm[rng.random(lm.shape) < 0.02] = -np.inf
        am[..., classes - 2], lm[..., classes - 2] = scores[0], scores[1][..., classes - 2]
        at_label = *np.indices(batch.labels.shape), batch.labels
        lm[at_label] = scores[1][at_label]  # or there would be no path
        am[2, frames // 2 :, 1] += np.asarray(150, dtype)
        lm[2, : labels // 2, 3] += np.asarray(150, dtype)
        wanted = simple_loss(batch, **options)
        assert np.isfinite(wanted.loss).sum() > 1
        _assert_close(run_factored(_nan_outside(batch), "native", **options), wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("sizes", BLOCKS, ids=str)
def test_smoothed_joiner(target: str, sizes: tuple[int, int, int], dtype: Any) -> None:
    """The same, smoothed; some frames peak at a class that the predictor all but rules out."""
    rng = np.random.default_rng(7)
    frames, labels, classes = sizes
    options: Options = {"blank_id": classes - 2, "lm_only_scale": 0.2, "am_only_scale": 0.3}
    batch = random_factored(rng, 4, frames, labels, classes, scale=2.0, dtype=dtype, **options)
    batch.lm[..., 1] -= np.asarray(150, dtype)
    for b, begin, end in ((1, 0, frames), (2, frames // 2, frames)):
        batch.am[b, begin:end, 1] += np.asarray(150, dtype)
    wanted = smoothed_loss(batch, **options)
    assert np.isfinite(wanted.loss).all()
    _assert_close(run_factored(_nan_outside(batch), "native", **options), wanted, dtype)


def _assert_close(found: FactoredResult, wanted: FactoredResult, dtype: Any) -> None:
    tolerance = 1e-11 if dtype == jnp.float64 else 1e-4
    np.testing.assert_allclose(found.loss, wanted.loss, rtol=tolerance, atol=tolerance)
    stored = tolerance if dtype in (jnp.float64, jnp.float32) else float(jnp.finfo(dtype).eps)
    for one, two in ((found.d_am, wanted.d_am), (found.d_lm, wanted.d_lm)):
        bound = stored * np.maximum(1, np.abs(two))
        assert (np.abs(one.astype(np.float64) - two) <= bound).all()


def _nan_outside(batch: FactoredBatch) -> FactoredBatch:
    t1, u1, t0, u0 = (np.asarray(x)[:, None] for x in batch.lengths)
    t, u = np.arange(batch.am.shape[1])[None], np.arange(batch.lm.shape[1])[None]
    frames, positions = (t0 <= t) & (t < t1), (u0 <= u) & (u <= u1) & (t0 < t1)
    am, lm = batch.am.copy(), batch.lm.copy()
    am[~frames], lm[~positions] = np.nan, np.nan
    return batch._replace(am=am, lm=lm)


def test_improbable_paths(target: str) -> None:
    for first, second in IMPROBABLE:
        check_improbable_paths("native", first, second)
