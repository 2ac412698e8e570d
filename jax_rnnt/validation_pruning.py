"""Checks of the arguments of pruning, beside those that all losses share."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .bounds import Sizes, Utterances, clip_to_int32
from .types import Array, Topology
from .validation import (
    as_array,
    float_scores,
    integer_argument,
    is_known,
    raise_or_checkify,
    sizes_of,
    whole_number,
)


def posterior_pair(posteriors: Any) -> tuple[Any, Any]:
    """What may be the posteriors of blank and of label arcs."""
    if not isinstance(posteriors, tuple | list) or len(posteriors) != 2:
        raise TypeError(
            f"posteriors is of type {type(posteriors).__name__}; expected Posteriors(blank, "
            "label), as the losses return with return_posteriors=True."
        )
    return posteriors[0], posteriors[1]


def posterior_planes(posteriors: Any) -> tuple[jax.Array, jax.Array, Sizes]:
    """The two planes of `Posteriors`, and the sizes that they have."""
    blank, label = posterior_pair(posteriors)
    blank = float_scores("posteriors.blank", blank)
    label = float_scores("posteriors.label", label)
    if label.shape != blank.shape:
        raise ValueError(
            f"posteriors.label has shape {label.shape}; expected {blank.shape}, the shape of "
            "posteriors.blank."
        )
    return blank, label, sizes_of("posteriors.blank", blank.shape, 2)


def s_range_of(s_range: Any, num_labels: int, topology: Topology) -> int:
    """How many label positions a band has in each frame, if labels can get through it."""
    s_range = whole_number("s_range", s_range, minimum=1)
    if s_range == 1 and topology != "modified" and num_labels > 0:
        raise ValueError(
            f"s_range is 1 with topology {topology!r}, where an alignment needs both ends of a "
            "label arc in the same frame; expected s_range >= 2. Only 'modified' can do with 1."
        )
    return s_range


def band_sizes(logits_shape: tuple[int, ...], labels: Any, ranges: Any) -> tuple[Sizes, Array]:
    """Sizes, with U from the labels, and the ranges that fit logits `(*batch, T, S, V)`."""
    letters = "(*batch, T, S, V)"
    if len(logits_shape) < 3:
        raise ValueError(
            f"logits has shape {logits_shape}; expected {letters}, at least 3 dimensions."
        )
    *batch, T, S, V = logits_shape
    if any(isinstance(n, int) and n < 1 for n in (S, V)):
        raise ValueError(f"logits has shape {logits_shape}; expected {letters}, S >= 1 and V >= 1.")
    ranges = as_array("ranges", ranges, "what get_rnnt_prune_ranges returns")
    ranges = integer_argument("ranges", ranges, logits_shape[:-1], "(*batch, T, S)")
    labels = as_array("labels", labels, "integers of shape (*batch, U)")
    if labels.ndim != len(batch) + 1:
        raise ValueError(
            f"labels has shape {labels.shape}; expected (*batch, U) with *batch = {tuple(batch)}, "
            "from the shape of logits."
        )
    U = labels.shape[-1]
    if isinstance(S, int) and isinstance(U, int) and S > U + 1:
        raise ValueError(
            f"logits has shape {logits_shape}, {letters} with S = {S}, but there are only U+1 = "
            f"{U + 1} label positions for labels of shape {labels.shape}; expected S <= U+1, as "
            "get_rnnt_prune_ranges makes it."
        )
    return Sizes(tuple(batch), T, U, V, ("logits", "labels")), ranges


def pruned_operands(
    am: Any, lm: Any, ranges: Any, names: tuple[str, str] = ("am", "lm")
) -> tuple[jax.Array, jax.Array, Array]:
    """Operands of `do_rnnt_pruning`, which the caller knows by other names, maybe."""
    am_name, lm_name = names
    am, lm = float_scores(am_name, am), float_scores(lm_name, lm)
    expected = (
        f"expected {am_name} (*batch, T, C1), {lm_name} (*batch, U+1, C2) and ranges (*batch, T, S)"
    )
    for name, x in ((am_name, am), (lm_name, lm)):
        if x.ndim < 2:
            raise ValueError(f"{name} has shape {x.shape}; {expected}, at least 2 dimensions.")
    if am.shape[:-2] != lm.shape[:-2]:
        raise ValueError(
            f"{lm_name} has shape {lm.shape} and {am_name} {am.shape}; {expected}, with the same "
            "batch dimensions."
        )
    if isinstance(lm.shape[-2], int) and lm.shape[-2] < 1:
        raise ValueError(f"{lm_name} has shape {lm.shape}; {expected}, with U+1 >= 1.")
    array = as_array("ranges", ranges)
    if array.ndim != am.ndim or array.shape[:-1] != am.shape[:-1]:
        raise ValueError(f"ranges has shape {array.shape} and {am_name} {am.shape}; {expected}.")
    return am, lm, integer_argument("ranges", array, array.shape, "(*batch, T, S)")


def check_positions(name: str, shape: tuple[int, ...], num_labels: int) -> None:
    """An array `(*batch, U+1, D)` has a row for each label position."""
    if shape[-2] != num_labels + 1:
        raise ValueError(
            f"{name} has shape {shape}; expected (*batch, U+1, D) with U+1 = {num_labels + 1}, one "
            "position more than there are labels. Did you leave out the start symbol?"
        )


def checked_ranges(sizes: Sizes, utterances: Utterances, ranges: Array, check: bool) -> Array:
    """`ranges`, ready to be traced; with `check`, an error for known bad ones."""
    known = _known_bounds(sizes, utterances)
    if check and known is not None and is_known(ranges):
        values = np.asarray(jax.device_get(ranges))
        _check_ranges(sizes, known.logit_begins, known.logit_lengths, values)
    return clip_to_int32(ranges) if isinstance(ranges, np.ndarray) else ranges


def check_ranges(sizes: Sizes, utterances: Utterances, ranges: Array) -> None:
    """Raises ValueError for bad known ranges; `checkify.check` for traced ones."""
    if _known_bounds(sizes, utterances) is not None and is_known(ranges):
        checked_ranges(sizes, utterances, ranges, True)
        return
    begins, ends = (
        jnp.full(sizes.batch, default, jnp.int32) if x is None else jnp.asarray(clip_to_int32(x))
        for x, default in ((utterances.logit_begins, 0), (utterances.logit_lengths, sizes.T))
    )
    if utterances.where is not None:
        ends = jnp.where(utterances.where, ends, 0)
    _check_ranges(sizes, begins, ends, jnp.asarray(clip_to_int32(ranges)))


def _check_ranges(sizes: Sizes, begins: Any, ends: Any, ranges: Any) -> None:
    """Of frames from `begins` to `ends`, all NumPy arrays or all JAX ones."""
    T, U, S = sizes.T, sizes.U, ranges.shape[-1]
    t = np.arange(T, dtype=np.int32).reshape([1] * len(sizes.batch) + [T])
    unused = ((t < begins[..., None]) | (t >= ends[..., None]))[..., None]
    narrow = clip_to_int32(ranges)
    start = narrow[..., :1]
    limit = U + 1 - S
    expected = f"0 <= ranges[..., 0] <= U+1 - S = {limit}, so that no position is above U = {U}"
    in_range = (start >= 0) & (start <= limit) | unused
    raise_or_checkify(in_range, "ranges", ranges[..., :1], expected)
    position = np.arange(S, dtype=np.int32).reshape([1] * (narrow.ndim - 1) + [S])
    expected = (
        f"S = {S} consecutive label positions in each frame, as get_rnnt_prune_ranges returns"
    )
    raise_or_checkify((narrow - start == position) | unused, "ranges", ranges, expected)


def check_band_reaches_end(
    sizes: Sizes, utterances: Utterances, ranges: Array, topology: Topology
) -> None:
    """Raises ValueError if known ranges leave out the last label though it could be reached.

    That is what ranges made for other lengths do. Labels that do not fit in the frames are no
    error: no band helps them.
    """
    known = _known_bounds(sizes, utterances)
    if known is None or not is_known(ranges) or sizes.T == 0:
        return
    frames = known.logit_lengths - known.logit_begins
    labels = known.label_lengths - known.label_begins
    last_frames = np.maximum(known.logit_lengths - 1, 0)
    tops = np.asarray(jax.device_get(ranges))[..., -1]
    top = np.take_along_axis(tops, last_frames[..., None], -1)[..., 0]
    # A label arc that takes a frame may be the last one.
    needed = known.label_lengths - (0 if topology == "regular" else 1)
    wrong = (frames > 0) & (labels <= frames) & (top < needed)
    if not wrong.any():
        return
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    place = ", ".join(map(str, (*index, last_frames[index])))
    raise ValueError(
        f"ranges[{place}], of the last frame, ends at label position {top[index]}, but there are "
        f"{known.label_lengths[index]} labels; expected a band that reaches them. Give "
        "get_rnnt_prune_ranges the lengths, begins and topology of the loss."
    )


def check_labels_fit(sizes: Sizes, utterances: Utterances, s_range: int) -> None:
    """Raises ValueError if regular alignments of a band of `s_range` positions have too few frames.

    In each frame they take the band from its first to its last position at most. No band helps an
    utterance without frames.
    """
    known = _known_bounds(sizes, utterances)
    if known is None:
        return
    frames = known.logit_lengths - known.logit_begins
    labels = known.label_lengths - known.label_begins
    needed = np.where(frames > 0, -(-labels // np.maximum(frames, 1)) + 1, 1)
    if needed.size == 0 or np.max(needed) <= s_range:
        return
    index = np.unravel_index(np.argmax(needed), needed.shape)
    where = "[" + ", ".join(str(int(i)) for i in index) + "]" if index else ""
    raise ValueError(
        f"s_range is {s_range}, which lets {s_range - 1} labels a frame through, but utterance"
        f"{where} has {labels[index]} labels in {frames[index]} frames; expected s_range >= "
        f"{needed[index]}, which is enough for all."
    )


class _Bounds(NamedTuple):
    """Lengths and begins of all utterances."""

    logit_begins: np.ndarray
    logit_lengths: np.ndarray
    label_begins: np.ndarray
    label_lengths: np.ndarray


def _known_bounds(sizes: Sizes, utterances: Utterances) -> _Bounds | None:
    """None if some are not known. Utterances that `where` leaves out are empty."""
    if not all(isinstance(n, int) for n in (*sizes.batch, sizes.T, sizes.U)):
        return None  # exported for any size
    where = utterances.where
    defaults = _Bounds(*(np.full(sizes.batch, n) for n in (0, sizes.T, 0, sizes.U)))
    given = [getattr(utterances, name) for name in _Bounds._fields]
    if not all(x is None or is_known(x) for x in (where, *given)):
        return None
    kept = np.ones(sizes.batch, np.bool_) if where is None else np.asarray(jax.device_get(where))
    arrays = (
        default if x is None else clip_to_int32(np.asarray(jax.device_get(x)))
        for x, default in zip(given, defaults, strict=True)
    )
    return _Bounds(*(np.where(kept, x, 0) for x in arrays))
