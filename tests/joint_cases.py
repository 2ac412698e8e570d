"""A joint network, and batches for the losses that run it in tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from cases import Array, Batch, random_batch

import jax_rnnt

B, T, U, V, D = 5, 19, 11, 6, 3
"""Lattices of several boxes, the last ones not full."""


DURATIONS = (0, 1, 3)
BIG_BLANKS = {"big_blank_ids": (V + 1, V), "big_blank_durations": (4, 2)}
MORE = 3
"""Scores beside those of the V classes: of durations, or of big blanks, of which two are used."""


class Problem(NamedTuple):
    """What the losses are differentiated by, and the rest."""

    variables: Any
    encoder: Array
    predictor: Array
    batch: Batch  # its logits are not used


def joint(params: Any, encoder: jax.Array, predictor: jax.Array) -> jax.Array:
    """A tanh joiner whose parameters have an integer leaf, too."""
    hidden = jnp.tanh(encoder @ params["encoder"] + predictor)
    hidden = jnp.roll(hidden, params["roll"], axis=-1)
    bias = params["bias"].reshape([1] * (hidden.ndim - 1) + [-1])
    return hidden @ params["out"] + bias


def constants() -> dict[str, jax.Array]:
    """The parameters without gradient."""
    return {"roll": jnp.int32(1)}


def random_problem(
    seed: int, *, dtype: Any = np.float64, size: tuple[int, int, int] = (B, T, U), **options: Any
) -> Problem:
    rng = np.random.default_rng(seed)
    batch, frames, labels = size

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), dtype)

    variables = {"encoder": normal(D + 1, D), "out": normal(D, V), "bias": normal(V)}
    rest = random_batch(rng, batch, frames, labels, V, **options)
    return Problem(variables, normal(batch, frames, D + 1), normal(batch, labels + 1, D), rest)


def duration_problem(seed: int, **options: Any) -> Problem:
    """With more scores for each cell than `random_problem`'s network has."""
    problem = random_problem(seed, **options)
    rng = np.random.default_rng(seed)
    dtype = problem.encoder.dtype
    out = jnp.asarray(rng.normal(size=(D, V + MORE)), dtype)
    bias = jnp.asarray(rng.normal(size=V + MORE), dtype)
    return problem._replace(variables={**problem.variables, "out": out, "bias": bias})


def rest_of(batch: Batch) -> dict[str, Array]:
    """Labels and all that describes the utterances."""
    given = {"labels": batch.labels, **batch.lengths._asdict(), "where": batch.where}
    return {name: jnp.asarray(x) for name, x in given.items() if x is not None}


def all_scores(variables: Any, encoder: jax.Array, predictor: jax.Array) -> jax.Array:
    """Of a tanh joiner with V + MORE outputs."""
    return joint({**variables, **constants()}, encoder, predictor)


def pair_of_scores(variables: Any, encoder: jax.Array, predictor: jax.Array) -> Any:
    scores = all_scores(variables, encoder, predictor)
    return scores[..., :V], scores[..., V:]


def of_all_pairs(function: Any, variables: Any, encoder: jax.Array, predictor: jax.Array) -> Any:
    """`function` of rows for each pair of a frame and a label position."""
    cells = (*encoder.shape[:-1], predictor.shape[-2])
    frames = jnp.broadcast_to(encoder[..., None, :], (*cells, encoder.shape[-1]))
    positions = predictor[..., None, :, :]
    positions = jnp.broadcast_to(positions, (*cells, predictor.shape[-1]))
    return function(variables, frames, positions)


def tiled(**options: Any) -> Callable[..., jax.Array]:
    """The loss under test, of (variables, encoder, predictor, rest)."""

    def loss(variables: Any, encoder: Array, predictor: Array, rest: dict[str, Array]) -> jax.Array:
        params = {**variables, **constants()}
        return jax_rnnt.rnnt_loss_joint(joint, params, encoder, predictor, **rest, **options)

    return loss


def dense(**options: Any) -> Callable[..., jax.Array]:
    """The same from stored logits."""

    def loss(variables: Any, encoder: Array, predictor: Array, rest: dict[str, Array]) -> jax.Array:
        params = {**variables, **constants()}
        logits = of_all_pairs(joint, params, encoder, predictor)
        return jax_rnnt.rnnt_loss(logits, **rest, **options)

    return loss


def pulled_back(
    loss: Callable[..., jax.Array], problem: Problem, cotangent: Array | None = None
) -> Any:
    """Losses, and gradients by the variables, the encoder and the predictor."""
    rest = rest_of(problem.batch)
    value, vjp = jax.vjp(jax.jit(lambda *scores: loss(*scores, rest)), *problem[:3])
    return value, vjp(jnp.ones_like(value) if cotangent is None else cotangent)


def assert_close(found: Any, wanted: Any, tolerance: float = 1e-10) -> None:
    """Relative to each array's largest element."""

    def close(x: Array, y: Array) -> None:
        scale = max(1.0, float(np.max(np.abs(y), initial=0.0, where=np.isfinite(y))))
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * scale)

    jax.tree.map(close, found, wanted)
