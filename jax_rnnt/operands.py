"""The operands of the dense arcs and of their recursion."""

from __future__ import annotations

from typing import Any

import jax

from ._native.jax_versions import align_varying_axes, with_whole_rows
from .bounds import Sizes, Utterances, labels_and_bounds
from .label_windows import label_mask


def dense_operands(
    scores: tuple[jax.Array, ...],
    sizes: Sizes,
    utterances: Utterances,
    blank_id: int | None,
    other_blanks: tuple[int, ...] = (),
) -> tuple[tuple[jax.Array, ...], Any, jax.Array, jax.Array | None]:
    """Scores and what says how to read them, divided among devices alike.

    It must lie outside of a `custom_vjp`, see `with_whole_rows` and `align_varying_axes`.

    Args:
      scores: what arcs are made of, with batch dimensions `sizes.batch`.
      blank_id, other_blanks: as in `labels_and_bounds`.

    Returns:
      The scores; labels `(*batch, U)` int32, None where `sizes` has no classes; bounds
      `(*batch, 4)`; the mask of label arcs `(*batch, T, U+1)`, None if there are no windows.
    """
    scores = with_whole_rows(len(sizes.batch), *scores)
    labels, bounds = labels_and_bounds(scores[0], sizes, utterances, blank_id, other_blanks)
    mask = label_mask(scores[0], sizes, utterances)
    scores, labels, bounds, mask = align_varying_axes(scores, labels, bounds, mask)
    return scores, labels, bounds, mask
