"""`fast_rnnt`, with what k2 added to it: `rnnt_type`, `delay_penalty` and `use_hat_loss`.

`symbols` are `(B, S)` integers, `boundary` is `(B, 4)` integers `[s_begin, t_begin, s_end, t_end]`,
or None for `[0, 0, S, T]`. `rnnt_type` is this library's `topology`.

Different on purpose:

- An utterance without any alignment has loss +inf and gradient zero instead of an assertion error,
  which programs that are compiled once cannot raise.
- The simple and the smoothed loss are exact where acoustic and language part peak at different
  classes; the unigram of the smoothed loss leaves out utterances with NaN or +inf.
- Ranges are int32. They are widened to the narrowest possible ones, as k2 does, where the values of
  `boundary` are known, which they are not inside `jax.jit`.
- `use_hat_loss` works with every `termination_symbol`.
- `rnnt_loss` and `rnnt_loss_pruned` have no `return_grad`: `mutual_information_recursion` has it,
  for the `(px, py)` of `get_rnnt_logprobs_joint` and `get_rnnt_logprobs_pruned`.
- Symbols and ranges that are out of range make their elements of `px` and `py` NaN.
- Label arcs to symbols that equal `termination_symbol` are errors in the losses.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

import jax_rnnt

from .. import validation, validation_factored
from ..bounds import Utterances
from ..factored import checked_loss
from ..pruning import do_rnnt_pruning
from ..types import ArcsOptions, Array, LatticeOptions, Reduction, Smoothing, Topology
from ._logprobs import (
    get_hat_logprobs_pruned,
    get_rnnt_logprobs,
    get_rnnt_logprobs_joint,
    get_rnnt_logprobs_pruned,
    get_rnnt_logprobs_smoothed,
    k2_smoothing,
)
from ._names import in_words_of_fast_rnnt
from ._px_py import (
    Boundary,
    PxPy,
    columns,
    lattice_of,
    one_batch_dimension,
    planes_of_gradients,
    px_py_gradients,
)

__all__ = [
    "do_rnnt_pruning",
    "get_hat_logprobs_pruned",
    "get_rnnt_logprobs",
    "get_rnnt_logprobs_joint",
    "get_rnnt_logprobs_pruned",
    "get_rnnt_logprobs_smoothed",
    "get_rnnt_prune_ranges",
    "joint_mutual_information_recursion",
    "mutual_information_recursion",
    "rnnt_loss",
    "rnnt_loss_pruned",
    "rnnt_loss_simple",
    "rnnt_loss_smoothed",
]

LossAndGrads: TypeAlias = jax.Array | tuple[jax.Array, PxPy]


@in_words_of_fast_rnnt
def mutual_information_recursion(
    px: Array, py: Array, boundary: Array | None = None, return_grad: bool = False
) -> LossAndGrads:
    """Log of the sum over all paths of the exponential of their elements of `px` and `py`.

    Args:
      px: `(B, S, T+1)`, or `(B, S, T)` for modified recursions: of going from `s` to `s + 1`.
      py: `(B, S+1, T)`, of going from `t` to `t + 1`.
      boundary: where each utterance begins and ends.
      return_grad: also return `(px_grad, py_grad)`, the derivatives of the sum of the scores. They
        are constants to differentiation.

    Returns:
      Scores `(B,)`, or `(scores, (px_grad, py_grad))`.
    """
    px, py = validation.float_scores("px", px), validation.float_scores("py", py)
    lattice = lattice_of([px], [py], boundary)
    from_arcs: Any = jax_rnnt.rnnt_loss_from_arcs
    result = from_arcs(
        lattice.blanks[0],
        lattice.labels[0],
        topology="modified" if lattice.last is None else "regular",
        return_posteriors=return_grad,
        **lattice.boundary.arguments(),
    )
    if not return_grad:
        return -result
    loss, posteriors = result
    return -loss, lattice.gradients(posteriors)


@in_words_of_fast_rnnt
def joint_mutual_information_recursion(
    px: Sequence[Array] | Array, py: Sequence[Array] | Array, boundary: Array | None = None
) -> jax.Array:
    """The parts that the summands of `px` and of `py` have in `mutual_information_recursion`.

    Args:
      px, py: equally many summands, in a sequence or stacked.
      boundary: where each utterance begins and ends.

    Returns:
      `(len(px), B)`, with the sum over axis 0 that the recursion over the sums has. The first part
      has the difference between the logarithm of a sum and the sum of logarithms.
    """
    px, py = list(px), list(py)  # also arrays with all summands
    if len(px) != len(py) or not px:
        raise ValueError(
            f"py has {len(py)} terms and px {len(px)}; expected as many of one as of the other, at "
            "least 1. Pass zeros for a missing one."
        )
    pxs = [validation.float_scores(f"px[{i}]", x) for i, x in enumerate(px)]
    pys = [validation.float_scores(f"py[{i}]", x) for i, x in enumerate(py)]
    lattice = lattice_of(pxs, pys, boundary)
    return -jax_rnnt.rnnt_loss_from_arc_terms(
        lattice.blanks,
        lattice.labels,
        topology="modified" if lattice.last is None else "regular",
        **lattice.boundary.arguments(),
    )


@in_words_of_fast_rnnt
def rnnt_loss_simple(
    lm: Array,
    am: Array,
    symbols: Array,
    termination_symbol: int,
    boundary: Array | None = None,
    rnnt_type: Topology = "regular",
    delay_penalty: float = 0.0,
    reduction: Reduction = "mean",
    return_grad: bool = False,
) -> LossAndGrads:
    """RNN-Transducer loss of the additive joiner's logits `am[t] + lm[s]`.

    Args:
      lm: `(B, S+1, C)`, unnormalised.
      am: `(B, T, C)`, unnormalised.
      delay_penalty: adds `delay_penalty * ((t_end - 1) / 2 - t)` to `px`, unless it is <= 0.
      reduction: `"none"`, `"mean"` over the batch, or `"sum"`.
      return_grad: also return `(px_grad, py_grad)`, the derivatives of minus the sum of the losses.

    Returns:
      The loss, or `(loss, (px_grad, py_grad))`.
    """
    return _additive_loss(
        lm, am, symbols, termination_symbol, boundary, rnnt_type, delay_penalty, reduction,
        return_grad, None,
    )  # fmt: skip


@in_words_of_fast_rnnt
def rnnt_loss_smoothed(
    lm: Array,
    am: Array,
    symbols: Array,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Array | None = None,
    rnnt_type: Topology = "regular",
    delay_penalty: float = 0.0,
    reduction: Reduction = "mean",
    return_grad: bool = False,
) -> LossAndGrads:
    """`rnnt_loss_simple`, smoothed by each of the additive joiner's halves.

    The unigram is the average of `softmax(lm)` over all label positions, also those of padding. So
    the losses depend on how much there is of it; `jax_rnnt.rnnt_loss_smoothed` leaves it out.
    """
    smoothing = k2_smoothing(lm_only_scale, am_only_scale)
    return _additive_loss(
        lm, am, symbols, termination_symbol, boundary, rnnt_type, delay_penalty, reduction,
        return_grad, smoothing,
    )  # fmt: skip


def _additive_loss(
    lm: Any,
    am: Any,
    symbols: Any,
    termination_symbol: Any,
    boundary: Any,
    rnnt_type: Any,
    delay_penalty: Any,
    reduction: Any,
    return_grad: Any,
    smoothing: Smoothing | None,
) -> LossAndGrads:
    am, lm, sizes = validation_factored.factored_scores(am, lm)
    one_batch_dimension("am", am.shape, "(B, T, C)")
    ends = columns(boundary, sizes.batch[0])
    result = checked_loss(
        (am, lm),
        Utterances(labels=symbols, **ends.arguments()),
        ArcsOptions(termination_symbol),
        LatticeOptions(rnnt_type, delay_penalty=_positive(delay_penalty)),
        smoothing,
        reduction,
        return_grad,
        True,
    )
    if not return_grad:
        return result
    loss, posteriors = result
    return loss, px_py_gradients(posteriors, rnnt_type)


@in_words_of_fast_rnnt
def rnnt_loss(
    logits: Array,
    symbols: Array,
    termination_symbol: int,
    boundary: Array | None = None,
    rnnt_type: Topology = "regular",
    delay_penalty: float = 0.0,
    reduction: Reduction = "mean",
) -> jax.Array:
    """RNN-Transducer loss of logits `(B, T, S+1, C)`."""
    logits = validation.float_scores("logits", logits)
    one_batch_dimension("logits", logits.shape, "(B, T, S+1, C)")
    return jax_rnnt.rnnt_loss(
        logits,
        symbols,
        blank_id=termination_symbol,
        topology=rnnt_type,
        delay_penalty=_positive(delay_penalty),
        reduction=reduction,
        **columns(boundary, logits.shape[0]).arguments(),
    )


@in_words_of_fast_rnnt
def rnnt_loss_pruned(
    logits: Array,
    symbols: Array,
    ranges: Array,
    termination_symbol: int,
    boundary: Array | None = None,
    rnnt_type: Topology = "regular",
    delay_penalty: float = 0.0,
    reduction: Reduction = "mean",
    use_hat_loss: bool = False,
) -> jax.Array:
    """RNN-Transducer loss of logits `(B, T, s_range, C)` of the cells that `ranges` keeps.

    Args:
      ranges: `(B, T, s_range)`, from `get_rnnt_prune_ranges`.
      use_hat_loss: normalise as the hybrid autoregressive transducer (arXiv 2003.07705) does.
    """
    logits = validation.float_scores("logits", logits)
    one_batch_dimension("logits", logits.shape, "(B, T, s_range, C)")
    return jax_rnnt.rnnt_loss_pruned(
        logits,
        symbols,
        ranges,
        blank_id=termination_symbol,
        topology=rnnt_type,
        normalization="hat" if use_hat_loss else "softmax",
        delay_penalty=_positive(delay_penalty),
        reduction=reduction,
        **columns(boundary, logits.shape[0]).arguments(),
    )


@in_words_of_fast_rnnt
def get_rnnt_prune_ranges(
    px_grad: Array, py_grad: Array, boundary: Array, s_range: int
) -> jax.Array:
    """Which label positions to keep in each frame.

    Args:
      px_grad, py_grad: what the losses return with `return_grad=True`.
      boundary: as the losses were computed with. Beginnings make no difference.
      s_range: how many positions a frame keeps; at most S + 1 of them.

    Returns:
      `(B, T, s_range)` int32.
    """
    px, py = (
        validation.float_scores("px_grad", px_grad),
        validation.float_scores("py_grad", py_grad),
    )
    posteriors, regular = planes_of_gradients(px, py)
    ends = columns(boundary, px.shape[0])
    s_range = validation.whole_number("s_range", s_range, minimum=1)
    if regular:
        s_range = _feasible(s_range, ends)
    return jax_rnnt.get_rnnt_prune_ranges(
        posteriors,
        ends.t_end,
        ends.s_end,
        s_range=s_range,
        topology="regular" if regular else "modified",
    )


def _feasible(s_range: int, ends: Boundary) -> int:
    """`s_range`, or the smallest one with which all labels fit, if that is known and larger."""
    frames, labels = ends.t_end, ends.s_end
    if (
        frames is None
        or labels is None
        or not (validation.is_known(frames) and validation.is_known(labels))
    ):
        return s_range
    frames, labels = (np.asarray(jax.device_get(x)) for x in (frames, labels))
    needed = np.where(frames > 0, -(-labels // np.maximum(frames, 1)) + 1, 0)
    smallest = int(needed.max(initial=0))
    if smallest <= s_range:
        return s_range
    warnings.warn(
        f"s_range is {s_range}, which lets too few labels through; {smallest} is taken instead",
        stacklevel=4,  # beyond the decorator
    )
    return smallest


def _positive(delay_penalty: Any) -> float:
    return max(validation.finite_number("delay_penalty", delay_penalty), 0.0)
