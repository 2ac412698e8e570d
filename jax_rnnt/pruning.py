"""The pruned loss: a cheap loss chooses which cells of the lattice are kept (arXiv 2206.13236)."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import row_sums_reference, validation, validation_pruning
from ._native import row_ops
from ._native.jax_versions import (
    align_varying_axes,
    has_whole_rows,
    with_batch_sharding_of,
    with_whole_rows,
)
from .arcs import arcs_bwd, arcs_fwd
from .bounds import Sizes, Utterances, clip_to_int32, labels_and_bounds, stack_alike
from .label_windows import band_label_mask, labels_at, only_allowed
from .lattice import banded_lattice, banded_lattice_score, gradient_weights
from .numerics import accumulator_dtype, axis_index
from .reduction import negative, reduce_losses
from .types import (
    ArcsOptions,
    Array,
    Implementation,
    LatticeOptions,
    Normalization,
    Posteriors,
    Reduction,
    Topology,
)


def get_rnnt_prune_ranges(
    posteriors: Posteriors,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    s_range: int,
    topology: Topology = "regular",
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    where: Array | None = None,
    check: bool = True,
) -> jax.Array:
    """Which label positions to keep in each frame, for the pruned loss.

    Each frame keeps the `s_range` neighbouring positions that its alignments are most likely in,
    adjusted so that there is a path through all of them (arXiv 2206.13236, section 3.2).

    Args:
      posteriors: `Posteriors(blank, label)`, each `(*batch, T, U+1)` floating point, as
        `rnnt_loss_simple` or `rnnt_loss_from_arcs` return them.
      logit_lengths, label_lengths: `(*batch,)` integers, as the posteriors were computed with.
      s_range: how many positions to keep in a frame, at least 2 (1 with `"modified"`). Static.
      topology: of the pruned loss. With `"regular"` a band of S positions lets S - 1 labels a frame
        through, otherwise one.
      logit_begins, label_begins: `(*batch,)` integers: first frame and first label of each
        utterance (0 by default).
      where: `(*batch,)` bool, False for utterances that the losses leave out. Their ranges mean
        nothing, and their lengths may be anything.
      check: raise errors for bad values if they are known, which waits for them.

    Returns:
      `(*batch, T, S)` int32 with S = min(s_range, U+1): S consecutive label positions in [0, U] for
      each frame. They neither decrease from frame to frame nor jump by more than S - 1 (1 with
      `"modified"` and `"constrained"`). They have no gradient.

    Raises:
      TypeError, ValueError: an argument has the wrong type, dtype, shape or value; with `check`,
        `s_range` is too small for the labels of an utterance to fit in its frames. Without, the
        pruned loss of this utterance is +inf.
    """
    blank, label, sizes = validation_pruning.posterior_planes(posteriors)
    topology = validation.one_of("topology", topology, Topology)
    s_range = validation_pruning.s_range_of(s_range, sizes.U, topology)
    utterances = Utterances(
        logit_lengths=logit_lengths, label_lengths=label_lengths, logit_begins=logit_begins,
        label_begins=label_begins, where=where,
    )  # fmt: skip
    utterances = validation.checked_utterances(sizes, utterances, None, check)
    if check and topology == "regular":
        validation_pruning.check_labels_fit(sizes, utterances, s_range)
    return _prune_ranges(blank, label, utterances, s_range, topology)


def do_rnnt_pruning(am: Array, lm: Array, ranges: Array) -> tuple[jax.Array, jax.Array]:
    """The encoder's and the predictor's output for the cells of a band, to be joined.

    Args:
      am: `(*batch, T, C1)`, of the encoder.
      lm: `(*batch, U+1, C2)`, of the predictor.
      ranges: `(*batch, T, S)` integers in [0, U], from `get_rnnt_prune_ranges`. Values beyond are
        taken for the nearest.

    Returns:
      `(*batch, T, S, C1)`, which is `am` broadcast, and `(*batch, T, S, C2)`, of which `[t, s]` is
      `lm[ranges[t, s]]`. The gradient of `lm` is summed over all cells of the same label position
      in their order, in float32 (float64) and rounded once.

    Raises:
      TypeError, ValueError: an argument has the wrong dtype or shape.
    """
    return band_rows("auto", *validation_pruning.pruned_operands(am, lm, ranges))


def band_rows(
    implementation: Implementation, am: jax.Array, lm: jax.Array, ranges: Array
) -> tuple[jax.Array, jax.Array]:
    """`do_rnnt_pruning` of what has been checked."""
    *batch, T, S = ranges.shape
    am_pruned = jnp.broadcast_to(am[..., None, :], (*batch, T, S, am.shape[-1]))
    rows = with_batch_sharding_of(lm, len(batch), clip_to_int32(ranges))
    rows = jnp.clip(rows, 0, lm.shape[-2] - 1).reshape(*batch, T * S)
    native = implementation != "xla" and has_whole_rows(lm)
    lm_pruned = (row_ops if native else row_sums_reference).take_rows(lm, rows)
    return am_pruned, lm_pruned.reshape(*batch, T, S, lm.shape[-1])


def rnnt_loss_pruned(
    logits: Array,
    labels: Array,
    ranges: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    blank_id: int = 0,
    topology: Topology = "regular",
    normalization: Normalization = "softmax",
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    clamp: float | None = None,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    reduction: Reduction = "none",
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> jax.Array:
    """RNN-Transducer loss of the alignments that stay in a band (arXiv 2206.13236, section 3.1).

    It takes O(T S) time and memory. But for rounding, it is never below `rnnt_loss`, which it is
    with S = U+1.

    Args:
      logits: `(*batch, T, S, V)` float32, float64, bfloat16 or float16: output of the joint network
        for frame `t` after `ranges[t, s]` labels, with the inputs of `do_rnnt_pruning`.
      labels: `(*batch, U)` integers in [0, V), none of them blank. Padding may be anything.
      ranges: `(*batch, T, S)` integers, S <= U+1: S consecutive label positions in [0, U] for each
        frame, usually from `get_rnnt_prune_ranges`; anything in padding. An alignment has to be in
        one of them whenever it is in frame `t`; those of other cells do not count. (A constrained
        label arc uses the blank arc of the position above its own: that must be kept, too.)
      logit_lengths, label_lengths, blank_id, topology, normalization, fastemit_lambda,
        delay_penalty, clamp, logit_begins, label_begins, label_windows, reduction, where,
        implementation, check: as in `rnnt_loss`.

    Returns:
      `(*batch,)` losses in float32 (float64 for float64 logits), or a scalar, as `rnnt_loss`. An
      utterance without any alignment in its band has loss +inf, one with bad ranges that could not
      be checked has NaN; both have gradient zero.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss`; with `check`, also for ranges that
        are not consecutive or not in [0, U], and for those that in the last frame end below the
        last label of an utterance, as ranges made for other lengths do.
    """
    logits = validation.float_scores("logits", logits)
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    band = checked_band(
        logits.shape,
        utterances,
        ranges,
        ArcsOptions(blank_id, normalization, clamp, implementation),
        LatticeOptions(topology, False, delay_penalty, fastemit_lambda, implementation),
        reduction,
        check,
    )
    return _rnnt_loss_pruned(logits, *band)


def checked_band(
    logits_shape: tuple[int, ...],
    utterances: Utterances,
    ranges: Any,
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
    reduction: Any,
    check: Any,
) -> tuple[Array, Utterances, ArcsOptions, LatticeOptions, Reduction]:
    """All arguments of a pruned loss beside the scores, checked."""
    sizes, ranges = validation_pruning.band_sizes(logits_shape, utterances.labels, ranges)
    reduction = validation.reduction_of(reduction)
    utterances, arcs_options, lattice_options = validation.checked_arguments(
        sizes, utterances, arcs_options, lattice_options, check
    )
    ranges = validation_pruning.checked_ranges(sizes, utterances, ranges, check)
    if check:
        validation_pruning.check_band_reaches_end(
            sizes, utterances, ranges, lattice_options.topology
        )
    return ranges, utterances, arcs_options, lattice_options, reduction


@partial(jax.jit, static_argnames=("s_range", "topology"))
def _prune_ranges(
    blank: jax.Array, label: jax.Array, utterances: Utterances, s_range: int, topology: Topology
) -> jax.Array:
    *batch, T, W = blank.shape
    S = min(s_range, W)
    blank, label = with_whole_rows(len(batch), blank, label)
    _, bounds = labels_and_bounds(blank, Sizes(tuple(batch), T, W - 1), utterances, None)
    frame_begin, frame_end, label_begin, label_end = (bounds[..., i, None] for i in range(4))

    dtype = accumulator_dtype(blank.dtype)
    blank, label = (lax.stop_gradient(x).astype(dtype) for x in (blank, label))
    # What a window keeps of the frame's alignments, less what was in the frame before it.
    entering = jnp.pad(label, [(0, 0)] * (len(batch) + 1) + [(1, 0)])[..., : W - S + 1]
    kept = _window_sums(blank, S) - entering
    lowest = jnp.minimum(label_begin, W - S)
    kept = jnp.where(axis_index(kept.ndim, -1, W - S + 1) >= lowest[..., None], kept, -jnp.inf)
    best = lax.argmax(kept, kept.ndim - 1, jnp.int32)

    t = axis_index(best.ndim, -1, T)
    last = jnp.maximum(label_end - (S - 1), lowest)
    start = jnp.where(t < frame_end - 1, best, last)
    # Windows never go back, and no further than a path can: each may have to start earlier for the
    # sake of a later one's position, or later for its reach.
    step = S - 1 if topology == "regular" else 1
    start = lax.cummin(start, axis=len(batch), reverse=True)
    slack = lax.cummin(step * t - start, axis=len(batch), reverse=True)
    start = step * t - jnp.maximum(slack, step * frame_begin - lowest)
    start = jnp.clip(jnp.where(t < frame_begin, lowest, start), 0, W - S)
    return start[..., None] + axis_index(start.ndim + 1, -1, S)


def _window_sums(x: jax.Array, width: int) -> jax.Array:
    """Sums of `width` neighbours in the last axis, from those of powers of two."""
    count = x.shape[-1] - width + 1
    total, offset = jnp.zeros_like(x[..., :count]), 0
    block, size = x, 1  # sums of `size` neighbours
    while True:
        if width & size:
            total, offset = total + block[..., offset : offset + count], offset + size
        if 2 * size > width:
            return total
        block = block[..., :-size] + block[..., size:]
        size *= 2


@partial(jax.jit, static_argnames=("arcs_options", "lattice_options", "reduction"))
def _rnnt_loss_pruned(
    logits: jax.Array,
    ranges: jax.Array,
    utterances: Utterances,
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
    reduction: Reduction,
) -> jax.Array:
    sizes, _ = validation_pruning.band_sizes(logits.shape, utterances.labels, ranges)
    (logits,) = with_whole_rows(len(sizes.batch), logits)
    operands = align_varying_axes(
        logits, *band_operands(logits, sizes, ranges, utterances, arcs_options.blank_id)
    )
    loss: Any = _banded_loss(arcs_options, lattice_options, sizes.U, *operands)
    return reduce_losses(loss, reduction, utterances.where)


def band_operands(
    scores: jax.Array, sizes: Sizes, ranges: Array, utterances: Utterances, blank_id: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """The integer operands of the arcs and of the lattice of a band, sharded as the scores are.

    Returns:
      Labels `(*batch, T, S)` and bounds `(*batch, T, 4)` of each frame, as the arcs take them; the
      label position `(*batch, T)` where each frame's band starts, and bounds `(*batch, 4)`; the
      mask of label arcs `(*batch, T, S)`, or None.
    """
    labels, bounds = labels_and_bounds(scores, sizes, utterances, blank_id)
    assert labels is not None
    starts = jnp.asarray(clip_to_int32(ranges[..., 0]))
    starts = with_batch_sharding_of(scores, len(sizes.batch), starts)
    starts, bounds = _checked_starts(starts, bounds, sizes.U + 1 - ranges.shape[-1])
    position = starts[..., None] + axis_index(ranges.ndim, -1, ranges.shape[-1])
    frame_bounds = _frame_bounds(starts, bounds, ranges.shape[-1])
    mask = band_label_mask(scores, sizes, utterances, position)
    return labels_at(labels, position), frame_bounds, starts, bounds, mask


def _checked_starts(
    starts: jax.Array, bounds: jax.Array, highest: int
) -> tuple[jax.Array, jax.Array]:
    """Starts in range, and bounds -1 where a frame of the utterance had one that was not."""
    t = axis_index(starts.ndim, -1, starts.shape[-1])
    used = (bounds[..., 0, None] <= t) & (t < bounds[..., 1, None])
    bad = jnp.any(used & ((starts < 0) | (starts > highest)), axis=-1)
    return jnp.clip(starts, 0, highest), jnp.where(bad[..., None], -1, bounds)


def _frame_bounds(starts: jax.Array, bounds: jax.Array, S: int) -> jax.Array:
    """Each frame's band as an utterance of one frame with S cells, for the arcs.

    Returns:
      `(*batch, T, 4)`: cells [label begin, label end] of the one frame are visited, those before
      label end have a label arc. Without frame where nothing is.
    """
    frame_begin, frame_end, label_begin, label_end = (bounds[..., i, None] for i in range(4))
    t = axis_index(starts.ndim, -1, starts.shape[-1])
    first, last = label_begin - starts, label_end - starts  # last: a cell without label arc
    visited = (frame_begin <= t) & (t < frame_end) & (first < S) & (last >= 0)
    cells = (jnp.clip(x, 0, S) for x in (first, last))
    return jnp.where(visited[..., None], stack_alike(0, 1, *cells), 0)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _banded_loss(
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
    num_labels: int,
    logits: jax.Array,
    labels: jax.Array,
    frame_bounds: jax.Array,
    starts: jax.Array,
    bounds: jax.Array,
    mask: jax.Array | None,
) -> jax.Array:
    blank, label, _ = band_arcs_fwd(arcs_options, logits, labels, frame_bounds)
    label = only_allowed(label, mask)
    return negative(banded_lattice_score(lattice_options, num_labels, blank, label, starts, bounds))


def _banded_loss_fwd(arcs_options, lattice_options, num_labels, logits, labels, *bands):
    frame_bounds, starts, bounds, mask = bands
    blank, label, denominators = band_arcs_fwd(arcs_options, logits, labels, frame_bounds)
    label = only_allowed(label, mask)
    log_likelihood, posteriors = banded_lattice(
        lattice_options, num_labels, blank, label, starts, bounds
    )
    return negative(log_likelihood), (logits, labels, denominators, posteriors)


def _banded_loss_bwd(arcs_options, lattice_options, num_labels, residuals, cotangents):
    del num_labels
    logits, labels, denominators, posteriors = residuals
    weights = gradient_weights(lattice_options, posteriors)
    gradient = band_arcs_bwd(arcs_options, logits, labels, denominators, weights, cotangents)
    return gradient, None, None, None, None, None


_banded_loss.defvjp(_banded_loss_fwd, _banded_loss_bwd)


def band_arcs_fwd(
    options: ArcsOptions, logits: jax.Array, labels: jax.Array, frame_bounds: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Blank arcs, label arcs and denominators, each `(*batch, T, S)`, of the frames of a band."""
    arcs = arcs_fwd(options, _one_frame(logits, 2), labels, frame_bounds)
    blank, label, denominators = (jnp.squeeze(x, -2) for x in arcs)
    return blank, label, denominators


def band_arcs_bwd(
    options: ArcsOptions,
    logits: jax.Array,
    labels: jax.Array,
    denominators: jax.Array,
    weights: Posteriors,
    cotangents: jax.Array,
    *,
    gradient_dtype: Any = None,
) -> jax.Array:
    """The gradient by the logits `(*batch, T, S, V)` of the frames of a band."""
    planes = (_one_frame(x, 1) for x in (denominators, *weights))
    cotangents = jnp.broadcast_to(cotangents[..., None], labels.shape[:-1])
    operands = align_varying_axes(_one_frame(logits, 2), labels, *planes, cotangents)
    return jnp.squeeze(arcs_bwd(options, *operands, gradient_dtype=gradient_dtype), -3)


def _one_frame(x: jax.Array, core_ndim: int) -> jax.Array:
    """Frames as batch dimensions of arrays of one frame each."""
    return jnp.expand_dims(x, x.ndim - core_ndim)
