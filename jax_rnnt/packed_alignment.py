"""Best alignments, best labels and emission frames of packed rows, as those of padded ones."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import validation, validation_packed, validation_pruning
from ._native.jax_versions import align_varying_axes, replicated, with_whole_rows
from .best_labels import best_class, with_alignment
from .bounds import PackedSizes, Utterances, clip_to_int32
from .emission import expected_frames_of
from .label_windows import only_allowed
from .lattice import packed_best_path
from .numerics import accumulator_dtype, axis_index
from .packed import checked_packed_arcs, checked_packed_logits, row_arcs
from .packed_rows import Layout, layout_of, packed_operands, rows_of
from .types import (
    Alignment,
    ArcsOptions,
    Array,
    BestLabels,
    Implementation,
    LatticeOptions,
    Normalization,
    Posteriors,
    Topology,
)


def rnnt_align_packed(
    logits: Array,
    labels: Array,
    logit_lengths: Array,
    label_lengths: Array,
    *,
    blank_id: int = 0,
    topology: Topology = "regular",
    normalization: Normalization = "softmax",
    final_blank: bool = False,
    delay_penalty: float = 0.0,
    label_windows: Array | None = None,
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> Alignment:
    """`rnnt_align` of packed logits, those of valid cells only.

    Beside the arcs, memory is one byte for each row, and B times a few rows of U+1 numbers.

    Args:
      logits, labels, logit_lengths, label_lengths, blank_id, topology, normalization, final_blank,
        label_windows, where, implementation, check: as in `rnnt_loss_packed`.
      delay_penalty: as in `rnnt_align`.

    Returns:
      `Alignment(score, frames)`, `(B,)` and `(B, U)`, as `rnnt_align`. Rows that are divided among
      devices, and too few of them, are as in `rnnt_loss_packed`.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss_packed`.
    """
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        label_windows=label_windows, where=where,
    )  # fmt: skip
    checked = checked_packed_logits(
        logits,
        utterances,
        ArcsOptions(blank_id, normalization, implementation=implementation),
        LatticeOptions(topology, final_blank, delay_penalty, implementation=implementation),
        check,
    )
    return _align(*checked)


def rnnt_align_packed_from_arcs(
    blank_log_probs: Array,
    label_log_probs: Array,
    logit_lengths: Array,
    label_lengths: Array,
    *,
    max_labels: int,
    topology: Topology = "regular",
    final_blank: bool = False,
    delay_penalty: float = 0.0,
    label_windows: Array | None = None,
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> Alignment:
    """`rnnt_align_from_arcs` of packed arcs, those of valid cells only.

    Args:
      blank_log_probs, label_log_probs, logit_lengths, label_lengths, topology, final_blank,
        label_windows, where, implementation, check: as in `rnnt_loss_packed_from_arcs`.
      max_labels: no utterance has more labels. Static.
      delay_penalty: as in `rnnt_align`.

    Returns:
      `Alignment(score, frames)`, `(B,)` and `(B, max_labels)`, as `rnnt_align`.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss_packed_from_arcs`.
    """
    utterances = Utterances(
        logit_lengths=logit_lengths, label_lengths=label_lengths, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    checked = checked_packed_arcs(
        (blank_log_probs, label_log_probs),
        utterances,
        max_labels,
        LatticeOptions(topology, final_blank, delay_penalty, implementation=implementation),
        check,
    )
    return _align_from_arcs(*checked)


def rnnt_best_labels_packed(
    logits: Array,
    logit_lengths: Array,
    label_lengths: Array,
    *,
    max_labels: int,
    blank_id: int = 0,
    topology: Topology = "regular",
    normalization: Normalization = "softmax",
    final_blank: bool = False,
    delay_penalty: float = 0.0,
    label_windows: Array | None = None,
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> BestLabels:
    """`rnnt_best_labels` of packed logits, those of valid cells only.

    Args:
      logits, logit_lengths, label_lengths, blank_id, topology, normalization, final_blank,
        label_windows, where, implementation, check: as in `rnnt_loss_packed`.
      max_labels: no utterance has more labels. Static.
      delay_penalty: as in `rnnt_align`.

    Returns:
      `BestLabels(labels, score, frames)`, `(B, max_labels)`, `(B,)` and `(B, max_labels)`, as
      `rnnt_best_labels`.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss_packed`.
    """
    logits = validation.float_scores("logits", logits)
    sizes = validation_packed.packed_logit_sizes(logits.shape, max_labels, logit_lengths)
    arcs_options = ArcsOptions(blank_id, normalization, implementation=implementation)
    arcs_options = validation.checked_arcs_options(sizes.num_classes, arcs_options)
    lattice_options = validation.checked_lattice_options(
        LatticeOptions(topology, final_blank, delay_penalty, implementation=implementation)
    )
    utterances = Utterances(
        logit_lengths=logit_lengths, label_lengths=label_lengths, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    utterances = validation_packed.checked_utterances(
        replace(sizes, V=None), utterances, None, check
    )
    return _best_labels(logits, utterances, sizes.U, arcs_options, lattice_options)


def expected_emission_frames_packed(
    posteriors: Posteriors,
    logit_lengths: Array,
    label_lengths: Array,
    *,
    max_labels: int,
    check: bool = True,
) -> jax.Array:
    """`expected_emission_frames` of packed posteriors.

    Args:
      posteriors: `Posteriors(blank, label)`, each `(N,)` floating point, as
        `rnnt_loss_packed_from_arcs` returns them.
      logit_lengths, label_lengths, check: as in `rnnt_loss_packed_from_arcs`.
      max_labels: no utterance has more labels. Static.

    Returns:
      `(B, max_labels)` in float32 (float64 for float64 posteriors), as `expected_emission_frames`.

    Raises:
      TypeError, ValueError: an argument has the wrong type, dtype, shape or value.
    """
    _, label = validation_pruning.posterior_pair(posteriors)
    label = validation.float_scores("posteriors.label", label)
    sizes = validation_packed.packed_arc_sizes(
        label.shape, max_labels, logit_lengths, "posteriors.label"
    )
    utterances = Utterances(logit_lengths=logit_lengths, label_lengths=label_lengths)
    utterances = validation_packed.checked_utterances(sizes, utterances, None, check)
    assert utterances.logit_lengths is not None and utterances.label_lengths is not None
    return _expected_frames(label, utterances.logit_lengths, utterances.label_lengths, sizes.U)


@partial(jax.jit, static_argnames=("arcs_options", "lattice_options"))
def _align(
    logits: jax.Array,
    utterances: Utterances,
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
) -> Alignment:
    logits = lax.stop_gradient(logits)
    sizes = validation_packed.packed_sizes(logits.shape, utterances.labels)
    if sizes.batch[0] == 0:
        return _nothing(logits, sizes.U)
    rows, lattice = packed_operands(utterances, sizes, arcs_options.blank_id)
    whole_rows = with_whole_rows(1, logits, rows.labels, rows.bounds)
    *arcs_operands, lattice = align_varying_axes(*whole_rows, lattice)
    blank, label, _ = row_arcs(arcs_options, *arcs_operands)
    label = only_allowed(label, lattice.mask)
    return packed_best_path(lattice_options, sizes.U, blank, label, lattice.offsets, lattice.bounds)


@partial(jax.jit, static_argnames=("max_labels", "options"))
def _align_from_arcs(
    blank: jax.Array,
    label: jax.Array,
    utterances: Utterances,
    max_labels: int,
    options: LatticeOptions,
) -> Alignment:
    blank, label = lax.stop_gradient((blank, label))
    sizes = validation_packed.packed_arc_sizes(blank.shape, max_labels, utterances.logit_lengths)
    if sizes.batch[0] == 0:
        return _nothing(blank, max_labels)
    _, lattice = packed_operands(utterances, sizes, None)
    dtype = accumulator_dtype(blank.dtype)
    label = only_allowed(label, lattice.mask)
    blank, label = (replicated(x).astype(dtype) for x in (blank, label))
    operands = align_varying_axes(blank, label, lattice.offsets, lattice.bounds)
    return packed_best_path(options, max_labels, *operands)


@partial(jax.jit, static_argnames=("max_labels", "arcs_options", "lattice_options"))
def _best_labels(
    logits: jax.Array,
    utterances: Utterances,
    max_labels: int,
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
) -> BestLabels:
    logits = lax.stop_gradient(logits)
    assert utterances.logit_lengths is not None and utterances.label_lengths is not None
    N, B = logits.shape[0], utterances.logit_lengths.shape[0]
    if B == 0 or N == 0:
        # There is no class to look up.
        arcs = jnp.zeros(logits.shape[:1], accumulator_dtype(logits.dtype))
        alignment = _align_from_arcs(arcs, arcs, utterances, max_labels, lattice_options)
        return with_alignment(alignment.frames, alignment)
    rows, lattice = packed_operands(utterances, PackedSizes((B,), N, max_labels), None)
    whole_rows = with_whole_rows(1, logits, rows.bounds)
    logits, row_bounds, lattice = align_varying_axes(*whole_rows, lattice)
    classes = best_class(logits, arcs_options.blank_id)
    blank, label, _ = row_arcs(arcs_options, logits, classes[:, None], row_bounds)
    classes = replicated(classes)
    label = jnp.where(classes == arcs_options.blank_id, -jnp.inf, label)
    label = only_allowed(label, lattice.mask)
    operands = blank, label, lattice.offsets, lattice.bounds
    alignment = packed_best_path(lattice_options, max_labels, *operands)
    widths = lattice.bounds[:, 3, None] + 1
    label_rows = lattice.offsets[:, None] + alignment.frames * widths + axis_index(2, 1, max_labels)
    return with_alignment(classes.at[label_rows].get(mode="clip"), alignment)


def _nothing(scores: jax.Array, num_labels: int) -> Alignment:
    """Of no utterances."""
    dtype = accumulator_dtype(scores.dtype)
    return Alignment(jnp.zeros(0, dtype), jnp.zeros((0, num_labels), jnp.int32))


@partial(jax.jit, static_argnames=("max_labels",))
def _expected_frames(
    label: jax.Array, logit_lengths: Array, label_lengths: Array, max_labels: int
) -> jax.Array:
    label = replicated(label).astype(accumulator_dtype(label.dtype))
    if 0 in (label.shape[0], logit_lengths.shape[0]):
        return jnp.full((logit_lengths.shape[0], max_labels), -1, label.dtype)
    frames, label_counts = (
        clip_to_int32(replicated(jnp.asarray(x))) for x in (logit_lengths, label_lengths)
    )
    layout = layout_of(frames, label_counts, label.shape[0])
    frames = jnp.where(layout.fits, jnp.maximum(frames, 0), 0)
    operands = align_varying_axes(label, layout, frames)
    sums: Any = _mass_and_moment(max_labels, *operands)
    return expected_frames_of(*sums)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mass_and_moment(
    max_labels: int, label: jax.Array, layout: Layout, frames: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sums of p(t, u) and of t p(t, u) over t, `(B, max_labels)`.

    Frame by frame, in a loop that ends when all utterances have: additions that are scattered have
    no fixed order on a GPU.
    """
    u = axis_index(2, 1, max_labels)
    widths = layout.widths[:, None]

    def step(t: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        there = (t < frames[:, None]) & (u < widths - 1)
        rows = jnp.where(there, layout.offsets[:, None] + t * widths + u, 0)
        p = jnp.where(there, label[rows], 0)
        return sums[0] + p, sums[1] + jnp.asarray(t, p.dtype) * p

    zeros = jnp.where(u < widths, 0, 0).astype(label.dtype)  # vary along the mesh as operands do
    return lax.fori_loop(0, jnp.max(frames), step, (zeros, zeros))


def _mass_and_moment_fwd(max_labels, label, layout, frames):
    return _mass_and_moment(max_labels, label, layout, frames), (label, layout)


def _mass_and_moment_bwd(max_labels, residuals, cotangents):
    label, layout = residuals
    rows = rows_of(layout, label.shape[0])
    b, u = rows.utterances, rows.positions
    used = layout.fits[b] & (axis_index(1, 0, label.shape[0]) < layout.ends[b])
    used &= u < jnp.minimum(layout.widths[b] - 1, max_labels)
    of_mass, of_moment = (x.at[b, u].get(mode="clip") for x in cotangents)
    gradient = of_mass + rows.frames.astype(label.dtype) * of_moment
    return jnp.where(used, gradient, 0), None, None


_mass_and_moment.defvjp(_mass_and_moment_fwd, _mass_and_moment_bwd)
