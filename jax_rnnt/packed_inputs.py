"""Inputs of a joint network for packed rows, on which it computes no padding."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import validation, validation_packed
from ._native.jax_versions import align_varying_axes, replicated
from .bounds import Utterances, clip_to_int32
from .numerics import accumulator_dtype, axis_index
from .packed_rows import Layout, layout_of, rows_of
from .types import Array


def packed_size(logit_lengths: Array, label_lengths: Array) -> int:
    """How many packed rows utterances have: the sum of `logit_lengths * (label_lengths + 1)`.

    Args:
      logit_lengths, label_lengths: integers of one shape whose values are known, not traced.

    Returns:
      A Python integer, which can be a static size.

    Raises:
      TypeError, ValueError: lengths are traced, not integers, negative or of different shapes.
    """
    return validation_packed.packed_size_of(logit_lengths, label_lengths)


def pack_joint_inputs(
    encoder_out: Array,
    predictor_out: Array,
    logit_lengths: Array,
    label_lengths: Array,
    total: int,
    *,
    check: bool = True,
) -> jax.Array:
    """`encoder_out[b, t] + predictor_out[b, u]` of all valid cells, as packed rows.

    A joint network that begins with this sum (a projection of each before) and then treats every
    row by itself runs on no padding: `joint(pack_joint_inputs(...))` are the logits of
    `rnnt_loss_packed`, which has the order of rows.

    Args:
      encoder_out: `(B, T, D)` float32, float64, bfloat16 or float16.
      predictor_out: `(B, U+1, D)`, the same dtype.
      logit_lengths: `(B,)` integers in [0, T], frames of each utterance.
      label_lengths: `(B,)` integers in [0, U], labels of each utterance.
      total: number of rows to make, static; `packed_size` or more. Programs are compiled for each
        value anew, so that a few sizes that are large enough are better than the exact ones.
      check: raise errors for bad lengths, and those that need more than `total` rows, if they are
        known, which waits for them.

    Returns:
      `(total, D)` of the inputs' dtype. Rows that are left over are zero, and so are those of
      utterances with bad lengths or without enough rows that could not be checked. Gradients are
      summed in float32 or better, in a fixed order; they are zero in padding.

    Raises:
      TypeError, ValueError: an argument has the wrong type, dtype, shape or value.
    """
    encoder_out = validation.float_scores("encoder_out", encoder_out)
    predictor_out = validation.float_scores("predictor_out", predictor_out)
    if predictor_out.dtype != encoder_out.dtype:
        raise TypeError(
            f"predictor_out has dtype {predictor_out.dtype}; expected {encoder_out.dtype}, the "
            "dtype of encoder_out."
        )
    sizes, total = validation_packed.joint_input_sizes(
        encoder_out.shape, predictor_out.shape, total
    )
    utterances = Utterances(logit_lengths=logit_lengths, label_lengths=label_lengths)
    utterances = validation_packed.checked_utterances(sizes, utterances, None, check, total)
    assert utterances.logit_lengths is not None and utterances.label_lengths is not None
    return _pack(
        encoder_out, predictor_out, utterances.logit_lengths, utterances.label_lengths, total
    )


@partial(jax.jit, static_argnames="total")
def _pack(
    encoder_out: jax.Array,
    predictor_out: jax.Array,
    logit_lengths: Array,
    label_lengths: Array,
    total: int,
) -> jax.Array:
    B, T, D = encoder_out.shape
    W = predictor_out.shape[1]
    if B == 0 or T == 0 or total == 0:
        return jnp.zeros((total, D), encoder_out.dtype)
    frames, label_counts = (
        clip_to_int32(replicated(jnp.asarray(x))) for x in (logit_lengths, label_lengths)
    )
    layout = layout_of(frames, label_counts, total)
    fits = layout.fits & (frames >= 0) & (frames <= T) & (label_counts >= 0) & (label_counts < W)
    layout = layout._replace(fits=fits)
    frames = jnp.where(fits, frames, 0)
    operands = (replicated(encoder_out), replicated(predictor_out), frames, layout)
    leaves, tree = jax.tree.flatten(operands)
    operands: Any = jax.tree.unflatten(tree, align_varying_axes(*leaves))
    return _sums(total, *operands)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(
    total: int, encoder_out: jax.Array, predictor_out: jax.Array, frames: jax.Array, layout: Layout
) -> jax.Array:
    rows = rows_of(layout, total)
    used = layout.fits[rows.utterances] & (axis_index(1, 0, total) < layout.ends[rows.utterances])
    first, second = (
        x.at[rows.utterances, jnp.minimum(index, x.shape[1] - 1)].get(mode="promise_in_bounds")
        for x, index in ((encoder_out, rows.frames), (predictor_out, rows.positions))
    )
    return jnp.where(used[:, None], first + second, 0)


def _sums_fwd(total, encoder_out, predictor_out, frames, layout):
    shapes = (jnp.zeros_like(x[:0]) for x in (encoder_out, predictor_out))  # and dtype
    return _sums(total, encoder_out, predictor_out, frames, layout), (*shapes, frames, layout)


def _sums_bwd(total, residuals, cotangents):
    encoder_like, predictor_like, frames, layout = residuals
    T, W = encoder_like.shape[1], predictor_like.shape[1]
    t, u = axis_index(2, 1, T), axis_index(2, 1, W)

    def rows_at(t: jax.Array, u: jax.Array) -> jax.Array:
        widths = layout.widths[:, None]
        there = (t < frames[:, None]) & (u < widths)
        rows = jnp.where(there, layout.offsets[:, None] + t * widths + u, 0)
        rows = cotangents.at[rows].get(mode="promise_in_bounds")
        return jnp.where(there[..., None], rows, 0)

    # Sums of rows that are gathered step by step: scattered additions take several times as long,
    # and have no fixed order on a GPU.
    by_frame = _sum_over(W, lambda i: rows_at(t, i), cotangents.dtype)
    by_label = _sum_over(T, lambda i: rows_at(i, u), cotangents.dtype)
    return by_frame, by_label, None, None


def _sum_over(count: int, term: Any, dtype: Any) -> jax.Array:
    """The sum of term(0), ..., term(count - 1), in float32 or better."""
    wide = accumulator_dtype(dtype)

    def step(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        return total + term(i).astype(wide), None

    first = term(np.int32(0)).astype(wide)
    return lax.scan(step, first, jnp.arange(1, count, dtype=jnp.int32))[0].astype(dtype)


_sums.defvjp(_sums_fwd, _sums_bwd)
