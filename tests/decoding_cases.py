"""A small transducer to decode."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_rnnt import Decoded, greedy_decode

B, T, D, V = 8, 6, 4, 5


class Model:
    """A recurrent predictor and an additive joint network."""

    def __init__(self, seed: int, blank_bias: float = 1.0, blank_id: int = 0):
        rng = np.random.default_rng(seed)
        self.embedding, self.out = rng.normal(size=(V, D)), 2 * rng.normal(size=(D, V))
        self.recurrent = rng.normal(size=(D, D))
        self.bias = blank_bias * np.eye(V)[blank_id]
        self.encoded = rng.normal(size=(B, T, D))

    def predictor_step(self, state: Any, labels: Any) -> Any:
        # Not `one_hot`, which JAX 0.7 does not map on explicit axes.
        classes = jax.lax.broadcasted_iota(labels.dtype, (*[1] * labels.ndim, V), labels.ndim)
        one_hot = (labels[..., None] == classes).astype(self.embedding.dtype)
        embedded = one_hot @ self.embedding
        hidden = jnp.tanh(state["hidden"] @ self.recurrent + embedded)
        return hidden, {"hidden": hidden, "count": state["count"] + 1}

    def joint(self, encoder: Any, predictor: Any) -> Any:
        scores = jnp.tanh(encoder + predictor) @ self.out
        return scores + self.bias.reshape([1] * (scores.ndim - 1) + [V])

    def state(self, *batch: int) -> Any:
        return {"hidden": jnp.zeros((*batch, D)), "count": jnp.zeros(batch, jnp.int32)}

    def decode(self, encoded: Any = None, lengths: Any = None, **options: Any) -> Decoded:
        encoded = self.encoded if encoded is None else encoded
        batch = encoded.shape[:-2]
        return greedy_decode(
            self.predictor_step,
            self.joint,
            encoded,
            lengths,
            initial_state=self.state(*batch),
            **options,
        )
