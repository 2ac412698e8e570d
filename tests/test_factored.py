"""`rnnt_loss_simple` and `rnnt_loss_smoothed`: values and gradients against float64 oracles.

The oracles work on the dense sum `am + lm`. Tolerances as in test_values.py.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import (
    TOPOLOGIES,
    Lengths,
    Options,
    assert_grad_close,
    assert_loss_close,
    some_xla,
)
from factored_cases import each_implementation, factored_function, random_factored, run_factored
from jax.test_util import check_grads
from oracles_factored import FactoredBatch, FactoredResult, simple_loss, smoothed_loss

import jax_rnnt
from jax_rnnt import factored_sums

REGULARISERS: Options = {"fastemit_lambda": 0.3, "delay_penalty": 0.2}
SCALES: Options = {"lm_only_scale": 0.25, "am_only_scale": 0.1}
BLANKS = [0, 2, -1, -4]


def assert_close(found: FactoredResult, wanted: FactoredResult, tolerance: float) -> None:
    """Losses and both gradients."""
    assert_loss_close(found.loss, wanted.loss, tolerance)
    assert_grad_close(found.d_am, wanted.d_am, tolerance)
    assert_grad_close(found.d_lm, wanted.d_lm, tolerance)


# ------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("normalization", ["softmax", "none", "hat"])
@pytest.mark.parametrize(**some_xla)
def test_simple(implementation: str, topology: Options, normalization: str) -> None:
    """Random bounds and cotangents, regularised, float64: to 1e-12."""
    index = TOPOLOGIES.index(topology)
    rng = np.random.default_rng(index)
    options = dict(topology, normalization=normalization, blank_id=BLANKS[index], **REGULARISERS)
    for scale in (1.0, 4.0):
        batch = random_factored(rng, 12, 7, 5, 6, scale=scale, **options)
        cotangent = rng.normal(size=12)
        found = run_factored(batch, implementation, cotangent, **options)
        assert found.loss.dtype == found.d_am.dtype == np.float64
        assert_close(found, simple_loss(batch, cotangent, **options), 1e-12)


SHARES = [(0.25, 0.1), (0.0, 0.3), (0.2, 0.0), (0.4, 0.5)]


@pytest.mark.parametrize(**some_xla)
def test_smoothed(implementation: str, topology: Options) -> None:
    """The same for the smoothed loss; the gradient flows through the unigram."""
    index = TOPOLOGIES.index(topology)
    rng = np.random.default_rng(index)
    options = dict(topology, blank_id=BLANKS[index], **REGULARISERS)
    shares = SHARES if topology == TOPOLOGIES[0] and implementation == "native" else SHARES[:1]
    for lm_only_scale, am_only_scale in shares:
        scales = {"lm_only_scale": lm_only_scale, "am_only_scale": am_only_scale}
        batch = random_factored(rng, 12, 7, 5, 6, scale=2.0, **options)
        cotangent = rng.normal(size=12)
        found = run_factored(batch, implementation, cotangent, **options, **scales)
        assert_close(found, smoothed_loss(batch, cotangent, **options, **scales), 1e-11)


@pytest.mark.parametrize("frames_per_tile", [1, 4])
@pytest.mark.parametrize("normalization", ["softmax", "hat"])
def test_tiles(monkeypatch: pytest.MonkeyPatch, normalization: str, frames_per_tile: int) -> None:
    """Frames in tiles, the last of which overlaps; some with peaks so far apart that they are
    computed again.
    """
    # More classes than cells of a frame, and a shape that no other test compiles.
    count, frames, classes = 5, 10 + frames_per_tile, 8
    tile = 8 * count * classes * frames_per_tile
    monkeypatch.setattr(factored_sums, "_TILE_BYTES", {"cpu": tile, "gpu": tile})
    rng = np.random.default_rng(11)
    options = dict(REGULARISERS, normalization=normalization, blank_id=-1)
    batch = random_factored(rng, count, frames, 6, classes, scale=2.0, **options)
    for scores, peak in ((batch.am, 1), (batch.lm, 3)):
        scores[2:4, 3:, peak] += 900
    cotangent = rng.normal(size=count)
    found = run_factored(batch, "xla", cotangent, **options)
    # With peaks of 900, rounding is that of larger numbers.
    assert_close(found, simple_loss(batch, cotangent, **options), 1e-11)


@each_implementation
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("scales", [{}, {"normalization": "hat"}, SCALES], ids=str)
def test_large_products(implementation: str, dtype: Any, scales: Options) -> None:
    """More frames, label positions and classes than any kernel takes at a time, none a multiple of
    anything; a label that repeats; frames and positions with peaks far apart; NaN as padding.
    """
    rng = np.random.default_rng(23)
    options = dict(REGULARISERS, blank_id=1, **scales)
    batch = random_factored(rng, 2, 267, 67, 131, dtype=dtype, **options)
    batch = batch._replace(lengths=Lengths(np.array([267, 200]), np.array([67, 31])))
    batch.am[0, 100:105, 130] += 120
    batch.lm[0, 30:33, 129] += 120
    batch.labels[0, 3:20:4] = 130
    cotangent = rng.normal(size=2).astype(dtype)
    oracle = smoothed_loss if scales == SCALES else simple_loss
    wanted = oracle(batch, cotangent, **options)
    batch.am[1, 200:] = batch.lm[1, 32:] = np.nan
    found = run_factored(batch, implementation, cotangent, **options)
    assert_close(found, wanted, 1e-11 if dtype == np.float64 else 1e-5)


def test_utterances_apart() -> None:
    """Many frames and classes, whole tiles of label positions: a batch is its utterances, bit for
    bit, so none uses the other's memory.
    """
    batch = random_factored(np.random.default_rng(24), 2, 384, 63, 900, dtype=np.float32)
    together = run_factored(batch, "native")
    for i in range(2):
        alone = run_factored(jax.tree.map(lambda x, i=i: x[i : i + 1], batch), "native")
        for one, two in zip(together, alone, strict=True):
            np.testing.assert_array_equal(one[i : i + 1], two)


def test_enumeration() -> None:
    """Against the sum over all paths of tiny lattices."""
    rng = np.random.default_rng(5)
    for options in TOPOLOGIES:
        batch = random_factored(rng, 6, 4, 3, 4, scale=2.0, **options)
        wanted = simple_loss(batch, lattice=oracles.by_enumeration, **options)
        assert_close(run_factored(batch, "native", **options), wanted, 1e-12)


@each_implementation
@pytest.mark.parametrize("scales", [{}, SCALES], ids=["simple", "smoothed"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=str)
def test_dtypes(implementation: str, dtype: Any, scales: Options) -> None:
    """Losses in float32, gradients in the input's dtype, off by its rounding."""
    rng = np.random.default_rng(6)
    options = dict(REGULARISERS, **scales)
    batch = random_factored(rng, 6, 30, 20, 28, scale=2.0, dtype=dtype)
    found = run_factored(batch, implementation, **options)
    wanted = (smoothed_loss if scales else simple_loss)(batch, **options)
    assert found.loss.dtype == np.float32 and found.d_am.dtype == found.d_lm.dtype == dtype
    assert_loss_close(found.loss, wanted.loss, 1e-5)
    rounding = 1e-5 if dtype == jnp.float32 else float(jnp.finfo(dtype).eps)
    assert_grad_close(found.d_am, wanted.d_am, rounding)
    assert_grad_close(found.d_lm, wanted.d_lm, rounding)


