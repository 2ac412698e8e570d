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
