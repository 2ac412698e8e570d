"""The losses' checks of values by themselves, which also work inside transformations."""

from __future__ import annotations

import jax

from . import validation, validation_packed, validation_pruning
from .bounds import Utterances
from .types import Array


def check_inputs(
    logits: Array | jax.ShapeDtypeStruct,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    blank_id: int = 0,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    where: Array | None = None,
) -> None:
    """Raises the errors of `rnnt_loss` for bad values, also inside transformations.

    Outside transformations this is the check that `rnnt_loss` makes by itself. Inside, call it
    before the loss and transform with `jax.experimental.checkify.checkify`, whose error then says
    which value of which argument was wrong.

    Args:
      logits: only their shape, `(*batch, T, U+1, V)`, and dtype are looked at: where there are
        none, as with `rnnt_loss_simple` and `rnnt_loss_joint`, pass a `jax.ShapeDtypeStruct`.
      labels, logit_lengths, label_lengths, blank_id, logit_begins, label_begins, where,
        label_windows: as in `rnnt_loss`.

    Raises:
      TypeError, ValueError: as `rnnt_loss`.
    """
    logits = validation.scores_or_type("logits", logits)
    sizes = validation.sizes_of("logits", logits.shape, 3)
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    utterances = validation.utterances_of(sizes, utterances)
    validation.check_values(sizes, utterances, validation.blank_class(blank_id, sizes.num_classes))


def check_inputs_packed(
    logits: Array | jax.ShapeDtypeStruct,
    labels: Array,
    logit_lengths: Array,
    label_lengths: Array,
    *,
    blank_id: int = 0,
    label_windows: Array | None = None,
    where: Array | None = None,
) -> None:
    """`check_inputs` for `rnnt_loss_packed`: also that there are rows enough.

    Args:
      logits: only their shape, `(N, V)`, and dtype are looked at. May be a `jax.ShapeDtypeStruct`.
      labels, logit_lengths, label_lengths, blank_id, label_windows, where: as in
        `rnnt_loss_packed`.

    Raises:
      TypeError, ValueError: as `rnnt_loss_packed`.
    """
    logits = validation.scores_or_type("logits", logits)
    sizes = validation_packed.packed_sizes(logits.shape, labels)
    blank_id = validation.blank_class(blank_id, sizes.num_classes)
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        label_windows=label_windows, where=where,
    )  # fmt: skip
    validation_packed.check_values(sizes, utterances, blank_id)


def check_inputs_pruned(
    logits: Array | jax.ShapeDtypeStruct,
    labels: Array,
    ranges: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    blank_id: int = 0,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    where: Array | None = None,
) -> None:
    """`check_inputs` for `rnnt_loss_pruned` and `rnnt_loss_pruned_joint`: also of the ranges.

    Args:
      logits: only their shape, `(*batch, T, S, V)`, and dtype are looked at. May be a
        `jax.ShapeDtypeStruct`.
      labels, ranges, logit_lengths, label_lengths, blank_id, logit_begins, label_begins,
        label_windows, where: as in `rnnt_loss_pruned`.

    Raises:
      TypeError, ValueError: as `rnnt_loss_pruned`.
    """
    logits = validation.scores_or_type("logits", logits)
    sizes, ranges = validation_pruning.band_sizes(logits.shape, labels, ranges)
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    utterances = validation.utterances_of(sizes, utterances)
    validation.check_values(sizes, utterances, validation.blank_class(blank_id, sizes.num_classes))
    validation_pruning.check_ranges(sizes, utterances, ranges)
