"""Checks of the arguments of losses that run a joint network, beside those that all share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .bounds import Sizes
from .validation import check_function, float_scores, with_known_lengths


def joint_operands(encoder_out: Any, predictor_out: Any) -> tuple[jax.Array, jax.Array, Sizes]:
    """The two networks' output, `(*batch, T, D1)` and `(*batch, U+1, D2)`."""
    encoder = float_scores("encoder_out", encoder_out)
    predictor = float_scores("predictor_out", predictor_out)
    for name, array, letters in (
        ("encoder_out", encoder, "(*batch, T, D1)"),
        ("predictor_out", predictor, "(*batch, U+1, D2)"),
    ):
        if array.ndim < 2:
            raise ValueError(
                f"{name} has shape {array.shape}; expected {letters}, at least 2 dimensions."
            )
    if predictor.shape[:-2] != encoder.shape[:-2]:
        raise ValueError(
            f"predictor_out has shape {predictor.shape}; expected (*batch, U+1, D2) with *batch = "
            f"{encoder.shape[:-2]}, that of encoder_out."
        )
    if isinstance(predictor.shape[-2], int) and predictor.shape[-2] < 1:
        raise ValueError(
            f"predictor_out has shape {predictor.shape}, which is (*batch, U+1, D2) with U+1 = 0; "
            "there is one position more than there are labels. Did you leave out the start symbol?"
        )
    *batch, T, _ = encoder.shape
    sources = "encoder_out", "predictor_out"
    sizes = Sizes(tuple(batch), T, predictor.shape[-2] - 1, sources=sources)
    return encoder, predictor, with_known_lengths(sizes)


def traced_logits(
    joint_fn: Callable[..., Any],
    *operands: Any,
    rows: tuple[int, ...],
    letters: str,
    num_durations: int | None = None,
) -> tuple[jax.ShapeDtypeStruct, list[Any]]:
    """What `joint_fn` returns, `(*rows, V)` logits, and the arrays that it closes over.

    Args:
      operands: arrays or their shapes.
      rows: the shape of the operands' rows, on trial.
      letters: stand for the expected shape.
      num_durations: D, where a pair is expected, with `(*rows, D)` scores of durations.
    """
    _check_joint_function(joint_fn, len(operands))
    jaxpr, result = jax.make_jaxpr(joint_fn, return_shape=True)(*operands)
    for constant in jaxpr.consts:
        if isinstance(constant, Tracer):
            raise TypeError(
                f"joint_fn closes over a traced value, {constant.aval.str_short()}; expected a "
                "function of its arguments alone. Pass the value in params, which may be any "
                "pytree of arrays."
            )
    logits = result
    if num_durations is not None:
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise TypeError(
                f"joint_fn returned {_what(result)}; expected a pair of arrays, (logits, "
                f"duration_logits), of shapes {letters} and (n, D) with D = {num_durations}, the "
                "number of durations."
            )
        logits, duration_logits = result
        _check_float_array("duration_logits", duration_logits)
        if duration_logits.shape != (*rows, num_durations):
            raise ValueError(
                f"joint_fn returned duration_logits of shape {duration_logits.shape} for n = "
                f"{rows[0]} pairs of rows; expected (n, D) = {(*rows, num_durations)}, a score for "
                f"each of the {num_durations} durations."
            )
    _check_float_array("logits", logits)
    shape = logits.shape
    if len(shape) != len(rows) + 1 or tuple(shape[:-1]) != tuple(rows) or shape[-1] < 1:
        raise ValueError(
            f"joint_fn returned logits of shape {shape} for pairs of rows of shape "
            f"({', '.join(map(str, rows))}, features); expected {letters}, a row of logits for "
            "each pair of rows, and V >= 1."
        )
    return logits, list(jaxpr.consts)


def _check_float_array(name: str, array: Any) -> None:
    dtype = getattr(array, "dtype", None)
    if dtype is None:
        raise TypeError(f"joint_fn returned {_what(array)} as {name}; expected an array.")
    if not any(dtype == d for d in (jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16)):
        raise TypeError(
            f"joint_fn returned {name} of dtype {dtype}; expected float32, float64, bfloat16 or "
            "float16."
        )


def _what(result: Any) -> str:
    """Names what a traced function returned."""
    if isinstance(result, jax.ShapeDtypeStruct):
        return f"one array of shape {result.shape}"
    if isinstance(result, (tuple, list)):
        return f"a {type(result).__name__} of {len(result)}"
    return f"a {type(result).__name__}"


def _check_joint_function(joint_fn: Any, num_arguments: int) -> None:
    with_keys = num_arguments == 4
    arguments = f"(params, encoder_rows, predictor_rows{', keys' if with_keys else ''})"
    check_function("joint_fn", joint_fn, arguments)
    try:
        # Not that of a function that it wraps, whose arguments it may supply.
        signature = inspect.signature(joint_fn, follow_wrapped=False)
    except ValueError:  # of what is not written in Python
        return
    try:
        signature.bind(*[None] * num_arguments)
    except TypeError as error:
        why = ": with rng, it gets a key for each row" if with_keys else ""
        raise TypeError(
            f"joint_fn has the arguments {signature}; expected a function of {arguments}{why}."
        ) from error
