"""Gradients by themselves: numerical differentiation, clamp, FastEmit, cotangents, inputs kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    Options,
    arcs_function,
    assert_grad_close,
    each_topology,
    expected,
    loss_function,
    random_arcs,
    random_batch,
    run,
    run_arcs,
    some_xla,
)
from jax.test_util import check_grads

# central differences with the step that check_grads takes in float64 (about 1e-5) are good to 1e-8
NUMERICAL = {"order": 1, "modes": ["rev"], "atol": 1e-6, "rtol": 1e-6}


@pytest.mark.parametrize("normalization", ["softmax", "none", "hat"])
@pytest.mark.parametrize(**some_xla)
def test_numerical_logits(implementation: str, topology: Options, normalization: str) -> None:
    """`check_grads` in float64 on random bounds, delay penalty included."""
    options = dict(topology, normalization=normalization, blank_id=-1, delay_penalty=0.3)
    batch = random_batch(np.random.default_rng(0), 6, 5, 3, 5, **options)
    function = loss_function(implementation, **options)
    check_grads(jax.jit(lambda x: function(x, *batch[1:])), (batch.logits,), **NUMERICAL)


@pytest.mark.parametrize("topology", **each_topology)
def test_numerical_arcs(implementation: str, topology: Options) -> None:
    """`check_grads` in float64 by both arcs."""
    options = dict(topology, delay_penalty=0.3)
    batch = random_arcs(np.random.default_rng(1), 6, 5, 3, **options)
    function = arcs_function(implementation, **options)
    check_grads(jax.jit(lambda *x: function(*x, *batch[2:])), batch[:2], **NUMERICAL)


@pytest.mark.parametrize("normalization", ["softmax", "none", "hat"])
@pytest.mark.parametrize(**some_xla)
def test_clamp(implementation: str, topology: Options, normalization: str) -> None:
    """The unit gradient, FastEmit in it, is clipped to +-clamp, then takes the cotangent."""
    options = dict(topology, normalization=normalization, fastemit_lambda=0.5, clamp=0.05)
    rng = np.random.default_rng(2)
    batch = random_batch(rng, 6, 5, 3, 5, **options)
    cotangent = rng.normal(size=6)
    loss, grad = run(batch, implementation, cotangent, **options)
    wanted = expected(batch, **options)
    np.testing.assert_allclose(loss, wanted.loss, rtol=1e-12, atol=1e-12)
    assert_grad_close(grad, cotangent[:, None, None, None] * wanted.grad, 1e-12)
    assert (np.abs(wanted.grad) == 0.05).any()


@pytest.mark.parametrize("clamp", [0.0, -1.0, 1e9])
def test_clamp_off(implementation: str, clamp: float) -> None:
    """Zero, negative and out-of-reach clamps do nothing."""
    batch = random_batch(np.random.default_rng(3), 4, 5, 3, 5)
    _, grad = run(batch, implementation, clamp=clamp)
    assert_grad_close(grad, expected(batch).grad, 1e-12)


def test_clamp_comes_before_reduction(implementation: str) -> None:
    """With reduction="mean" the clipped unit gradient is divided, not the divided one clipped."""
    batch = random_batch(np.random.default_rng(4), 5, 5, 3, 5)
    _, grad = run(batch, implementation, clamp=0.1, reduction="mean")
    assert_grad_close(grad, expected(batch, clamp=0.1).grad / 5, 1e-12)


@pytest.mark.parametrize(**some_xla)
def test_fastemit_is_linear(implementation: str, topology: Options) -> None:
    """g(lambda) = g(0) + lambda (g(1) - g(0)), the loss and the posteriors the same for every
    lambda.
    """
    batch = random_arcs(np.random.default_rng(5), 5, 6, 4, **topology)
    zero, one, some = (
        run_arcs(batch, implementation, **topology, fastemit_lambda=x) for x in (0.0, 1.0, 0.25)
    )
    for index in range(2):
        line = zero[1][index] + 0.25 * (one[1][index] - zero[1][index])
        np.testing.assert_allclose(some[1][index], line, atol=1e-13)
    assert np.abs(one[1][1] - zero[1][1]).max() > 0.1
    for other in (one, some):
        np.testing.assert_array_equal(other[0], zero[0])
        jax.tree.map(np.testing.assert_array_equal, other[2], zero[2])


def test_cotangent(implementation: str) -> None:
    """Scaled by powers of two bit for bit; a zero cotangent gives exact zeros."""
    batch = random_batch(np.random.default_rng(6), 5, 5, 3, 5, dtype=np.float32)
    _, unit = run(batch, implementation, np.ones(5, np.float32))
    scales = np.array([4.0, 0.0, -0.5, 0.0, 1.0], np.float32)
    _, grad = run(batch, implementation, scales)
    np.testing.assert_array_equal(grad, scales[:, None, None, None] * unit)


def test_utterances_are_independent(implementation: str) -> None:
    """The Jacobian of the per-utterance losses is block-diagonal."""
    batch = random_batch(np.random.default_rng(7), 3, 4, 2, 4)
    function = loss_function(implementation)
    jacobian = jax.jit(jax.jacrev(lambda x: function(x, *batch[1:])))(batch.logits)
    wanted = expected(batch).grad
    for i in range(3):
        for j in range(3):
            block = wanted[i] if i == j else np.zeros_like(wanted[i])
            np.testing.assert_allclose(jacobian[i, j], block, atol=1e-13)


def test_through_a_network(implementation: str) -> None:
    """Gradient by the weights of an additive joiner with tanh, numerically."""
    rng = np.random.default_rng(8)
    batch = random_batch(rng, 3, 4, 3, 5)
    encoder, predictor = rng.normal(size=(3, 4, 1, 6)), rng.normal(size=(3, 1, 4, 6))
    weights = rng.normal(size=(6, 5))
    function = loss_function(implementation, reduction="mean")

    def loss(w: jax.Array, e: jax.Array, p: jax.Array) -> jax.Array:
        return function(jnp.tanh(e + p) @ w, *batch[1:])

    with jax.numpy_rank_promotion("allow"):
        check_grads(jax.jit(loss), (weights, encoder, predictor), **NUMERICAL)


def test_inputs_are_kept(implementation: str) -> None:
    """Logits that the caller still holds are not written over; donated ones may be."""
    batch = random_batch(np.random.default_rng(9), 4, 5, 3, 5)
    logits, before = jnp.asarray(batch.logits), batch.logits.copy()
    grad = jax.grad(lambda x: loss_function(implementation, reduction="sum")(x, *batch[1:]))
    kept, donating = jax.jit(grad), jax.jit(grad, donate_argnums=0)
    wanted = expected(batch).grad
    assert_grad_close(np.asarray(kept(logits)), wanted, 1e-12)
    np.testing.assert_array_equal(logits, before)
    both = jax.jit(lambda x: (grad(x), x + 1.0))(logits)
    np.testing.assert_array_equal(both[1], before + 1.0)
    assert_grad_close(np.asarray(both[0]), wanted, 1e-12)
    assert_grad_close(np.asarray(donating(logits)), wanted, 1e-12)
