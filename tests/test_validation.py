"""Wrong arguments raise errors that name them and their values; `check_inputs` does so in jit."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import ERRORS, assert_names
from jax.experimental import checkify

import jax_rnnt

B, T, U, V = 3, 5, 4, 6


def arguments() -> dict[str, Any]:
    """Legal arguments of `rnnt_loss` and `check_inputs`; label 3 of utterance 1 is padding."""
    rng = np.random.default_rng(0)
    return {
        "logits": rng.normal(size=(B, T, U + 1, V)).astype(np.float32),
        "labels": np.array([[1, 2, 3, 4], [5, 1, 2, 0], [3, 2, 1, 1]], np.int32),
        "logit_lengths": np.array([5, 4, 3], np.int32),
        "label_lengths": np.array([4, 3, 2], np.int32),
        "logit_begins": np.array([0, 1, 2], np.int32),
        "label_begins": np.array([0, 2, 1], np.int32),
    }


def arcs_arguments() -> dict[str, Any]:
    base = arguments()
    for used in ("logits", "labels"):
        del base[used]
    arcs = np.full((B, T, U + 1), -1.0, np.float32)
    return {"blank_log_probs": arcs, "label_log_probs": arcs.copy()} | base


WRONG: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("logits-int", {"logits": np.zeros((B, T, U + 1, V), np.int32)}, ("logits", "int32")),
    ("logits-complex", {"logits": np.zeros((B, T, U + 1, V), complex)}, ("logits", "complex128")),
    ("logits-2d", {"logits": np.zeros((U + 1, V), np.float32)}, ("logits", "(5, 6)")),
    ("logits-width", {"logits": np.zeros((B, T, U, V), np.float32)}, ("labels", "4")),
    ("logits-batch", {"logits": np.zeros((B + 1, T, U + 1, V), np.float32)}, ("labels",)),
    ("labels-float", {"labels": np.ones((B, U), np.float32)}, ("labels", "float32")),
    ("labels-1d", {"labels": np.ones(U, np.int32)}, ("labels", "(4,)")),
    ("labels-wide", {"labels": np.ones((B, U + 1), np.int32)}, ("labels", "(3, 5)")),
    ("blank-high", {"blank_id": V}, ("blank_id", "6")),
    ("blank-low", {"blank_id": -V - 1}, ("blank_id", "-7")),
    ("blank-float", {"blank_id": 0.5}, ("blank_id", "0.5")),
    ("blank-text", {"blank_id": "first"}, ("blank_id", "first")),
]
WRONG_OPTIONS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("topology", {"topology": "diagonal"}, ("topology", "diagonal", "regular")),
    ("reduction", {"reduction": "average"}, ("reduction", "average", "mean")),
    ("implementation", {"implementation": "cuda"}, ("implementation", "cuda", "native")),
    ("final_blank", {"final_blank": True}, ("final_blank", "regular", "modified")),
    (
        "final_blank-constrained",
        {"final_blank": True, "topology": "constrained"},
        ("final_blank", "constrained", "modified"),
    ),
    ("fastemit", {"fastemit_lambda": "much"}, ("fastemit_lambda", "much")),
    ("delay", {"delay_penalty": "much"}, ("delay_penalty", "much")),
    ("where-shape", {"where": np.ones(B + 1, bool)}, ("where", "(4,)")),
    ("where-dtype", {"where": np.ones(B, np.float32)}, ("where", "float32")),
]
for _name in ("logit_lengths", "label_lengths", "logit_begins", "label_begins"):
    WRONG_OPTIONS += [
        (f"{_name}-shape", {_name: np.ones(B + 1, np.int32)}, (_name, "(4,)")),
        (f"{_name}-dtype", {_name: np.ones(B, np.float32)}, (_name, "float32")),
    ]
LOGITS_ONLY: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("normalization", {"normalization": "sigmoid"}, ("normalization", "sigmoid", "softmax")),
    ("clamp", {"clamp": "tight"}, ("clamp", "tight")),
]
WRONG_ARCS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("blank-int", {"blank_log_probs": np.zeros((B, T, U + 1), int)}, ("blank_log_probs", "int64")),
    ("label-int", {"label_log_probs": np.zeros((B, T, U + 1), int)}, ("label_log_probs", "int64")),
    ("1d", {"blank_log_probs": np.zeros(5), "label_log_probs": np.zeros(5)}, ("(5,)",)),
    (
        "shapes",
        {"label_log_probs": np.zeros((B, T, U), np.float32)},
        ("label_log_probs", "(3, 5, 4)"),
    ),
    ("dtypes", {"label_log_probs": np.zeros((B, T, U + 1))}, ("label_log_probs", "float64")),
    ("clamp", {"clamp": 0.1}, ("clamp",)),
    ("normalization", {"normalization": "softmax"}, ("normalization",)),
]


def cases(*tables: list[tuple[str, dict[str, Any], tuple[str, ...]]]) -> dict[str, Any]:
    rows = [row for table in tables for row in table]
    return {
        "argnames": ("change", "words"),
        "argvalues": [row[1:] for row in rows],
        "ids": [row[0] for row in rows],
    }


def split(change: dict[str, Any], base: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Array arguments, to be traced, and options."""
    both = base | change
    arrays = {k: v for k, v in both.items() if isinstance(v, np.ndarray)}
    return arrays, {k: v for k, v in both.items() if k not in arrays}


