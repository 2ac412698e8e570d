"""Arcs to log-likelihood, posteriors and best path, by the implementation that the caller chose."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from . import (
    banded_reference,
    best_duration_path_reference,
    best_path_reference,
    duration_reference,
    lattice_reference,
    packed_best_path_reference,
    packed_lattice_reference,
)
from ._native import duration_ops, ops
from .implementation import chosen
from .types import Alignment, DurationAlignment, Implementation, LatticeOptions, Posteriors


def _params(options: LatticeOptions) -> dict[str, Any]:
    return {
        "topology": options.topology,
        "final_blank": options.final_blank,
        "delay_penalty": options.delay_penalty,
    }


def lattice(
    options: LatticeOptions, blank: jax.Array, label: jax.Array, bounds: jax.Array
) -> tuple[jax.Array, Posteriors]:
    """Log-likelihoods `(*batch,)` and unit posteriors, see `lattice_reference.lattice`."""
    op = chosen(options.implementation, lattice_reference.lattice, ops.lattice)
    log_likelihood, *posteriors = op(blank, label, bounds, **_params(options))
    return log_likelihood, Posteriors(*posteriors)


def lattice_score(
    options: LatticeOptions, blank: jax.Array, label: jax.Array, bounds: jax.Array
) -> jax.Array:
    """Log-likelihoods alone, `(*batch,)`."""
    op = chosen(options.implementation, lattice_reference.lattice_score, ops.lattice_score)
    return op(blank, label, bounds, **_params(options))


def packed_lattice(
    options: LatticeOptions,
    num_labels: int,
    blank: jax.Array,
    label: jax.Array,
    offsets: jax.Array,
    bounds: jax.Array,
) -> tuple[jax.Array, Posteriors]:
    """Log-likelihoods `(*batch, B)` and unit posteriors of packed rows.

    See `packed_lattice_reference.packed_lattice`. No utterance has more than `num_labels` labels.
    """
    op = chosen(options.implementation, packed_lattice_reference.packed_lattice, ops.packed_lattice)
    params = {**_params(options), "num_labels": num_labels}
    log_likelihood, *posteriors = op(blank, label, offsets, bounds, **params)
    return log_likelihood, Posteriors(*posteriors)


def packed_lattice_score(
    options: LatticeOptions,
    num_labels: int,
    blank: jax.Array,
    label: jax.Array,
    offsets: jax.Array,
    bounds: jax.Array,
) -> jax.Array:
    """Log-likelihoods of packed rows alone, `(*batch, B)`."""
    op = chosen(
        options.implementation,
        packed_lattice_reference.packed_lattice_score,
        ops.packed_lattice_score,
    )
    params = {**_params(options), "num_labels": num_labels}
    return op(blank, label, offsets, bounds, **params)


def duration_lattice(
    implementation: Implementation, *operands: jax.Array, **params: Any
) -> tuple[jax.Array, Posteriors, jax.Array]:
    """Log-likelihoods `(*batch,)`, and posteriors of the arcs and of the durations.

    See `duration_reference.duration_lattice`.
    """
    op = chosen(implementation, duration_reference.duration_lattice, duration_ops.duration_lattice)
    log_likelihood, blank, label, duration = op(*operands, **params)
    return log_likelihood, Posteriors(blank, label), duration


def duration_lattice_score(
    implementation: Implementation, *operands: jax.Array, **params: Any
) -> jax.Array:
    """Log-likelihoods of arcs with durations alone, `(*batch,)`."""
    op = chosen(
        implementation,
        duration_reference.duration_lattice_score,
        duration_ops.duration_lattice_score,
    )
    return op(*operands, **params)


def best_duration_path(
    implementation: Implementation, *operands: jax.Array, **params: Any
) -> DurationAlignment:
    """The best path through arcs with durations."""
    op = chosen(
        implementation,
        best_duration_path_reference.best_duration_path,
        duration_ops.best_duration_path,
    )
    return DurationAlignment(*op(*operands, **params))


def banded_lattice(
    options: LatticeOptions,
    num_labels: int,
    blank: jax.Array,
    label: jax.Array,
    starts: jax.Array,
    bounds: jax.Array,
) -> tuple[jax.Array, Posteriors]:
    """Log-likelihoods `(*batch,)` and unit posteriors of a band.

    See `banded_reference.banded_lattice`. `num_labels` is U: on a GPU, the workspace grows with it.
    """
    native = partial(ops.banded_lattice, num_labels=num_labels)
    op = chosen(options.implementation, banded_reference.banded_lattice, native)
    params = {"topology": options.topology, "delay_penalty": options.delay_penalty}
    log_likelihood, *posteriors = op(blank, label, starts, bounds, **params)
    return log_likelihood, Posteriors(*posteriors)


def banded_lattice_score(
    options: LatticeOptions,
    num_labels: int,
    blank: jax.Array,
    label: jax.Array,
    starts: jax.Array,
    bounds: jax.Array,
) -> jax.Array:
    """Log-likelihoods of a band alone, `(*batch,)`."""
    native = partial(ops.banded_lattice_score, num_labels=num_labels)
    op = chosen(options.implementation, banded_reference.banded_lattice_score, native)
    params = {"topology": options.topology, "delay_penalty": options.delay_penalty}
    return op(blank, label, starts, bounds, **params)


def best_path(
    options: LatticeOptions, blank: jax.Array, label: jax.Array, bounds: jax.Array
) -> Alignment:
    """The best path through whole planes of arcs, `(*batch, T, U+1)`."""
    starts = jnp.zeros_like(blank[..., 0], dtype=jnp.int32)
    return banded_best_path(options, blank.shape[-1] - 1, blank, label, starts, bounds)


def banded_best_path(
    options: LatticeOptions,
    num_labels: int,
    blank: jax.Array,
    label: jax.Array,
    starts: jax.Array,
    bounds: jax.Array,
) -> Alignment:
    """The best path through a band, see `best_path_reference.best_path`. `num_labels` is U."""
    op = chosen(options.implementation, best_path_reference.best_path, ops.best_path)
    params = {**_params(options), "num_labels": num_labels}
    return Alignment(*op(blank, label, starts, bounds, **params))


def packed_best_path(
    options: LatticeOptions,
    num_labels: int,
    blank: jax.Array,
    label: jax.Array,
    offsets: jax.Array,
    bounds: jax.Array,
) -> Alignment:
    """The best paths of packed rows, see `packed_best_path_reference.packed_best_path`."""
    op = chosen(
        options.implementation, packed_best_path_reference.packed_best_path, ops.packed_best_path
    )
    params = {**_params(options), "num_labels": num_labels}
    return Alignment(*op(blank, label, offsets, bounds, **params))


def gradient_weights(options: LatticeOptions, posteriors: Posteriors) -> Posteriors:
    """Posteriors as the gradient uses them: FastEmit strengthens the label arcs (arXiv 2010.11148).

    The label arcs' posteriors are multiplied by `1 + fastemit_lambda`. A constrained label arc
    contains the blank arc at its right, whose share in the posterior grows with it.
    """
    extra = options.fastemit_lambda
    if extra == 0:
        return posteriors
    blank, label = posteriors
    if options.topology == "constrained":
        shifted = jnp.pad(label[..., :-1], [(0, 0)] * (label.ndim - 1) + [(1, 0)])
        blank = blank + extra * shifted
    return Posteriors(blank, (1 + extra) * label)
