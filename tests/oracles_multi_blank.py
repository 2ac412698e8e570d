"""Float64 oracles of the multi-blank loss, sharing nothing with the library: the sum over all paths
of tiny lattices, and the recursion of arXiv 2211.03541 (equations 4 and 5) with its counterpart.

What a path takes is a class: the label's, or a blank's, with how far it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from oracles import Bounds, LogitsResult, bounds_of_batch, log_sum_exp

Array = np.ndarray


class Move(NamedTuple):
    """An arc that leaves a node, and the node that it leads to."""

    is_label: bool
    of_class: int
    to: tuple[int, int]


class Lattice(NamedTuple):
    """One utterance: its labels, the blanks' durations by class, and what arcs are worth."""

    bounds: Bounds
    labels: Array  # (U,)
    durations: Mapping[int, int]
    scores: Array  # (T, U+1, V)
    delay_penalty: float
    label_windows: Array | None  # (U, 2)

    def moves(self, t: int, u: int) -> Iterator[tuple[Move, float]]:
        """The arcs that leave a node, and their scores."""
        w = self.bounds
        for blank, d in self.durations.items():
            if t + d < w.t1 or (t + d == w.t1 and u == w.u1):
                yield Move(False, blank, (t + d, u)), self.scores[t, u, blank]
        if u == w.u1:
            return
        if self.label_windows is not None:
            first, end = self.label_windows[u]
            if not first <= t < end:
                return
        label = int(self.labels[u])
        bonus = self.delay_penalty * ((w.t1 - 1) / 2 - t)
        yield Move(True, label, (t, u + 1)), self.scores[t, u, label] + bonus


# Log-likelihood, and how often a path takes each class, as a blank and as a label: (T, U+1, V).
Counts = tuple[float, Array, Array]


def by_enumeration(of: Lattice) -> Counts:
    """Exponential: tiny lattices only."""
    w, found = of.bounds, []

    def walk(t: int, u: int, score: float, path: list[tuple[int, int, Move]]) -> None:
        if t == w.t1:
            found.append((score, path))
            return
        for move, value in of.moves(t, u):
            walk(*move.to, score + value, [*path, (t, u, move)])

    walk(w.t0, w.u0, 0.0, [])
    total = float(log_sum_exp(np.array([score for score, _ in found]))[0])
    taken = np.zeros((2, *of.scores.shape))
    for score, path in found:
        for t, u, move in path:
            taken[int(move.is_label), t, u, move.of_class] += np.exp(score - total)
    return total, *taken


def by_recursion(of: Lattice) -> Counts:
    """Forward and backward, node by node."""
    w, taken = of.bounds, np.zeros((2, *of.scores.shape))
    alpha = np.full((w.t1 + 1, w.u1 + 1), -np.inf)
    beta = np.full_like(alpha, -np.inf)
    alpha[w.t0, w.u0], beta[w.t1, w.u1] = 0.0, 0.0
    nodes = [(t, u) for t in range(w.t0, w.t1) for u in range(w.u0, w.u1 + 1)]
    for node in nodes:
        for move, value in of.moves(*node):
            alpha[move.to] = np.logaddexp(alpha[move.to], alpha[node] + value)
    total = float(alpha[w.t1, w.u1])
    for node in reversed(nodes):
        for move, value in of.moves(*node):
            beta[node] = np.logaddexp(beta[node], value + beta[move.to])
            if np.isfinite(total):
                share = np.exp(alpha[node] + value + beta[move.to] - total)
                taken[(int(move.is_label), *node, move.of_class)] += share
    return total, *taken


def multi_blank_loss(
    logits: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    durations: Mapping[int, int],
    sigma: float = 0.0,
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    clamp: float | None = None,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    lattice: Callable[[Lattice], Counts] = by_recursion,
) -> LogitsResult:
    """`rnnt_loss_multi_blank` of a flat batch and its gradient for a cotangent of ones.

    `durations` has every blank's, the usual one's as well.
    """
    B, T, W, _ = logits.shape
    logits = logits.astype(np.float64)
    log_probs = logits - log_sum_exp(logits)
    losses, grads = [], np.zeros(logits.shape)
    lengths = logit_lengths, label_lengths, logit_begins, label_begins
    for b, w in enumerate(bounds_of_batch(B, T, W - 1, *lengths)):
        if w.t0 == w.t1:
            losses.append(0.0 if w.u0 == w.u1 else np.inf)
            continue
        limits = None if label_windows is None else label_windows[b]
        of = Lattice(w, labels[b], durations, log_probs[b] - sigma, delay_penalty, limits)
        total, as_blank, as_label = lattice(of)
        losses.append(-total)
        taken = as_blank + (1 + fastemit_lambda) * as_label
        grads[b] = taken.sum(-1, keepdims=True) * np.exp(log_probs[b]) - taken
    if clamp is not None:
        grads = np.clip(grads, -clamp, clamp)
    return LogitsResult(np.array(losses), grads)
