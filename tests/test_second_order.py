"""The pure-JAX implementation can be differentiated twice; the native one says that it cannot."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_rnnt import (
    LinearDurationJoint,
    LinearJoint,
    rnnt_arcs,
    rnnt_loss,
    rnnt_loss_from_arcs,
    rnnt_loss_joint,
    rnnt_loss_multi_blank,
    rnnt_loss_pruned,
    rnnt_loss_simple,
    rnnt_loss_tdt,
    rnnt_loss_tdt_joint,
)


def dense(
    logits: jax.Array, labels: jax.Array, *lengths: jax.Array, normalization: Any, **options: Any
) -> jax.Array:
    return rnnt_loss(logits, labels, *lengths, normalization=normalization, **options)


def by_arcs(
    logits: jax.Array, labels: jax.Array, *lengths: jax.Array, normalization: Any, **options: Any
) -> jax.Array:
    """The same in two steps."""
    arcs = rnnt_arcs(logits, labels, *lengths, normalization=normalization, implementation="xla")
    return rnnt_loss_from_arcs(*arcs, *lengths, **options)


@pytest.mark.parametrize("loss", [dense, by_arcs])
@pytest.mark.parametrize("topology", ["regular", "modified", "constrained"])
@pytest.mark.parametrize("normalization", ["softmax", "hat"])
def test_hessian_vector_product(
    loss: Callable[..., jax.Array], topology: str, normalization: str
) -> None:
    """Against central differences of the gradient, whose error is of order step squared."""
    rng = np.random.default_rng(0)
    shape = (2, 4, 3, 4)
    logits, direction = jnp.asarray(rng.normal(size=shape)), jnp.asarray(rng.normal(size=shape))
    labels, lengths = jnp.array([[1, 2], [3, 1]]), (jnp.array([4, 3]), jnp.array([2, 1]))

    @jax.jit
    @jax.grad
    def gradient(x: jax.Array) -> jax.Array:
        return loss(
            x,
            labels,
            *lengths,
            topology=topology,
            normalization=normalization,
            reduction="sum",
            implementation="xla",
        )

    product = jax.jit(jax.grad(lambda x: jnp.vdot(gradient(x), direction)))(logits)
    step = 1e-5
    difference = gradient(logits + step * direction) - gradient(logits - step * direction)
    np.testing.assert_allclose(product, difference / (2 * step), atol=1e-8)


@pytest.mark.parametrize("topology", ["regular", "modified", "constrained"])
@pytest.mark.parametrize("normalization", ["softmax", "hat", "none"])
def test_bad_utterances(topology: Any, normalization: Any) -> None:
    """NaN where a loss is: other utterances are not touched, and it has second derivative zero."""
    rng = np.random.default_rng(1)
    clean = jnp.asarray(rng.normal(size=(2, 4, 3, 4)))
    labels = jnp.array([[1, 2], [3, 1]])
    options = {"topology": topology, "normalization": normalization, "implementation": "xla"}

    def exact(x: jax.Array) -> jax.Array:
        return rnnt_loss(x, labels, **options)

    def pruned(x: jax.Array) -> jax.Array:
        ranges = jnp.broadcast_to(jnp.arange(3), (2, 4, 3))
        return rnnt_loss_pruned(x, labels, ranges, **options)

    def losses_and_product(loss: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            losses = loss(x)
            return jnp.where(jnp.isfinite(losses), losses, 0).sum(), losses

        def squares(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            gradient, losses = jax.grad(total, has_aux=True)(x)
            return jnp.sum(gradient**2), losses

        product, losses = jax.grad(squares, has_aux=True)(x)
        return losses, product

    for loss in (exact, pruned):
        compiled = jax.jit(partial(losses_and_product, loss))
        _, wanted = compiled(clean)
        assert jnp.any(wanted[1] != 0)
        for value in (np.nan, np.inf):
            for cell in ((0, 1, 1, labels[0, 1]), (0, 1, 1, 0)):
                losses, found = compiled(clean.at[cell].set(value))
                assert jnp.isnan(losses[0])
                np.testing.assert_array_equal(found[0], 0)
                np.testing.assert_allclose(found[1], wanted[1], rtol=1e-12)


@pytest.mark.parametrize(
    ("losses_of", "sizes"),
    [
        (partial(rnnt_loss_tdt, durations=(0, 1, 2)), (4, 3)),
        (partial(rnnt_loss_multi_blank, big_blank_ids=(-1,), big_blank_durations=(2,)), (5,)),
    ],
    ids=("tdt", "multi-blank"),
)
def test_durations(losses_of: Callable[..., jax.Array], sizes: tuple[int, ...]) -> None:
    """By all logits, against central differences; zero where a loss is NaN."""
    rng = np.random.default_rng(2)
    labels = jnp.array([[1, 2], [3, 1]])
    scores, directions = (
        [jnp.asarray(rng.normal(size=(2, 4, 3, n))) for n in sizes] for _ in range(2)
    )
    everything = tuple(range(len(sizes)))

    def loss(*scores: jax.Array) -> jax.Array:
        losses = losses_of(*scores, labels, implementation="xla")
        return jnp.where(jnp.isfinite(losses), losses, 0).sum()

    gradient = jax.jit(jax.grad(loss, everything))

    @jax.jit
    @partial(jax.grad, argnums=everything)
    def product(*scores: jax.Array) -> jax.Array:
        return sum(map(jnp.vdot, gradient(*scores), directions), jnp.zeros(()))

    step, found = 1e-5, product(*scores)
    above, below = (
        gradient(*(x + sign * step * d for x, d in zip(scores, directions, strict=True)))
        for sign in (1, -1)
    )
    for x, high, low in zip(found, above, below, strict=True):
        np.testing.assert_allclose(x, (high - low) / (2 * step), atol=1e-8)
    for i in everything:
        spoiled = [x.at[0, 1, 1, 0].set(jnp.nan) if i == k else x for k, x in enumerate(scores)]
        for x, clean in zip(product(*spoiled), found, strict=True):
            np.testing.assert_array_equal(x[0], 0)
            np.testing.assert_allclose(x[1], clean[1], rtol=1e-12)


def test_native_refuses() -> None:
    """An error, not zeros."""
    logits = jnp.zeros((1, 2, 2, 3))

    def loss(x: jax.Array) -> jax.Array:
        return rnnt_loss(x, jnp.ones((1, 1), jnp.int32), reduction="sum", implementation="native")

    with pytest.raises(NotImplementedError, match="rnnt_loss_multi_blank have higher ones"):
        jax.grad(lambda x: jax.grad(loss)(x).sum())(logits)


@pytest.mark.parametrize("implementation", ["native", "xla"])
def test_others_refuse(implementation: Any) -> None:
    """Losses with loops of their own, in either implementation."""
    labels, shape = jnp.ones((1, 1), jnp.int32), (1, 2, 3)

    def simple(x: jax.Array) -> jax.Array:
        return rnnt_loss_simple(x, x, labels, implementation=implementation).sum()

    def joint(x: jax.Array) -> jax.Array:
        params = {"kernel": jnp.ones((3, 4))}
        return rnnt_loss_joint(
            LinearJoint(), params, x, x, labels, implementation=implementation
        ).sum()

    def tdt_joint(x: jax.Array) -> jax.Array:
        params = {"kernel": jnp.ones((3, 6))}
        return rnnt_loss_tdt_joint(
            LinearDurationJoint(2), params, x, x, labels,
            durations=(0, 1), implementation=implementation,
        ).sum()  # fmt: skip

    for loss in (simple, joint, tdt_joint):
        with pytest.raises(NotImplementedError, match="rnnt_loss_multi_blank have higher ones"):
            jax.grad(lambda x, loss=loss: jax.grad(loss)(x).sum())(jnp.ones(shape))
