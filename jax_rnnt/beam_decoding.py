"""Beam search: the likeliest labels, by all their alignments that the beam holds."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from . import validation, validation_decoding
from ._native.jax_versions import align_varying_axes
from .decoding import DecodingInputs, JointStep, PredictorStep, checked_inputs
from .numerics import accumulator_dtype, axis_index
from .types import Array, LatticeOptions, Normalization


class Hypotheses(NamedTuple):
    """The likeliest labels that `beam_decode` found, best first, no two alike.

    Attributes:
      log_probs: `(*batch, beam_size)` float32, or float64 for float64 scores: of the labels, by
        their alignments in the beam. -inf where there are fewer, NaN for lengths out of range.
      labels: `(*batch, beam_size, max_labels)` int32, padded with blank.
      label_lengths: `(*batch, beam_size)` int32, how many there are.
      frames: `(*batch, beam_size, max_labels)` int32, the frame that each was emitted in, by the
        likeliest of these alignments; -1 in padding.
    """

    log_probs: jax.Array
    labels: jax.Array
    label_lengths: jax.Array
    frames: jax.Array


def beam_decode(
    predictor_step: PredictorStep,
    joint_step: JointStep,
    encoder_out: Array,
    logit_lengths: Array | None = None,
    *,
    initial_state: Any,
    beam_size: int = 4,
    max_labels: int | None = None,
    topology: Literal["regular", "modified"] = "regular",
    final_blank: bool = False,
    normalization: Normalization = "softmax",
    blank_id: int = 0,
    start_label: int | None = None,
    check: bool = True,
) -> Hypotheses:
    """The likeliest labels by beam search (Graves 2012, arXiv 1211.3711, section 2.4).

    Hypotheses of the same number of arcs are compared with each other: alignment-length synchronous
    decoding (Saon et al., ICASSP 2020), and in the modified topology, where each arc takes a frame,
    one label a frame at most. Those that come to the same labels become one, with the sum of their
    probabilities. A wide enough beam holds all alignments: then `log_probs` are minus the loss of
    the labels.

    All utterances of the batch go on at once, for at most `T + max_labels` steps, or T in the
    modified topology, and until none has a hypothesis that could be among the best. Each step runs
    both functions once for all hypotheses, by `jax.vmap` over those of an utterance.

    Call it inside `jax.jit`: outside, each call compiles the two functions again.

    Args:
      predictor_step, joint_step, encoder_out, logit_lengths, initial_state, blank_id, start_label,
        check: as in `greedy_decode`; all scores of `joint_step` count.
      beam_size: how many hypotheses go on, and how many are returned. Static.
      max_labels: room for labels; a hypothesis that has as many goes on with blanks. Static; None
        is `T`.
      topology, final_blank, normalization: as in `rnnt_loss`, of the loss that the model was
        trained with. Scores with `normalization="none"` may be anything, also with those of a
        language model, and no hypothesis is then given up early.

    Returns:
      `Hypotheses(log_probs, labels, label_lengths, frames)`. Arcs whose log-probability is NaN or
      +inf are not taken.

    Raises:
      TypeError, ValueError: an argument has the wrong type, dtype, shape or value, or one of the
        functions returns what it must not.
    """
    validation.one_of("topology", topology, Literal["regular", "modified"])
    normalization = validation.one_of("normalization", normalization, Normalization)
    lattice = validation.checked_lattice_options(LatticeOptions(topology, final_blank))
    beam_size = validation.whole_number("beam_size", beam_size, minimum=1)
    inputs = checked_inputs(
        predictor_step,
        joint_step,
        encoder_out,
        logit_lengths,
        initial_state,
        (blank_id, start_label),
        check,
    )
    if max_labels is None:
        max_labels = validation.known_size("encoder_out", "T", inputs.encoder.shape[-2])
    capacity = validation_decoding.int32_count("max_labels", max_labels)
    search = _BeamSearch(
        inputs,
        predictor_step,
        joint_step,
        beam_size,
        capacity,
        lattice,
        normalization,
    )
    return search.hypotheses()


class _State(NamedTuple):
    """After the same number of arcs everywhere."""

    arcs: jax.Array  # scalar
    active: Hypotheses  # likeliest first
    rows: jax.Array  # (*batch, K, D2): the predictor's
    predictor: Any  # its state
    finished: Hypotheses  # likeliest first


class _Arcs(NamedTuple):
    """What leaves the hypotheses."""

    frame: jax.Array  # (*batch, K)
    last: jax.Array  # (*batch, K), whether that is the last one
    by_blank: jax.Array  # (*batch, K), with the log-probability of the hypothesis
    by_label: jax.Array  # (*batch, K, V), the same; -inf for the blank


class _Candidates(NamedTuple):
    """What may become of hypotheses, each `(*batch, N)`."""

    log_probs: jax.Array
    ends: jax.Array  # whether it comes to the end of the utterance
    parent: jax.Array  # of the labels
    label: jax.Array
    has_label: jax.Array  # whether that is a new one
    aligned_as: jax.Array  # the hypothesis whose frames it has
    emitted: jax.Array  # whether there is one more, at the end
    frame: jax.Array


class _BeamSearch:
    def __init__(
        self,
        inputs: DecodingInputs,
        predictor_step: PredictorStep,
        joint_step: JointStep,
        beam_size: int,
        capacity: int,
        lattice: LatticeOptions,
        normalization: Normalization,
    ):
        self.inputs, self.beam_size, self.capacity = inputs, beam_size, capacity
        self.normalization: Normalization = normalization
        self.final_blank = lattice.final_blank
        self.labels_take_a_frame = lattice.topology == "modified"
        axis = inputs.lengths.ndim
        self.predictor_step = jax.vmap(predictor_step, in_axes=axis, out_axes=axis)
        self.joint_step = jax.vmap(joint_step, in_axes=axis, out_axes=axis)
        self.first_row, self.first_state = predictor_step(inputs.state, inputs.first_label)

    def hypotheses(self) -> Hypotheses:
        lengths = self.inputs.lengths
        no_frames = self._hypotheses(lengths == 0)
        if self.inputs.encoder.shape[-2] == 0:
            found = no_frames
        else:
            rows, predictor = jax.tree.map(self._for_each, (self.first_row, self.first_state))
            start = _State(jnp.int32(0), self._hypotheses(lengths > 0), rows, predictor, no_frames)
            start = align_varying_axes(start, self.inputs.encoder)[0]
            found = lax.while_loop(self._unfinished, self._advance, start).finished
        return self._cleaned(found)

    def _for_each(self, x: jax.Array) -> jax.Array:
        """`(*batch, K, ...)` of `(*batch, ...)`."""
        n = self.inputs.lengths.ndim
        return jnp.broadcast_to(jnp.expand_dims(x, n), (*x.shape[:n], self.beam_size, *x.shape[n:]))

    def _hypotheses(self, exist: jax.Array) -> Hypotheses:
        """One without labels, where `(*batch,)` is true."""
        dtype = accumulator_dtype(self.inputs.scores.dtype)
        first = axis_index(exist.ndim + 1, -1, self.beam_size) == 0
        log_probs = jnp.where(exist[..., None] & first, 0, -jnp.inf).astype(dtype)
        zeros = jnp.where(exist[..., None] & first, 0, 0).astype(jnp.int32)
        room = axis_index(exist.ndim + 2, -1, max(self.capacity, 1))
        labels = zeros[..., None] + 0 * room
        return Hypotheses(log_probs, labels, zeros, labels)

    def _unfinished(self, state: _State) -> jax.Array:
        worst = state.finished.log_probs[..., -1]
        # Log-probabilities become smaller; other scores may not.
        floor = worst if self.normalization != "none" else -jnp.inf
        return jnp.any(state.active.log_probs[..., 0] > floor)

    def _advance(self, state: _State) -> _State:
        candidates = self._candidates(state)
        going_on = jnp.where(candidates.ends, -jnp.inf, candidates.log_probs)
        chosen, active = self._best(candidates, going_on, state.active)
        ending = jnp.where(candidates.ends, candidates.log_probs, -jnp.inf)
        _, ended = self._best(candidates, ending, state.active)
        finished = jax.tree.map(
            lambda x, y: jnp.concatenate([x, y], axis=self._axis), state.finished, ended
        )
        _, best = lax.top_k(finished.log_probs, self.beam_size)
        old_rows, old_predictor = jax.tree.map(
            partial(self._take, index=chosen.parent), (state.rows, state.predictor)
        )
        rows, predictor = jax.tree.map(
            lambda new, old: jnp.where(_behind(chosen.has_label, new), new, old),
            self.predictor_step(old_predictor, chosen.label),
            (old_rows, old_predictor),
        )
        finished = jax.tree.map(partial(self._take, index=best), finished)
        return _State(state.arcs + 1, active, rows, predictor, finished)

    @property
    def _axis(self) -> int:
        """That of hypotheses."""
        return self.inputs.lengths.ndim

    def _take(self, x: jax.Array, index: jax.Array) -> jax.Array:
        """`(*batch, N, ...)` of the hypotheses `(*batch, N)` of `(*batch, K, ...)`."""
        return jnp.take_along_axis(x, _behind(index, x), self._axis, mode="promise_in_bounds")

    def _arcs(self, state: _State) -> _Arcs:
        encoder, lengths, blank_id = self.inputs.encoder, self.inputs.lengths, self.inputs.blank_id
        log_probs, _, count, _ = state.active
        frame = state.arcs + (0 * count if self.labels_take_a_frame else -count)
        inside = jnp.clip(frame, 0, encoder.shape[-2] - 1)
        scores: Any = self.joint_step(
            jnp.take_along_axis(encoder, inside[..., None], axis=-2, mode="promise_in_bounds"),
            state.rows,
        )
        scores = log_probs[..., None] + _normalised(scores, self.normalization, blank_id)
        scores = jnp.where(scores < jnp.inf, scores, -jnp.inf)  # also what is NaN
        last = frame + 1 >= lengths[..., None]
        full = (count >= self.capacity) | (last & (self.labels_take_a_frame & self.final_blank))
        is_blank = axis_index(scores.ndim, -1, scores.shape[-1]) == blank_id
        by_label = jnp.where(is_blank | full[..., None], -jnp.inf, scores)
        return _Arcs(frame, last, scores[..., blank_id], by_label)

    def _candidates(self, state: _State) -> _Candidates:
        """By blank, one for each hypothesis, then the likeliest by a label."""
        arcs, leads_to = self._arcs(state), _leads_to(state.active)
        newest = jnp.maximum(state.active.label_lengths - 1, 0)[..., None]
        newest = jnp.squeeze(jnp.take_along_axis(state.active.labels, newest, axis=-1), -1)
        kinds = self._by_blank(arcs, leads_to, newest), self._by_label(arcs, leads_to, newest)
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y], -1), *kinds)

    def _by_blank(self, arcs: _Arcs, leads_to: jax.Array, newest: jax.Array) -> _Candidates:
        """With what comes to the same labels by a label, from one other hypothesis at most."""
        newest = jnp.broadcast_to(newest[..., None, :], leads_to.shape)
        gained = jnp.take_along_axis(arcs.by_label, newest, axis=-1)
        gained = jnp.where(leads_to, gained, -jnp.inf)
        giver = lax.argmax(gained, gained.ndim - 2, jnp.int32)
        gained = jnp.max(gained, axis=-2)
        itself = 0 * giver + axis_index(giver.ndim, -1, self.beam_size)
        later = gained > arcs.by_blank
        return _Candidates(
            log_probs=jnp.logaddexp(arcs.by_blank, gained),
            ends=arcs.last,
            parent=itself,
            label=0 * itself,
            has_label=later & False,
            aligned_as=jnp.where(later, giver, itself),
            emitted=later,
            frame=self._take(arcs.frame, giver),
        )

    def _by_label(self, arcs: _Arcs, leads_to: jax.Array, newest: jax.Array) -> _Candidates:
        """The best of those whose labels no hypothesis has yet."""
        *batch, _, num_classes = arcs.by_label.shape
        flat = arcs.by_label.reshape(*batch, self.beam_size * num_classes)
        # Each hypothesis may have the labels of one.
        log_probs, index = lax.top_k(flat, min(2 * self.beam_size, flat.shape[-1]))
        parent, label = index // num_classes, index % num_classes
        is_there = self._take(leads_to, parent) & (label[..., None] == newest[..., None, :])
        log_probs = jnp.where(jnp.any(is_there, axis=-1), -jnp.inf, log_probs)
        exists = log_probs > -jnp.inf
        return _Candidates(
            log_probs=log_probs,
            ends=self._take(arcs.last, parent) & self.labels_take_a_frame,
            parent=parent,
            label=label,
            has_label=exists,
            aligned_as=parent,
            emitted=exists,
            frame=self._take(arcs.frame, parent),
        )

    def _best(
        self, candidates: _Candidates, log_probs: jax.Array, before: Hypotheses
    ) -> tuple[_Candidates, Hypotheses]:
        """Those with the largest of these, and the hypotheses that they become."""
        log_probs, index = lax.top_k(log_probs, self.beam_size)
        chosen = jax.tree.map(partial(self._take, index=index), candidates)
        count = self._take(before.label_lengths, chosen.parent)
        label_lengths = count + chosen.has_label.astype(jnp.int32)
        labels = self._take(before.labels, chosen.parent)
        frames = self._take(before.frames, chosen.aligned_as)
        position = axis_index(labels.ndim, -1, labels.shape[-1])
        newest = position == label_lengths[..., None] - 1
        labels = jnp.where(newest & chosen.has_label[..., None], chosen.label[..., None], labels)
        frames = jnp.where(newest & chosen.emitted[..., None], chosen.frame[..., None], frames)
        return chosen, Hypotheses(log_probs, labels, label_lengths, frames)

    def _cleaned(self, found: Hypotheses) -> Hypotheses:
        """With padding, also instead of hypotheses that there are not."""
        lengths = jnp.where(found.log_probs > -jnp.inf, found.label_lengths, 0)
        used = axis_index(found.labels.ndim, -1, self.capacity) < lengths[..., None]
        return Hypotheses(
            jnp.where(self.inputs.lengths[..., None] < 0, jnp.nan, found.log_probs),
            jnp.where(used, found.labels[..., : self.capacity], self.inputs.blank_id),
            lengths,
            jnp.where(used, found.frames[..., : self.capacity], -1),
        )


def _behind(index: jax.Array, x: jax.Array) -> jax.Array:
    """With as many dimensions as `x`, the new ones last."""
    return index.reshape(*index.shape, *[1] * (x.ndim - index.ndim))


def _leads_to(hypotheses: Hypotheses) -> jax.Array:
    """Whether the labels of one, and one more, are those of another: `(*batch, K, K)`."""
    log_probs, labels, count, _ = hypotheses
    one, other = labels[..., :, None, :], labels[..., None, :, :]
    position = axis_index(one.ndim, -1, labels.shape[-1])
    same = jnp.all((one == other) | (position >= count[..., :, None, None]), axis=-1)
    alive = log_probs > -jnp.inf
    longer = count[..., None, :] == count[..., :, None] + 1
    return same & longer & alive[..., :, None] & alive[..., None, :]


def _normalised(scores: jax.Array, normalization: Normalization, blank_id: int) -> jax.Array:
    """Log-probabilities of classes."""
    scores = scores.astype(accumulator_dtype(scores.dtype))
    if normalization == "none":
        return scores
    if normalization == "softmax":
        return jax.nn.log_softmax(scores)
    is_blank = axis_index(scores.ndim, -1, scores.shape[-1]) == blank_id
    blank = scores[..., blank_id, None]
    others = jax.nn.log_softmax(jnp.where(is_blank, -jnp.inf, scores))
    return jnp.where(is_blank, jax.nn.log_sigmoid(blank), jax.nn.log_sigmoid(-blank) + others)
