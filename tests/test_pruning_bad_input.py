"""Bad data in the pruned loss: what the utterance that has it gets, and that no other notices."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bad_input import BAD, GARBAGE, LARGE, SMALL, assert_only_one_bad
from cases import Lengths, dtypes
from pruned_cases import TOPOLOGIES, PrunedBatch, pruned_function, random_pruned, run_pruned
from pruned_cases import used_cells as used_arcs_of

import jax_rnnt
from jax_rnnt import Posteriors

B, T, U, S, V = 5, 7, 6, 3, 5


def legal_batch(dtype: Any = np.float64, **options: Any) -> PrunedBatch:
    """Utterance BAD has frames [1, 6), labels [1, 4) and a band that moves by one a frame."""
    batch = random_pruned(np.random.default_rng(0), B, T, U, S, V, dtype=dtype, **options)
    for array, value in zip(batch.lengths, (6, 4, 1, 1), strict=True):
        array[BAD] = value
    batch.ranges[BAD] = np.array([9, 0, 1, 2, 2, 2, -7])[:, None] + np.arange(S)
    return batch


def spoil(batch: PrunedBatch, field: str, value: int, dtype: str = "int32") -> PrunedBatch:
    """The batch with all its integers cast to `dtype`, and `value` in utterance BAD's `field`."""
    batch = batch._replace(ranges=np.maximum(batch.ranges, 0))
    cast = jax.tree.map(lambda x: x.astype(dtype) if x.dtype.kind in "iu" else x, batch)
    if field == "labels":
        cast.labels[BAD, 2] = value
    elif field == "ranges":
        cast.ranges[BAD, 3, 0] = value
    else:
        getattr(cast.lengths, field)[BAD] = value
    return cast


BAD_VALUES = [
    *[("ranges", v, "int32") for v in (-1, U + 2 - S, SMALL, LARGE)],
    *[("ranges", v, "int64") for v in (2**32, 2**32 + 1, -(2**63))],
    ("ranges", 2**32 - 1, "uint32"),
    ("labels", V, "int32"),
    ("labels", 0, "int32"),
    ("logit_lengths", T + 1, "int32"),
    ("label_lengths", U + 1, "int32"),
    ("logit_begins", 7, "int32"),
    ("label_begins", -1, "int32"),
]


@pytest.mark.parametrize(("field", "value", "dtype"), BAD_VALUES)
def test_values_in_jit(implementation: str, field: str, value: int, dtype: str) -> None:
    """Starts, labels, lengths and begins that are out of range: NaN, zero gradient, nobody else."""
    clean = run_pruned(spoil(legal_batch(), "logit_begins", 1, dtype), implementation)
    assert np.isfinite(clean[0]).all()
    found = run_pruned(spoil(legal_batch(), field, value, dtype), implementation)
    assert_only_one_bad(found, clean, np.nan)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_values_other_options(implementation: str, topology: str) -> None:
    """The same with other options; unchecked eager calls do as jit does."""
    options: dict[str, Any] = {"topology": topology, "clamp": 0.1, "fastemit_lambda": 0.1}
    batch = legal_batch(**options)
    clean = run_pruned(spoil(batch, "logit_begins", 1), implementation, **options)
    bad = spoil(batch, "ranges", LARGE)
    assert_only_one_bad(run_pruned(bad, implementation, **options), clean, np.nan)
    if topology == "regular":
        eager = pruned_function(implementation, check=False, **options)(*bad)
        assert_only_one_bad((np.asarray(eager),), clean[:1], np.nan)


