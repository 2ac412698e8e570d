"""k2's transducer losses: the functions of `fast_rnnt`, one with its arguments in another order.

What differs on purpose is listed there.
"""

import jax
import jax.numpy as jnp

import jax_rnnt

from .. import validation
from ..types import Array, Posteriors, Topology
from . import fast_rnnt
from ._names import in_words_of_fast_rnnt
from ._px_py import PxPy, columns, planes_of_gradients
from .fast_rnnt import (
    do_rnnt_pruning,
    get_hat_logprobs_pruned,
    get_rnnt_logprobs,
    get_rnnt_logprobs_pruned,
    get_rnnt_logprobs_smoothed,
    get_rnnt_prune_ranges,
    joint_mutual_information_recursion,
    mutual_information_recursion,
    rnnt_loss,
    rnnt_loss_pruned,
    rnnt_loss_simple,
    rnnt_loss_smoothed,
)

__all__ = [
    "do_rnnt_pruning",
    "get_hat_logprobs_pruned",
    "get_rnnt_logprobs",
    "get_rnnt_logprobs_joint",
    "get_rnnt_logprobs_pruned",
    "get_rnnt_logprobs_smoothed",
    "get_rnnt_prune_ranges",
    "get_rnnt_prune_ranges_deprecated",
    "joint_mutual_information_recursion",
    "mutual_information_recursion",
    "rnnt_loss",
    "rnnt_loss_pruned",
    "rnnt_loss_simple",
    "rnnt_loss_smoothed",
]


def get_rnnt_logprobs_joint(
    logits: Array,
    symbols: Array,
    termination_symbol: int,
    rnnt_type: Topology = "regular",
    boundary: Array | None = None,
) -> PxPy:
    """`(px, py)` of logits `(B, T, S+1, C)`."""
    arguments = logits, symbols, termination_symbol, boundary, rnnt_type
    return fast_rnnt.get_rnnt_logprobs_joint(*arguments)


@in_words_of_fast_rnnt
def get_rnnt_prune_ranges_deprecated(
    px_grad: Array, py_grad: Array, boundary: Array, s_range: int
) -> jax.Array:
    """The older `get_rnnt_prune_ranges`, which keeps fewer of the probable alignments.

    A frame keeps the positions whose arcs, of labels and of blank, alignments take most often. An
    alignment that emits several labels in the frame counts as often; `get_rnnt_prune_ranges` counts
    each alignment once (arXiv 2206.13236).

    Args:
      px_grad, py_grad, boundary: as in `get_rnnt_prune_ranges`.
      s_range: how many positions a frame keeps; at most S + 1 of them.

    Returns:
      `(B, T, s_range)` int32.

    Raises:
      TypeError, ValueError: as `jax_rnnt.get_rnnt_prune_ranges`; so an `s_range` that does not let
        the labels through, which is not made larger here.
    """
    px, py = (
        validation.float_scores("px_grad", px_grad),
        validation.float_scores("py_grad", py_grad),
    )
    (blank, label), regular = planes_of_gradients(px, py)
    ends = columns(boundary, px.shape[0])
    return jax_rnnt.get_rnnt_prune_ranges(
        Posteriors(blank + label, jnp.zeros_like(label)),
        ends.t_end,
        ends.s_end,
        s_range=s_range,
        topology="regular" if regular else "modified",
    )
