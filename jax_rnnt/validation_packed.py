"""Checks of the arguments of packed rows, beside those that all losses share."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import validation
from .bounds import PackedSizes, Sizes, Utterances, clip_to_int32
from .packed_rows import layout_of
from .types import Array
from .validation import as_array, is_known, raise_or_checkify

_MOST_ROWS = 2**31 - 2


def packed_sizes(shape: tuple[int, ...], labels: Any) -> PackedSizes:
    """Sizes of packed logits `(N, V)`, with B and U from the labels."""
    _check_logits_shape(shape)
    labels = as_array("labels", labels, "integers of shape (B, U)")
    if labels.ndim != 2:
        raise ValueError(
            f"labels has shape {labels.shape}; expected (B, U): labels are padded, not packed."
        )
    B, U = labels.shape
    return PackedSizes((_known_batch("labels", B),), shape[0], U, shape[1])


def packed_logit_sizes(shape: tuple[int, ...], max_labels: Any, logit_lengths: Any) -> PackedSizes:
    """Sizes of packed logits without labels, with B from the lengths and max_labels for U."""
    _check_logits_shape(shape)
    batch = (_batch_of("logit_lengths", logit_lengths),)
    return PackedSizes(batch, shape[0], _most_labels(max_labels), shape[1], max_labels_given=True)


def packed_arc_sizes(
    shape: tuple[int, ...], max_labels: Any, logit_lengths: Any, name: str = "blank_log_probs"
) -> PackedSizes:
    """Sizes of packed arcs `(N,)`, with B from the lengths and max_labels for U."""
    max_labels = _most_labels(max_labels)
    if len(shape) != 1:
        raise ValueError(
            f"{name} has shape {shape}; expected (N,), 1 dimension. Of an array arcs (N, 2) with "
            "both, pass arcs[:, 0] and arcs[:, 1]."
        )
    _check_number_of_rows(name, shape)
    batch = (_batch_of("logit_lengths", logit_lengths),)
    return PackedSizes(batch, shape[0], max_labels, max_labels_given=True)


def joint_input_sizes(
    encoder_shape: tuple[int, ...], predictor_shape: tuple[int, ...], total: Any
) -> tuple[Sizes, int]:
    """Sizes of the padded inputs of a joint network, and the number of rows to make of them."""
    expected = "expected encoder_out (B, T, D) and predictor_out (B, U+1, D)"
    if len(encoder_shape) != 3:
        raise ValueError(f"encoder_out has shape {encoder_shape}; {expected}.")
    B, T, D = encoder_shape
    if len(predictor_shape) != 3 or (predictor_shape[0], predictor_shape[2]) != (B, D):
        raise ValueError(
            f"predictor_out has shape {predictor_shape} and encoder_out {encoder_shape}; "
            f"{expected}, of the same B and D."
        )
    if predictor_shape[1] < 1:
        raise ValueError(
            f"predictor_out has shape {predictor_shape}, which is (B, U+1, D) with U+1 = 0; there "
            "is one position more than there are labels. Did you leave out the start symbol?"
        )
    rows = "the number of rows, packed_size(logit_lengths, label_lengths) or more"
    sizes = Sizes((B,), T, predictor_shape[1] - 1, sources=("encoder_out", "predictor_out"))
    return sizes, _static_count("total", total, rows)


def checked_utterances(
    sizes: Sizes,
    given: Utterances,
    blank_id: int | None,
    check: Any,
    total: int | None = None,
) -> Utterances:
    """Labels, lengths, `where` and label windows of packed utterances.

    With `check`, known bad values raise. Rows yet to be made are `total`, an argument.
    """
    _check_lengths_are_given(given)
    utterances = validation.checked_utterances(sizes, given, blank_id, check)
    if check:
        lengths = utterances.logit_lengths, utterances.label_lengths
        if total is not None:
            _check_total(f"total is {total}", total, *lengths)
        else:
            assert isinstance(sizes, PackedSizes)
            _check_total(_rows_in_words(sizes), sizes.num_rows, *lengths)
    return utterances


def check_values(sizes: PackedSizes, given: Utterances, blank_id: int) -> None:
    """As `validation.check_values`; also that there are rows for all utterances."""
    _check_lengths_are_given(given)
    utterances = validation.utterances_of(sizes, given)
    validation.check_values(sizes, utterances, blank_id)
    frames, labels = utterances.logit_lengths, utterances.label_lengths
    assert frames is not None and labels is not None
    if is_known(frames) and is_known(labels):
        _check_total(_rows_in_words(sizes), sizes.num_rows, frames, labels)
        return
    frames, labels = (jnp.asarray(clip_to_int32(x)) for x in (frames, labels))
    fits = layout_of(frames, labels, sizes.num_rows).fits
    expected = (
        f"at least logit_lengths * (label_lengths + 1) of the N = {sizes.num_rows} rows left by "
        "the utterances before it"
    )
    raise_or_checkify(fits, "logit_lengths", frames, expected)


def _rows_in_words(sizes: PackedSizes) -> str:
    return f"there are N = {sizes.num_rows} packed rows"


def _check_lengths_are_given(utterances: Utterances) -> None:
    for name in ("logit_lengths", "label_lengths"):
        if getattr(utterances, name) is None:
            raise TypeError(
                f"{name} is None; expected integers of shape (B,): they say which rows are whose."
            )


def _check_total(what: str, num_rows: int, logit_lengths: Any, label_lengths: Any) -> None:
    """Raises ValueError if the rows that known lengths need are more than there are."""
    if not (is_known(logit_lengths) and is_known(label_lengths) and isinstance(num_rows, int)):
        return
    needed = _cells(logit_lengths, label_lengths).sum()
    if needed > num_rows:
        raise ValueError(
            f"{what}; expected at least {int(needed)} rows, the sum of "
            "logit_lengths * (label_lengths + 1), which packed_size counts."
        )


def packed_size_of(logit_lengths: Any, label_lengths: Any) -> int:
    """The rows that known lengths need."""
    arrays: list[Array] = []
    for name, value in (("logit_lengths", logit_lengths), ("label_lengths", label_lengths)):
        array = as_array(name, value)
        if not is_known(array):
            raise TypeError(
                f"{name} is traced; expected known values: the number of rows is static. Count "
                "before jit, or choose a total that is enough for every batch."
            )
        if not np.issubdtype(array.dtype, np.integer):
            raise TypeError(f"{name} has dtype {array.dtype}; expected an integer dtype.")
        if np.any(np.asarray(array) < 0):
            raise ValueError(f"{name} has negative values; expected {name} >= 0.")
        arrays.append(array)
    if arrays[0].shape != arrays[1].shape:
        raise ValueError(
            f"label_lengths has shape {arrays[1].shape}; expected {arrays[0].shape}, the shape of "
            "logit_lengths."
        )
    return int(_cells(*arrays).sum())


def _cells(logit_lengths: Any, label_lengths: Any) -> np.ndarray:
    """As Python integers, which do not overflow."""
    frames, labels = (
        np.asarray(jax.device_get(x)).astype(object) for x in (logit_lengths, label_lengths)
    )
    return np.maximum(frames, 0) * np.maximum(labels + 1, 0)


def _batch_of(name: str, lengths: Any) -> int:
    array = as_array(name, lengths, "integers of shape (B,)")
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; expected (B,).")
    return _known_batch(name, array.shape[0])


def _known_batch(name: str, batch: Any) -> int:
    if not isinstance(batch, int):
        raise NotImplementedError(
            f"{name} has the symbolic number of utterances B = {batch}; with packed rows it must "
            "be known. Export with a symbolic number of rows, N, and add utterances without frames."
        )
    return batch


def _static_count(name: str, value: Any, meaning: str) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(
            f"{name} is {value!r}; expected a Python integer, which is static: {meaning}."
        )
    count = int(value)
    if not 0 <= count <= _MOST_ROWS:
        raise ValueError(f"{name} is {count}; expected 0 <= {name} < 2**31 - 1: {meaning}.")
    return count


def _most_labels(max_labels: Any) -> int:
    return _static_count("max_labels", max_labels, "the most labels that an utterance may have")


def _check_logits_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        raise ValueError(
            f"logits has shape {shape}; expected (N, V), 2 dimensions: packed rows have no batch "
            "dimensions. rnnt_loss takes padded ones; jax.vmap maps over several packed batches."
        )
    _check_number_of_rows("logits", shape)
    if isinstance(shape[1], int) and shape[1] < 1:
        raise ValueError(f"logits has shape {shape}, without classes; expected (N, V), V >= 1.")


def _check_number_of_rows(name: str, shape: tuple[int, ...]) -> None:
    if isinstance(shape[0], int) and shape[0] > _MOST_ROWS:
        raise ValueError(f"{name} has shape {shape}; expected N < 2**31 - 1 rows.")
