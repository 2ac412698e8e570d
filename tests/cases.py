"""Random batches, and the library run on them under one cached `jax.jit` per set of options."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles

import jax_rnnt

Array = Any  # a NumPy or a JAX array
Options = dict[str, Any]

TOPOLOGIES: list[Options] = [
    {"topology": "regular"},
    {"topology": "modified"},
    {"topology": "modified", "final_blank": True},
    {"topology": "constrained"},
]


def name(options: Options) -> str:
    """A readable pytest id."""
    return "-".join("final_blank" if v is True else str(v) for v in options.values())


# Compiling the pure-JAX implementation takes a second, ten times as long as the native one. Where a
# test is about numbers that both get from the same Python code, or that differ only by dtype, the
# pure-JAX implementation is run on a part of the grid.
NATIVE_AND_SOME_XLA = [("native", o) for o in TOPOLOGIES] + [
    ("xla", o) for o in (TOPOLOGIES[0], TOPOLOGIES[2])
]
some_xla = {
    "argnames": ("implementation", "topology"),
    "argvalues": NATIVE_AND_SOME_XLA,
    "ids": [f"{i}-{name(o)}" for i, o in NATIVE_AND_SOME_XLA],
}


def dtypes(implementation: str, *others: Any) -> list[Any]:
    """Float64 for both; `others` for the native kernels, which are compiled for each dtype."""
    return [np.float64, *(others if implementation == "native" else ())]


each_topology = {"argvalues": TOPOLOGIES, "ids": [name(o) for o in TOPOLOGIES]}


class Lengths(NamedTuple):
    """Lengths and begins of a batch; None leaves the argument out."""

    logit_lengths: Array | None = None
    label_lengths: Array | None = None
    logit_begins: Array | None = None
    label_begins: Array | None = None


WHOLE = Lengths()


class Batch(NamedTuple):
    """Arguments of `rnnt_loss`."""

    logits: Array
    labels: Array
    lengths: Lengths = WHOLE
    where: Array | None = None


class ArcsBatch(NamedTuple):
    """Arguments of `rnnt_loss_from_arcs`."""

    blank: Array
    label: Array
    lengths: Lengths = WHOLE
    where: Array | None = None


# ---------------------------------------------------------------------------------- random batches


def random_lengths(
    rng: np.random.Generator, batch: int, frames: int, labels: int, options: Options
) -> Lengths:
    """Bounds that have a path. Utterance 0 is the whole lattice, 1 without frames (loss 0)."""
    one_label_a_frame = options.get("topology", "regular") != "regular"
    rows = []
    for i in range(batch):
        t0 = int(rng.integers(0, frames // 2 + 1))
        u0 = int(rng.integers(0, labels // 2 + 1))
        t1 = int(rng.integers(t0 + 1, frames + 1)) if t0 < frames else t0
        u1 = int(rng.integers(u0, labels + 1))
        if i == 0:
            t0, t1, u0, u1 = 0, frames, 0, labels
        if i == 1:
            t1, u1 = t0, u0
        if one_label_a_frame:
            u1 = min(u1, u0 + max(0, t1 - t0 - options.get("final_blank", False)))
        if t0 == t1:
            u1 = u0
        rows.append((t1, u1, t0, u0))
    return Lengths(*np.array(rows, np.int32).reshape(batch, 4).T)


def random_batch(
    rng: np.random.Generator,
    batch: int,
    frames: int,
    labels: int,
    classes: int,
    *,
    dtype: Any = np.float64,
    scale: float = 1.0,
    **options: Any,
) -> Batch:
    """Normal logits (log-probabilities for "none") and legal labels, random bounds."""
    logits = rng.normal(scale=scale, size=(batch, frames, labels + 1, classes))
    if options.get("normalization") == "none":
        logits = logits - oracles.log_sum_exp(logits)
    blank = options.get("blank_id", 0) % classes
    allowed = np.delete(np.arange(classes), blank)
    ids = rng.choice(allowed, (batch, labels)) if labels else np.zeros((batch, 0), int)
    lengths = random_lengths(rng, batch, frames, labels, options)
    return Batch(logits.astype(dtype), ids.astype(np.int32), lengths)


def random_arcs(
    rng: np.random.Generator,
    batch: int,
    frames: int,
    labels: int,
    *,
    dtype: Any = np.float64,
    scale: float = 1.0,
    **options: Any,
) -> ArcsBatch:
    """Arcs as a softmax over many classes would give: negative, about `scale` apart."""
    blank, label = -scale * rng.exponential(size=(2, batch, frames, labels + 1)) - 0.1
    lengths = random_lengths(rng, batch, frames, labels, options)
    return ArcsBatch(blank.astype(dtype), label.astype(dtype), lengths)


def valid_cells(batch: Batch | ArcsBatch) -> np.ndarray:
    """Boolean (batch, T, U+1): inside the bounds of the utterance (without frames, no cells)."""
    shape = batch[0].shape[:3]
    t, u = np.arange(shape[1])[None, :, None], np.arange(shape[2])[None, None]
    t1, u1, t0, u0 = (np.asarray(x)[:, None, None] for x in batch.lengths)
    return (t0 <= t) & (t < t1) & (u0 <= u) & (u <= u1)


# ------------------------------------------------------------------------------ running the library


def loss_function(implementation: str = "auto", **options: Any) -> Callable[..., jax.Array]:
    """`(logits, labels, lengths, where) -> losses` with everything else fixed."""

    def loss(
        logits: Array, labels: Array, lengths: Lengths = WHOLE, where: Array | None = None
    ) -> jax.Array:
        return jax_rnnt.rnnt_loss(
            logits,
            labels,
            lengths.logit_lengths,
            lengths.label_lengths,
            logit_begins=lengths.logit_begins,
            label_begins=lengths.label_begins,
            where=where,
            implementation=implementation,
            **options,
        )

    return loss


def arcs_function(implementation: str = "auto", **options: Any) -> Callable[..., Any]:
    """`(blank, label, lengths, where) -> losses`, or with posteriors."""

    def loss(
        blank: Array, label: Array, lengths: Lengths = WHOLE, where: Array | None = None
    ) -> Any:
        return jax_rnnt.rnnt_loss_from_arcs(
            blank,
            label,
            lengths.logit_lengths,
            lengths.label_lengths,
            logit_begins=lengths.logit_begins,
            label_begins=lengths.label_begins,
            where=where,
            implementation=implementation,
            **options,
        )

    return loss


@functools.cache
def _compiled(implementation: str, items: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    function = loss_function(implementation, **dict(items))

    def run(batch: Batch, cotangent: Array | None) -> tuple[jax.Array, jax.Array]:
        loss, vjp = jax.vjp(lambda x: function(x, *batch[1:]), batch.logits)
        return loss, vjp(jnp.ones_like(loss) if cotangent is None else cotangent)[0]

    return jax.jit(run)


@functools.cache
def _compiled_arcs(implementation: str, items: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    function = arcs_function(implementation, return_posteriors=True, **dict(items))

    def run(batch: ArcsBatch, cotangent: Array | None) -> Any:
        def loss(blank: Array, label: Array) -> Any:
            return function(blank, label, *batch[2:])

        value, vjp, posteriors = jax.vjp(loss, batch.blank, batch.label, has_aux=True)
        return value, vjp(jnp.ones_like(value) if cotangent is None else cotangent), posteriors

    return jax.jit(run)


def run(
    batch: Batch, implementation: str, cotangent: Array | None = None, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Jitted loss and its gradient by the logits."""
    return jax.device_get(_compiled(implementation, tuple(options.items()))(batch, cotangent))


