"""fast_rnnt's and k2's `get_rnnt_logprobs*`: scores to `(px, py)`, differentiable.

`termination_symbol`, `symbols` `(B, S)`, `rnnt_type` and `boundary` are those of `fast_rnnt`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .. import validation, validation_factored, validation_pruning
from ..arcs import arcs_bwd, arcs_fwd
from ..bounds import Sizes, clip_to_int32
from ..factored_arcs import factored_arcs_bwd, factored_arcs_fwd
from ..label_windows import labels_at
from ..smoothed_arcs import smoothed_arcs_bwd, smoothed_arcs_fwd
from ..types import ArcsOptions, Array, Normalization, Smoothing, Topology
from ._px_py import Arcs, PxPy, all_arcs, columns, one_batch_dimension, px_py


def get_rnnt_logprobs(
    lm: Array,
    am: Array,
    symbols: Array,
    termination_symbol: int,
    rnnt_type: Topology = "regular",
    boundary: Array | None = None,
) -> PxPy:
    """`(px, py)` of the additive joiner's logits `am[t] + lm[s]`.

    Args:
      lm: `(B, S+1, C)`, unnormalised.
      am: `(B, T, C)`, unnormalised.
    """

    def arcs(options: ArcsOptions) -> Arcs:
        def backward(am: Any, lm: Any, labels: Any, bounds: Any, *rest: Any) -> Any:
            del bounds
            return factored_arcs_bwd(options, am, lm, labels, *rest)

        return Arcs(partial(factored_arcs_fwd, options), backward)

    return _factored_px_py(arcs, lm, am, symbols, termination_symbol, rnnt_type, boundary)


def get_rnnt_logprobs_smoothed(
    lm: Array,
    am: Array,
    symbols: Array,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Array | None = None,
    rnnt_type: Topology = "regular",
) -> PxPy:
    """`get_rnnt_logprobs`, smoothed by each of the additive joiner's halves."""
    smoothing = k2_smoothing(lm_only_scale, am_only_scale)

    def arcs(options: ArcsOptions) -> Arcs:
        def backward(am: Any, lm: Any, *rest: Any) -> Any:
            kept = jnp.ones_like(rest[-1], jnp.bool_)
            return smoothed_arcs_bwd(options, smoothing, am, lm, *rest, finite=kept)

        return Arcs(partial(smoothed_arcs_fwd, options, smoothing), backward)

    return _factored_px_py(arcs, lm, am, symbols, termination_symbol, rnnt_type, boundary)


def _factored_px_py(
    arcs: Callable[[ArcsOptions], Arcs],
    lm: Any,
    am: Any,
    symbols: Any,
    termination_symbol: Any,
    rnnt_type: Any,
    boundary: Any,
) -> PxPy:
    am, lm, sizes = validation_factored.factored_scores(am, lm)
    one_batch_dimension("am", am.shape, "(B, T, C)")
    return _px_py_of(arcs, (am, lm), sizes, symbols, termination_symbol, rnnt_type, boundary)


def get_rnnt_logprobs_joint(
    logits: Array,
    symbols: Array,
    termination_symbol: int,
    boundary: Array | None = None,
    rnnt_type: Topology = "regular",
) -> PxPy:
    """`(px, py)` of logits `(B, T, S+1, C)`."""
    logits = validation.float_scores("logits", logits)
    one_batch_dimension("logits", logits.shape, "(B, T, S+1, C)")
    sizes = validation.sizes_of("logits", logits.shape, 3)
    return _px_py_of(
        _dense_arcs, (logits,), sizes, symbols, termination_symbol, rnnt_type, boundary
    )


def get_rnnt_logprobs_pruned(
    logits: Array,
    symbols: Array,
    ranges: Array,
    termination_symbol: int,
    boundary: Array | None = None,
    rnnt_type: Topology = "regular",
) -> PxPy:
    """`(px, py)` of logits `(B, T, s_range, C)`, -inf for what `ranges` leaves out."""
    return _pruned_px_py(logits, symbols, ranges, termination_symbol, boundary, rnnt_type)


