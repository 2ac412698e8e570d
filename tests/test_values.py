"""`rnnt_loss`: losses and gradients against the float64 dynamic programme on the same input.

Tolerances are the promised ones: float64 1e-12; float32 1e-5 (1e-4 for the gradient of the longest
lattice); 16-bit floats twice the rounding of the output.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from assertions import assert_rounded
from cases import (
    TOPOLOGIES,
    Batch,
    Lengths,
    Options,
    assert_grad_close,
    assert_loss_close,
    each_topology,
    expected,
    random_batch,
    run,
    some_xla,
)

import jax_rnnt

REGULARISERS: Options = {"fastemit_lambda": 0.3, "delay_penalty": 0.2}
BLANKS = [0, 2, -1, -4]


@pytest.mark.parametrize("normalization", ["softmax", "none", "hat"])
@pytest.mark.parametrize("topology", **each_topology)
def test_float64(implementation: str, topology: Options, normalization: str) -> None:
    """Random bounds and cotangents, with and without regularisers: to 1e-12."""
    index = TOPOLOGIES.index(topology)
    rng = np.random.default_rng(index)
    plain = dict(topology, normalization=normalization, blank_id=BLANKS[index])
    runs = [(plain | REGULARISERS, 4), (plain, 2)]
    for options, rounds in runs if implementation == "native" else runs[:1]:
        for _ in range(rounds):
            batch = random_batch(rng, 14, 7, 5, 6, scale=rng.uniform(0.5, 4), **options)
            cotangent = rng.normal(size=14)
            loss, grad = run(batch, implementation, cotangent, **options)
            wanted = expected(batch, **options)
            assert loss.dtype == grad.dtype == np.float64
            assert_loss_close(loss, wanted.loss, 1e-12)
            assert_grad_close(grad, cotangent[:, None, None, None] * wanted.grad, 1e-12)


@pytest.mark.parametrize("topology", **each_topology)
def test_enumeration(implementation: str, topology: Options) -> None:
    """Against the sum over all paths of tiny lattices, begins included."""
    rng = np.random.default_rng(5)
    options = dict(topology, blank_id=-2, normalization="softmax")
    for _ in range(3):
        batch = random_batch(rng, 8, 4, 3, 4, scale=2.0, **options)
        wanted = expected(batch, lattice=oracles.by_enumeration, **options)
        loss, grad = run(batch, implementation, **options)
        assert_loss_close(loss, wanted.loss, 1e-12)
        assert_grad_close(grad, wanted.grad, 1e-12)


def test_published_value(implementation: str) -> None:
    """The cost that warp-transducer's tests record for this lattice, and no batch dimension."""
    logits = np.array(
        [
            [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1, 0.1], [0.1, 0.1, 0.2, 0.8, 0.1]],
            [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.2, 0.1, 0.1], [0.7, 0.1, 0.2, 0.1, 0.1]],
        ]
    )
    loss = jax_rnnt.rnnt_loss(logits, np.array([1, 2]), implementation=implementation)
    assert loss.shape == () and loss.dtype == jnp.float64
    np.testing.assert_allclose(loss, 4.495666, atol=1e-6)


# ------------------------------------------------------------------------------ widths and dtypes

