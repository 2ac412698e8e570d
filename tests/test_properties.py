"""Invariants of the loss under random batches (Hypothesis), in float64.

Shapes are fixed so that one compilation serves all examples; bounds, labels and scores vary.
"""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from cases import (
    Batch,
    Options,
    each_topology,
    random_arcs,
    random_batch,
    run,
    run_arcs,
    valid_cells,
)

B, T, U, V = 4, 6, 4, 5
seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([0.1, 1.0, 5.0, 50.0])
normalizations = pytest.mark.parametrize("normalization", ["softmax", "hat"])
given = hypothesis.given(seed=seeds, scale=scales)
TIGHT = {"rtol": 1e-11, "atol": 1e-11}


def batch_of(seed: int, scale: float, **options: object) -> tuple[np.random.Generator, Batch]:
    rng = np.random.default_rng(seed)
    return rng, random_batch(rng, B, T, U, V, scale=scale, **options)


@pytest.mark.parametrize("topology", **each_topology)
@given
def test_shift_of_a_cell(implementation: str, topology: Options, seed: int, scale: float) -> None:
    """A constant added to all logits of a cell changes neither softmax loss nor gradient."""
    rng, batch = batch_of(seed, scale, **topology)
    shift = rng.normal(scale=10, size=(B, T, U + 1, 1))
    loss, grad = run(batch, implementation, **topology)
    moved, moved_grad = run(batch._replace(logits=batch.logits + shift), implementation, **topology)
    np.testing.assert_allclose(moved, loss, **TIGHT)
    np.testing.assert_allclose(moved_grad, grad, **TIGHT)
    # the derivative of that invariance: gradients of a cell sum to zero
    np.testing.assert_allclose(grad.sum(-1), 0, atol=1e-13)


@given
def test_shift_of_hat_labels(implementation: str, seed: int, scale: float) -> None:
    """With HAT a constant may be added to all logits but the blank's."""
    rng, batch = batch_of(seed, scale)
    shift = rng.normal(scale=10, size=(B, T, U + 1, 1)) * (np.arange(V) > 0)
    loss, grad = run(batch, implementation, normalization="hat")
    moved, _ = run(batch._replace(logits=batch.logits + shift), implementation, normalization="hat")
    np.testing.assert_allclose(moved, loss, **TIGHT)
    np.testing.assert_allclose(grad[..., 1:].sum(-1), 0, atol=1e-13)


@given
def test_permuted_batch(implementation: str, seed: int, scale: float) -> None:
    """Utterances are independent: a permuted batch gives permuted results, bit for bit."""
    rng, batch = batch_of(seed, scale)
    order = rng.permutation(B)
    loss, grad = run(batch, implementation)
    other, other_grad = run(jax.tree.map(lambda x: x[order], batch), implementation)
    np.testing.assert_array_equal(other, loss[order])
    np.testing.assert_array_equal(other_grad, grad[order])


@given
def test_garbage_in_padding(implementation: str, seed: int, scale: float) -> None:
    """Whatever stands outside the bounds, the bits are the same and gradients there are zero."""
    rng, batch = batch_of(seed, scale)
    garbage = rng.choice([np.nan, np.inf, -np.inf, 1e300, -1e300, 0.0], batch.logits.shape)
    outside = ~valid_cells(batch)
    logits = np.where(outside[..., None], garbage, batch.logits)
    column = np.arange(U)[None]
    _, u1, _, u0 = (x[:, None] for x in batch.lengths)
    wild = rng.integers(-(2**31), 2**31, (B, U))
    labels = np.where((column < u0) | (column >= u1), wild, batch.labels).astype(np.int32)
    loss, grad = run(batch, implementation)
    other, other_grad = run(batch._replace(logits=logits, labels=labels), implementation)
    np.testing.assert_array_equal(other, loss)
    np.testing.assert_array_equal(other_grad, grad)
    assert (grad[outside] == 0).all()


@normalizations
@given
def test_relabelling(implementation: str, normalization: str, seed: int, scale: float) -> None:
    """Classes renamed, the blank to the last one: same loss, gradient renamed."""
    rng, batch = batch_of(seed, scale)
    order = rng.permutation(V)
    order[[np.argmax(order == 0), -1]] = order[[-1, np.argmax(order == 0)]]
    new_name = np.argsort(order)
    renamed = Batch(batch.logits[..., order], new_name[batch.labels], batch.lengths)
    loss, grad = run(batch, implementation, normalization=normalization)
    other, other_grad = run(renamed, implementation, normalization=normalization, blank_id=-1)
    np.testing.assert_allclose(other, loss, **TIGHT)
    np.testing.assert_allclose(other_grad, grad[..., order], **TIGHT)


