"""Float64 oracles of the pruned loss and of the prune ranges, sharing nothing with the library.

The loss: all paths of a tiny band are walked (`steps_by_enumeration`), or the arcs of the band are
put into a whole lattice whose other arcs are -inf (`by_embedding`). The ranges: for loops after
arXiv 2206.13236, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import oracles
from oracles import Array, Bounds, LogitsResult, Steps

# ------------------------------------------------------------------------------------------ ranges


def prune_starts(
    blank: Array,
    label: Array,
    w: Bounds,
    s_range: int,
    topology: str = "regular",
    by_arcs: bool = False,
) -> list[int]:
    """First label position of each frame, for posteriors (T, U+1) of one utterance.

    `by_arcs` counts all arcs that leave the cells of a range, as k2 did before its paper.
    """
    frames, width = blank.shape
    size = min(s_range, width)
    lowest = min(w.u0, width - size)
    starts = []
    for t in range(frames):
        if t >= w.t1 - 1:
            starts.append(max(w.u1 - size + 1, lowest))
            continue
        best, best_score = lowest, None
        for s in range(lowest, width - size + 1):
            score = sum(blank[t, s + i] for i in range(size))
            if by_arcs:
                score += sum(label[t, s + i] for i in range(size))
            elif s > 0:
                score -= label[t, s - 1]
            if best_score is None or score > best_score:
                best, best_score = s, score
        starts.append(best)
    step = size - 1 if topology == "regular" else 1
    for t in reversed(range(frames - 1)):  # never down
        starts[t] = min(starts[t], starts[t + 1])
    for t in reversed(range(frames - 1)):  # never up by more than a step
        starts[t] = max(starts[t], starts[t + 1] - step)
    for t in range(frames):  # from the first label on
        reach = lowest + step * (t - w.t0)
        starts[t] = lowest if t < w.t0 else min(starts[t], reach)
    return starts


# -------------------------------------------------------------------------------------- recursions


def paths(starts: Array, size: int, w: Bounds, topology: str) -> Iterator[list]:
    """Every complete path of the band as a list of steps ("blank" | "label", t, u)."""

    def kept(t: int, u: int) -> bool:
        return starts[t] <= u < starts[t] + size

    def walk(t: int, u: int, so_far: list) -> Iterator[list]:
        if t == w.t1:
            if u == w.u1:
                yield so_far
            return
        if not kept(t, u):
            return
        if u < w.u1 and (topology != "constrained" or kept(t, u + 1)):
            next_t = t if topology == "regular" else t + 1
            yield from walk(next_t, u + 1, [*so_far, ("label", t, u)])
        yield from walk(t + 1, u, [*so_far, ("blank", t, u)])

    return walk(w.t0, w.u0, [])


def used_arcs(starts: Array, size: int, w: Bounds, topology: str) -> tuple[Array, Array]:
    """Which blank and which label arcs (T, S) are on some path."""
    blank, label = np.zeros((2, len(starts), size), bool)
    for path in paths(starts, size, w, topology):
        for kind, t, u in path:
            s = u - starts[t]
            if kind == "blank":
                blank[t, s] = True
            else:
                label[t, s] = True
                if topology == "constrained":
                    blank[t, s + 1] = True
    return blank, label


def by_enumeration(
    blank: Array,
    label: Array,
    starts: Array,
    w: Bounds,
    topology: str,
    label_windows: Array | None = None,
) -> Steps:
    """Sum of the probabilities of all paths, and each step's share of it. Exponential."""
    scores, takes = [], []
    for path in paths(starts, blank.shape[1], w, topology):
        if not oracles.fits(path, label_windows):
            continue
        score, take = 0.0, np.zeros((2, *blank.shape))
        for kind, t, u in path:
            s = u - starts[t]
            score += (blank if kind == "blank" else label)[t, s]
            if kind == "label" and topology == "constrained":
                score += blank[t, s + 1]
            take[0 if kind == "blank" else 1, t, s] = 1.0
        scores.append(score)
        takes.append(take)
    best = max(scores, default=-np.inf)
    if best == -np.inf:
        return Steps(-np.inf, np.zeros(blank.shape), np.zeros(blank.shape))
    weights = np.exp(np.array(scores) - best)
    shares = np.tensordot(weights / weights.sum(), np.array(takes), 1)
    return Steps(float(best + np.log(weights.sum())), shares[0], shares[1])


def by_embedding(blank: Array, label: Array, starts: Array, w: Bounds, topology: str) -> Steps:
    """The dynamic programme of whole lattices, without the arcs of cells outside the band."""
    frames, size = blank.shape
    width = max(w.u1 + 1, int(starts.max(initial=0)) + size) + 1
    rows = np.arange(frames)[:, None]
    columns = starts[:, None] + np.arange(size)
    planes = np.full((2, frames, width), -np.inf)
    planes[:, rows, columns] = blank, label
    steps = oracles.by_recursion(*planes, w, topology, False)
    return Steps(steps.log_likelihood, steps.blank[rows, columns], steps.label[rows, columns])


Band = Callable[[Array, Array, Array, Bounds, str], Steps]


def pruned_loss(
    logits: Array,
    labels: Array,
    ranges: Array,
    lengths: tuple[Array | None, ...] = (None,) * 4,
    *,
    blank_id: int = 0,
    normalization: str = "softmax",
    topology: str = "regular",
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    clamp: float | None = None,
    band: Band = by_embedding,
) -> LogitsResult:
    """`rnnt_loss_pruned` and its gradient for a cotangent of ones; a flat batch."""
    count, frames, size, classes = logits.shape
    logits = logits.astype(np.float64)
    blank_id %= classes
    losses, grads = [], np.zeros(logits.shape)
    bounds = oracles.bounds_of_batch(count, frames, labels.shape[1], *lengths)
    with np.errstate(invalid="ignore", over="ignore"):
        for i, w in enumerate(bounds):
            starts = np.where((np.arange(frames) >= w.t0) & (np.arange(frames) < w.t1), 1, 0)
            starts = starts * np.asarray(ranges)[i, :, 0].astype(np.int64)
            position = starts[:, None] + np.arange(size)
            has_label = (w.u0 <= position) & (position < w.u1)
            padded = np.append(labels[i], 0)
            wanted = np.where(has_label, padded[np.clip(position, 0, len(labels[i]))], 0)
            frame = [
                oracles.arcs_and_jacobians(logits[i, t], wanted[t], blank_id, normalization)
                for t in range(frames)
            ]
            blank, label, d_blank, d_label = (np.array(x) for x in zip(*frame, strict=True))
            label = oracles.penalised(label, w, delay_penalty)
            steps = band(blank, label, starts, w, topology)
            losses.append(0.0 - steps.log_likelihood)
            weights = oracles.arc_weights(steps, topology, 1 + fastemit_lambda)
            for weight, jacobian in zip(weights, (d_blank, d_label), strict=True):
                taken = weight != 0
                grads[i][taken] -= weight[taken][:, None] * jacobian[taken]
    if clamp is not None and clamp > 0:
        grads = np.clip(grads, -clamp, clamp)
    return LogitsResult(np.array(losses), grads)
