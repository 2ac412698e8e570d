"""`rnnt_loss_from_arc_terms`: parts that add up to the loss, and their gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    TOPOLOGIES,
    Array,
    Lengths,
    Options,
    each_topology,
    expected_arcs,
    random_arcs,
    some_xla,
)

import jax_rnnt


def random_terms(rng: np.random.Generator, total: Array, count: int) -> list[Array]:
    """`count` arrays that add up to `total`."""
    parts = [rng.normal(size=total.shape).astype(total.dtype) for _ in range(count - 1)]
    return [total - sum(parts), *parts] if parts else [total]


def terms_function(lengths: Lengths, implementation: str, **options: Any) -> Any:
    """`(blank_terms, label_terms) -> losses`."""

    def losses(blanks: list[Array], labels: list[Array]) -> jax.Array:
        return jax_rnnt.rnnt_loss_from_arc_terms(
            blanks,
            labels,
            lengths.logit_lengths,
            lengths.label_lengths,
            logit_begins=lengths.logit_begins,
            label_begins=lengths.label_begins,
            implementation=implementation,  # type: ignore[arg-type]
            **options,
        )

    return losses


@pytest.mark.parametrize(**some_xla)
def test_parts(implementation: str, topology: Options) -> None:
    """Part i is minus sum of posterior times term; the first has the rest; gradients follow."""
    rng = np.random.default_rng(TOPOLOGIES.index(topology))
    options = dict(topology, fastemit_lambda=0.2, delay_penalty=0.1)
    batch = random_arcs(rng, 6, 6, 4, **options)
    wanted = expected_arcs(batch, **options)
    blanks, labels = (random_terms(rng, x, 3) for x in batch[:2])
    function = terms_function(batch.lengths, implementation, **options)
    losses, vjp = jax.vjp(jax.jit(function), blanks, labels)
    assert losses.shape == (3, 6)
    np.testing.assert_allclose(losses.sum(0), wanted.loss, rtol=1e-12, atol=1e-13)
    for i in (1, 2):
        score = wanted.posteriors.blank * blanks[i] + wanted.posteriors.label * labels[i]
        np.testing.assert_allclose(losses[i], -score.sum((1, 2)), rtol=1e-11, atol=1e-13)
    cotangents = rng.normal(size=(3, 6))
    for found, grad in zip(vjp(jnp.asarray(cotangents)), wanted[2:], strict=True):
        for part, cotangent in zip(found, cotangents, strict=True):
            np.testing.assert_allclose(part, cotangent[:, None, None] * grad, atol=1e-12)


def test_one_path() -> None:
    """With a single alignment each part is minus the sum of its arcs along it."""
    rng = np.random.default_rng(4)
    blanks, labels = (list(rng.normal(size=(2, 5, 3, 1))) for _ in range(2))
    losses = jax_rnnt.rnnt_loss_from_arc_terms(blanks, labels)
    np.testing.assert_allclose(losses, [-x.sum((1, 2)) for x in blanks], rtol=1e-12)


def test_one_term_is_from_arcs() -> None:
    """One term: the loss of `rnnt_loss_from_arcs`; bfloat16 gradients in bfloat16."""
    batch = random_arcs(np.random.default_rng(5), 4, 5, 3, dtype=jnp.bfloat16)
    function = terms_function(batch.lengths, "native", reduction="mean")
    loss, grads = jax.value_and_grad(lambda b, a: function([b], [a])[0], (0, 1))(*batch[:2])
    plain = jax_rnnt.rnnt_loss_from_arcs(
        *batch[:2],
        *batch.lengths[:2],
        logit_begins=batch.lengths[2],
        label_begins=batch.lengths[3],
        reduction="mean",
    )
    np.testing.assert_allclose(loss, plain, rtol=1e-6)
    assert loss.dtype == jnp.float32 and grads[0].dtype == grads[1].dtype == jnp.bfloat16


@pytest.mark.parametrize("topology", **each_topology)
def test_bad_utterances(topology: Options) -> None:
    """NaN, +inf and no path: the first part has the loss, all else is 0. Padding is free."""
    rng = np.random.default_rng(6)
    batch = random_arcs(rng, 6, 6, 4, **topology)
    blanks, labels = (random_terms(rng, x, 2) for x in batch[:2])
    function = terms_function(batch.lengths, "native", **topology)
    clean = np.asarray(function(blanks, labels))
    wanted = expected_arcs(batch, **topology)
    for terms, used in ((blanks, wanted.posteriors.blank), (labels, wanted.posteriors.label)):
        for term, garbage in zip(terms, (np.nan, np.inf), strict=True):
            term[used == 0] = garbage
    for value, loss in ((np.nan, np.nan), (np.inf, np.nan), (-np.inf, np.inf)):
        blanks[1][0, 0] = value  # all of the first frame
        labels[1][0, 0] = value
        losses, vjp = jax.vjp(function, blanks, labels)
        np.testing.assert_array_equal(losses[:, 0], [loss, 0])
        np.testing.assert_allclose(losses[:, 1:], clean[:, 1:], rtol=1e-12, atol=1e-13)
        grads = vjp(jnp.ones_like(losses))
        assert all((x[0] == 0).all() and np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_vmap_and_where() -> None:
    """Mapped over utterances; left-out utterances and reductions, for each part."""
    rng = np.random.default_rng(7)
    batch = random_arcs(rng, 5, 6, 4)._replace(lengths=Lengths())
    blanks, labels = (random_terms(rng, x, 2) for x in batch[:2])
    wanted = np.asarray(jax_rnnt.rnnt_loss_from_arc_terms(blanks, labels))
    mapped = jax.vmap(jax_rnnt.rnnt_loss_from_arc_terms, out_axes=1)
    np.testing.assert_allclose(mapped(blanks, labels), wanted, rtol=1e-12)
    keep = np.array([True, False, True, True, False])
    mean = jax_rnnt.rnnt_loss_from_arc_terms(blanks, labels, where=keep, reduction="mean")
    np.testing.assert_allclose(mean, wanted[:, keep].mean(1), rtol=1e-12)
