"""Float64 oracles of best alignments with durations, sharing nothing with the library: the best of
all paths of a tiny lattice, and the dynamic programme over nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import oracles_multi_blank
import oracles_tdt
from oracles import Bounds

Array = np.ndarray


class Arc(NamedTuple):
    """What can be done at a node."""

    is_label: bool
    to: tuple[int, int]
    score: float


Arcs = Callable[[int, int], Iterator[Arc]]
"""Those that leave a node (t, u)."""


class Best(NamedTuple):
    """The score, and frame and duration of each label (U,); -1 where there is none."""

    score: float
    frames: Array
    durations: Array


def tdt_arcs(
    blank: Array, label: Array, duration: Array, w: Bounds, durations: Sequence[int]
) -> Arcs:
    """Durations are (D, T, U+1)."""

    def leaving(t: int, u: int) -> Iterator[Arc]:
        for kind, i, *to in oracles_tdt.moves_from(t, u, w, durations):
            arcs = blank if kind == "blank" else label
            yield Arc(kind == "label", (to[0], to[1]), arcs[t, u] + duration[i, t, u])

    return leaving


def multi_blank_arcs(of: oracles_multi_blank.Lattice) -> Arcs:
    def leaving(t: int, u: int) -> Iterator[Arc]:
        for move, score in of.moves(t, u):
            yield Arc(move.is_label, move.to, score)

    return leaving


def by_enumeration(arcs: Arcs, w: Bounds, num_labels: int) -> Best:
    """Exponential."""
    best = Best(-np.inf, *np.full((2, num_labels), -1))

    def walk(t: int, u: int, score: float, labels: list[tuple[int, int]]) -> None:
        nonlocal best
        if t == w.t1:
            if score > best.score:
                found = np.full((2, num_labels), -1)
                found[:, w.u0 : w.u1] = np.array(labels).reshape(-1, 2).T
                best = Best(score, *found)
            return
        for arc in arcs(t, u):
            emitted = [(t, arc.to[0] - t)] if arc.is_label else []
            walk(*arc.to, score + arc.score, [*labels, *emitted])

    if w.t0 == w.t1:
        return best._replace(score=0.0 if w.u0 == w.u1 else -np.inf)
    walk(w.t0, w.u0, 0.0, [])
    return best


def by_recursion(arcs: Arcs, w: Bounds, num_labels: int) -> Best:
    """Node by node, and back."""
    frames, durations = np.full((2, num_labels), -1)
    if w.t0 == w.t1:
        return Best(0.0 if w.u0 == w.u1 else -np.inf, frames, durations)
    best = np.full((w.t1 + 1, w.u1 + 1), -np.inf)
    best[w.t0, w.u0] = 0.0
    before: dict[tuple[int, int], tuple[int, int]] = {}
    for t in range(w.t0, w.t1):
        for u in range(w.u0, w.u1 + 1):
            for arc in arcs(t, u):
                if best[t, u] + arc.score > best[arc.to]:
                    best[arc.to], before[arc.to] = best[t, u] + arc.score, (t, u)
    node, score = (w.t1, w.u1), float(best[w.t1, w.u1])
    while node in before and score > -np.inf:
        t, u = before[node]
        if u < node[1]:
            frames[u], durations[u] = t, node[0] - t
        node = t, u
    return Best(score, frames, durations)
