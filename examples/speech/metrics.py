"""Character and word error rates, with a bootstrap interval."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein


@dataclasses.dataclass(frozen=True)
class ErrorRate:
    """Edits per reference unit over a set of prompts, with its 95% interval."""

    rate: float
    low: float
    high: float


def edit_counts(
    references: Sequence[str], hypotheses: Sequence[str], *, words: bool = False
) -> np.ndarray:
    """Edits and reference units, (prompts, 2), of characters or of words."""

    def units(text: str) -> Sequence[str]:
        return text.split() if words else text

    return np.array(
        [
            (Levenshtein.distance(units(reference), units(hypothesis)), len(units(reference)))
            for reference, hypothesis in zip(references, hypotheses, strict=True)
        ]
    )


def error_rate(counts: np.ndarray, *, resamples: int = 10_000, seed: int = 0) -> ErrorRate:
    """The rate of `edit_counts`, with the percentile bootstrap over prompts (Efron 1979)."""
    chosen = np.random.default_rng(seed).integers(len(counts), size=(resamples, len(counts)))
    edits, units = counts[chosen].sum(1).T
    low, high = np.quantile(edits / units, (0.025, 0.975))
    edits, units = counts.sum(0)
    return ErrorRate(float(edits / units), float(low), float(high))
