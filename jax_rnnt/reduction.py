"""From log-likelihoods to what a loss returns."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .types import Array, Reduction


def negative(log_likelihood: jax.Array) -> jax.Array:
    """The loss; 0 for certainty, where a negation gives -0."""
    return 0 - log_likelihood


def reduce_losses(loss: jax.Array, reduction: Reduction, where: Array | None) -> jax.Array:
    """Utterances that `where` leaves out have loss 0 already."""
    if reduction == "none":
        return loss
    total = jnp.sum(loss)
    if reduction == "sum":
        return total
    kept = loss.size if where is None else jnp.sum(where)
    return total / jnp.maximum(kept, 1).astype(loss.dtype)