def get_hat_logprobs_pruned(
    logits: Array,
    symbols: Array,
    ranges: Array,
    termination_symbol: int,
    boundary: Array | None = None,
    rnnt_type: Topology = "regular",
) -> PxPy:
    """`get_rnnt_logprobs_pruned` for the hybrid autoregressive transducer (arXiv 2003.07705)."""
    return _pruned_px_py(logits, symbols, ranges, termination_symbol, boundary, rnnt_type, "hat")


def _pruned_px_py(
    logits: Any,
    symbols: Any,
    ranges: Any,
    termination_symbol: Any,
    boundary: Any,
    rnnt_type: Any,
    normalization: Normalization = "softmax",
) -> PxPy:
    logits = validation.float_scores("logits", logits)
    one_batch_dimension("logits", logits.shape, "(B, T, s_range, C)")
    sizes, ranges = validation_pruning.band_sizes(logits.shape, symbols, ranges)
    (B, T, S), W = ranges.shape, sizes.U + 1
    symbols = validation.integer_argument(
        "symbols", validation.as_array("symbols", symbols), (B, sizes.U), "(B, S)"
    )
    given = jnp.asarray(clip_to_int32(ranges[..., :1]))
    starts = jnp.clip(given, 0, W - S)
    cells = jnp.arange(S, dtype=jnp.int32)[None, None]
    band_symbols = labels_at(jnp.asarray(clip_to_int32(symbols)), starts + cells)
    # Each frame's band is a lattice of one frame.
    options = _arcs_options(termination_symbol, sizes.V, normalization)
    frames = Sizes((B, T), 1, S - 1, sizes.V)
    planes = all_arcs(_dense_arcs(options), (logits[:, :, None],), frames, band_symbols)
    cell = jnp.arange(W, dtype=jnp.int32)[None, None] - starts
    kept, cell = (cell >= 0) & (cell < S), jnp.clip(cell, 0, S - 1)
    blank, label = (
        jnp.where(kept, jnp.take_along_axis(x[:, :, 0], cell, axis=2), -jnp.inf) for x in planes
    )
    blank, label = (jnp.where(given == starts, x, jnp.nan) for x in (blank, label))
    return px_py(blank, label, _rnnt_type(rnnt_type), columns(boundary, B).t_end)


def _px_py_of(
    arcs: Callable[[ArcsOptions], Arcs],
    scores: tuple[jax.Array, ...],
    sizes: Sizes,
    symbols: Any,
    termination_symbol: Any,
    rnnt_type: Any,
    boundary: Any,
) -> PxPy:
    checked = validation.integer_argument("symbols", symbols, (*sizes.batch, sizes.U), "(B, S)")
    options = _arcs_options(termination_symbol, sizes.V, "softmax")
    planes = all_arcs(arcs(options), scores, sizes, checked)
    return px_py(*planes, _rnnt_type(rnnt_type), columns(boundary, sizes.batch[0]).t_end)


def _dense_arcs(options: ArcsOptions) -> Arcs:
    def backward(logits: Any, labels: Any, bounds: Any, *rest: Any) -> Any:
        del bounds
        return (arcs_bwd(options, logits, labels, *rest),)

    return Arcs(partial(arcs_fwd, options), backward)


def _arcs_options(termination_symbol: Any, classes: Any, normalization: Any) -> ArcsOptions:
    return validation.checked_arcs_options(classes, ArcsOptions(termination_symbol, normalization))


def _rnnt_type(rnnt_type: Any) -> Topology:
    return validation.one_of("rnnt_type", rnnt_type, Topology)


def k2_smoothing(lm_only_scale: Any, am_only_scale: Any) -> Smoothing:
    """Checked scales, with the unigram averaged over padding, too."""
    shares = validation_factored.smoothing(lm_only_scale, am_only_scale, "softmax")
    return replace(shares, average_padding=True)