@each_implementation
@pytest.mark.parametrize("normalization", ["softmax", "hat"])
def test_numerical_gradient(implementation: str, normalization: str) -> None:
    """`check_grads` in float64, simple and smoothed."""
    batch = random_factored(np.random.default_rng(7), 4, 5, 3, 5, normalization=normalization)
    for scales in ({}, SCALES) if normalization == "softmax" else ({},):
        function = factored_function(implementation, **({"normalization": normalization} | scales))
        check_grads(
            jax.jit(lambda *x, f=function: f(*x, *batch[2:])),
            batch[:2],
            order=1,
            modes=["rev"],
            atol=1e-6,
            rtol=1e-6,
        )


def test_zero_scales_are_simple() -> None:
    """Without smoothing the smoothed loss is the simple one, -inf logits included."""
    batch = random_factored(np.random.default_rng(8), 5, 6, 4, 5)
    batch.am[0, 2, 3] = batch.lm[0, 1, 4] = -np.inf
    zero = run_factored(batch, "native", lm_only_scale=0.0, am_only_scale=0.0)
    for one, two in zip(zero, run_factored(batch, "native"), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-14)


def test_smoothed_leaves_out_padding() -> None:
    """The unigram is over valid label positions: padding the batch changes nothing."""
    batch = random_factored(np.random.default_rng(9), 5, 6, 4, 5)
    wider = [(0, 0), (0, 3), (0, 0)]
    padded = batch._replace(
        am=np.pad(batch.am, wider, constant_values=np.nan),
        lm=np.pad(batch.lm, wider, constant_values=np.inf),
        labels=np.pad(batch.labels, [(0, 0), (0, 3)], constant_values=-7),
    )
    found = run_factored(padded, "native", **SCALES)
    assert (found.d_am[:, 6:] == 0).all() and (found.d_lm[:, 5:] == 0).all()
    found = FactoredResult(found.loss, found.d_am[:, :6], found.d_lm[:, :5])
    assert_close(found, run_factored(batch, "native", **SCALES), 1e-13)


