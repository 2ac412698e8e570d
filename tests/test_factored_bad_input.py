"""Bad data and bad arguments for the losses of the additive joiner.

As in test_bad_input.py: what the utterance that has it gets, and that the others do not notice.
For the smoothed loss, whose utterances share a unigram, the batch to compare with is the one that
leaves the utterance out.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from assertions import ERRORS, assert_names
from bad_input import BAD
from cases import Options, each_topology
from factored_cases import each_implementation, factored_function, random_factored, run_factored
from oracles_factored import FactoredBatch, FactoredResult, simple_loss, smoothed_loss

import jax_rnnt

B, T, U, V = 5, 7, 4, 5
SCALES: Options = {"lm_only_scale": 0.25, "am_only_scale": 0.1}
each_loss = pytest.mark.parametrize("scales", [{}, SCALES], ids=["simple", "smoothed"])
GARBAGE = [np.nan, np.inf, -np.inf, 1e30, -1e30]


def legal_batch(dtype: Any = np.float32, **options: Any) -> FactoredBatch:
    """Utterance BAD has frames [1, 6) and labels [1, 3); the whole lattice is utterance 0's."""
    batch = random_factored(np.random.default_rng(0), B, T, U, V, dtype=dtype, **options)
    for array, value in zip(batch.lengths, (6, 3, 1, 1), strict=True):
        array[BAD] = value
    return batch


def without_bad(batch: FactoredBatch, implementation: str, **options: Any) -> FactoredResult:
    """The results where BAD is left out."""
    return run_factored(batch._replace(where=np.arange(B) != BAD), implementation, **options)


def assert_only_one_bad(found: FactoredResult, clean: FactoredResult, loss: float) -> None:
    """BAD has this loss and zero gradients; the rest is bitwise the same."""
    np.testing.assert_array_equal(found.loss[BAD], loss)
    others = np.arange(B) != BAD
    for one, two in zip(found, clean, strict=True):
        np.testing.assert_array_equal(one[others], two[others])
    assert (found.d_am[BAD] == 0).all() and (found.d_lm[BAD] == 0).all()


def spoiled(batch: FactoredBatch, half: str, index: Any, value: float) -> FactoredBatch:
    scores = getattr(batch, half).copy()
    scores[BAD][index] = value
    return batch._replace(**{half: scores})


@each_implementation
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("normalization", "scales"),
    [("softmax", {}), ("none", {}), ("hat", {}), ("softmax", SCALES)],
    ids=["softmax", "none", "hat", "smoothed"],
)
def test_nan_and_inf(
    implementation: str, normalization: str, scales: Options, value: float
) -> None:
    """In a frame or a label position of the utterance: NaN, zeros, nobody else."""
    options = dict(scales, normalization=normalization)
    batch = legal_batch()
    clean = without_bad(batch, implementation, **options)
    for k in range(V) if normalization != "none" else [0]:
        for half, row in (("am", 2), ("lm", 1)):
            found = run_factored(spoiled(batch, half, (row, k), value), implementation, **options)
            assert_only_one_bad(found, clean, np.nan)


@each_loss
@pytest.mark.parametrize("topology", **each_topology)
def test_no_path(topology: Options, scales: Options) -> None:
    """Forbidden labels and, where one frame has one label, too many of them: +inf, zeros."""
    options = dict(topology, **scales)
    batch = legal_batch(**topology)
    forbidden = spoiled(batch, "am", (slice(None), batch.labels[BAD, 1]), -np.inf)
    found = run_factored(forbidden, "native", **options)
    if scales:  # the label positions count in the unigram
        np.testing.assert_array_equal(found.loss[BAD], np.inf)
        assert (found.d_am[BAD] == 0).all() and (found.d_lm[BAD] == 0).all()
        assert np.isfinite(found.d_lm).all() and np.isfinite(found.d_am).all()
    else:
        assert_only_one_bad(found, without_bad(batch, "native", **options), np.inf)
    if topology["topology"] == "regular":
        return
    for array, value in zip(batch.lengths, (3, 4, 0, 0), strict=True):
        array[BAD] = value
    found = run_factored(batch, "native", **options)
    np.testing.assert_array_equal(found.loss[BAD], np.inf)
    assert (found.d_am[BAD] == 0).all() and (found.d_lm[BAD] == 0).all()
    assert np.isfinite(np.delete(found.loss, BAD)).all()