def test_where_hides_bad_values(implementation: str) -> None:
    """An utterance left out by `where` is not checked and has loss 0, whatever is in it."""
    keep = np.arange(B) != BAD
    clean = run_pruned(legal_batch()._replace(where=keep), implementation)
    assert clean[0][BAD] == 0
    for field in ("ranges", "labels", "logit_lengths"):
        bad = spoil(legal_batch(), field, LARGE)
        bad.logits[BAD] = np.nan
        found = run_pruned(bad._replace(where=keep), implementation)
        assert_only_one_bad(found, clean, 0.0)
        eager = pruned_function(implementation)(*bad._replace(where=keep))
        np.testing.assert_allclose(eager, clean[0], rtol=1e-12)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_no_path(implementation: str, topology: str) -> None:
    """Bands that begin too high, end too low, jump too far, or have too few frames: +inf."""
    options = {"topology": topology}
    batch = legal_batch(**options)
    clean = run_pruned(batch, implementation, **options)
    bands = [
        [0, 2, 2, 2, 2, 2, 0],  # without the first position, 1
        [0, 0, 0, 0, 0, 0, 0],  # U = 4 is out of reach of [0, 3), by two or more labels
        [0, 0, 0, 4, 4, 4, 0],  # nothing in common
        [0, 0, 2, 0, 0, 0, 0],  # back again
    ]
    for starts in bands:
        ranges = batch.ranges.copy()
        ranges[BAD] = np.array(starts)[:, None] + np.arange(S)
        found = run_pruned(batch._replace(ranges=ranges), implementation, **options)
        assert_only_one_bad(found, clean, np.inf)
        logits = batch.logits.copy()
        logits[BAD] = np.nan  # there is no arc that could use it
        spoiled = batch._replace(ranges=ranges, logits=logits)
        assert_only_one_bad(run_pruned(spoiled, implementation, **options), clean, np.inf)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_ranges_for_other_lengths(topology: str) -> None:
    """Known ranges that were made for longer utterances are an error, not a loss of +inf."""
    rng = np.random.default_rng(2)
    T, U, lengths = 12, 5, (np.array([12, 8, 3]), np.array([5, 4, 0]))
    posteriors = Posteriors(*rng.random((2, 3, T, U + 1)))
    logits, labels = rng.normal(size=(3, T, 3, V)), rng.integers(1, V, (3, U))
    loss = partial(jax_rnnt.rnnt_loss_pruned, logits, labels, topology=topology)
    ranges = jax_rnnt.get_rnnt_prune_ranges(posteriors, *lengths, s_range=3, topology=topology)
    assert np.isfinite(loss(ranges, *lengths)).all()
    late = np.minimum(np.maximum(np.arange(T)[:, None] - 8, 0), U - 2) + np.arange(3)
    late = np.broadcast_to(late, (3, T, 3))
    message = r"ranges\[1, 7\], of the last frame, ends at label position 2, but there are 4 labels"
    with pytest.raises(ValueError, match=message):
        loss(late, *lengths)
    for losses in (
        loss(late, *lengths, check=False),
        jax.jit(loss)(late, *lengths),
        loss(late, *lengths, where=np.array([True, False, True])),
    ):
        assert np.isfinite(losses[2]) and losses[1] in (0, np.inf)


