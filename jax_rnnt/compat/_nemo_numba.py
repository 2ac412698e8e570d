"""The losses of NeMo's package `numba.rnnt_loss`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

import jax_rnnt

from ..reduction import reduce_losses
from ..types import Array, Reduction
from ..validation import as_array, finite_number, one_of, whole_number
from ._names import arguments_named

_in_words_of_nemo = arguments_named(
    logits="acts", logit_lengths="act_lens", label_lengths="label_lens", blank_id="blank"
)


@_in_words_of_nemo
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
    losses = jax_rnnt.rnnt_loss(
        acts,
        labels,
        act_lens,
        label_lens,
        blank_id=blank,
        fastemit_lambda=fastemit_lambda,
        clamp=clamp,
    )
    return reduce_losses(_scaled(losses, fastemit_lambda), how, None)


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
class MultiblankRNNTLossNumba:
    """The multi-blank loss (`jax_rnnt.rnnt_loss_multi_blank`) with its options fixed.

    Attributes:
      blank: class of the usual blank. Those of the big blanks are before it: the first one's is
        `blank - 1`, the second one's `blank - 2`, and so on.
      big_blank_durations: in frames, as `jax_rnnt.rnnt_loss_multi_blank` takes them.
      reduction, fastemit_lambda, clamp: as in `rnnt_loss`.
      sigma: is subtracted from the log-probability of each arc.

    Raises:
      TypeError, ValueError: bad durations, or fewer classes before `blank` than there are.
    """

    blank: int
    big_blank_durations: Sequence[int]
    reduction: Reduction = "mean"
    fastemit_lambda: float = 0.0
    clamp: float = -1
    sigma: float = 0.0

    def __post_init__(self) -> None:
        _freeze(self, "big_blank_durations")
        one_of("reduction", self.reduction, Reduction)
        if whole_number("blank", self.blank, minimum=0) < len(self.big_blank_durations):
            raise ValueError(
                f"blank is {self.blank}; expected at least {len(self.big_blank_durations)}, as the "
                f"big blanks of big_blank_durations {self.big_blank_durations} are the classes "
                "before it."
            )

    @_in_words_of_nemo
    def __call__(self, acts: Array, labels: Array, act_lens: Array, label_lens: Array) -> jax.Array:
        """The loss of `acts` `(B, T, U+1, V)`, as `rnnt_loss` takes them; V has all blanks."""
        losses = jax_rnnt.rnnt_loss_multi_blank(
            acts,
            labels,
            act_lens,
            label_lens,
            big_blank_ids=tuple(self.blank - 1 - i for i in range(len(self.big_blank_durations))),
            big_blank_durations=self.big_blank_durations,
            sigma=self.sigma,
            blank_id=self.blank,
            fastemit_lambda=self.fastemit_lambda,
            clamp=self.clamp,
        )
        return reduce_losses(_scaled(losses, self.fastemit_lambda), self.reduction, None)

    forward = __call__


@dataclass(frozen=True)
class TDTLossNumba:
    """The token-and-duration loss (`jax_rnnt.rnnt_loss_tdt`) with its options fixed.

    Attributes:
      blank: class of the blank symbol.
      durations: in frames, increasing, as `jax_rnnt.rnnt_loss_tdt` takes them.
      reduction: as in `rnnt_loss`.
      fastemit_lambda, clamp: as in `rnnt_loss`, for the gradient by the tokens' scores.
      sigma: is subtracted from the log-probability of each token.
      omega: how likely a batch gets the usual loss, of the tokens alone and without sigma.

    Raises:
      TypeError, ValueError: bad durations, or an omega that is no probability.
    """

    blank: int
    durations: Sequence[int]
    reduction: Reduction = "mean"
    fastemit_lambda: float = 0.0
    clamp: float = -1
    sigma: float = 0.0
    omega: float = 0.0

    def __post_init__(self) -> None:
        _freeze(self, "durations")
        one_of("reduction", self.reduction, Reduction)
        if not 0 <= finite_number("omega", self.omega) <= 1:
            raise ValueError(f"omega is {self.omega}; expected a probability, from 0 to 1.")

    @_in_words_of_nemo
    def __call__(
        self,
        acts: Array,
        labels: Array,
        act_lens: Array,
        label_lens: Array,
        *,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The loss.

        Args:
          acts: `(B, T, U+1, V+D)`, unnormalised: scores of the tokens, then of the D durations.
            Both parts are copied, which `jax_rnnt.rnnt_loss_tdt` of two arrays does not need.
          labels: `(B, U)` integers.
          act_lens, label_lens: `(B,)` integers.
          key: `jax.random` key that decides which of the losses the batch gets, if omega is not 0.
        """
        acts = jnp.asarray(as_array("acts", acts))
        num_tokens = acts.shape[-1] - len(self.durations) if acts.ndim else 0
        if num_tokens < 1:
            raise ValueError(
                f"acts has shape {acts.shape}; expected (B, T, U+1, V+D), with scores of tokens "
                f"before those of the D = {len(self.durations)} durations."
            )
        rest = labels, act_lens, label_lens
        options: dict[str, Any] = {
            "blank_id": self.blank,
            "fastemit_lambda": self.fastemit_lambda,
            "clamp": self.clamp,
        }

        def usual(acts: jax.Array) -> jax.Array:
            return jax_rnnt.rnnt_loss(acts[..., :num_tokens], *rest, **options)

        def with_durations(acts: jax.Array) -> jax.Array:
            logits, duration_logits = acts[..., :num_tokens], acts[..., num_tokens:]
            steps = {"durations": self.durations, "sigma": self.sigma}
            return jax_rnnt.rnnt_loss_tdt(logits, duration_logits, *rest, **steps, **options)

        if self.omega == 0:
            losses = with_durations(acts)
        elif key is None:
            raise ValueError(
                f"omega is {self.omega}, but key is None; expected a jax.random key, which decides "
                "whether the batch gets the usual loss."
            )
        else:
            drawn = jax.random.bernoulli(key, self.omega)
            losses = jax.lax.cond(drawn, usual, with_durations, acts)
        return reduce_losses(_scaled(losses, self.fastemit_lambda), self.reduction, None)

    forward = __call__


def _freeze(module: Any, name: str) -> None:
    """Makes a sequence hashable, so that the module can be a static argument."""
    value = getattr(module, name)
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name} is {value!r}; expected a sequence of integers, as [1, 2, 4].")
    object.__setattr__(module, name, tuple(value))


def _scaled(losses: jax.Array, fastemit_lambda: float) -> jax.Array:
    """Multiplied by `1 + fastemit_lambda`; the gradient is not."""
    if fastemit_lambda == 0:
        return losses  # not + 0 * inf
    return losses + fastemit_lambda * jax.lax.stop_gradient(losses)
