"""Random operands of the losses, in NumPy: the same for us and for the systems we compare with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

S_RANGE = 5
"""Label positions that the pruned losses keep in each frame."""
DURATIONS = (0, 1, 2, 3, 4)
"""In frames, of the token-and-duration loss."""
SCALES: dict[str, Any] = {"lm_only_scale": 0.1, "am_only_scale": 0.1}
"""Shares of the predictor and of the encoder by themselves in the smoothed loss."""


@dataclass(frozen=True)
class Problem:
    """One batch; all utterances have full length, so that every element counts.

    Attributes:
      kind: `"logits"`, from which a full loss starts; `"durations"`, with logits of `DURATIONS`
        besides; `"additive"`, an additive joiner's `am` and
        `lm`; `"smoothed"`, the same for its smoothed loss; `"pruned"`, these and encoder and
        predictor output of a joint network; `"arcs"`; `"librispeech"`, whose operands are those of
        `pruned.py`.
    """

    kind: str
    B: int
    T: int
    U: int
    V: int = 0
    D: int = 0

    @property
    def sizes(self) -> dict[str, int]:
        """Those that it has, by name."""
        return {name: n for name, n in asdict(self).items() if name != "kind" and n}

    @property
    def cells(self) -> int:
        return self.B * self.T * (self.U + 1)

    def labels(self) -> np.ndarray:
        rng = np.random.default_rng(1)
        return rng.integers(1, max(self.V, 2), size=(self.B, self.U), dtype=np.int32)

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        return np.full(self.B, self.T, np.int32), np.full(self.B, self.U, np.int32)

    def operands(self) -> dict[str, np.ndarray]:
        """What the loss is differentiated by, float32."""
        rng = np.random.default_rng(0)
        B, T, U1, V, D = self.B, self.T, self.U + 1, self.V, self.D

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, dtype=np.float32)

        if self.kind == "logits":
            return {"logits": normal(B, T, U1, V)}
        if self.kind == "durations":
            return {
                "logits": normal(B, T, U1, V),
                "duration_logits": normal(B, T, U1, len(DURATIONS)),
            }
        if self.kind == "arcs":
            return {
                name: (-0.1 - rng.exponential(size=(B, T, U1))).astype(np.float32)
                for name in ("blank", "label")
            }
        factors = {"am": normal(B, T, V), "lm": normal(B, U1, V)}
        if self.kind in ("additive", "smoothed"):
            return factors
        assert self.kind == "pruned"
        return factors | {
            "encoder": normal(B, T, D),
            "predictor": normal(B, U1, D),
            "kernel": normal(D, V) / np.float32(D**0.5),
            "bias": np.zeros(V, np.float32),
        }
