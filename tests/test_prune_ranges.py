"""`get_rnnt_prune_ranges` and `do_rnnt_pruning`: against for loops, and what they promise."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles_pruned
import pytest
from cases import Lengths, random_arcs, run_arcs
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import Bounds
from pruned_cases import TOPOLOGIES, expected_pruned, random_pruned

import jax_rnnt
from jax_rnnt import Posteriors


def find_ranges(posteriors: Any, lengths: Lengths, **options: Any) -> jax.Array:
    return jax_rnnt.get_rnnt_prune_ranges(
        Posteriors(*posteriors),
        lengths.logit_lengths,
        lengths.label_lengths,
        logit_begins=lengths.logit_begins,
        label_begins=lengths.label_begins,
        **options,
    )


def wanted_ranges(posteriors: Any, lengths: Lengths, s_range: int, topology: str) -> np.ndarray:
    size = min(s_range, posteriors[0].shape[-1])
    starts = [
        oracles_pruned.prune_starts(blank, label, Bounds(t0, t1, u0, u1), size, topology)
        for blank, label, t1, u1, t0, u0 in zip(*posteriors, *lengths, strict=True)
    ]
    return np.array(starts)[..., None] + np.arange(size)


def random_lengths(
    rng: np.random.Generator, batch: int, frames: int, labels: int, begins: bool
) -> Lengths:
    """Any bounds with frames, also ones that the band is too narrow for."""
    t0 = rng.integers(0, frames, batch) * begins
    u0 = rng.integers(0, labels + 1, batch) * begins
    t1 = np.array([rng.integers(t + 1, frames + 1) for t in t0])
    u1 = np.array([rng.integers(u, labels + 1) for u in u0])
    return Lengths(*(x.astype(np.int32) for x in (t1, u1, t0, u0)))


# (T, U, s_range), each compiled once: U = 0, U < s_range, T = 1, T < U, wide and narrow bands.
SHAPES = [(7, 5, 3), (1, 4, 3), (5, 0, 2), (3, 2, 5), (3, 9, 2), (12, 9, 4), (6, 8, 9), (9, 9, 2)]


@pytest.mark.parametrize("topology", TOPOLOGIES)
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**32 - 1), begins=st.booleans())
@example(shape=(7, 5, 1), seed=0, begins=True)
def test_definition(topology: str, shape: tuple[int, int, int], seed: int, begins: bool) -> None:
    """A hundred utterances an example, with posteriors of few values: many ties."""
    frames, labels, s_range = shape
    if s_range == 1 and topology != "modified":
        return
    rng = np.random.default_rng(seed)
    lengths = random_lengths(rng, 100, frames, labels, begins)
    posteriors = rng.integers(0, 4, (2, 100, frames, labels + 1)) / 4
    options = {"s_range": s_range, "topology": topology}
    found = np.asarray(find_ranges(posteriors, lengths, check=False, **options))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, wanted_ranges(posteriors, lengths, **options))


@pytest.mark.parametrize("topology", TOPOLOGIES)
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**32 - 1))
def test_properties(topology: str, shape: tuple[int, int, int], seed: int) -> None:
    """Of the posteriors of lattices that fit: a path from (0, 0) to (T, U) stays in the band."""
    frames, labels, s_range = shape
    rng = np.random.default_rng(seed)
    size = min(s_range, labels + 1)
    arcs = random_arcs(rng, 20, frames, labels, topology=topology)
    t1, u1 = arcs.lengths[:2]
    t1 = rng.integers(1, frames + 1, 20)
    u1 = np.minimum(u1, (size - 1) * t1 if topology == "regular" else t1)
    lengths = Lengths(*(x.astype(np.int32) for x in (t1, u1, 0 * t1, 0 * u1)))
    _, _, posteriors = run_arcs(arcs._replace(lengths=lengths), "native", topology=topology)
    ranges = np.asarray(find_ranges(posteriors, lengths, s_range=s_range, topology=topology))
    assert ranges.shape == (20, frames, size)
    assert (np.diff(ranges, axis=-1) == 1).all()
    assert (ranges >= 0).all() and (ranges <= labels).all()
    starts = ranges[..., 0]
    assert (starts[:, 0] == 0).all()
    step = size - 1 if topology == "regular" else 1
    assert (np.diff(starts, axis=1) >= 0).all() and (np.diff(starts, axis=1) <= step).all()
    rows = np.arange(20)
    last = ranges[rows, t1 - 1]
    assert ((last[:, 0] <= u1) & (u1 <= last[:, -1])).all()
    for row in rows[:3]:
        w = Bounds(0, int(t1[row]), 0, int(u1[row]))
        path = next(oracles_pruned.paths(starts[row], size, w, topology), None)
        assert path is not None


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_transforms(topology: str, devices: list[jax.Device]) -> None:
    """Identical eager, under jit, vmap and pmap, and from float32, bfloat16 and 64-bit lengths."""
    rng = np.random.default_rng(0)
    lengths = random_lengths(rng, 16, 12, 9, begins=True)
    posteriors = rng.integers(0, 16, (2, 16, 12, 10)) / 16
    options = {"s_range": 4, "topology": topology}
    wanted = wanted_ranges(posteriors, lengths, **options)

    def find(blank: Any, label: Any, lengths: Lengths) -> jax.Array:
        return find_ranges((blank, label), lengths, check=False, **options)

    arguments = (*posteriors, lengths)
    split = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), arguments)
    low = [jnp.asarray(x, jnp.bfloat16) for x in posteriors]
    wide = jax.tree.map(lambda x: x.astype(np.int64), lengths)
    for found in (
        find(*arguments),
        jax.jit(find)(*arguments),
        jax.vmap(find)(*arguments),
        jax.vmap(find, in_axes=(0, 0, 0), out_axes=1)(*split).transpose(1, 0, 2, 3),
        jax.pmap(find, devices=devices)(*split),
        find(*low, wide),
    ):
        np.testing.assert_array_equal(np.reshape(found, wanted.shape), wanted)
    assert find(*(x[3] for x in posteriors), jax.tree.map(lambda x: x[3], lengths)).shape == (12, 4)


def test_no_gradient() -> None:
    """Lengths are constants to differentiation, though posteriors may be differentiated."""

    def loss(x: jax.Array) -> jax.Array:
        ranges = find_ranges((x, x), Lengths(), s_range=2)
        return jnp.sum(jnp.where(ranges > 0, x[..., :2], 2 * x[..., :2]))

    x = np.random.default_rng(1).random((2, 5, 4))
    assert set(np.unique(jax.jit(jax.grad(loss))(x))) <= {0.0, 1.0, 2.0}


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_bad_lengths_in_jit(topology: str) -> None:
    """Still S consecutive positions in [0, U], and nobody else's change."""
    rng = np.random.default_rng(2)
    lengths = random_lengths(rng, 5, 6, 4, begins=True)
    posteriors = rng.random((2, 5, 6, 5))
    posteriors[:, 2] = np.nan
    find = jax.jit(lambda p, n: find_ranges(p, n, s_range=3, topology=topology))
    clean = np.asarray(find(posteriors, lengths))
    for k, value in [(0, 99), (1, 99), (2, -1), (3, 99), (0, -(2**31)), (1, 2**31 - 1)]:
        spoiled = Lengths(*(x.copy() for x in lengths))
        spoiled[k][2] = value
        found = np.asarray(find(posteriors, spoiled))
        np.testing.assert_array_equal(np.delete(found, 2, 0), np.delete(clean, 2, 0))
        assert (np.diff(found, axis=-1) == 1).all() and (found >= 0).all() and (found <= 4).all()