@given
def test_crop(implementation: str, seed: int, scale: float) -> None:
    """An utterance inside a large lattice is the small lattice cut out of it."""
    _, batch = batch_of(seed, scale)
    loss, grad = run(batch, implementation)
    cut = np.zeros_like(batch.logits)
    labels, lengths = np.ones_like(batch.labels), np.zeros((2, B), np.int32)
    for i, (t1, u1, t0, u0) in enumerate(zip(*batch.lengths, strict=True)):
        cut[i, : t1 - t0, : u1 - u0 + 1] = batch.logits[i, t0:t1, u0 : u1 + 1]
        labels[i, : u1 - u0] = batch.labels[i, u0:u1]
        lengths[:, i] = t1 - t0, u1 - u0
    begins = np.zeros(B, np.int32)
    moved = Batch(
        cut, labels, batch.lengths._replace(logit_lengths=lengths[0], label_lengths=lengths[1])
    )
    moved = moved._replace(lengths=moved.lengths._replace(logit_begins=begins, label_begins=begins))
    other, other_grad = run(moved, implementation)
    np.testing.assert_allclose(other, loss, **TIGHT)
    for i, (t1, u1, t0, u0) in enumerate(zip(*batch.lengths, strict=True)):
        inner = grad[i, t0:t1, u0 : u1 + 1]
        np.testing.assert_allclose(other_grad[i, : t1 - t0, : u1 - u0 + 1], inner, **TIGHT)


@pytest.mark.parametrize("topology", **each_topology)
@given
def test_mass(implementation: str, topology: Options, seed: int, scale: float) -> None:
    """Posteriors conserve mass: one label step per label and the blanks that the topology has.

    Regular and constrained: one blank per frame. Modified: one arc, of either kind, per frame.
    """
    rng = np.random.default_rng(seed)
    batch = random_arcs(rng, B, T, U, scale=scale, **topology)
    _, _, (blank, label) = run_arcs(batch, implementation, **topology)
    assert (blank >= 0).all() and (label >= 0).all()
    for i, (t1, u1, t0, u0) in enumerate(zip(*batch.lengths, strict=True)):
        frame, position = np.zeros(T), np.zeros(U + 1)
        frame[t0:t1] = 1
        position[u0:u1] = 1 if t1 > t0 else 0
        np.testing.assert_allclose(label[i].sum(0), position, atol=1e-12)
        arcs = blank[i] + (label[i] if topology["topology"] == "modified" else 0)
        np.testing.assert_allclose(arcs.sum(1), frame, atol=1e-12)


@given
def test_mass_float32(implementation: str, seed: int, scale: float) -> None:
    """In float32 mass is conserved on every anti-diagonal by construction, on axes as promised.

    A diagonal has at most U + 1 cells, each rounded once or twice: their sum is 1 up to U + 1 units
    in the last place. The promised error of all posteriors, 1e-5 of their norm, bounds the error of
    the sum over the n frames of a label by sqrt(n) times that, and likewise for frames.
    """
    frames, labels = 40, 20
    rng = np.random.default_rng(seed)
    batch = random_arcs(rng, B, frames, labels, scale=scale, dtype=np.float32)
    _, _, (blank, label) = run_arcs(batch, implementation)
    both = np.stack([blank, label], 1).astype(np.float64)
    for i, (t1, u1, t0, u0) in enumerate(zip(*batch.lengths, strict=True)):
        if t0 == t1:
            continue
        t, u = np.arange(frames)[:, None], np.arange(labels + 1)[None]
        steps = np.bincount(np.ravel(t + u), both[i].sum(0).ravel())
        taken = np.zeros(len(steps))
        taken[t0 + u0 : t1 + u1] = 1  # the last of them is the final blank
        np.testing.assert_allclose(steps, taken, atol=(labels + 1) * 2.0**-23)
        bound = 1e-5 * np.linalg.norm(both[i])
        emitted, blanks = both[i, 1, :, u0:u1].sum(0), both[i, 0, t0:t1].sum(1)
        np.testing.assert_allclose(emitted, 1, rtol=0, atol=bound * (t1 - t0) ** 0.5)
        np.testing.assert_allclose(blanks, 1, rtol=0, atol=bound * (u1 - u0 + 1) ** 0.5)


@given
def test_topologies_are_ordered(implementation: str, seed: int, scale: float) -> None:
    """A final blank leaves fewer of the modified topology's paths: the loss is larger."""
    options = {"topology": "modified", "final_blank": True}
    rng = np.random.default_rng(seed)
    batch = random_arcs(rng, B, T, U, scale=scale, **options)
    some = run_arcs(batch, implementation, **options)[0]
    every = run_arcs(batch, implementation, topology="modified")[0]
    assert (every <= some + 1e-12).all()
