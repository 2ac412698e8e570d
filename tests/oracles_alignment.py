"""Float64 oracles of best alignments, sharing nothing with the library.

`by_enumeration` takes the best of all paths of a tiny lattice or band, `by_recursion` is the plain
dynamic programme over cells. `starts` are the first label positions of a band's frames; None is a
whole lattice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import oracles
import oracles_pruned
from oracles import Array, Bounds

FORBIDDEN = -1e7


class Best(NamedTuple):
    """Score of the best path, and the frame of each label (U,); -1 where there is none."""

    score: float
    frames: Array


def paths(
    starts: Array | None, size: int, w: Bounds, topology: str, final_blank: bool
) -> Iterator[list[tuple[str, int, int]]]:
    """All complete paths, as in `oracles`."""
    if starts is None:
        return oracles.paths(w, topology, final_blank)
    return oracles_pruned.paths(starts, size, w, topology)


def by_enumeration(
    blank: Array,
    label: Array,
    w: Bounds,
    num_labels: int,
    topology: str = "regular",
    final_blank: bool = False,
    starts: Array | None = None,
) -> Best:
    """The best of all paths; of several, that whose labels are all as early as in any of them."""
    best, emissions = -np.inf, []
    is_bad = False
    for path in paths(starts, blank.shape[1], w, topology, final_blank):
        score, frames = 0.0, np.full(num_labels, -1)
        for kind, t, u in path:
            s = u - (0 if starts is None else starts[t])
            arc = blank[t, s] if kind == "blank" else label[t, s]
            if kind == "label":
                frames[u] = t
                arc = arc + (blank[t, s + 1] if topology == "constrained" else 0.0)
            is_bad |= not arc <= 1e6
            score += arc if arc >= FORBIDDEN else -np.inf
        if score > best:
            best, emissions = score, []
        if score == best:
            emissions.append(frames)
    if is_bad or best == -np.inf:
        return Best(np.nan if is_bad else best, np.full(num_labels, -1))
    earliest = np.min(emissions, axis=0)
    assert any((frames == earliest).all() for frames in emissions)
    return Best(best, earliest)


def by_recursion(
    blank: Array, label: Array, w: Bounds, topology: str = "regular", final_blank: bool = False
) -> Best:
    """The score alone matters where paths are equally good; any of their frames."""
    regular = topology == "regular"
    best = np.full((w.t1 + 1, w.u1 + 1), -np.inf)
    emits = np.zeros(best.shape, bool)
    best[w.t0, w.u0] = 0.0
    for t in range(w.t0, w.t1 + 1):
        for u in range(w.u0, w.u1 + 1):
            stay = best[t - 1, u] + blank[t - 1, u] if t > w.t0 else -np.inf
            row = t if regular else t - 1
            emit = -np.inf
            if u > w.u0 and w.t0 <= row < w.t1 - final_blank:
                follow = blank[row, u] if topology == "constrained" else 0.0
                emit = best[row, u - 1] + label[row, u - 1] + follow
            best[t, u] = max(best[t, u], stay, emit)
            emits[t, u] = emit > stay
    frames, t, u = np.full(blank.shape[1] - 1, -1), w.t1, w.u1
    while best[w.t1, w.u1] > -np.inf and t >= w.t0 and u > w.u0:
        if emits[t, u]:
            u, t = u - 1, t - (not regular)
            frames[u] = t
        else:
            t -= 1
    return Best(float(best[w.t1, w.u1]), frames)
