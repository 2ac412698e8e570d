"""Types that the public functions share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray
Topology: TypeAlias = Literal["regular", "modified", "constrained"]
Normalization: TypeAlias = Literal["softmax", "none", "hat"]
Reduction: TypeAlias = Literal["none", "mean", "sum"]
Implementation: TypeAlias = Literal["auto", "native", "xla"]


class Posteriors(NamedTuple):
    """Arc posteriors: the derivatives of the log-likelihood by the arcs' log-probabilities.

    Entry `(t, u)` is the probability, given the labels, that the alignment takes the arc that
    leaves cell `(t, u)`; the literature also says occupation count. They never include FastEmit.

    Attributes:
      blank: `(*batch, T, U+1)`, float32 or float64.
      label: `(*batch, T, U+1)`; the last column is zero.
    """

    blank: jax.Array
    label: jax.Array


class Alignment(NamedTuple):
    """The best alignment of each utterance.

    Attributes:
      score: `(*batch,)` float32 or float64: its log-probability.
      frames: `(*batch, U)` int32: the frame in which it emits each label; -1 in padding and where
        there is no alignment.
    """

    score: jax.Array
    frames: jax.Array


class DurationAlignment(NamedTuple):
    """The best alignment of each utterance, with arcs that have durations.

    Attributes:
      score, frames: as of `Alignment`.
      durations: `(*batch, U)` int32: how many frames the label's arc takes; -1 as in `frames`.
    """

    score: jax.Array
    frames: jax.Array
    durations: jax.Array


class BestLabels(NamedTuple):
    """The best labels of each utterance, and the alignment that emits them.

    Attributes:
      labels: `(*batch, U)` int32; -1 in padding and where there is no alignment.
      score: `(*batch,)` float32 or float64: the alignment's log-probability.
      frames: `(*batch, U)` int32: the frame in which it emits each label, -1 as in `labels`.
    """

    labels: jax.Array
    score: jax.Array
    frames: jax.Array


@dataclass(frozen=True)
class LatticeOptions:
    """Static options of the recursion over arcs."""

    topology: Topology = "regular"
    final_blank: bool = False
    delay_penalty: float = 0.0
    fastemit_lambda: float = 0.0
    implementation: Implementation = "auto"


@dataclass(frozen=True)
class ArcsOptions:
    """Static options of the step from scores to arcs."""

    blank_id: int = 0
    normalization: Normalization = "softmax"
    clamp: float | None = None
    implementation: Implementation = "auto"


class Denominators(NamedTuple):
    """Softmax denominators of the additive joiner: exp(log + am_top[t] + lm_top[u]).

    Attributes:
      log: `(*batch, T, U+1)`; 0 outside an utterance.
      am_top: `(*batch, T)`: the largest score of a frame, 0 where it has none, NaN for +inf.
      lm_top: `(*batch, U+1)`: likewise of a label position.
    """

    log: jax.Array
    am_top: jax.Array
    lm_top: jax.Array


@dataclass(frozen=True)
class Smoothing:
    """Static shares of the predictor's and of the encoder's log-probabilities in each arc."""

    lm_only_scale: float = 0.0
    am_only_scale: float = 0.0
    average_padding: bool = False
    """Whether the average over label positions is also over those of padding, as k2's is."""

    @property
    def joint_scale(self) -> float:
        """The share of the additive joiner's own log-probabilities."""
        return 1 - self.lm_only_scale - self.am_only_scale