def run_arcs(
    batch: ArcsBatch, implementation: str, cotangent: Array | None = None, **options: Any
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], oracles.Posteriors]:
    """Jitted loss from arcs, its gradients by blank and label arcs, and the posteriors."""
    return jax.device_get(_compiled_arcs(implementation, tuple(options.items()))(batch, cotangent))


# --------------------------------------------------------------------------------------- comparing


def expected(batch: Batch, **options: Any) -> oracles.LogitsResult:
    """The dynamic programme in float64 on the batch."""
    lengths = batch.lengths
    return oracles.logits_loss(
        np.asarray(batch.logits),
        batch.labels,
        *lengths[:2],
        logit_begins=lengths.logit_begins,
        label_begins=lengths.label_begins,
        **options,
    )


def expected_arcs(batch: ArcsBatch, **options: Any) -> oracles.ArcsResult:
    """The dynamic programme in float64 on the arcs."""
    lengths = batch.lengths
    return oracles.arcs_loss(
        np.asarray(batch.blank),
        np.asarray(batch.label),
        *lengths[:2],
        logit_begins=lengths.logit_begins,
        label_begins=lengths.label_begins,
        **options,
    )


def assert_loss_close(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    """Relative to the loss; absolute below 1, where the sum that gives it cancels."""
    assert found.shape == wanted.shape
    error = np.abs(found.astype(np.float64) - wanted) / np.maximum(np.abs(wanted), 1)
    assert np.isfinite(wanted).all()
    assert (error <= tolerance).all(), f"loss off by {np.max(error):.2e}, allowed {tolerance:.0e}"


def assert_grad_close(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    """L2-relative for every utterance (first axis) by itself; exact zero where all is zero."""
    assert found.shape == wanted.shape
    difference = (found.astype(np.float64) - wanted).reshape(len(wanted), -1)
    error = np.linalg.norm(difference, axis=-1)
    size = np.linalg.norm(wanted.reshape(len(wanted), -1), axis=-1)
    assert (error <= tolerance * size).all(), (
        f"gradient off by {np.max(error / np.maximum(size, 1e-300)):.2e}, allowed {tolerance:.0e}"
    )
