"""The pure-JAX implementation can be differentiated twice; the native one says that it cannot."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_rnnt import rnnt_loss


@pytest.mark.parametrize("topology", ["regular", "modified", "constrained"])
@pytest.mark.parametrize("normalization", ["softmax", "hat"])
def test_hessian_vector_product(topology: str, normalization: str) -> None:
    """Against central differences of the gradient, whose error is of order step squared."""
    rng = np.random.default_rng(0)
    shape = (2, 4, 3, 4)
    logits, direction = jnp.asarray(rng.normal(size=shape)), jnp.asarray(rng.normal(size=shape))
    labels, lengths = jnp.array([[1, 2], [3, 1]]), (jnp.array([4, 3]), jnp.array([2, 1]))

    @jax.jit
    @jax.grad
    def gradient(x: jax.Array) -> jax.Array:
        return rnnt_loss(
            x,
            labels,
            *lengths,
            topology=topology,  # type: ignore[arg-type]
            normalization=normalization,  # type: ignore[arg-type]
            reduction="sum",
            implementation="xla",
        )

    product = jax.jit(jax.grad(lambda x: jnp.vdot(gradient(x), direction)))(logits)
    step = 1e-5
    difference = gradient(logits + step * direction) - gradient(logits - step * direction)
    np.testing.assert_allclose(product, difference / (2 * step), atol=1e-8)


def test_native_refuses() -> None:
    """An error, not zeros."""
    logits = jnp.zeros((1, 2, 2, 3))

    def loss(x: jax.Array) -> jax.Array:
        return rnnt_loss(x, jnp.ones((1, 1), jnp.int32), reduction="sum", implementation="native")

    with pytest.raises(NotImplementedError):
        jax.grad(lambda x: jax.grad(loss)(x).sum())(logits)