@pytest.mark.parametrize(**cases(WRONG, WRONG_OPTIONS, LOGITS_ONLY))
def test_rnnt_loss_arguments(change: dict[str, Any], words: tuple[str, ...]) -> None:
    """Raised at trace time: eagerly and inside jit alike."""
    arrays, options = split(change, arguments())
    with pytest.raises(ERRORS) as error:
        jax_rnnt.rnnt_loss(**arrays, **options)
    assert_names(str(error.value), *words)
    with pytest.raises(ERRORS) as error:
        jax.jit(lambda a: jax_rnnt.rnnt_loss(**a, **options))(arrays)
    assert_names(str(error.value), *words)


@pytest.mark.parametrize(**cases(WRONG_ARCS, WRONG_OPTIONS))
def test_from_arcs_arguments(change: dict[str, Any], words: tuple[str, ...]) -> None:
    """The same for arcs; options that need logits do not exist there."""
    arrays, options = split(change, arcs_arguments())
    with pytest.raises(ERRORS) as error:
        jax_rnnt.rnnt_loss_from_arcs(**arrays, **options)
    assert_names(str(error.value), *words)
    with pytest.raises(ERRORS) as error:
        jax.jit(lambda a: jax_rnnt.rnnt_loss_from_arcs(**a, **options))(arrays)
    assert_names(str(error.value), *words)


@pytest.mark.parametrize(**cases(WRONG))
def test_check_inputs_arguments(change: dict[str, Any], words: tuple[str, ...]) -> None:
    """`check_inputs` checks shapes and dtypes too."""
    arrays, options = split(change, arguments())
    with pytest.raises(ERRORS) as error:
        jax_rnnt.check_inputs(**arrays, **options)
    assert_names(str(error.value), *words)


# ------------------------------------------------------------------------------------------- values

# utterance 1 has frames [1, 4) and labels [2, 3); the value goes there
BAD_VALUES: list[tuple[str, int, str]] = [
    (name, value, dtype)
    for name in ("labels", "logit_lengths", "label_lengths", "logit_begins", "label_begins")
    for value, dtype in [
        (-1, "int32"),
        (2**31 - 1, "int32"),
        (-(2**31), "int32"),
        (2**32 + 3, "int64"),
        (2**63 - 1, "int64"),
        (2**64 - 1, "uint64"),
    ]
] + [
    ("labels", V, "int32"),
    ("labels", 0, "int32"),
    ("logit_lengths", T + 1, "int32"),
    ("label_lengths", U + 1, "int32"),
    ("logit_begins", T, "int32"),
    ("label_begins", U, "int32"),
]


def with_value(base: dict[str, Any], name: str, value: int, dtype: str) -> dict[str, Any]:
    array = base[name].astype(dtype)
    array[(1, 2) if name == "labels" else 1] = value
    return base | {name: array}


@pytest.mark.parametrize(("name", "value", "dtype"), BAD_VALUES)
def test_values_eager(implementation: str, name: str, value: int, dtype: str) -> None:
    """ValueError with the argument, the value and the utterance; from arcs and check_inputs too."""
    spoiled = with_value(arguments(), name, value, dtype)
    calls = [
        lambda a: jax_rnnt.rnnt_loss(**a, implementation=implementation),
        lambda a: jax_rnnt.rnnt_loss(**jax.tree.map(jnp.asarray, a), implementation=implementation),
        lambda a: jax_rnnt.check_inputs(**a),
    ]
    for call in calls:
        with pytest.raises(ValueError) as error:
            call(spoiled)
        assert_names(str(error.value), name, str(value), "1")
    if name != "labels":
        with pytest.raises(ValueError) as error:
            arcs = with_value(arcs_arguments(), name, value, dtype)
            jax_rnnt.rnnt_loss_from_arcs(**arcs, implementation=implementation)
        assert_names(str(error.value), name, str(value), "1")


@pytest.mark.parametrize(("name", "value", "dtype"), BAD_VALUES)
def test_values_checkify(name: str, value: int, dtype: str) -> None:
    """Under `checkify` inside jit the same errors, with the argument and the value."""
    error = checked(with_value(arguments(), name, value, dtype))
    assert error is not None
    assert_names(error, name, str(value))


def checked(arrays: dict[str, Any], **options: Any) -> str | None:
    """The message, if any, of `check_inputs` in a jitted, checkified function."""

    def check(a: dict[str, Any]) -> None:
        jax_rnnt.check_inputs(**a, **options)

    error, _ = jax.jit(checkify.checkify(check, errors=checkify.user_checks))(arrays)
    return error.get()


