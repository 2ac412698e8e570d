"""The best labels along the best path, given how many there are."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import validation, validation_factored
from .bands import band_arcs_fwd
from .bounds import Sizes, Utterances, rows_inside, stack_alike
from .factored_arcs import factored_best_arcs
from .label_windows import only_allowed
from .lattice import best_path
from .numerics import accumulator_dtype, axis_index
from .operands import dense_operands
from .types import (
    Alignment,
    ArcsOptions,
    Array,
    BestLabels,
    Implementation,
    LatticeOptions,
    Normalization,
    Topology,
)


def rnnt_best_labels(
    logits: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    blank_id: int = 0,
    topology: Topology = "regular",
    normalization: Normalization = "softmax",
    final_blank: bool = False,
    delay_penalty: float = 0.0,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> BestLabels:
    """The most probable alignment of as many labels as are given, whatever they are.

    The logits come from the joint network fed with the true labels (teacher forcing); along the
    alignment, every label arc takes its best class other than blank, the first of equally good
    ones. The labels' error rate is a quick look at a model in training, without a search
    (`transducer.viterbi` of awni's transducer). Of equally probable alignments (to rounding) it is
    the one that emits every label earliest.

    Args:
      logits, logit_lengths, label_lengths, blank_id, topology, normalization, final_blank,
        logit_begins, label_begins, label_windows, where, implementation, check: as in `rnnt_loss`.
      delay_penalty: as in `rnnt_align`.

    Returns:
      `BestLabels(labels, score, frames)`, see there; as for `rnnt_align`.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss`.
    """
    logits = validation.float_scores("logits", logits)
    sizes = validation.sizes_of("logits", logits.shape, 3)
    utterances = Utterances(
        logit_lengths=logit_lengths, label_lengths=label_lengths, logit_begins=logit_begins,
        label_begins=label_begins, label_windows=label_windows, where=where,
    )  # fmt: skip
    return _best_labels(
        logits,
        *_checked(
            sizes,
            utterances,
            ArcsOptions(blank_id, normalization, implementation=implementation),
            LatticeOptions(topology, final_blank, delay_penalty, implementation=implementation),
            check,
        ),
    )


def rnnt_best_labels_simple(
    am: Array,
    lm: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    blank_id: int = 0,
    topology: Topology = "regular",
    normalization: Normalization = "softmax",
    final_blank: bool = False,
    delay_penalty: float = 0.0,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> BestLabels:
    """`rnnt_best_labels` for the additive joiner, whose logits `am[t] + lm[u]` are never stored.

    The best classes take O(T U V) time, a frame at a time, and memory of a few `(T, U+1)` planes
    and of one frame's `(U+1, V)` logits.

    Args:
      am, lm, logit_lengths, label_lengths, blank_id, topology, normalization, final_blank,
        logit_begins, label_begins, label_windows, where, implementation, check: as in
        `rnnt_loss_simple`.
      delay_penalty: as in `rnnt_align`.

    Returns:
      As `rnnt_best_labels`.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss_simple`.
    """
    am, lm, sizes = validation_factored.factored_scores(am, lm)
    utterances = Utterances(
        logit_lengths=logit_lengths, label_lengths=label_lengths, logit_begins=logit_begins,
        label_begins=label_begins, label_windows=label_windows, where=where,
    )  # fmt: skip
    return _best_labels_simple(
        am,
        lm,
        *_checked(
            sizes,
            utterances,
            ArcsOptions(blank_id, normalization, implementation=implementation),
            LatticeOptions(topology, final_blank, delay_penalty, implementation=implementation),
            check,
        ),
    )


def _checked(
    sizes: Sizes,
    utterances: Utterances,
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
    check: Any,
) -> tuple[Utterances, ArcsOptions, LatticeOptions]:
    """All arguments beside the scores."""
    arcs_options = validation.checked_arcs_options(sizes.num_classes, arcs_options)
    lattice_options = validation.checked_lattice_options(lattice_options)
    utterances = validation.checked_utterances(replace(sizes, V=None), utterances, None, check)
    return utterances, arcs_options, lattice_options


@partial(jax.jit, static_argnames=("arcs_options", "lattice_options"))
def _best_labels(
    logits: jax.Array,
    utterances: Utterances,
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
) -> BestLabels:
    logits = lax.stop_gradient(logits)
    sizes = replace(validation.sizes_of("logits", logits.shape, 3), V=None)
    (logits,), _, bounds, mask = dense_operands((logits,), sizes, utterances, None)
    classes, blank, label = _best_arcs(arcs_options, logits, bounds)
    alignment = best_path(lattice_options, blank, only_allowed(label, mask), bounds)
    rows = jnp.maximum(alignment.frames, 0)[..., None, :]
    labels = jnp.take_along_axis(classes[..., :-1], rows, axis=-2, mode="clip")[..., 0, :]
    return with_alignment(labels, alignment)


@partial(jax.jit, static_argnames=("arcs_options", "lattice_options"))
def _best_labels_simple(
    am: jax.Array,
    lm: jax.Array,
    utterances: Utterances,
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
) -> BestLabels:
    am, lm = lax.stop_gradient((am, lm))
    sizes = replace(validation_factored.factored_sizes(am.shape, lm.shape), V=None)
    (am, lm), _, bounds, mask = dense_operands((am, lm), sizes, utterances, None)
    blank, label = factored_best_arcs(arcs_options, am, lm, bounds)
    alignment = best_path(lattice_options, blank, only_allowed(label, mask), bounds)
    rows = jnp.maximum(alignment.frames, 0)[..., None]
    am_rows = jnp.take_along_axis(am, rows, axis=-2, mode="clip")
    dtype = accumulator_dtype(am.dtype)
    scores = am_rows.astype(dtype) + lm[..., :-1, :].astype(dtype)
    return with_alignment(best_class(scores, arcs_options.blank_id), alignment)


def with_alignment(labels: jax.Array, alignment: Alignment) -> BestLabels:
    return BestLabels(jnp.where(alignment.frames >= 0, labels, -1), *alignment)


def best_class(scores: jax.Array, blank_id: int) -> jax.Array:
    """The best class other than blank; blank where all others are forbidden."""
    is_blank = axis_index(scores.ndim, -1, scores.shape[-1]) == blank_id
    others = jnp.where(is_blank, -jnp.inf, scores)
    best = lax.argmax(others, others.ndim - 1, jnp.int32)
    return jnp.where(jnp.max(others, axis=-1) == -jnp.inf, blank_id, best)


def _best_arcs(
    options: ArcsOptions, logits: jax.Array, bounds: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best class of each label arc, then blank and label arcs, each `(*batch, T, U+1)`."""
    *_, T, W, _ = logits.shape
    classes = best_class(logits, options.blank_id)
    # The arcs of a frame whose label arcs have their own classes are those of a band.
    frames, _ = rows_inside(bounds, T, W)
    frame_bounds = stack_alike(0, 1, bounds[..., 2, None], bounds[..., 3, None])
    frame_bounds = jnp.where(frames[..., None], frame_bounds, 0)
    blank, label, _ = band_arcs_fwd(options, logits, classes, frame_bounds)
    return classes, blank, jnp.where(classes == options.blank_id, -jnp.inf, label)
