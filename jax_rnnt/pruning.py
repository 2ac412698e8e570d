"""The inputs of a joint network for the cells that a pruned loss keeps."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from . import row_sums_reference, validation_pruning
from ._native import row_ops
from ._native.jax_versions import has_whole_rows, with_batch_sharding_of
from .bounds import clip_to_int32
from .types import Array, Implementation


def do_rnnt_pruning(am: Array, lm: Array, ranges: Array) -> tuple[jax.Array, jax.Array]:
    """The encoder's and the predictor's output for the cells of a band, to be joined.

    Args:
      am: `(*batch, T, C1)`, of the encoder.
      lm: `(*batch, U+1, C2)`, of the predictor.
      ranges: `(*batch, T, S)` integers in [0, U], from `get_rnnt_prune_ranges`. Values beyond are
        taken for the nearest.

    Returns:
      `(*batch, T, S, C1)`, which is `am` broadcast, and `(*batch, T, S, C2)`, of which `[t, s]` is
      `lm[ranges[t, s]]`. The gradient of `lm` is summed over all cells of the same label position
      in their order, in float32 (float64) and rounded once.

    Raises:
      TypeError, ValueError: an argument has the wrong dtype or shape.
    """
    return band_rows("auto", *validation_pruning.pruned_operands(am, lm, ranges))


def band_rows(
    implementation: Implementation, am: jax.Array, lm: jax.Array, ranges: Array
) -> tuple[jax.Array, jax.Array]:
    """`do_rnnt_pruning` of what has been checked."""
    *batch, T, S = ranges.shape
    am_pruned = jnp.broadcast_to(am[..., None, :], (*batch, T, S, am.shape[-1]))
    rows = with_batch_sharding_of(lm, len(batch), clip_to_int32(ranges))
    rows = jnp.clip(rows, 0, lm.shape[-2] - 1).reshape(*batch, T * S)
    native = implementation != "xla" and has_whole_rows(lm)
    lm_pruned = (row_ops if native else row_sums_reference).take_rows(lm, rows)
    return am_pruned, lm_pruned.reshape(*batch, T, S, lm.shape[-1])