def test_legal_values_pass() -> None:
    """No complaint about legal values, nor about padding, nor about what `where` leaves out."""
    base = arguments()
    assert jax_rnnt.check_inputs(**base) is None
    assert checked(base) is None
    padded = base["labels"].copy()
    padded[1] = [2**31 - 1, -5, 2, 0]  # only position 2 is used
    assert jax_rnnt.check_inputs(**base | {"labels": padded}) is None
    assert checked(base | {"labels": padded}) is None
    jax_rnnt.rnnt_loss(**base | {"labels": padded})
    keep = np.array([True, False, True])
    for name in list(base)[1:]:
        hidden = with_value(base, name, 2**31 - 1, "int32")
        assert jax_rnnt.check_inputs(**hidden, where=keep) is None
        assert checked(hidden | {"where": keep}) is None


def test_blank_id_counts_from_the_end() -> None:
    """blank_id=-6 is class 0, so that label 0 is an error and label 5 is not."""
    base = arguments()
    jax_rnnt.check_inputs(**base, blank_id=-V)
    spoiled = with_value(base, "labels", V - 1, "int32")
    with pytest.raises(ValueError, match="blank"):
        jax_rnnt.check_inputs(**spoiled, blank_id=-1)
    message = checked(spoiled, blank_id=-1)
    assert message is not None
    assert_names(message, "labels", str(V - 1))


def test_label_equal_to_blank_says_so() -> None:
    """The message for a blank among the labels mentions the blank."""
    with pytest.raises(ValueError, match="blank"):
        jax_rnnt.rnnt_loss(**with_value(arguments(), "labels", 0, "int32"))


def test_check_can_be_switched_off() -> None:
    """`check=False` does not look at values (the utterance is NaN), shapes are checked all the
    same.
    """
    spoiled = with_value(arguments(), "labels", V, "int32")
    loss = np.asarray(jax_rnnt.rnnt_loss(**spoiled, check=False))
    assert np.isnan(loss[1]) and np.isfinite(loss[[0, 2]]).all()
    with pytest.raises(ERRORS):
        jax_rnnt.rnnt_loss(**arguments() | {"labels": np.ones((B, U + 1), int)}, check=False)


PACKED: dict[str, Any] = {
    "logits": np.zeros((9, 3), np.float32),
    "labels": np.array([[1, 2], [1, 7]]),
    "logit_lengths": np.array([2, 1]),
    "label_lengths": np.array([2, 1]),
}
PRUNED: dict[str, Any] = {
    "logits": np.zeros((2, 3, 2, 3), np.float32),
    "labels": PACKED["labels"],
    "ranges": np.array([[[0, 1], [0, 1], [1, 2]], [[0, 1], [7, 7], [7, 7]]]),
    "logit_lengths": np.array([3, 1]),
    "label_lengths": np.array([2, 1]),
}
OTHER_CHECKS: list[Any] = [
    (jax_rnnt.check_inputs_packed, PACKED, "logit_lengths", (1,), 2, "N = 9"),
    (jax_rnnt.check_inputs_packed, PACKED, "labels", (1, 0), 3, "V = 3"),
    (jax_rnnt.check_inputs_pruned, PRUNED, "ranges", (0, 1, 0), 2, "U = 2"),
    (jax_rnnt.check_inputs_pruned, PRUNED, "ranges", (0, 2, 1), 1, "2 consecutive"),
    (jax_rnnt.check_inputs_pruned, PRUNED, "label_lengths", (0,), 3, "U = 2"),
]


@pytest.mark.parametrize(("check", "good", "name", "index", "value", "words"), OTHER_CHECKS)
def test_other_checks(
    check: Any, good: dict[str, Any], name: str, index: Any, value: int, words: str
) -> None:
    """Of packed rows and bands: known, and in a jitted, checkified function; padding may be bad,
    and so may what `where` leaves out. A shape and dtype will do for the logits.
    """

    def message(arrays: dict[str, Any]) -> str | None:
        logits = arrays["logits"]
        rest = {k: v for k, v in arrays.items() if k != "logits"}
        shape = jax.ShapeDtypeStruct(logits.shape, logits.dtype)
        checks = checkify.checkify(lambda rest: check(shape, **rest), errors=checkify.user_checks)
        return jax.jit(checks)(rest)[0].get()

    check(**good)
    assert message(good) is None
    bad = {**good, name: good[name].copy()}
    bad[name][index] = value
    with pytest.raises(ValueError, match=words):
        check(**bad)
    found = message(bad)
    assert found is not None and name in found and re.search(words, found)
    if check is jax_rnnt.check_inputs_pruned:
        assert message({**bad, "where": np.arange(2) != index[0]}) is None


def test_several_batch_dims() -> None:
    """The utterance of a value is named by all its indices."""
    base = {k: np.stack([v, v]) for k, v in arguments().items()}
    jax_rnnt.check_inputs(**base)
    base["logit_lengths"][1, 2] = 77
    with pytest.raises(ValueError) as error:
        jax_rnnt.check_inputs(**base)
    assert_names(str(error.value), "logit_lengths", "77", "1", "2")


def test_options_are_keyword_only() -> None:
    """blank_id is not the fifth positional argument."""
    with pytest.raises(TypeError):
        jax_rnnt.rnnt_loss(*list(arguments().values())[:4], 0)  # type: ignore[misc]