@each_implementation
@each_loss
@pytest.mark.parametrize(
    ("field", "value"),
    [("labels", V), ("labels", 0), ("logit_lengths", T + 1), ("label_begins", -1)],
)
def test_values_in_jit(implementation: str, field: str, value: int, scales: Options) -> None:
    """Labels, lengths and begins out of range: NaN, zeros, nobody else."""
    batch = legal_batch()
    clean = without_bad(batch, implementation, **scales)
    if field == "labels":
        labels = batch.labels.copy()
        labels[BAD, 2] = value
        bad = batch._replace(labels=labels)
    else:
        array = getattr(batch.lengths, field).copy()
        array[BAD] = value
        bad = batch._replace(lengths=batch.lengths._replace(**{field: array}))
    assert_only_one_bad(run_factored(bad, implementation, **scales), clean, np.nan)


@each_implementation
@each_loss
@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_padding(implementation: str, garbage: float, dtype: Any, scales: Options) -> None:
    """Garbage in all frames, label positions and labels outside: same bits, exact zeros."""
    batch = legal_batch(dtype)
    clean = run_factored(batch, implementation, **scales)
    t1, u1, t0, u0 = (np.asarray(x)[:, None] for x in batch.lengths)
    t, u = np.arange(T)[None], np.arange(U + 1)[None]
    frames = (t0 <= t) & (t < t1)
    positions = (u0 <= u) & (u <= u1) & (t0 < t1)
    am, lm, labels = (x.copy() for x in batch[:3])
    am[~frames], lm[~positions] = garbage, garbage
    labels[((u < u0) | (u >= u1))[:, :-1]] = -(2**31)
    found = run_factored(FactoredBatch(am, lm, labels, batch.lengths), implementation, **scales)
    for one, two in zip(found, clean, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (found.d_am[~frames] == 0).all() and (found.d_lm[~positions] == 0).all()


@each_implementation
@pytest.mark.parametrize("normalization", ["softmax", "none", "hat"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_forbidden(implementation: str, normalization: str, dtype: Any) -> None:
    """-inf is legal in either half, whole rows of it too: values and gradients of the oracle."""
    rng = np.random.default_rng(1)
    options = {"normalization": normalization, "fastemit_lambda": 0.2}
    batch = random_factored(rng, 40, 5, 3, 4, dtype=dtype)
    for half in batch[:2]:
        half[rng.random(half.shape) < 0.06] = -np.inf
        half[rng.random(half.shape[:2]) < 0.02] = -np.inf
    wanted, found = simple_loss(batch, **options), run_factored(batch, implementation, **options)
    assert np.isinf(wanted.loss).any() and np.isfinite(wanted.loss).sum() > 5
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    for one, two in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, two, rtol=tolerance, atol=tolerance)
    assert (found.d_am[np.isinf(batch.am)] == 0).all()
    assert (found.d_lm[np.isinf(batch.lm)] == 0).all()


def test_smoothed_forbidden() -> None:
    """A class that the predictor never allows: not in the unigram, no NaN anywhere."""
    batch = random_factored(np.random.default_rng(2), 4, 5, 3, 6)
    batch.labels[batch.labels == 4] = 1
    batch.lm[..., 4] = -np.inf
    found = run_factored(batch, "native", **SCALES)
    without = FactoredBatch(*(np.delete(x, 4, -1) for x in batch[:2]), *batch[2:])
    labels = np.where(without.labels == 5, 4, without.labels)
    wanted = smoothed_loss(without._replace(labels=labels), **SCALES)
    np.testing.assert_allclose(found.loss, wanted.loss, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(np.delete(found.d_am, 4, -1), wanted.d_am, atol=1e-13)
    np.testing.assert_allclose(np.delete(found.d_lm, 4, -1), wanted.d_lm, atol=1e-13)
    assert (found.d_am[..., 4] == 0).all() and (found.d_lm[..., 4] == 0).all()


@each_implementation
@each_loss
def test_dummy_rows(implementation: str, scales: Options) -> None:
    """No frames: exactly 0, zero gradient, even with NaN everywhere."""
    batch = legal_batch()
    clean = without_bad(batch, implementation, **scales)
    for array in batch.lengths:
        array[BAD] = 0
    batch.am[BAD] = batch.lm[BAD] = np.nan
    assert_only_one_bad(run_factored(batch, implementation, **scales), clean, 0.0)


# --------------------------------------------------------------------------------------- messages


def arguments() -> dict[str, Any]:
    """Legal arguments."""
    batch = legal_batch()
    return {"am": batch.am, "lm": batch.lm, "labels": batch.labels} | SCALES


WRONG: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("am-int", {"am": np.zeros((B, T, V), np.int32)}, ("am", "int32", "float32")),
    ("am-1d", {"am": np.zeros(V, np.float32)}, ("am", "(5,)")),
    ("am-classes", {"am": np.zeros((B, T, V + 1), np.float32)}, ("am", "lm", "6", "5")),
    ("am-batch", {"am": np.zeros((1, T, V), np.float32)}, ("am", "lm", "(1, 7, 5)", "(5, 5, 5)")),
    ("am-empty", {"am": np.zeros((B, T, 0), np.float32)}, ("am", "lm", "0")),
    ("lm-dtype", {"lm": np.zeros((B, U + 1, V))}, ("lm", "float64", "float32")),
    ("lm-none", {"lm": np.zeros((B, 0, V), np.float32)}, ("lm", "U+1", "0")),
    ("lm-width", {"lm": np.zeros((B, U, V), np.float32)}, ("labels", "(5, 4)", "(5, 3)")),
    ("labels", {"labels": None}, ("labels", "None")),
    ("lm-share", {"lm_only_scale": -0.1}, ("lm_only_scale", "-0.1")),
    ("am-share", {"am_only_scale": "much"}, ("am_only_scale", "much")),
    ("shares", {"lm_only_scale": 0.9}, ("lm_only_scale", "0.9", "am_only_scale", "0.1")),
    ("hat", {"normalization": "hat"}, ("normalization", "hat", "rnnt_loss_simple")),
    ("posteriors", {"return_posteriors": 1}, ("return_posteriors", "1")),
]


@pytest.mark.parametrize(("change", "words"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_messages(change: dict[str, Any], words: tuple[str, ...]) -> None:
    """Errors name the argument, what it was and what was expected."""
    with pytest.raises(ERRORS) as error:
        jax_rnnt.rnnt_loss_smoothed(**(arguments() | change))
    assert_names(str(error.value), *words)


def test_eager_values() -> None:
    """Outside of transformations bad values raise, with `check`."""
    batch = legal_batch()
    batch.labels[1, 0] = V + 3
    batch.lengths.label_lengths[1] = 2
    batch.lengths.label_begins[1] = 0
    with pytest.raises(ValueError, match=r"labels\[1, 0\] is 8"):
        factored_function("native")(*batch)


def test_clamp_is_no_argument() -> None:
    """There are no logits to clamp the gradient of."""
    given = arguments()
    with pytest.raises(TypeError, match="clamp"):
        jax_rnnt.rnnt_loss_smoothed(**given, clamp=1.0)  # type: ignore[call-arg]


TERMS = np.zeros((B, T, U + 1), np.float32)
WRONG_TERMS: list[tuple[str, Any, Any, tuple[str, ...]]] = [
    ("array", TERMS, [TERMS], ("blank_terms", "ndarray")),
    ("none", [], [], ("blank_terms", "0")),
    ("number", [TERMS], [TERMS, TERMS], ("label_terms", "2", "blank_terms", "1")),
    ("shape", [TERMS, TERMS[1:]], [TERMS] * 2, ("blank_terms[1]", "(4, 7, 5)", "(5, 7, 5)")),
    ("dtype", [TERMS], [TERMS.astype(np.float64)], ("label_terms[0]", "float64", "float32")),
]


@pytest.mark.parametrize(
    ("blanks", "labels", "words"), [w[1:] for w in WRONG_TERMS], ids=[w[0] for w in WRONG_TERMS]
)
def test_term_messages(blanks: Any, labels: Any, words: tuple[str, ...]) -> None:
    """The same for `rnnt_loss_from_arc_terms`."""
    with pytest.raises(ERRORS) as error:
        jax_rnnt.rnnt_loss_from_arc_terms(blanks, labels)
    assert_names(str(error.value), *words)
