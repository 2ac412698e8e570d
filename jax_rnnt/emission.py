"""When labels are emitted: expected frames, and delays against a reference."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from . import validation, validation_pruning
from ._native.jax_versions import with_batch_sharding_of
from .bounds import not_wrapped
from .numerics import accumulator_dtype, axis_index
from .types import Array, Posteriors


def expected_emission_frames(posteriors: Posteriors) -> jax.Array:
    """The expected frame of each label, over all alignments.

    `sum_t t p(t, u) / sum_t p(t, u)`, with `p(t, u)` the posterior of the label arc that leaves
    cell `(t, u)`; the denominator is 1 but for rounding.

    Args:
      posteriors: `Posteriors(blank, label)`, each `(*batch, T, U+1)` floating point, as the losses
        return them.

    Returns:
      `(*batch, U)` in float32 (float64 for float64 posteriors), counted from the first frame of the
      posteriors; -1 for labels that no alignment emits: padding, and utterances whose loss is not
      finite. Differentiable by the posteriors (which the losses return as constants).

    Raises:
      TypeError, ValueError: `posteriors` has the wrong type, dtype or shape.
    """
    _, label, _ = validation_pruning.posterior_planes(posteriors)
    return _expected_frames(label)


def mean_emission_delay(
    frames: Array, reference_frames: Array, *, reduction: Literal["none", "mean"] = "none"
) -> jax.Array:
    """By how many frames labels come later than in a reference, on average.

    Args:
      frames: `(*batch, U)` integers or floating point: the frame of each label, from `rnnt_align`
        or `expected_emission_frames`. Negative where there is no label.
      reference_frames: the same shape: those of a forced alignment, or of another model. Labels
        without frame in either do not count.
      reduction: `"none"`: over the labels of each utterance; `"mean"`: over those of the batch.

    Returns:
      `(*batch,)`, or a scalar, in float32 (float64 if an argument is); 0 where no label counts.
      Differentiable by both arguments.

    Raises:
      TypeError, ValueError: an argument has the wrong dtype, shape or value.
    """
    frames = _frames_of("frames", frames)
    reference = _frames_of("reference_frames", reference_frames)
    if frames.ndim < 1 or frames.shape != reference.shape:
        raise ValueError(
            f"frames has shape {frames.shape} and reference_frames {reference.shape}; expected "
            "(*batch, U) for both."
        )
    reduction = validation.one_of("reduction", reduction, Literal["none", "mean"])
    return _mean_delay(frames, reference, reduction)


def _frames_of(name: str, value: Any) -> jax.Array:
    array = validation.as_array(name, value)
    if not (jnp.issubdtype(array.dtype, jnp.integer) or jnp.issubdtype(array.dtype, jnp.floating)):
        raise TypeError(f"{name} has dtype {array.dtype}; expected integers or floating point.")
    return jnp.asarray(not_wrapped(array))


@jax.jit
def _expected_frames(label: jax.Array) -> jax.Array:
    label = label.astype(accumulator_dtype(label.dtype))[..., :-1]
    t = axis_index(label.ndim, -2, label.shape[-2]).astype(label.dtype)
    mass = jnp.sum(label, axis=-2)
    return expected_frames_of(mass, jnp.sum(t * label, axis=-2))


def expected_frames_of(mass: jax.Array, moment: jax.Array) -> jax.Array:
    """From the sums of p(t, u) and of t p(t, u) over t."""
    emitted = mass > 0
    return jnp.where(emitted, moment / jnp.where(emitted, mass, 1), -1)


@partial(jax.jit, static_argnames=("reduction",))
def _mean_delay(frames: jax.Array, reference: jax.Array, reduction: str) -> jax.Array:
    reference = with_batch_sharding_of(frames, frames.ndim - 1, reference)
    wide = jnp.float64 in (frames.dtype, reference.dtype)
    dtype = jnp.float64 if wide else jnp.float32
    counts = (frames >= 0) & (reference >= 0)
    axis = -1 if reduction == "none" else None
    delays = jnp.where(counts, frames.astype(dtype) - reference.astype(dtype), 0)
    count = jnp.maximum(jnp.sum(counts, axis=axis), 1).astype(dtype)
    return jnp.sum(delays, axis=axis) / count
