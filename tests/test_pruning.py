"""`rnnt_loss_pruned`: losses and gradients against float64 oracles, at the promised tolerances."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles_pruned
import pytest
from assertions import assert_rounded
from cases import (
    Batch,
    Lengths,
    assert_grad_close,
    assert_loss_close,
    expected,
    random_batch,
)
from jax.test_util import check_grads
from oracles import Bounds
from pruned_cases import (
    TOPOLOGIES,
    PrunedBatch,
    expected_pruned,
    pruned_function,
    random_pruned,
    run_pruned,
)

import jax_rnnt

REGULARISERS = {"fastemit_lambda": 0.3, "delay_penalty": 0.2}
NORMALIZATIONS = ["softmax", "none", "hat"]
DTYPES = [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16]


def check_pruned(batch: PrunedBatch, implementation: str, dtype: Any, **options: Any) -> None:
    """Output dtypes, and errors against float64 on the same (already rounded) input."""
    loss, grad = run_pruned(batch, implementation, **options)
    wanted = expected_pruned(batch, **options)
    assert grad.dtype == dtype
    assert loss.dtype == (np.float64 if dtype == jnp.float64 else np.float32)
    tolerance = 1e-12 if dtype == jnp.float64 else 1e-5
    assert_loss_close(loss, wanted.loss, tolerance)
    if dtype in (jnp.bfloat16, jnp.float16):
        assert_rounded(grad, wanted.grad)
    else:
        assert_grad_close(grad, wanted.grad, tolerance)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_float64(implementation: str, topology: str, normalization: str) -> None:
    """Random bounds and cotangents, with and without regularisers: to 1e-12."""
    rng = np.random.default_rng(0)
    plain = {"topology": topology, "normalization": normalization, "blank_id": -2}
    runs = [(plain | REGULARISERS, 4), (plain, 2)]
    for options, rounds in runs if implementation == "native" else runs[:1]:
        for _ in range(rounds):
            batch = random_pruned(rng, 19, 9, 7, 3, 6, scale=rng.uniform(0.5, 4), **options)
            cotangent = rng.normal(size=19)
            loss, grad = run_pruned(batch, implementation, cotangent, **options)
            wanted = expected_pruned(batch, **options)
            assert_loss_close(loss, wanted.loss, 1e-12)
            assert_grad_close(grad, cotangent[:, None, None, None] * wanted.grad, 1e-12)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_enumeration(implementation: str, topology: str) -> None:
    """Any bands, also falling and jumping ones, against the sum over all paths: +inf or finite."""
    rng = np.random.default_rng(1)
    count, frames, labels, size, classes = 60, 4, 4, 3, 4
    found = 0
    for _ in range(4):
        batch = random_pruned(rng, count, frames, labels, size, classes, topology=topology)
        walks = rng.integers(-1, 3, (count, frames)).cumsum(1)
        starts = np.where(rng.random((count, 1)) < 0.3, rng.integers(0, 3, walks.shape), walks)
        starts = np.clip(
            starts - starts[:, :1] * (rng.random((count, 1)) < 0.9), 0, labels + 1 - size
        )
        ranges = (starts[..., None] + np.arange(size)).astype(np.int32)
        batch = batch._replace(ranges=ranges)
        wanted = expected_pruned(batch, topology=topology, band=oracles_pruned.by_enumeration)
        loss, grad = run_pruned(batch, implementation, topology=topology)
        np.testing.assert_allclose(loss, wanted.loss, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(grad, wanted.grad, atol=1e-12)
        assert (grad[np.isinf(wanted.loss)] == 0).all()
        found += np.isfinite(wanted.loss).sum()
    assert 60 < found < 200


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_whole_width(implementation: str, topology: str) -> None:
    """With S = U+1 it is the exact loss, of the oracle of `rnnt_loss`."""
    rng = np.random.default_rng(2)
    options = {"topology": topology, "clamp": 0.2, **REGULARISERS}
    whole = random_batch(rng, 12, 8, 5, 6, scale=2.0, **options)
    ranges = np.broadcast_to(np.arange(6, dtype=np.int32), (12, 8, 6))
    batch = PrunedBatch(whole.logits, whole.labels, ranges, whole.lengths)
    loss, grad = run_pruned(batch, implementation, **options)
    wanted = expected(whole, **options)
    assert_loss_close(loss, wanted.loss, 1e-12)
    assert_grad_close(grad, wanted.grad, 1e-12)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_from_below(implementation: str, topology: str) -> None:
    """Posteriors to ranges to pruned loss: never below the exact loss, and nearer to it with S."""
    rng = np.random.default_rng(3)
    frames, labels = 14, 8
    logits = rng.normal(size=(10, frames, labels + 1, 5), scale=3.0)
    label_ids = rng.integers(1, 5, (10, labels))
    exact = expected(Batch(logits, label_ids), topology=topology).loss
    log_probs = jax.nn.log_softmax(logits)
    taken = np.append(label_ids, np.zeros((10, 1), int), 1)[:, None, :, None]
    label = jnp.take_along_axis(log_probs, jnp.asarray(taken), -1)[..., 0]
    blank = log_probs[..., 0]
    _, posteriors = jax_rnnt.rnnt_loss_from_arcs(
        blank, label, topology=topology, return_posteriors=True, implementation=implementation
    )
    gaps = []
    for s_range in (2, 3, 5, 7, 9, 20) if implementation == "native" else (3, 20):
        ranges = jax_rnnt.get_rnnt_prune_ranges(posteriors, s_range=s_range, topology=topology)
        kept = jnp.take_along_axis(logits, ranges[..., None], 2)
        batch = PrunedBatch(np.asarray(kept), label_ids, np.asarray(ranges))
        loss, _ = run_pruned(batch, implementation, topology=topology)
        gaps.append(loss - exact)
    assert (np.array(gaps) > -1e-12).all()
    means = np.mean(gaps, 1)
    assert (np.diff(means) <= 1e-12).all() and means[0] > 1e-3 and np.abs(gaps[-1]).max() < 1e-10


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_dtypes(dtype: Any, normalization: str) -> None:
    """Native kernels in every dtype, at batches around the lanes of a vector, and at all S."""
    rng = np.random.default_rng(4)
    for count, s_range, classes in ((1, 2, 3), (7, 5, 20), (9, 4, 70), (33, 11, 5)):
        for topology in TOPOLOGIES:
            options: dict[str, Any] = {"topology": topology, "normalization": normalization}
            batch = random_pruned(
                rng, count, 20, 10, s_range, classes, dtype=dtype, scale=2.0, **options
            )
            check_pruned(batch, "native", dtype, **options, **REGULARISERS)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_xla_float32(topology: str) -> None:
    """The pure-JAX implementation in float32."""
    batch = random_pruned(
        np.random.default_rng(5), 6, 20, 10, 4, 20, dtype=np.float32, topology=topology
    )
    check_pruned(batch, "xla", np.float32, topology=topology, **REGULARISERS)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize(
    ("frames", "labels", "s_range", "tolerance"),
    [(450, 150, 5, 1e-5), (480, 120, 40, 1e-5), (1500, 300, 10, 1e-4)],
)
def test_long_float32(
    implementation: str, topology: str, frames: int, labels: int, s_range: int, tolerance: float
) -> None:
    """No drift: loss to 1e-5, gradient to 1e-5 up to T + U = 600, to 1e-4 at 1800."""
    rng = np.random.default_rng(6)
    logits = rng.normal(size=(2, frames, s_range, 4), scale=2.0).astype(np.float32)
    ids = rng.integers(1, 4, (2, labels)).astype(np.int32)
    starts = np.linspace(0, labels + 1 - s_range, frames).round().astype(np.int32)
    ranges = np.broadcast_to(starts[:, None] + np.arange(s_range, dtype=np.int32), logits.shape[:3])
    batch = PrunedBatch(logits, ids, ranges)
    loss, grad = run_pruned(batch, implementation, topology=topology)
    wanted = expected_pruned(batch, topology=topology)
    assert_loss_close(loss, wanted.loss, 1e-5)
    assert_grad_close(grad, wanted.grad, tolerance)


# ---------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_numerical(implementation: str, topology: str, normalization: str) -> None:
    """`check_grads` in float64; twice for the pure-JAX implementation."""
    options = {"topology": topology, "normalization": normalization, "delay_penalty": 0.3}
    batch = random_pruned(np.random.default_rng(7), 4, 5, 4, 3, 4, **options)
    function = pruned_function(implementation, **options)
    order = 2 if implementation == "xla" and normalization == "softmax" else 1
    check_grads(
        jax.jit(lambda x: function(x, *batch[1:])),
        (batch.logits,),
        order=order,
        modes=["rev"],
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_clamp(implementation: str, topology: str, normalization: str) -> None:
    """Per cell: the unit gradient, FastEmit in it, is clipped, then takes the cotangent."""
    if implementation == "xla" and normalization != "softmax":
        return
    options = {"topology": topology, "normalization": normalization, "clamp": 0.05}
    options |= {"fastemit_lambda": 0.5}
    rng = np.random.default_rng(8)
    batch = random_pruned(rng, 6, 6, 4, 3, 5, **options)
    cotangent = rng.normal(size=6)
    _, grad = run_pruned(batch, implementation, cotangent, **options)
    wanted = expected_pruned(batch, **options)
    assert_grad_close(grad, cotangent[:, None, None, None] * wanted.grad, 1e-12)
    assert (np.abs(wanted.grad) == 0.05).any()


# ---------------------------------------------------------------------------------- other arguments


def test_optional_arguments(implementation: str) -> None:
    """Lengths left out, reduction and where, several batch dims and none, other integer dtypes."""
    rng = np.random.default_rng(9)
    batch = random_pruned(rng, 6, 7, 5, 3, 5)
    wanted = expected_pruned(batch)
    keep = np.array([True, False, True, True, False, True])
    loss, grad = run_pruned(batch._replace(where=keep), implementation, reduction="mean")
    np.testing.assert_allclose(loss, wanted.loss[keep].sum() / 4, rtol=1e-12)
    assert_grad_close(grad, keep[:, None, None, None] * wanted.grad / 4, 1e-12)

    whole = batch._replace(lengths=Lengths(), ranges=np.clip(batch.ranges[:1], 0, 5))
    w = Bounds(0, 7, 0, 5)
    blank, label = rng.random((2, 7, 6))
    starts = np.array(oracles_pruned.prune_starts(blank, label, w, 3))
    whole = whole._replace(ranges=np.broadcast_to(starts[:, None] + np.arange(3), (6, 7, 3)))
    wanted = expected_pruned(whole)
    narrow = whole._replace(ranges=whole.ranges.astype(np.uint8), labels=whole.labels.astype("i8"))
    for shape in ((6,), (2, 3), ()):
        count = int(np.prod(shape))
        shaped = jax.tree.map(lambda x, s=shape, n=count: x[:n].reshape(*s, *x.shape[1:]), narrow)
        loss, grad = run_pruned(shaped, implementation)
        assert loss.shape == shape
        assert_loss_close(loss.reshape(count), wanted.loss[:count], 1e-12)
        assert_grad_close(grad.reshape(count, 7, 3, 5), wanted.grad[:count], 1e-12)
    eager = pruned_function(implementation)(*narrow)
    assert_loss_close(np.asarray(eager), wanted.loss, 1e-12)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("shape", [(1, 0, 1), (5, 0, 1), (1, 1, 2), (4, 3, 1), (3, 3, 2)], ids=str)
def test_small(implementation: str, topology: str, shape: tuple[int, int, int]) -> None:
    """U = 0, T = 1, S = 1, against the oracle (+inf where the topology has no path)."""
    frames, labels, size = shape
    rng = np.random.default_rng(10)
    logits = rng.normal(size=(2, frames, size, 4))
    ids = rng.integers(1, 4, (2, labels)).astype(np.int32)
    starts = np.minimum(np.arange(frames), labels + 1 - size).astype(np.int32)
    ranges = np.broadcast_to(starts[:, None] + np.arange(size, dtype=np.int32), logits.shape[:3])
    batch = PrunedBatch(logits, ids, ranges)
    wanted = expected_pruned(batch, topology=topology)
    loss, grad = run_pruned(batch, implementation, topology=topology)
    np.testing.assert_allclose(loss, wanted.loss, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(grad, wanted.grad, atol=1e-13)


def test_empty(implementation: str) -> None:
    """B = 0 and T = 0."""
    batch = random_pruned(np.random.default_rng(11), 2, 4, 3, 2, 5)
    none = jax.tree.map(lambda x: x[:0], batch)
    loss, grad = run_pruned(none, implementation)
    assert loss.shape == (0,) and grad.shape == (0, 4, 2, 5)
    no_frames = PrunedBatch(
        batch.logits[:, :0], batch.labels, batch.ranges[:, :0], Lengths(None, np.array([0, 1]))
    )
    loss, grad = run_pruned(no_frames, implementation)
    np.testing.assert_array_equal(loss, [0, np.inf])
    assert grad.shape == (2, 0, 2, 5)


def test_auto_is_native() -> None:
    """On CPU and CUDA `implementation="auto"` calls our targets; "xla" has no custom call."""
    batch = random_pruned(np.random.default_rng(12), 3, 4, 3, 2, 5, dtype=np.float32)
    for auto, native in zip(run_pruned(batch, "auto"), run_pruned(batch, "native"), strict=True):
        np.testing.assert_array_equal(auto, native)
    for choice, called in (("auto", True), ("native", True), ("xla", False)):
        text = jax.jit(pruned_function(choice)).lower(*batch).as_text()
        assert ("custom_call @jax_rnnt_banded_lattice" in text) == called
