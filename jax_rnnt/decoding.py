"""Greedy decoding: the likeliest arc of one cell after the other. What all decoding needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from . import validation, validation_decoding, validation_durations
from ._native.jax_versions import align_varying_axes, with_batch_sharding_of, with_whole_rows
from .bounds import Sizes, Utterances, labels_and_bounds
from .types import Array

PredictorStep = Callable[[Any, jax.Array], tuple[jax.Array, Any]]
JointStep = Callable[[jax.Array, jax.Array], jax.Array | tuple[jax.Array, jax.Array]]


class Decoded(NamedTuple):
    """What `greedy_decode` heard.

    Attributes:
      labels: `(*batch, max_labels)` int32, padded with blank.
      label_lengths: `(*batch,)` int32, how many there are.
      frames: `(*batch, max_labels)` int32, the frame that each was emitted in; -1 in padding.
    """

    labels: jax.Array
    label_lengths: jax.Array
    frames: jax.Array


def greedy_decode(
    predictor_step: PredictorStep,
    joint_step: JointStep,
    encoder_out: Array,
    logit_lengths: Array | None = None,
    *,
    initial_state: Any,
    max_labels_per_frame: int = 10,
    max_labels: int | None = None,
    blank_id: int = 0,
    start_label: int | None = None,
    durations: Sequence[int] | None = None,
    big_blank_ids: Sequence[int] = (),
    big_blank_durations: Sequence[int] = (),
    check: bool = True,
) -> Decoded:
    """Labels by always taking the likeliest arc, from the first frame to the last one's blank.

    All utterances of the batch go on at once, each at its own frame, until all have arrived: at
    most T times `max_labels_per_frame` steps, whatever the scores. With `max_labels_per_frame=1`
    this also decodes the modified topology, whose label arcs take a frame. With `durations` it
    decodes a Token-and-Duration Transducer, which takes the likeliest duration in each cell besides
    (arXiv 2304.06795), and with big blanks a multi-blank transducer (arXiv 2211.03541).

    Call it inside `jax.jit`: outside, each call compiles the two functions again. Where the
    compiler divides the batch among devices, these agree in each step on whether to go on; in
    `shard_map` and `pmap` each stops by itself.

    Args:
      predictor_step: `(state, labels) -> (predictor_rows, state)` feeds a label `(*batch,)` int32
        to each utterance's predictor: rows `(*batch, D2)`, and the new state, of the structure,
        shapes and dtypes of the old one.
      joint_step: `(encoder_rows, predictor_rows) -> scores`, of `(*batch, D1)` and `(*batch, D2)`:
        `(*batch, V)`, of which the largest counts (the first of equals). With `durations` it
        returns `(scores, duration_scores)`, the latter `(*batch, D)`. A joint function of the
        losses is one with its parameters bound: `functools.partial(LinearJoint(), params)`.
      encoder_out: `(*batch, T, D1)` floating point.
      logit_lengths: `(*batch,)` integers, frames of each utterance; None means T.
      initial_state: the state before any label: a pytree of arrays `(*batch, ...)`, or of none.
      max_labels_per_frame: after as many labels, the next frame is forced. Static.
      max_labels: room for labels; when it is full, blanks are forced. Static; None is enough for
        all, `T * max_labels_per_frame`.
      blank_id: class of the blank symbol; negative values count from the end.
      start_label: what the predictor is fed first; None for `blank_id`.
      durations: as in `rnnt_loss_tdt`. A blank takes one frame at least. Static.
      big_blank_ids, big_blank_durations: as in `rnnt_loss_multi_blank`.
      check: raise an error for lengths out of range if they are known, which waits for them.

    Returns:
      `Decoded(labels, label_lengths, frames)`; no labels for lengths out of range that could not be
      checked.

    Raises:
      TypeError, ValueError: an argument has the wrong type, dtype, shape or value, or one of the
        functions returns what it must not.
    """
    bound = validation.whole_number("max_labels_per_frame", max_labels_per_frame, minimum=1)
    if durations is not None:
        durations = validation_durations.increasing_durations(durations)
    inputs = checked_inputs(
        predictor_step,
        joint_step,
        encoder_out,
        logit_lengths,
        initial_state,
        (blank_id, start_label),
        check,
        None if durations is None else len(durations),
    )
    encoder, lengths, state, label, blank_id, classes = inputs
    T = encoder.shape[-2]
    if max_labels is None:
        max_labels = validation.known_size("encoder_out", "T", T) * bound
    capacity = validation_decoding.int32_count("max_labels", max_labels)
    bound = min(bound, max(capacity, 1))  # no frame has more
    big_blanks = validation_durations.big_blanks(
        big_blank_ids, big_blank_durations, blank_id, classes.shape[-1]
    )
    frames_of_blanks = {blank_id: 1, **dict(zip(*big_blanks, strict=True))}

    zero = 0 * lengths
    room = jnp.broadcast_to(zero[..., None], (*zero.shape, capacity))
    empty = Decoded(room + blank_id, zero, room - 1)
    if T == 0 or capacity == 0:
        return empty
    row, state = predictor_step(state, label)
    # Varying, also where the predictor makes no use of what it is fed.
    start = align_varying_axes(_Position(zero, zero, row, state, empty), encoder)[0]

    def unfinished(position: _Position) -> jax.Array:
        return jnp.any(position.frame < lengths)

    def advance(position: _Position) -> _Position:
        frame, emitted, row, state, decoded = position
        labels, count, frames = decoded
        active = frame < lengths
        duration_scores: Any
        scores: Any = joint_step(_row_at(encoder, jnp.minimum(frame, T - 1)), row)
        scores, duration_scores = (scores, None) if durations is None else scores
        best = _best(scores)
        steps = _looked_up(best, frames_of_blanks)
        emit = active & (steps == 0) & (count < capacity)
        one = emit.astype(jnp.int32)
        # What is written past the end is dropped.
        at = jnp.where(emit, count, capacity)
        decoded = Decoded(_written(labels, at, best), count + one, _written(frames, at, frame))
        next_row, next_state = predictor_step(state, best)
        row, state = jax.tree.map(
            lambda new, old: _where(emit, new, old), (next_row, next_state), (row, state)
        )
        emitted = emitted + one
        if durations is not None:
            duration = _looked_up(_best(duration_scores), dict(enumerate(durations)))
            steps = jnp.maximum(steps, duration)
        steps = jnp.where(emit & (emitted < bound), steps, jnp.maximum(steps, 1))
        steps = jnp.where(active, steps, 0)
        return _Position(frame + steps, jnp.where(steps > 0, 0, emitted), row, state, decoded)

    return lax.while_loop(unfinished, advance, start).decoded


class DecodingInputs(NamedTuple):
    """Arguments that have been checked, divided among devices alike."""

    encoder: jax.Array  # (*batch, T, D1)
    lengths: jax.Array  # (*batch,) int32, -1 where they are out of range
    state: Any  # arrays (*batch, ...)
    first_label: jax.Array  # (*batch,) int32
    blank_id: int
    scores: jax.ShapeDtypeStruct  # (*batch, V)


def checked_inputs(
    predictor_step: PredictorStep,
    joint_step: JointStep,
    encoder_out: Array,
    logit_lengths: Array | None,
    initial_state: Any,
    classes: tuple[int, int | None],
    check: bool,
    num_durations: int | None = None,
) -> DecodingInputs:
    """From arguments of `greedy_decode`.

    `classes`: blank and start label. `num_durations`: None where the joint network returns no
    scores of durations.
    """
    encoder = validation_decoding.encoder_rows(encoder_out)
    *batch, T, D = encoder.shape
    sizes = Sizes(tuple(batch), T, 0, sources=("encoder_out", "encoder_out"))
    utterances = Utterances(logit_lengths=logit_lengths)
    utterances = validation.checked_utterances(sizes, utterances, None, check)
    state = jax.tree.map(jnp.asarray, initial_state)
    blank_id, first, scores = validation_decoding.check_functions(
        predictor_step,
        joint_step,
        state,
        (tuple(batch), D, encoder.dtype),
        classes,
        num_durations,
    )
    (encoder,) = with_whole_rows(len(batch), encoder)
    _, bounds = labels_and_bounds(encoder, sizes, utterances, None)
    state = jax.tree.map(partial(with_batch_sharding_of, encoder, len(batch)), state)
    encoder, lengths, state = align_varying_axes(encoder, bounds[..., 1], state)
    return DecodingInputs(encoder, lengths, state, 0 * lengths + first, blank_id, scores)


class _Position(NamedTuple):
    """Where each utterance is."""

    frame: jax.Array  # (*batch,)
    emitted: jax.Array  # (*batch,): labels in this frame
    row: jax.Array  # (*batch, D2): the predictor's, after all labels
    state: Any
    decoded: Decoded


def _best(scores: jax.Array) -> jax.Array:
    """`(*batch,)`: the first of the largest of `(*batch, N)`."""
    return lax.argmax(scores, scores.ndim - 1, jnp.int32)


def _looked_up(index: jax.Array, values: Mapping[int, int]) -> jax.Array:
    """The value of each index, 0 if it has none; without a gather, for sharded batches."""
    found = jnp.zeros_like(index)
    for key, value in values.items():
        found = jnp.where(index == key, value, found)
    return found


def _row_at(rows: jax.Array, index: jax.Array) -> jax.Array:
    """`(*batch, D)` of `(*batch, N, D)`, the one that `index` `(*batch,)` says."""
    index = index[..., None, None]
    taken = jnp.take_along_axis(rows, index, axis=-2, mode="promise_in_bounds")
    return jnp.squeeze(taken, -2)


def _written(rows: jax.Array, index: jax.Array, value: jax.Array) -> jax.Array:
    """`rows` `(*batch, N)` with `value` at `index`, unless that is N."""

    def write(row: jax.Array, index: jax.Array, value: jax.Array) -> jax.Array:
        return row.at[index].set(value, mode="drop")

    for _ in index.shape:
        write = jax.vmap(write)
    return write(rows, index, value)


def _where(condition: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """`jnp.where` for arrays with more dimensions, behind those of the batch."""
    extra = [1] * (new.ndim - condition.ndim)
    return jnp.where(condition.reshape(*condition.shape, *extra), new, old)