WIDTHS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 28, 31, 33, 64, 100, 257, 1025, 2501]
DTYPES = [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("classes", WIDTHS)
def test_classes(classes: int, dtype: Any) -> None:
    """Native kernels at V around the widths of SIMD registers, every dtype, softmax and HAT."""
    rng = np.random.default_rng(classes)
    for normalization in ("softmax", "hat"):
        options = {"normalization": normalization, "blank_id": -1}
        labels = 3 if classes > 1 else 0
        batch = random_batch(rng, 6, 5, labels, classes, scale=3.0, dtype=dtype, **options)
        check_dtype(batch, "native", dtype, options)


@pytest.mark.parametrize("classes", [1, 2, 3, 33])
def test_classes_xla(classes: int) -> None:
    """The same for the pure-JAX implementation, in float32 and at fewer widths."""
    rng = np.random.default_rng(classes)
    for normalization in ("softmax", "hat"):
        options = {"normalization": normalization, "blank_id": 0}
        labels = 3 if classes > 1 else 0
        batch = random_batch(rng, 6, 5, labels, classes, scale=3.0, dtype=np.float32, **options)
        check_dtype(batch, "xla", np.float32, options)


def check_dtype(batch: Batch, implementation: str, dtype: Any, options: Options) -> None:
    """Output dtypes, and errors against float64 on the same (already rounded) input."""
    loss, grad = run(batch, implementation, **options)
    wanted = expected(batch, **options)
    assert grad.dtype == dtype
    assert loss.dtype == (np.float64 if dtype == jnp.float64 else np.float32)
    tolerance = 1e-12 if dtype == jnp.float64 else 1e-5
    assert_loss_close(loss, wanted.loss, tolerance)
    if dtype in (jnp.bfloat16, jnp.float16):
        assert_rounded(grad, wanted.grad)
    else:
        assert_grad_close(grad, wanted.grad, tolerance)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize(**some_xla)
def test_low_precision(implementation: str, topology: Options, dtype: Any) -> None:
    """Every topology with regularisers in 32 and 16 bits, on a lattice with hundreds of cells."""
    rng = np.random.default_rng(6)
    options = dict(topology, **REGULARISERS)
    batch = random_batch(rng, 6, 30, 20, 28, scale=2.0, dtype=dtype, **options)
    check_dtype(batch, implementation, dtype, options)


@pytest.mark.parametrize("topology", **each_topology)
@pytest.mark.parametrize(
    ("frames", "labels", "tolerance"), [(150, 40, 1e-5), (480, 120, 1e-5), (1500, 300, 1e-4)]
)
def test_long_float32(
    implementation: str, frames: int, labels: int, tolerance: float, topology: Options
) -> None:
    """No drift: loss to 1e-5, gradient to 1e-5 up to T + U = 600, to 1e-4 at 1800."""
    rng = np.random.default_rng(7)
    batch = random_batch(rng, 2, frames, labels, 4, scale=2.0, dtype=np.float32, **topology)
    batch = batch._replace(lengths=Lengths(*np.array([[frames, frames], [labels, labels // 2]])))
    loss, grad = run(batch, implementation, **topology)
    wanted = expected(batch, **topology)
    assert_loss_close(loss, wanted.loss, 1e-5)
    assert_grad_close(grad, wanted.grad, tolerance)


# -------------------------------------------------------------------------------- other arguments


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3)], ids=str)
def test_batch_dimensions(implementation: str, shape: tuple[int, ...]) -> None:
    """Any number of leading dims is the flat batch, reshaped."""
    rng = np.random.default_rng(8)
    count = int(np.prod(shape))
    flat = random_batch(rng, count, 4, 3, 5)
    shaped = jax.tree.map(lambda x: x.reshape((*shape, *x.shape[1:])), flat)
    loss, grad = run(shaped, implementation)
    wanted = expected(flat)
    assert loss.shape == shape and grad.shape == (*shape, 4, 4, 5)
    assert_loss_close(loss.reshape(count), wanted.loss, 1e-12)
    assert_grad_close(grad.reshape(wanted.grad.shape), wanted.grad, 1e-12)


@pytest.mark.parametrize("given", [(), (0,), (1,), (0, 2), (1, 3), (0, 1, 2, 3)], ids=str)
def test_optional_ranges(implementation: str, given: tuple[int, ...]) -> None:
    """Each of the four lengths and begins may be left out."""
    rng = np.random.default_rng(9)
    batch = random_batch(rng, 5, 6, 4, 5)
    lengths = Lengths(
        *np.array([[6, 5, 4, 3, 6], [4, 3, 2, 4, 4], [2, 1, 0, 1, 0], [1, 0, 2, 2, 1]])
    )
    batch = batch._replace(
        lengths=Lengths(*(x if i in given else None for i, x in enumerate(lengths)))
    )
    loss, grad = run(batch, implementation)
    wanted = expected(batch)
    assert_loss_close(loss, wanted.loss, 1e-12)
    assert_grad_close(grad, wanted.grad, 1e-12)


INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


INTEGER_RUNS = [("native", d) for d in INTEGERS] + [("xla", d) for d in ("int8", "int64", "uint64")]


@pytest.mark.parametrize(("implementation", "dtype"), INTEGER_RUNS)
def test_integer_dtypes(implementation: str, dtype: str) -> None:
    """Labels, lengths and begins of any integer dtype, jitted and eager."""
    rng = np.random.default_rng(10)
    batch = random_batch(rng, 5, 6, 4, 5)
    narrow = Batch(batch.logits, *jax.tree.map(lambda x: x.astype(dtype), batch[1:]))
    wanted = expected(batch)
    loss, grad = run(narrow, implementation)
    assert_loss_close(loss, wanted.loss, 1e-12)
    assert_grad_close(grad, wanted.grad, 1e-12)
    if dtype in ("int8", "uint64"):  # eager dispatch is slow; the two ends will do
        t1, u1, t0, u0 = narrow.lengths
        options = {"logit_begins": t0, "label_begins": u0, "implementation": implementation}
        eager = jax_rnnt.rnnt_loss(narrow.logits, narrow.labels, t1, u1, **options)
        assert_loss_close(np.asarray(eager), wanted.loss, 1e-12)


def test_narrow_lengths_long_lattice(implementation: str) -> None:
    """T = 300 and V = 300 do not fit in the dtype of lengths and labels that are all below 100."""
    rng = np.random.default_rng(11)
    logits = rng.normal(size=(2, 300, 3, 300))
    labels = np.array([[3, 99], [100, 7]])
    lengths = Lengths(np.array([100, 90]), np.array([2, 1]))
    wanted = expected(Batch(logits, labels, lengths))
    for dtype in (np.int8, np.uint8):
        cast = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), (labels, lengths))
        loss, grad = run(Batch(logits, *cast), implementation)
        assert_loss_close(loss, wanted.loss, 1e-12)
        assert_grad_close(grad, wanted.grad, 1e-12)


def test_reduction_and_where(implementation: str) -> None:
    """sum, mean over kept utterances, none; a left-out one has zero loss and zero gradient."""
    rng = np.random.default_rng(12)
    batch = random_batch(rng, 5, 4, 3, 5)
    wanted = expected(batch)
    for keep in ([True] * 5, [True, False, True, True, False], [False] * 5):
        kept = np.array(keep)
        for reduction, divisor in (("none", 1), ("sum", 1), ("mean", max(1, kept.sum()))):
            masked = batch._replace(where=kept)
            loss, grad = run(masked, implementation, reduction=reduction)
            losses = np.where(kept, wanted.loss, 0)
            if reduction != "none":
                losses = losses.sum() / divisor
            np.testing.assert_allclose(loss, losses, rtol=1e-12, atol=1e-15)
            assert loss.shape == losses.shape
            assert_grad_close(grad, kept[:, None, None, None] * wanted.grad / divisor, 1e-12)


def test_auto_is_native() -> None:
    """On CPU and CUDA `implementation="auto"` is the native one, bit for bit, and calls our
    targets.
    """
    batch = random_batch(np.random.default_rng(13), 3, 4, 3, 5, dtype=np.float32)
    for auto, native in zip(run(batch, "auto"), run(batch, "native"), strict=True):
        np.testing.assert_array_equal(auto, native)
    texts = [
        jax.jit(jax_rnnt.rnnt_loss, static_argnames="implementation")
        .lower(batch.logits, batch.labels, implementation=choice)
        .as_text()
        for choice in ("auto", "native", "xla")
    ]
    assert ["custom_call" in text for text in texts] == [True, True, False]