@pytest.mark.parametrize("scales", [{}, SCALES], ids=["simple", "smoothed"])
def test_posteriors(implementation: str, scales: Options) -> None:
    """With the loss, from the same pass: those of its arcs; the loss stays differentiable."""
    batch = random_factored(np.random.default_rng(10), 5, 6, 4, 5)
    function = factored_function(implementation, return_posteriors=True, **scales)
    step = jax.jit(jax.value_and_grad(lambda *x: function(*x)[0].sum(), (0, 1)))
    loss, grads = step(*batch)
    plain = run_factored(batch, implementation, **scales)
    np.testing.assert_allclose(loss, plain.loss.sum(), rtol=1e-13)
    np.testing.assert_array_equal(grads[0], plain.d_am)
    np.testing.assert_array_equal(grads[1], plain.d_lm)
    _, posteriors = function(*batch)
    t1, u1, t0, u0 = batch.lengths
    total = np.asarray(posteriors.blank).sum((1, 2)), np.asarray(posteriors.label).sum((1, 2))
    np.testing.assert_allclose(total[0], t1 - t0, rtol=1e-12)
    np.testing.assert_allclose(total[1], u1 - u0, rtol=1e-12)
    constant = jax.grad(lambda *x: function(*x)[1].label.sum(), (0, 1))(*batch)
    assert all((x == 0).all() for x in constant)


# ------------------------------------------------------------------------------ far apart, extreme


@each_implementation
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("gap", [50.0, 80.0, 100.0, 300.0, 1e4])
def test_disjoint_peaks(implementation: str, dtype: Any, gap: float) -> None:
    """Halves that peak at different classes, where products of their exponentials underflow."""
    rng = np.random.default_rng(11)
    batch = random_factored(rng, 6, 8, 4, 7, dtype=dtype)
    batch.am[:, :4, 1] += gap
    batch.lm[:, ::2, 2] += gap
    for options in ({}, {"normalization": "hat"}):
        found = run_factored(batch, implementation, **options)
        # rounded are sums and differences of the size of the gap, T + U of them on a path
        tolerance = 12 * max(gap, 10) * float(np.finfo(dtype).eps)
        assert_close(found, simple_loss(batch, **options), tolerance)


@each_implementation
def test_known_values(implementation: str) -> None:
    """Two classes, one frame, peaks 100 apart: log 2 for each arc."""
    am = np.array([[100.0, 0.0]], np.float32)
    lm = np.array([[0.0, 100.0], [0.0, 100.0]], np.float32)
    labels = np.array([1], np.int32)
    loss = jax_rnnt.rnnt_loss_simple(am, lm, labels, implementation=implementation)
    np.testing.assert_allclose(loss, 2 * np.log(2), rtol=4e-6)
    third = np.pad(am, [(0, 0), (0, 1)]), np.pad(lm, [(0, 0), (0, 1)])  # one in e^100
    loss = jax_rnnt.rnnt_loss_simple(*third, labels, implementation=implementation)
    np.testing.assert_allclose(loss, 2 * np.log(2), rtol=4e-6)


@each_implementation
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("normalization", ["softmax", "hat"])
def test_hundreds(implementation: str, dtype: Any, normalization: str) -> None:
    """Every logit +-100, so that most cells need other classes than both halves' peaks."""
    rng = np.random.default_rng(12)
    batch = random_factored(rng, 8, 6, 4, 5, dtype=dtype, normalization=normalization)
    am, lm = (rng.choice(np.array([-100, 100], dtype), x.shape) + x for x in batch[:2])
    batch = batch._replace(am=am, lm=lm)
    found = run_factored(batch, implementation, normalization=normalization)
    wanted = simple_loss(batch, normalization=normalization)
    tolerance = 10 * 200 * float(np.finfo(dtype).eps)
    assert_close(found, wanted, tolerance)


@each_implementation
@pytest.mark.parametrize("peak", [2, 3])
def test_smoothed_far_apart(implementation: str, peak: int) -> None:
    """The unigram is a logarithm throughout: classes 200 nats below others are no problem, also
    where frames peak at them.
    """
    rng = np.random.default_rng(13)
    batch = random_factored(rng, 5, 6, 4, 5, dtype=np.float32)
    batch.lm[..., 2] -= 200
    batch.am[:, 1:4, peak] += 200
    found = run_factored(batch, implementation, **SCALES)
    assert np.isfinite(found.loss).all()
    assert_close(found, smoothed_loss(batch, **SCALES), 1e-4)


