"""Checks of the arguments of decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from . import validation

_INT32_MAX = 2**31 - 1


def encoder_rows(encoder_out: Any) -> jax.Array:
    """`(*batch, T, D1)` floating point."""
    encoder = validation.float_scores("encoder_out", encoder_out)
    if encoder.ndim < 2:
        raise ValueError(
            f"encoder_out has shape {encoder.shape}; expected (*batch, T, D1), at least 2 "
            "dimensions."
        )
    return encoder


def int32_count(name: str, value: Any) -> int:
    """A static integer from 0 to the largest of int32."""
    number = validation.whole_number(name, value, minimum=0)
    if number > _INT32_MAX:
        raise ValueError(f"{name} is {number}; expected {name} <= {_INT32_MAX}.")
    return number


def check_functions(
    predictor_step: Callable[..., Any],
    joint_step: Callable[..., Any],
    state: Any,
    encoder: tuple[tuple[int, ...], int, Any],
    classes: tuple[Any, Any],
    num_durations: int | None,
) -> tuple[int, int, jax.ShapeDtypeStruct]:
    """Blank, start label and the scores' shape, if the functions return what they are to.

    Args:
      encoder: batch dimensions, size and dtype of the encoder's rows.
      classes: blank and start label as they were given.
      num_durations: None where the joint network returns no scores of durations.
    """
    batch, size, dtype = encoder
    validation.check_function("predictor_step", predictor_step, "(state, labels)")
    validation.check_function("joint_step", joint_step, "(encoder_rows, predictor_rows)")
    for leaf in jax.tree.leaves(state):
        if leaf.shape[: len(batch)] != batch:
            raise ValueError(
                f"initial_state has an array of shape {leaf.shape}; expected (*batch, ...) with "
                f"*batch = {batch}, from the shape of encoder_out. Broadcast it."
            )
    labels = jax.ShapeDtypeStruct(batch, jnp.int32)
    result = jax.eval_shape(predictor_step, state, labels)
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"predictor_step returns {_kind(result)}; expected (predictor_rows, state)."
        )
    rows, new_state = result
    if not isinstance(rows, jax.ShapeDtypeStruct) or rows.shape[:-1] != batch:
        raise ValueError(
            f"predictor_step returns rows of shape {getattr(rows, 'shape', None)}; expected "
            f"(*batch, D2) with *batch = {batch}."
        )
    old, new = (_types(x) for x in (state, new_state))
    if old != new:
        raise TypeError(
            f"predictor_step returns a state of {new}; expected {old}, as initial_state is."
        )
    row = jax.ShapeDtypeStruct((*batch, size), dtype)
    scores = jax.eval_shape(joint_step, row, rows)
    if num_durations is not None:
        if not isinstance(scores, tuple) or len(scores) != 2:
            raise TypeError(
                f"joint_step returns {_kind(scores)}; expected (scores, "
                "duration_scores), as there are durations."
            )
        scores, duration_scores = scores
        _check_scores(duration_scores, "duration_scores", batch, num_durations)
    _check_scores(scores, "scores", batch, None)
    blank_id, start_label = classes
    blank = validation.blank_class(blank_id, scores.shape[-1])
    if start_label is None:
        return blank, blank, scores
    return blank, int32_count("start_label", start_label), scores


def _check_scores(scores: Any, name: str, batch: tuple[int, ...], size: int | None) -> None:
    """Scores of classes or durations that `joint_step` returns are an array of floats."""
    shape: tuple[int, ...] = getattr(scores, "shape", ())
    last = shape[-1:] if size is None else (size,)
    if len(shape) != len(batch) + 1 or shape != (*batch, *last):
        letters = "(*batch, V)" if size is None else f"(*batch, {size}), a score for each duration,"
        raise ValueError(
            f"joint_step returns {name} of shape {shape}; expected {letters} with *batch = {batch}."
        )
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise TypeError(
            f"joint_step returns {name} of dtype {scores.dtype}; expected floating point."
        )


def _kind(result: Any) -> str:
    return "one array" if hasattr(result, "shape") else f"a {type(result).__name__}"


def _types(tree: Any) -> Any:
    return jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)
