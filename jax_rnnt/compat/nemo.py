"""NeMo's `RNNTLoss` and the functions of its package `numba.rnnt_loss` that it calls.

Different on purpose: an utterance without any alignment has loss +inf and gradient zero, padding
never matters, reduced losses are scalars, and where losses are divided by numbers of labels, none
counts as one. Losses of half-precision logits are float32, without a copy of the logits. As there,
and unlike `jax_rnnt.rnnt_loss`, the loss is multiplied by `1 + fastemit_lambda`; the gradient is
not. NeMo's losses by k2's graphs are not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from ..reduction import reduce_losses
from ..types import Array
from ..validation import as_array, one_of
from ._names import arguments_named
from ._nemo_numba import MultiblankRNNTLossNumba, RNNTLossNumba, TDTLossNumba, rnnt_loss

__all__ = ["MultiblankRNNTLossNumba", "RNNTLoss", "RNNTLossNumba", "TDTLossNumba", "rnnt_loss"]

NemoReduction: TypeAlias = Literal["mean_batch", "mean_volume", "mean", "sum"]
_Loss: TypeAlias = Literal[
    "default",
    "warprnnt_numba",
    "warprnnt",
    "pytorch",
    "multiblank_rnnt",
    "multiblank_rnnt_pytorch",
    "tdt",
    "tdt_pytorch",
]

# Losses by name: their modules, and which of the options each takes, durations always.
_SCALED = "fastemit_lambda", "clamp"
_MODULES: Mapping[_Loss, tuple[Any, tuple[str, ...]]] = {
    "default": (RNNTLossNumba, _SCALED),
    "warprnnt_numba": (RNNTLossNumba, _SCALED),
    "warprnnt": (RNNTLossNumba, ()),
    "pytorch": (RNNTLossNumba, ()),
    "multiblank_rnnt": (MultiblankRNNTLossNumba, ("big_blank_durations", "sigma", *_SCALED)),
    "multiblank_rnnt_pytorch": (MultiblankRNNTLossNumba, ("big_blank_durations", "sigma")),
    "tdt": (TDTLossNumba, ("durations", "sigma", "omega", *_SCALED)),
    "tdt_pytorch": (TDTLossNumba, ("durations", "sigma")),
}


@dataclass(frozen=True)
class RNNTLoss:
    """The loss of a model, whose blank is the last class of the tokens.

    Attributes:
      num_classes: number of classes without the usual blank, which is that class: V - 1.
      reduction: `"mean_batch"`, the mean of the losses; `"mean_volume"`, their sum divided by that
        of the numbers of labels; `"mean"`, the mean of the losses each divided by its number of
        labels; `"sum"`; None.
      loss_name: `"default"`, `"warprnnt_numba"`, `"warprnnt"` or `"pytorch"`: the same here;
        `"multiblank_rnnt"`, `"tdt"`, also with `"_pytorch"`.
      loss_kwargs: attributes of `RNNTLossNumba` (none of `"warprnnt"` and `"pytorch"`),
        `MultiblankRNNTLossNumba` and `TDTLossNumba`.

    Raises:
      TypeError, ValueError: an unknown reduction, loss or option.
    """

    num_classes: int
    reduction: NemoReduction | None = "mean_batch"
    loss_name: _Loss = "default"
    loss_kwargs: Mapping[str, Any] | None = field(default=None, hash=False)  # for `jax.jit`
    _losses: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.reduction is not None:
            one_of("reduction", self.reduction, NemoReduction)
        one_of("loss_name", self.loss_name, _Loss)
        if not isinstance(self.loss_kwargs, Mapping | None):
            raise TypeError(f"loss_kwargs is {self.loss_kwargs!r}; expected a mapping or None.")
        module, allowed = _MODULES[self.loss_name]
        for name in ("durations", "big_blank_durations"):
            if name in allowed and name not in (self.loss_kwargs or {}):
                raise ValueError(
                    f"loss_kwargs has no {name!r}; expected it for loss_name={self.loss_name!r}."
                )
        for name in self.loss_kwargs or {}:
            if name not in allowed:
                raise ValueError(
                    f"loss_kwargs has {name!r}; expected "
                    f"{'only ' + ', '.join(allowed) if allowed else 'none'} for "
                    f"loss_name={self.loss_name!r}."
                )
        each = module(self.num_classes, reduction="none", **(self.loss_kwargs or {}))
        object.__setattr__(self, "_losses", each)

    @arguments_named(
        acts="log_probs", labels="targets", act_lens="input_lengths", label_lens="target_lengths"
    )
    def __call__(
        self,
        log_probs: Array,
        targets: Array,
        input_lengths: Array,
        target_lengths: Array,
        *,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The loss.

        Args:
          log_probs: `(B, T, U+1, V)`; logits as good as log-probabilities. With `"tdt"`,
            `(B, T, U+1, V+D)`.
          targets: `(B, U)` integers; what is more than U is cut off.
          input_lengths, target_lengths: `(B,)` integers.
          key: what `TDTLossNumba` needs if omega is not 0.
        """
        if len(log_probs.shape) == 4 and len(targets.shape) == 2:
            targets = targets[:, : log_probs.shape[2] - 1]
        options = {} if key is None else {"key": key}
        losses = self._losses(log_probs, targets, input_lengths, target_lengths, **options)
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