def test_smoothed_sums_of_many() -> None:
    """Gradients by the average are sums over all frames of the batch, in float32."""
    batch = random_factored(np.random.default_rng(19), 6, 1200, 60, 40, dtype=np.float32)
    cotangent = np.ones(6)
    found = run_factored(batch, "native", cotangent.astype(np.float32), **SCALES)
    assert_close(found, smoothed_loss(batch, cotangent, **SCALES), 1e-5)


@pytest.mark.parametrize(("frames", "labels", "tolerance"), [(480, 120, 1e-5), (1500, 300, 1e-4)])
def test_long_float32(frames: int, labels: int, tolerance: float) -> None:
    """No drift with length."""
    rng = np.random.default_rng(14)
    batch = random_factored(rng, 2, frames, labels, 4, scale=2.0, dtype=np.float32)
    batch = batch._replace(lengths=Lengths(np.array([frames, frames]), np.array([labels, labels])))
    found, wanted = run_factored(batch, "native"), simple_loss(batch)
    assert_loss_close(found.loss, wanted.loss, 1e-5)
    assert_grad_close(found.d_am, wanted.d_am, tolerance)
    assert_grad_close(found.d_lm, wanted.d_lm, tolerance)


# ---------------------------------------------------------------------------------- empty things


@each_implementation
@pytest.mark.parametrize("scales", [{}, SCALES], ids=["simple", "smoothed"])
@pytest.mark.parametrize("shape", [(1, 0), (4, 0), (1, 1), (0, 0), (0, 2)], ids=str)
def test_small_lattices(implementation: str, shape: tuple[int, int], scales: Options) -> None:
    """U = 0, T = 1 and T = 0."""
    frames, labels = shape
    batch = random_factored(np.random.default_rng(15), 2, max(frames, 1), labels, 4)
    batch = FactoredBatch(batch.am[:, :frames], batch.lm, batch.labels, Lengths())
    found = run_factored(batch, implementation, **scales)
    if frames == 0:
        np.testing.assert_array_equal(found.loss, 0.0 if labels == 0 else np.inf)
        assert (found.d_lm == 0).all()
        return
    assert_close(found, (smoothed_loss if scales else simple_loss)(batch, **scales), 1e-12)


@pytest.mark.parametrize("scales", [{}, SCALES], ids=["simple", "smoothed"])
def test_empty_batch(scales: Options) -> None:
    """B = 0."""
    batch = random_factored(np.random.default_rng(16), 0, 4, 2, 5)
    found = run_factored(batch, "native", **scales)
    assert [x.shape for x in found] == [(0,), (0, 4, 5), (0, 3, 5)]
    assert run_factored(batch, "native", reduction="mean", **scales).loss == 0


@pytest.mark.parametrize("shape", [(), (2, 3)], ids=str)
@pytest.mark.parametrize("scales", [{}, SCALES], ids=["simple", "smoothed"])
def test_batch_dimensions(shape: tuple[int, ...], scales: Options) -> None:
    """Any number of leading dims is the flat batch, reshaped."""
    count = int(np.prod(shape))
    flat = random_factored(np.random.default_rng(17), count, 4, 3, 5)
    shaped = jax.tree.map(lambda x: x.reshape((*shape, *x.shape[1:])), flat)
    found = run_factored(shaped, "native", **scales)
    wanted = run_factored(flat, "native", **scales)
    for one, two in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.reshape(two.shape), two, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scales", [{}, SCALES], ids=["simple", "smoothed"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_where_and_reduction(reduction: str, scales: Options) -> None:
    """Left-out utterances do not count, neither in the mean nor in the unigram."""
    batch = random_factored(np.random.default_rng(18), 6, 5, 3, 5)
    keep = np.array([True, False, True, True, False, True])
    kept = jax.tree.map(lambda x: x[keep], batch)
    options = dict(scales, reduction=reduction)
    found = run_factored(batch._replace(where=keep), "native", **options)
    wanted = run_factored(kept, "native", **options)
    assert (found.d_am[~keep] == 0).all() and (found.d_lm[~keep] == 0).all()
    loss = found.loss[keep] if reduction == "none" else found.loss
    np.testing.assert_allclose(loss, wanted.loss, rtol=1e-13)
    np.testing.assert_allclose(found.d_am[keep], wanted.d_am, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(found.d_lm[keep], wanted.d_lm, rtol=1e-11, atol=1e-14)
