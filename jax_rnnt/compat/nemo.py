"""NeMo's `RNNTLoss` and the functions of its package `numba.rnnt_loss` that it calls.

Different on purpose: an utterance without any alignment has loss +inf and gradient zero, padding
never matters, reduced losses are scalars, and where losses are divided by numbers of labels, none
counts as one. Losses of half-precision logits are float32, without a copy of the logits. As there,
and unlike `jax_rnnt.rnnt_loss`, the loss is multiplied by `1 + fastemit_lambda`; the gradient is
not. NeMo's multi-blank loss is not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

import jax_rnnt

from ..reduction import reduce_losses
from ..types import Array, Reduction
from ..validation import as_array, one_of
from ._names import arguments_named

__all__ = ["RNNTLoss", "RNNTLossNumba", "TDTLossNumba", "rnnt_loss"]

NemoReduction: TypeAlias = Literal["mean_batch", "mean_volume", "mean", "sum"]
_Loss: TypeAlias = Literal["default", "warprnnt_numba", "warprnnt", "pytorch"]
_WITH_OPTIONS = "default", "warprnnt_numba"
_Option: TypeAlias = Literal["fastemit_lambda", "clamp"]


@arguments_named(
    logits="acts", logit_lengths="act_lens", label_lengths="label_lens", blank_id="blank"
)
def rnnt_loss(
    acts: Array,
    labels: Array,
    act_lens: Array,
    label_lens: Array,
    blank: int = 0,
    reduction: Reduction = "mean",
    fastemit_lambda: float = 0.0,
    clamp: float = 0.0,
) -> jax.Array:
    """RNN-Transducer loss.

    Args:
      acts: `(B, T, U+1, V)`, unnormalised.
      labels: `(B, U)` integers.
      act_lens, label_lens: `(B,)` integers.
      blank: class of the blank symbol.
      reduction: `"none"`, `"mean"` over the batch, or `"sum"`.
      fastemit_lambda: label arcs weigh `1 + fastemit_lambda` in the gradient (arXiv 2010.11148),
        and the loss is multiplied by that.
      clamp: bound on the elements of the gradient by `acts`; off if <= 0.
    """
    how: Reduction = one_of("reduction", reduction, Reduction)
    losses = _losses(acts, labels, act_lens, label_lens, blank, fastemit_lambda, clamp)
    return reduce_losses(losses, how, None)


def _losses(
    logits: Array,
    labels: Array,
    logit_lengths: Array,
    label_lengths: Array,
    blank: int,
    fastemit_lambda: float = 0.0,
    clamp: float = 0.0,
) -> jax.Array:
    """`(B,)`, multiplied by `1 + fastemit_lambda`; its gradient is not."""
    losses = jax_rnnt.rnnt_loss(
        logits,
        labels,
        logit_lengths,
        label_lengths,
        blank_id=blank,
        fastemit_lambda=fastemit_lambda,
        clamp=clamp,
    )
    return _scaled(losses, fastemit_lambda)


def _scaled(losses: jax.Array, fastemit_lambda: float) -> jax.Array:
    """Multiplied by `1 + fastemit_lambda`; the gradient is not."""
    if fastemit_lambda == 0:
        return losses  # not + 0 * inf
    return losses + fastemit_lambda * jax.lax.stop_gradient(losses)


@dataclass(frozen=True)
class RNNTLossNumba:
    """`rnnt_loss` with its options fixed."""

    blank: int = 0
    reduction: Reduction = "mean"
    fastemit_lambda: float = 0.0
    clamp: float = -1

    def __call__(self, acts: Array, labels: Array, act_lens: Array, label_lens: Array) -> jax.Array:
        options = self.blank, self.reduction, self.fastemit_lambda, self.clamp
        return rnnt_loss(acts, labels, act_lens, label_lens, *options)

    forward = __call__


@dataclass(frozen=True)
class TDTLossNumba:
    """The token-and-duration loss (`jax_rnnt.rnnt_loss_tdt`) with its options fixed.

    Attributes:
      blank: class of the blank symbol.
      durations: in frames, increasing, as `jax_rnnt.rnnt_loss_tdt` takes them.
      reduction: `"none"`, `"mean"` over the batch, or `"sum"`.
      fastemit_lambda: as in `rnnt_loss`, for the gradient by the tokens' scores.
      clamp: bound on the elements of the gradient; off if <= 0.
      sigma: is subtracted from the log-probability of each token.
      omega: 0. To train some batches with the usual loss, choose between both by
        `jax.lax.cond(jax.random.bernoulli(key, omega), ...)`.

    Raises:
      ValueError: an omega other than 0.
    """

    blank: int
    durations: Sequence[int]
    reduction: Reduction = "mean"
    fastemit_lambda: float = 0.0
    clamp: float = -1
    sigma: float = 0.0
    omega: float = 0.0

    def __post_init__(self) -> None:
        one_of("reduction", self.reduction, Reduction)
        if self.omega != 0:
            raise ValueError(
                f"omega is {self.omega}; expected 0: choose between RNNTLossNumba and TDTLossNumba "
                "by jax.lax.cond(jax.random.bernoulli(key, omega), ...)."
            )

    def __call__(self, acts: Array, labels: Array, act_lens: Array, label_lens: Array) -> jax.Array:
        """The loss.

        Args:
          acts: `(B, T, U+1, V+D)`, unnormalised: scores of the tokens, then of the D durations.
            Both parts are copied, which `jax_rnnt.rnnt_loss_tdt` of two arrays does not need.
          labels: `(B, U)` integers.
          act_lens, label_lens: `(B,)` integers.
        """
        acts = jnp.asarray(as_array("acts", acts))
        num_tokens = acts.shape[-1] - len(self.durations)
        losses = jax_rnnt.rnnt_loss_tdt(
            acts[..., :num_tokens],
            acts[..., num_tokens:],
            labels,
            act_lens,
            label_lens,
            durations=self.durations,
            sigma=self.sigma,
            blank_id=self.blank,
            fastemit_lambda=self.fastemit_lambda,
            clamp=self.clamp,
        )
        return reduce_losses(_scaled(losses, self.fastemit_lambda), self.reduction, None)

    forward = __call__


@dataclass(frozen=True)
class RNNTLoss:
    """The loss of a model, whose blank is the last class.

    Attributes:
      num_classes: number of classes without blank, V - 1.
      reduction: `"mean_batch"`, the mean of the losses; `"mean_volume"`, their sum divided by that
        of the numbers of labels; `"mean"`, the mean of the losses each divided by its number of
        labels; `"sum"`; None.
      loss_name: `"default"`, `"warprnnt_numba"`, `"warprnnt"` or `"pytorch"`: the same here.
      loss_kwargs: `"fastemit_lambda"` and `"clamp"` of the first two.

    Raises:
      TypeError, ValueError: an unknown reduction, loss or option.
    """

    num_classes: int
    reduction: NemoReduction | None = "mean_batch"
    loss_name: _Loss = "default"
    loss_kwargs: Mapping[str, Any] | None = field(default=None, hash=False)  # for `jax.jit`

    def __post_init__(self) -> None:
        if self.reduction is not None:
            one_of("reduction", self.reduction, NemoReduction)
        one_of("loss_name", self.loss_name, _Loss)
        if not isinstance(self.loss_kwargs, Mapping | None):
            raise TypeError(f"loss_kwargs is {self.loss_kwargs!r}; expected a mapping or None.")
        for name in self.loss_kwargs or {}:
            if self.loss_name not in _WITH_OPTIONS:
                raise ValueError(
                    f"loss_kwargs has {name!r}; expected none for loss_name={self.loss_name!r}, "
                    f"only for {' and '.join(map(repr, _WITH_OPTIONS))}."
                )
            one_of("a name in loss_kwargs", name, _Option)

    @arguments_named(
        logits="log_probs",
        labels="targets",
        logit_lengths="input_lengths",
        label_lengths="target_lengths",
        blank_id="num_classes",
    )
    def __call__(
        self, log_probs: Array, targets: Array, input_lengths: Array, target_lengths: Array
    ) -> jax.Array:
        """The loss.

        Args:
          log_probs: `(B, T, U+1, V)`; logits as good as log-probabilities.
          targets: `(B, U)` integers.
          input_lengths, target_lengths: `(B,)` integers.
        """
        operands = log_probs, targets, input_lengths, target_lengths
        losses = _losses(*operands, self.num_classes, **(self.loss_kwargs or {}))
        match self.reduction:
            case None:
                return losses
            case "sum":
                return losses.sum()
            case "mean_batch":
                return reduce_losses(losses, "mean", None)
        counts = jnp.asarray(as_array("target_lengths", target_lengths))
        if self.reduction == "mean_volume":
            return losses.sum() / jnp.maximum(counts.sum(), 1).astype(losses.dtype)
        losses = losses / jnp.maximum(counts, 1).astype(losses.dtype)
        return reduce_losses(losses, "mean", None)

    forward = __call__
