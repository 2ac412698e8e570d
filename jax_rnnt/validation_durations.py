"""Checks of what losses with durations are given."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import jax

from . import validation

_LONGEST = 62
"""Frames; the native op takes a set of durations as the bits of an integer."""


def increasing_durations(durations: Any) -> tuple[int, ...]:
    """The durations that arcs can have, one of them positive."""
    expected = f"expected increasing integers from 0 to {_LONGEST}, one of them positive"
    numbers = _whole_numbers("durations", durations, f"{expected}, as (0, 1, 2, 3, 4)", 0)
    increasing = all(x < y for x, y in pairwise(numbers))
    if not increasing or not numbers or not 0 < numbers[-1] <= _LONGEST:
        raise ValueError(f"durations is {numbers}; {expected}.")
    return numbers


def duration_scores(value: Any, logits: jax.Array, num_durations: int) -> jax.Array:
    """Scores of the durations, of the shape that the logits' goes with."""
    scores = validation.float_scores("duration_logits", value)
    expected = (*logits.shape[:-1], num_durations)
    if scores.shape != expected:
        raise ValueError(
            f"duration_logits has shape {scores.shape}; expected (*batch, T, U+1, D) = {expected}, "
            "from the shape of logits and the number of durations."
        )
    return scores


def big_blanks(
    ids: Any, durations: Any, blank_id: int, num_classes: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Classes in [0, V) and durations of the big blanks, in the order of their durations."""
    expected = f"expected different integers from 2 to {_LONGEST}"
    frames = _whole_numbers("big_blank_durations", durations, f"{expected}, as (2, 4, 8)", 2)
    if len(set(frames)) < len(frames) or max(frames, default=2) > _LONGEST:
        raise ValueError(f"big_blank_durations is {frames}; {expected}.")
    expected = f"a class for each of the big_blank_durations {frames}"
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise TypeError(f"big_blank_ids is {ids!r}; expected {expected}.")
    classes = tuple(validation.class_of("big_blank_ids", i, num_classes) for i in ids)
    if len(classes) != len(frames) or len({*classes, blank_id}) < len(classes) + 1:
        raise ValueError(
            f"big_blank_ids is {classes}; expected {expected}, all different and none of them "
            f"blank_id = {blank_id}."
        )
    order = sorted(range(len(frames)), key=frames.__getitem__)
    return tuple(classes[i] for i in order), tuple(frames[i] for i in order)


def _whole_numbers(name: str, value: Any, expected: str, minimum: int) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name} is {value!r}; {expected}.")
    return tuple(
        validation.whole_number(f"{name}[{i}]", x, minimum=minimum) for i, x in enumerate(value)
    )