def test_too_few_frames(implementation: str) -> None:
    """What `get_rnnt_prune_ranges` makes of labels that do not fit is +inf in the loss."""
    rng = np.random.default_rng(1)
    posteriors = Posteriors(*rng.random((2, 2, 3, 7)))
    ids = rng.integers(1, V, (2, 6))
    lengths = np.array([3, 2])

    def loss(logits: jax.Array) -> jax.Array:
        ranges = jax_rnnt.get_rnnt_prune_ranges(posteriors, lengths, s_range=3, check=False)
        return jax_rnnt.rnnt_loss_pruned(
            logits, ids, ranges, lengths, implementation=implementation
        )

    value, vjp = jax.vjp(jax.jit(loss), jnp.asarray(rng.normal(size=(2, 3, 3, V))))
    assert np.isfinite(value[0]) and value[1] == np.inf
    assert (vjp(jnp.ones(2))[0][1] == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_nan_and_inf(implementation: str, topology: str, value: float) -> None:
    """NaN or +inf in any cell that a path visits: NaN, zeros, nobody else."""
    options = {"topology": topology}
    for dtype in dtypes(implementation, np.float32, jnp.bfloat16):
        batch = legal_batch(dtype, **options)
        clean = run_pruned(batch, implementation, **options)
        used = used_arcs_of(batch, topology)[:, BAD].any(0)
        for t, s in np.argwhere(used):
            logits = batch.logits.copy()
            logits[BAD, t, s, V - 1] = value
            found = run_pruned(batch._replace(logits=logits), implementation, **options)
            assert_only_one_bad(found, clean, np.nan)


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_padding(implementation: str, topology: str, garbage: float) -> None:
    """Garbage in cells that no path visits, unused labels and ranges: same bits, exact zeros."""
    options = {"topology": topology}
    for dtype in dtypes(implementation, np.float32, jnp.bfloat16):
        batch = legal_batch(dtype, **options)
        clean = run_pruned(batch, implementation, **options)
        unused = ~used_arcs_of(batch, topology).any(0)
        assert unused[BAD, 1:6].any()
        logits, labels, ranges = batch.logits.copy(), batch.labels.copy(), batch.ranges.copy()
        logits[unused] = garbage
        for i, (t1, u1, t0, u0) in enumerate(zip(*batch.lengths, strict=True)):
            labels[i, :u0], labels[i, u1:] = LARGE, SMALL
            ranges[i, :t0], ranges[i, t1:] = SMALL, LARGE
            ranges[i, :, 1:] = LARGE  # only the starts are read
        spoiled = PrunedBatch(logits, labels, ranges, batch.lengths)
        found = run_pruned(spoiled, implementation, **options)
        jax.tree.map(np.testing.assert_array_equal, found, clean)
        assert (found[1][unused] == 0).all()


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_forbidden(implementation: str, topology: str) -> None:
    """-inf logits are legal; where every path needs one, the loss is +inf."""
    options = {"topology": topology}
    batch = legal_batch(**options)
    clean = run_pruned(batch, implementation, **options)
    logits = batch.logits.copy()
    logits[BAD, 3, :, :] = -np.inf
    found = run_pruned(batch._replace(logits=logits), implementation, **options)
    assert_only_one_bad(found, clean, np.inf)


# -------------------------------------------------------------------------------------- messages


def raises(error: type[Exception], match: str, function: Any, *args: Any, **options: Any) -> None:
    with pytest.raises(error, match=match):
        function(*args, **options)


def test_messages_of_the_loss() -> None:
    """Name, value, expectation, and that padding is not looked at."""
    batch = legal_batch()
    loss = pruned_function()
    loss(*batch)
    for field, match in (
        ("ranges", rf"ranges\[2, 3, 0\] is {LARGE}; expected 0 <= ranges"),
        ("labels", rf"labels\[2, 2\] is {LARGE}"),
        ("logit_lengths", rf"logit_lengths\[2\] is {LARGE}"),
    ):
        raises(ValueError, match, loss, *spoil(batch, field, LARGE))
    high = batch.ranges.copy()
    high[BAD, 3] += 3
    match = r"ranges\[2, 3, 0\] is 5; expected 0 <= ranges\[..., 0\] <= U\+1 - S = 4"
    raises(ValueError, match, loss, *batch._replace(ranges=high))
    gap = batch.ranges.copy()
    gap[BAD, 3, 1] = 4
    match = r"ranges\[2, 3, 1\] is 4; expected S = 3 consecutive label positions"
    raises(ValueError, match, loss, *batch._replace(ranges=gap))
    logits, labels, ranges = batch[:3]
    raises(TypeError, "ranges has dtype float64", loss, logits, labels, ranges * 1.0)
    raises(TypeError, "ranges is None", loss, logits, labels, None)
    raises(TypeError, "labels is None", loss, logits, None, ranges)
    raises(ValueError, r"ranges has shape \(5, 7, 2\); expected", loss, *batch[:2], ranges[..., :2])
    raises(ValueError, r"labels has shape \(6,\); expected", loss, logits, labels[0], ranges)
    raises(ValueError, r"logits has shape \(7, 3\)", loss, logits[0, ..., 0], labels, ranges)
    raises(ValueError, "S <= U\\+1", loss, logits, labels[:, :1], ranges)
    raises(ValueError, "blank_id is 9", pruned_function(blank_id=9), *batch)
    raises(TypeError, "final_blank", pruned_function(final_blank=True), *batch)


def test_messages_of_ranges() -> None:
    """s_range, posteriors, and utterances that do not fit with the s_range that they need."""
    blank, label = np.random.default_rng(2).random((2, 3, 4, 10))
    posteriors = Posteriors(blank, label)
    find = jax_rnnt.get_rnnt_prune_ranges
    raises(TypeError, "s_range is 2.5", find, posteriors, s_range=2.5)
    raises(ValueError, "s_range is 0; expected s_range >= 1", find, posteriors, s_range=0)
    for topology in ("regular", "constrained"):
        match = f"s_range is 1 with topology '{topology}'"
        raises(ValueError, match, find, posteriors, s_range=1, topology=topology)
    find(posteriors, s_range=1, topology="modified")
    find(Posteriors(blank[..., :1], label[..., :1]), s_range=1)
    raises(ValueError, "topology is 'both'", find, posteriors, s_range=2, topology="both")
    raises(TypeError, "posteriors is of type ndarray", find, blank, s_range=2)
    raises(ValueError, r"posteriors.label has shape", find, (blank, label[:, :2]), s_range=2)
    raises(
        TypeError, r"posteriors.blank has dtype int", find, (blank.astype(int), label), s_range=2
    )
    raises(ValueError, r"label_lengths\[1\] is 10", find, posteriors, None, [9, 10, 9], s_range=5)
    match = (
        r"s_range is 3, which lets 2 labels a frame through, but utterance\[1\] has 9 labels in 2 "
        r"frames; expected s_range >= 6"
    )
    lengths = np.array([4, 2, 3]), np.array([8, 9, 7])
    raises(ValueError, match, find, posteriors, *lengths, s_range=3)
    find(posteriors, *lengths, s_range=6)
    find(posteriors, *lengths, s_range=3, check=False)
    find(posteriors, *lengths, s_range=3, topology="modified")
    find(posteriors, np.array([4, 0, 4]), np.array([8, 9, 7]), s_range=3)  # no frames: no s_range
    match = r"utterance has 9 labels in 4 frames; expected s_range >= 4"
    raises(ValueError, match, find, Posteriors(blank[0], label[0]), s_range=2)


def test_where_hides_bad_lengths_from_ranges() -> None:
    """Lengths of the others are the same; what is left out may have any lengths."""
    rng = np.random.default_rng(2)
    posteriors = Posteriors(*rng.random((2, 3, 4, 5)))
    labels, frames = np.array([4, 4, 4]), np.array([4, 99, 1])
    where = np.array([True, False, False])
    found = jax_rnnt.get_rnnt_prune_ranges(posteriors, frames, labels, s_range=3, where=where)
    alone = Posteriors(*(x[:1] for x in posteriors))
    wanted = jax_rnnt.get_rnnt_prune_ranges(alone, frames[:1], labels[:1], s_range=3)
    np.testing.assert_array_equal(found[:1], wanted)
    logits, ids = rng.normal(size=(3, 4, 3, V)), rng.integers(1, V, (3, 4))
    loss = jax_rnnt.rnnt_loss_pruned(logits, ids, found, frames, labels, where=where)
    assert np.isfinite(loss).all()


def test_messages_of_pruning() -> None:
    """Shapes and dtypes of am, lm and ranges."""
    prune = jax_rnnt.do_rnnt_pruning
    am, lm, ranges = np.zeros((2, 5, 3)), np.zeros((2, 4, 6)), np.zeros((2, 5, 2), int)
    prune(am, lm, ranges)
    raises(ValueError, r"lm has shape \(6,\)", prune, am, lm[0, 0], ranges)
    raises(ValueError, "same batch dimensions", prune, am, lm[:1], ranges)
    raises(ValueError, r"ranges has shape \(2, 4, 2\)", prune, am, lm, ranges[:, :4])
    raises(ValueError, r"U\+1 >= 1", prune, am, lm[:, :0], ranges)
    raises(TypeError, "ranges has dtype float64", prune, am, lm, ranges * 1.0)
    raises(TypeError, "am has dtype int", prune, am.astype(int), lm, ranges)


def test_unknown_values_are_not_checked() -> None:
    """Inside jit, whichever of ranges and lengths are traced."""
    batch = spoil(legal_batch(), "ranges", LARGE)
    loss = pruned_function()
    for traced in ((0, 2), (0, 3)):

        def partly(*given: Any, traced: Any = traced) -> jax.Array:
            arguments = list(batch[:4])
            for i, x in zip(traced, given, strict=True):
                arguments[i] = x
            return loss(*arguments)

        values = jax.jit(partly)(*(batch[i] for i in traced))
        assert np.isnan(values[BAD]) and np.isfinite(np.delete(values, BAD)).all()
    full = batch._replace(lengths=Lengths())
    with pytest.raises(ValueError, match="ranges"):
        jax.jit(lambda x: loss(x, *full[1:]))(full.logits)
