"""`rnnt_arcs`: with `rnnt_loss_from_arcs` after it, it is `rnnt_loss`."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import Batch, assert_grad_close, random_batch

from jax_rnnt import rnnt_arcs, rnnt_loss, rnnt_loss_from_arcs


def arguments(batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
    """Lengths and begins; with labels."""
    lengths = {k: v for k, v in batch.lengths._asdict().items() if v is not None}
    return lengths, {"labels": batch.labels, **lengths}


@pytest.mark.parametrize("normalization", ["softmax", "hat", "none"])
def test_loss_in_two_steps(implementation: str, normalization: str) -> None:
    """Losses, gradients by the logits, and posteriors that are derivatives by the arcs."""
    options: dict[str, Any] = {"normalization": normalization, "blank_id": -1}
    batch = random_batch(np.random.default_rng(0), 8, 9, 5, 6, **options)
    lengths, others = arguments(batch)
    options["implementation"] = implementation

    def in_steps(logits: jax.Array) -> jax.Array:
        arcs = rnnt_arcs(logits, **others, **options)
        return rnnt_loss_from_arcs(*arcs, **lengths)

    def at_once(logits: jax.Array) -> jax.Array:
        return rnnt_loss(logits, **others, **options)

    weights = jnp.asarray(np.random.default_rng(1).normal(size=8))
    found, wanted = (
        jax.jit(lambda x, f=f: (f(x), *jax.vjp(f, x)[1](weights)))(batch.logits)
        for f in (in_steps, at_once)
    )
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-12)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_values_and_gradient(implementation: str, dtype: Any) -> None:
    """Against a softmax in float64, for any cotangents, also in cells that are no arc's."""
    batch = random_batch(np.random.default_rng(2), 6, 7, 4, 5, dtype=dtype)
    lengths, others = arguments(batch)
    del lengths
    rng = np.random.default_rng(3)
    cotangents = rng.normal(size=(2, 6, 7, 5)).astype(np.float32)
    arcs, vjp = jax.vjp(
        jax.jit(lambda x: rnnt_arcs(x, **others, implementation=implementation)), batch.logits
    )
    (grad,) = vjp((jnp.asarray(cotangents[0]), jnp.asarray(cotangents[1])))
    assert grad.dtype == dtype and all(x.dtype == jnp.float32 for x in arcs)
    logits = batch.logits.astype(np.float64)
    log_probs = logits - oracles.log_sum_exp(logits)
    wanted, hot = np.zeros(logits.shape), np.eye(5)
    t1, u1, t0, u0 = (np.asarray(x) for x in batch.lengths)
    for b, t, u in np.ndindex(6, 7, 5):
        inside = t0[b] <= t < t1[b] and u0[b] <= u <= u1[b]
        classes = (0, batch.labels[b, u] if u < u1[b] else None)
        for plane, cotangent, label in zip(arcs, cotangents, classes, strict=True):
            if not inside or label is None:
                assert plane[b, t, u] == -np.inf
                continue
            np.testing.assert_allclose(plane[b, t, u], log_probs[b, t, u, label], rtol=2e-6)
            share = hot[label] - np.exp(log_probs[b, t, u])
            wanted[b, t, u] += cotangent[b, t, u] * share
    assert_grad_close(grad, wanted, max(1e-5, float(jnp.finfo(dtype).eps)))


def test_bad_utterances(implementation: str) -> None:
    """NaN inside `jit` for bad labels and lengths, with gradient zero; padding may be NaN; `where`
    leaves utterances out.
    """
    rng = np.random.default_rng(4)
    logits, labels = rng.normal(size=(4, 5, 3, 4)), np.array([[1, 2], [0, 1], [3, 1], [1, 1]])
    logits[:, 4:] = np.nan
    lengths, where = np.array([4, 4, 6, 4]), np.array([True, True, True, False])
    function = partial(rnnt_arcs, implementation=implementation, where=where)  # type: ignore[arg-type]
    arcs, vjp = jax.vjp(lambda x: jax.jit(function)(x, labels, lengths), logits)
    (grad,) = vjp((jnp.ones((4, 5, 3)), jnp.ones((4, 5, 3))))
    assert np.isfinite(arcs[0][0, :4]).all() and (arcs[0][0, 4:] == -np.inf).all()
    assert all(np.isnan(x[1:3]).all() and (x[3] == -np.inf).all() for x in arcs)
    assert (grad[1:] == 0).all() and (grad[0, 4:] == 0).all() and (grad[0, :4] != 0).any()
    with pytest.raises(ValueError, match=r"labels\[1, 0\] is 0; expected labels other than blank"):
        rnnt_arcs(logits, labels)
    with pytest.raises(ValueError, match="normalization is 'softmin'"):
        rnnt_arcs(logits, labels, normalization="softmin")  # type: ignore[arg-type]


@pytest.mark.cpu_only("what XLA plans for a CPU")
def test_memory() -> None:
    """Planes beside the logits and their gradient, which may be over the logits."""
    B, T, U, V = 4, 50, 20, 400
    logits = jax.ShapeDtypeStruct((B, T, U + 1, V), jnp.float32)
    labels = jax.ShapeDtypeStruct((B, U), jnp.int32)

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return rnnt_loss_from_arcs(*rnnt_arcs(logits, labels)).sum()

    step: Any = jax.jit(jax.grad(loss), donate_argnums=0)
    used = step.lower(logits, labels).compile().memory_analysis()
    assert used.temp_size_in_bytes < 4 * B * T * (U + 1) * 20 < 4 * B * T * (U + 1) * V / 10


def test_transforms(devices: list[jax.Device]) -> None:
    """vmap, sharded `jit`, and second derivatives in pure JAX."""
    batch = random_batch(np.random.default_rng(5), 8, 6, 3, 5)
    logits, labels = jnp.asarray(batch.logits), jnp.asarray(batch.labels)
    wanted = rnnt_arcs(logits, labels)
    for x, y in zip(jax.vmap(rnnt_arcs)(logits, labels), wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    placed = jax.device_put((logits, labels), sharding)
    for x, y in zip(jax.jit(rnnt_arcs)(*placed), wanted, strict=True):
        assert x.sharding.is_equivalent_to(sharding, 3)
        np.testing.assert_allclose(x, y, rtol=1e-12)

    def squares(logits: jax.Array) -> jax.Array:
        blank, label = rnnt_arcs(logits, labels, implementation="xla")
        return (blank**2).sum() + (label[..., :-1] ** 2).sum()

    direction = jnp.asarray(np.random.default_rng(6).normal(size=logits.shape))
    product = jax.jit(jax.grad(lambda x: jnp.vdot(jax.grad(squares)(x), direction)))
    gradient, step = jax.jit(jax.grad(squares)), 1e-5
    central = gradient(logits + step * direction) - gradient(logits - step * direction)
    np.testing.assert_allclose(product(logits), central / (2 * step), atol=1e-7)
