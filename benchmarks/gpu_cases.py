"""What `gpu.py` measures: ops and losses at shapes of speech, their operands and their bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from problems import DURATIONS

import jax_rnnt
from jax_rnnt._native.row_ops import row_sums
from jax_rnnt.arcs import arcs_bwd, arcs_fwd
from jax_rnnt.bounds import Sizes, Utterances, labels_and_bounds
from jax_rnnt.lattice import (
    banded_lattice,
    banded_lattice_score,
    best_path,
    lattice,
    lattice_score,
    packed_best_path,
    packed_lattice,
    packed_lattice_score,
)
from jax_rnnt.types import ArcsOptions, LatticeOptions

ARCS = ("arcs forward", "arcs backward")
LATTICE = ("lattice", "lattice score", "best path")
PACKED = ("packed lattice", "packed lattice score", "packed best path")
BAND = ("band", "band score")
ROW_SUMS = ("row sums",)  # of a band's cells: the gradient of what `do_rnnt_pruning` takes of `lm`
PLANES = LATTICE + PACKED + BAND  # ops of arcs, which have no classes
LOSS = ("loss", "loss forward")  # with and without the gradient
# The same of the additive joiner, whose T is that of `am`; and in pure JAX.
SIMPLE = ("simple", "simple forward", "simple xla")
TDT = ("tdt", "tdt forward")
LOSSES = LOSS + SIMPLE + TDT
DTYPES = ("float32", "bfloat16")

# (B, T, U+1, V)
ARCS_SHAPES = [
    (16, 150, 41, 28),
    (16, 1500, 301, 50),
    (8, 441, 105, 500),
    (32, 150, 21, 5000),
    (8, 200, 41, 1025),
]
# (B, T, S, 0), and so many labels
BAND_SHAPES, BAND_LABELS = [(30, 441, 5, 0)], 104
ROW_SUMS_SHAPES = [(30, 441, 5, 512)]  # the last one features
LATTICE_SHAPES = [(32, 1500, 301, 0), (16, 150, 41, 0), (30, 441, 105, 0), (1, 1500, 301, 0)]
LOSS_SHAPES = [
    (16, 1500, 301, 50),
    (32, 150, 21, 5000),
    (16, 150, 41, 28),
    (8, 100, 21, 1025),
    (4, 200, 41, 8193),
]
TDT_SHAPES = [(8, 100, 21, 1025), (4, 200, 41, 8193)]
SIMPLE_SHAPES = [(8, 2000, 101, 100), (8, 2000, 101, 1000)]
TINY_SHAPES = [(2, 5, 4, 7)]

Arrays = tuple[jax.Array, ...]

_OF_PLANES: dict[str, Any] = {
    "lattice": lattice,
    "lattice score": lattice_score,
    "best path": best_path,
}
# These take the largest number of labels before their operands.
_WITH_NUM_LABELS: dict[str, Any] = {
    "packed lattice": packed_lattice,
    "packed lattice score": packed_lattice_score,
    "packed best path": packed_best_path,
    "band": banded_lattice,
    "band score": banded_lattice_score,
}


@dataclass(frozen=True)
class Case:
    """One op at one shape. All utterances have full length, so that every element counts."""

    op: str
    # B, T, cells of a frame (U + 1, or those of a band), V, which is 0 where there are no classes;
    # or the features of a row
    shape: tuple[int, int, int, int]
    dtype: str

    def operands(self, seed: int) -> Arrays:
        """The large operands, random, on JAX's default device."""
        return _random_operands(self, seed)

    def labels(self, key: jax.Array) -> jax.Array:
        B, _, W, V = self.shape
        return jax.random.randint(key, (B, W - 1), 1, V, jnp.int32)

    def band_labels(self) -> int:
        """Labels of an utterance whose alignments stay in a band; no more than fit."""
        _, T, S, _ = self.shape
        return min(BAND_LABELS, T + S - 1)

    def small_operands(self) -> Arrays:
        """The other ones: labels, bounds, lengths, cotangents; negligible in bytes."""
        B, T, W, V = self.shape
        if self.op in LOSSES:
            return jnp.full(B, T, jnp.int32), jnp.full(B, W - 1, jnp.int32)
        if self.op in BAND + ROW_SUMS:
            frames = np.arange(T) / max(T - 1, 1)
            starts = np.round(frames * (self.band_labels() + 1 - W)).astype(np.int32)
            if self.op in ROW_SUMS:
                positions = starts[:, None] + np.arange(W, dtype=np.int32)
                return (jnp.asarray(np.tile(positions.ravel(), (B, 1))),)
            bounds = np.tile(np.array([0, T, 0, self.band_labels()], np.int32), (B, 1))
            return jnp.asarray(np.tile(starts, (B, 1))), jnp.asarray(bounds)
        labels = None if self.op in PLANES else self.labels(jax.random.key(0, impl="rbg"))
        labels, bounds = labels_and_bounds(
            jnp.zeros(B),
            Sizes((B,), T, W - 1, V),
            Utterances(labels, None, None, None, None, None),
            blank_id=0,
        )
        if self.op in LATTICE:
            return (bounds,)
        if self.op in PACKED:
            return jnp.arange(0, B * T * W, T * W, dtype=jnp.int32), bounds
        assert labels is not None
        if self.op == "arcs forward":
            return labels, bounds
        return labels, jnp.ones(B, jnp.float32)

    def __call__(self, operands: Arrays, small: Arrays) -> Any:
        """The op itself."""
        if self.op == "arcs forward":
            return arcs_fwd(ArcsOptions(), *operands, *small)
        if self.op == "arcs backward":
            logits, *planes = operands
            labels, cotangents = small
            return arcs_bwd(ArcsOptions(), logits, labels, *planes, cotangents)
        if self.op in LATTICE:
            return _OF_PLANES[self.op](LatticeOptions(), *operands, *small)
        if self.op in PACKED:
            rows = (x.reshape(-1) for x in operands)
            function, labels = _WITH_NUM_LABELS[self.op], self.shape[2] - 1
            return function(LatticeOptions(), labels, *rows, *small)
        if self.op in BAND:
            function = _WITH_NUM_LABELS[self.op]
            return function(LatticeOptions(), self.band_labels(), *operands, *small)
        if self.op in ROW_SUMS:
            return row_sums(*operands, *small, num_sums=self.band_labels() + 1)
        if self.op == "loss forward":
            return jax_rnnt.rnnt_loss(*operands, *small)
        if self.op in SIMPLE:
            return self._simple(*operands, *small)
        if self.op in TDT:
            return self._tdt(*operands, *small)
        logits, labels = operands
        loss = jax.value_and_grad(lambda x: jax_rnnt.rnnt_loss(x, labels, *small).sum())
        return loss(logits)

    def _simple(self, am: jax.Array, lm: jax.Array, *rest: jax.Array) -> Any:
        implementation: Any = "xla" if self.op == "simple xla" else "auto"

        def loss(am: jax.Array, lm: jax.Array) -> jax.Array:
            return jax_rnnt.rnnt_loss_simple(am, lm, *rest, implementation=implementation)

        if self.op == "simple forward":
            return loss(am, lm)
        return jax.value_and_grad(lambda *x: loss(*x).sum(), (0, 1))(am, lm)

    def _tdt(self, logits: jax.Array, duration_logits: jax.Array, *rest: jax.Array) -> Any:
        def loss(*scores: jax.Array) -> jax.Array:
            return jax_rnnt.rnnt_loss_tdt(*scores, *rest, durations=DURATIONS)

        if self.op == "tdt forward":
            return loss(logits, duration_logits)
        return jax.value_and_grad(lambda *x: loss(*x).sum(), (0, 1))(logits, duration_logits)

    def bytes_held(self) -> int:
        """Of the large operands and the results."""
        operands = jax.eval_shape(self.operands, 0)
        results = jax.eval_shape(self, operands, jax.eval_shape(self.small_operands))
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((operands, results)))

    def bytes_moved(self) -> int:
        """What any implementation must read and write: every operand and every result once.

        The loss with its gradient must read the logits twice: the gradient of the first cell
        depends on all of them, and they do not fit on the chip. Likewise `am` of the additive
        joiner.
        """
        B, T, W, V = self.shape
        cells = B * T * W
        twice = {"loss": cells * V, "tdt": cells * V, "simple": B * T * V, "simple xla": B * T * V}
        return self.bytes_held() + twice.get(self.op, 0) * jnp.dtype(self.dtype).itemsize

    def expected_seconds(self, bytes_per_second: float) -> float:
        """A rough guess; the recursion is a chain of T + U steps."""
        B, T, W, V = self.shape
        chain = 0 if self.op in ARCS + ROW_SUMS else (T + W) * 5e-7
        products = 6 * B * T * W * V / 3e13 if self.op in SIMPLE else 0
        return 5e-6 + chain + products + self.bytes_moved() / bytes_per_second

    def fitted(self, most_bytes: int) -> Case:
        """The same with fewer utterances, if need be, so that operands and results fit."""
        case = self
        while case.bytes_held() > most_bytes and case.shape[0] > 1:
            case = replace(case, shape=(case.shape[0] // 2, *case.shape[1:]))
        return case


@partial(jax.jit, static_argnums=0)
def _random_operands(case: Case, seed: jax.Array) -> Arrays:
    B, T, W, V = case.shape
    keys = jax.random.split(jax.random.key(seed, impl="rbg"), 4)  # the fastest to compile and run
    dtype = jnp.dtype(case.dtype)
    if case.op in PLANES:
        blank, label = (-0.1 - jax.random.exponential(k, (B, T, W), dtype) for k in keys[:2])
        return blank, label
    if case.op in SIMPLE:
        shapes = (B, T, V), (B, W, V)
        am, lm = (jax.random.normal(k, x, dtype) for k, x in zip(keys[:2], shapes, strict=True))
        return am, lm, case.labels(keys[2])
    logits = jax.random.normal(keys[0], case.shape, dtype)
    if case.op in ROW_SUMS:
        return (logits.reshape(B, T * W, V),)
    if case.op in LOSS:
        return logits, case.labels(keys[1])
    if case.op in TDT:
        durations = jax.random.normal(keys[2], (B, T, W, len(DURATIONS)), dtype)
        return logits, durations, case.labels(keys[1])
    if case.op == "arcs forward":
        return (logits,)
    blank, label = (jax.random.uniform(k, (B, T, W), jnp.float32) for k in keys[1:3])
    return logits, jnp.full((B, T, W), math.log(V), jnp.float32), blank, label


def all_cases(*, tiny: bool) -> list[Case]:
    """The losses first: they are what a run that is cut short should have measured."""

    def grid(ops: tuple[str, ...], shapes: list[Any], dtypes: tuple[str, ...]) -> list[Case]:
        return [Case(op, shape, dtype) for shape in shapes for dtype in dtypes for op in ops]

    arcs, planes, bands, losses = ARCS_SHAPES, LATTICE_SHAPES, BAND_SHAPES, LOSS_SHAPES
    simple, tdt, rows = SIMPLE_SHAPES, TDT_SHAPES, ROW_SUMS_SHAPES
    if tiny:
        arcs = losses = simple = tdt = rows = TINY_SHAPES
        planes = bands = [(*TINY_SHAPES[0][:3], 0)]
    return [
        *grid(LOSS, losses, DTYPES),
        *grid(SIMPLE, simple, DTYPES),
        *grid(TDT, tdt, DTYPES),
        *grid(ARCS, arcs, DTYPES),
        # arcs are float32 whatever the logits are
        *grid(LATTICE, planes, DTYPES[:1]),
        *grid(PACKED, planes[-2:-1] or planes, DTYPES[:1]),
        *grid(BAND, bands, DTYPES[:1]),
        *grid(ROW_SUMS, rows, DTYPES),
    ]


def random_numpy_labels(case: Case) -> np.ndarray:
    """Labels for other frameworks."""
    B, _, W, V = case.shape
    return np.random.default_rng(0).integers(1, V, size=(B, W - 1), dtype=np.int32)
