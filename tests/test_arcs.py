"""`rnnt_loss_from_arcs`: losses, gradients and posteriors against the dynamic programme."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import (
    ArcsBatch,
    Options,
    assert_grad_close,
    assert_loss_close,
    dtypes,
    each_topology,
    expected_arcs,
    random_arcs,
    run_arcs,
)

import jax_rnnt


def check(
    batch: ArcsBatch,
    implementation: str,
    tolerance: float,
    options: Options,
    cotangent: np.ndarray | None = None,
    **oracle: Any,
) -> None:
    """Loss, both gradients and both posteriors (which never have FastEmit in them)."""
    wanted = expected_arcs(batch, **options, **oracle)
    loss, grads, posteriors = run_arcs(batch, implementation, cotangent, **options)
    assert_loss_close(loss, wanted.loss, tolerance)
    scale = 1.0 if cotangent is None else cotangent[:, None, None].astype(np.float64)
    # the two planes together are the gradient that the promise is about
    assert_grad_close(
        np.stack(grads, 1),
        np.stack([scale * wanted.grad_blank, scale * wanted.grad_label], 1),
        tolerance,
    )
    assert_grad_close(np.stack(posteriors, 1), np.stack(wanted.posteriors, 1), tolerance)
    assert grads[0].dtype == batch.blank.dtype and grads[1].dtype == batch.label.dtype


@pytest.mark.parametrize("topology", **each_topology)
def test_float64(implementation: str, topology: Options) -> None:
    """Random bounds and cotangents, with and without FastEmit and delay penalty, to 1e-12."""
    rng = np.random.default_rng(0)
    extras: list[Options] = [{"fastemit_lambda": 0.4, "delay_penalty": 0.3}, {}]
    for extra in extras if implementation == "native" else extras[:1]:
        options = topology | extra
        for _ in range(3):
            batch = random_arcs(rng, 14, 7, 5, **options)
            check(batch, implementation, 1e-12, options, rng.normal(size=14))


@pytest.mark.parametrize("topology", **each_topology)
def test_enumeration(implementation: str, topology: Options) -> None:
    """Against the sum over all paths of tiny lattices."""
    rng = np.random.default_rng(1)
    for _ in range(3):
        batch = random_arcs(rng, 8, 4, 3, **topology)
        check(batch, implementation, 1e-12, topology, lattice=oracles.by_enumeration)


@pytest.mark.parametrize("topology", **each_topology)
def test_many_bounds(implementation: str, topology: Options) -> None:
    """200 utterances in one 36 x 34 lattice: every remainder of a SIMD width occurs."""
    rng = np.random.default_rng(2)
    for dtype in dtypes(implementation, np.float32):
        batch = random_arcs(rng, 200, 36, 34, dtype=dtype, **topology)
        check(batch, implementation, 1e-12 if dtype == np.float64 else 1e-5, topology)


WIDTHS = [0, 1, 2, 6, 7, 8, 14, 15, 16, 17, 30, 31, 32, 33, 63, 64, 65]


@pytest.mark.parametrize("labels", WIDTHS)
def test_widths(labels: int) -> None:
    """Native kernels at padded widths U + 1 around those of SIMD registers, wide and tall."""
    rng = np.random.default_rng(labels)
    for frames in (1, 5, 40):
        for dtype in (np.float32, np.float64):
            batch = random_arcs(rng, 3, frames, labels, dtype=dtype)
            check(batch, "native", 1e-12 if dtype == np.float64 else 1e-5, {})


@pytest.mark.parametrize("topology", **each_topology)
@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_long_float32(implementation: str, topology: Options, scale: float) -> None:
    """T + U = 600 from flat to very peaked arcs: loss and gradient to 1e-5."""
    rng = np.random.default_rng(3)
    batch = random_arcs(rng, 3, 450, 150, dtype=np.float32, scale=scale, **topology)
    check(batch, implementation, 1e-5, topology)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit(implementation: str, dtype: Any) -> None:
    """16-bit arcs: the loss is float32's, gradients to twice the rounding of their dtype."""
    rng = np.random.default_rng(4)
    batch = random_arcs(rng, 6, 30, 20, dtype=dtype)
    wanted = expected_arcs(batch)
    loss, grads, _ = run_arcs(batch, implementation)
    assert loss.dtype == np.float32
    assert_loss_close(loss, wanted.loss, 1e-5)
    for grad, exact in zip(grads, wanted[2:], strict=True):
        assert grad.dtype == dtype
        half = float(jnp.finfo(dtype).eps) * np.abs(exact) / 2
        half = np.maximum(half, float(jnp.finfo(dtype).smallest_subnormal) / 2)
        assert (np.abs(grad.astype(np.float64) - exact) <= 2 * half + 1e-5).all()


def test_options(implementation: str) -> None:
    """reduction and where; without `return_posteriors` the loss comes alone."""
    rng = np.random.default_rng(5)
    batch = random_arcs(rng, 4, 5, 3)
    wanted = expected_arcs(batch).loss
    keep = np.array([True, False, True, True])
    masked = batch._replace(where=keep)
    loss, grads, posteriors = run_arcs(masked, implementation, reduction="mean")
    np.testing.assert_allclose(loss, wanted[keep].sum() / 3, rtol=1e-12)
    assert (grads[0][1] == 0).all() and (grads[1][1] == 0).all()
    assert posteriors.blank.shape == posteriors.label.shape == batch.blank.shape
    alone = jax.jit(jax_rnnt.rnnt_loss_from_arcs, static_argnames="implementation")(
        batch.blank, batch.label, *batch.lengths[:2], implementation=implementation
    )
    assert alone.shape == (4,)


def test_no_batch(implementation: str) -> None:
    """One utterance without a batch dim, and two leading dims."""
    rng = np.random.default_rng(6)
    flat = random_arcs(rng, 6, 5, 3)
    wanted = expected_arcs(flat)
    for shape, count in (((), 1), ((3, 2), 6)):
        batch = jax.tree.map(
            lambda x, s=shape, n=count: x[:n].reshape((*s, *x.shape[1:])),
            flat,
        )
        loss, grads, posteriors = run_arcs(batch, implementation)
        assert loss.shape == shape and posteriors.blank.shape == (*shape, 5, 4)
        assert_loss_close(loss.reshape(-1), wanted.loss[:count], 1e-12)
        assert_grad_close(grads[1].reshape(-1, 5, 4), wanted.grad_label[:count], 1e-12)


def test_column_u_is_not_read(implementation: str) -> None:
    """The last column of the label arcs is ignored, NaN or not."""
    batch = random_arcs(np.random.default_rng(7), 4, 5, 3)
    spoiled = batch.label.copy()
    spoiled[..., -1] = np.nan
    clean = run_arcs(batch, implementation)
    other = run_arcs(batch._replace(label=spoiled), implementation)
    jax.tree.map(np.testing.assert_array_equal, clean, other)
    assert (other[1][1][..., -1] == 0).all()


def test_label_arcs_below_the_floor(implementation: str) -> None:
    """Documented limit: a label arc below -1e7 counts as -inf; one above it counts as itself."""
    blank, label = np.full((1, 2, 2), -1.0), np.full((1, 2, 2), -1e8)
    loss, grads, _ = run_arcs(ArcsBatch(blank, label), implementation)
    assert loss[0] == np.inf and (grads[0] == 0).all() and (grads[1] == 0).all()
    loss, _, _ = run_arcs(ArcsBatch(blank, label / 10), implementation)
    np.testing.assert_allclose(loss, 1e7 + 2 - np.log(2), rtol=1e-12)