# ------------------------------------------------------------------------------------------ pruning


def test_pruning_values() -> None:
    """am is broadcast, lm gathered."""
    rng = np.random.default_rng(3)
    am, lm = rng.normal(size=(3, 5, 4)), rng.normal(size=(3, 6, 7))
    ranges = np.sort(rng.integers(0, 5, (3, 5, 1)), 1) + np.arange(2)
    am_pruned, lm_pruned = jax_rnnt.do_rnnt_pruning(am, lm, ranges)
    np.testing.assert_array_equal(am_pruned, np.repeat(am[:, :, None], 2, 2))
    wanted = np.array([[[lm[b, u] for u in row] for row in rows] for b, rows in enumerate(ranges)])
    np.testing.assert_array_equal(lm_pruned, wanted)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_gradient_through_pruning(implementation: str, topology: str) -> None:
    """d loss / d am and d lm of a joiner with tanh, against sums of the oracle's gradient."""
    rng = np.random.default_rng(4)
    batch = random_pruned(rng, 4, 6, 5, 3, 5, topology=topology)
    am, lm, weights = (
        rng.normal(size=(4, 6, 8)),
        rng.normal(size=(4, 6, 8)),
        rng.normal(size=(8, 5)),
    )
    inside = np.clip(batch.ranges, 0, 5)

    def joined(am: jax.Array, lm: jax.Array) -> jax.Array:
        am_pruned, lm_pruned = jax_rnnt.do_rnnt_pruning(am, lm, batch.ranges)
        return jnp.tanh(am_pruned + lm_pruned) @ weights

    def loss(am: jax.Array, lm: jax.Array) -> jax.Array:
        return jax_rnnt.rnnt_loss_pruned(
            joined(am, lm),
            batch.labels,
            batch.ranges,
            *batch.lengths[:2],
            logit_begins=batch.lengths.logit_begins,
            label_begins=batch.lengths.label_begins,
            topology=topology,
            reduction="sum",
            implementation=implementation,
        )

    value, (am_grad, lm_grad) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(am, lm)
    hidden = np.tanh(am[:, :, None] + np.take_along_axis(lm[:, None], inside[..., None], 2))
    wanted = expected_pruned(batch._replace(logits=hidden @ weights), topology=topology)
    np.testing.assert_allclose(value, wanted.loss.sum(), rtol=1e-12)
    back = (wanted.grad @ weights.T) * (1 - hidden**2)
    np.testing.assert_allclose(am_grad, back.sum(2), atol=1e-12)
    scattered = np.zeros_like(lm)
    for b, t, s in np.ndindex(*inside.shape):
        scattered[b, inside[b, t, s]] += back[b, t, s]
    np.testing.assert_allclose(lm_grad, scattered, atol=1e-12)


def test_pruning_transforms() -> None:
    """No batch dims, several, vmap, and other dtypes for am and lm."""
    rng = np.random.default_rng(5)
    am, lm = rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(2, 3, 6, 7)).astype(np.float32)
    ranges = rng.integers(0, 5, (2, 3, 5, 1)).astype(np.uint8) + np.arange(2, dtype=np.uint8)
    wanted = jax_rnnt.do_rnnt_pruning(am, lm, ranges)
    assert wanted[0].shape == (2, 3, 5, 2, 4) and wanted[1].shape == (2, 3, 5, 2, 7)
    assert wanted[0].dtype == np.float64 and wanted[1].dtype == np.float32
    mapped = jax.jit(jax.vmap(jax.vmap(jax_rnnt.do_rnnt_pruning)))(am, lm, ranges)
    jax.tree.map(np.testing.assert_array_equal, mapped, wanted)
    one = jax_rnnt.do_rnnt_pruning(am[0, 1], lm[0, 1], ranges[0, 1])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0, 1]), one, wanted)
