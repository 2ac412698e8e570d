"""Float64 oracles of the token-and-duration loss, sharing nothing with the library: the sum over
all paths of tiny lattices, and the recursion of arXiv 2304.06795 with its backward counterpart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from oracles import Bounds, bounds_of_batch, log_sum_exp, penalised

Array = np.ndarray


class Moves(NamedTuple):
    """Log-likelihood, and how often a path takes each arc with each duration: (D, T, U+1)."""

    log_likelihood: float
    blank: Array
    label: Array


def moves_from(
    t: int, u: int, w: Bounds, durations: Sequence[int]
) -> Iterator[tuple[str, int, int, int]]:
    """What can be done at a node: kind, duration's index, and where it leads."""
    for i, d in enumerate(durations):
        if d > 0 and (t + d < w.t1 or (t + d == w.t1 and u == w.u1)):
            yield "blank", i, t + d, u
        if u < w.u1 and t + d < w.t1:
            yield "label", i, t + d, u + 1


def by_enumeration(
    blank: Array, label: Array, duration: Array, w: Bounds, durations: Sequence[int]
) -> Moves:
    """Exponential: tiny lattices only. Durations are (D, T, U+1)."""
    found: list[tuple[float, list[tuple[str, int, int, int]]]] = []

    def walk(t: int, u: int, score: float, path: list[tuple[str, int, int, int]]) -> None:
        if t == w.t1:
            found.append((score, path))
            return
        for kind, i, next_t, next_u in moves_from(t, u, w, durations):
            arc = (blank if kind == "blank" else label)[t, u] + duration[i, t, u]
            walk(next_t, next_u, score + arc, [*path, (kind, i, t, u)])

    takes = {"blank": np.zeros(duration.shape), "label": np.zeros(duration.shape)}
    if w.t0 == w.t1:
        return Moves(0.0 if w.u0 == w.u1 else -np.inf, *takes.values())
    walk(w.t0, w.u0, 0.0, [])
    total = float(log_sum_exp(np.array([score for score, _ in found]))[0])
    for score, path in found:
        for kind, *place in path:
            takes[kind][tuple(place)] += np.exp(score - total) if total > -np.inf else 0.0
    return Moves(total, *takes.values())


def by_recursion(
    blank: Array, label: Array, duration: Array, w: Bounds, durations: Sequence[int]
) -> Moves:
    """Forward and backward, node by node."""
    takes = {"blank": np.zeros(duration.shape), "label": np.zeros(duration.shape)}
    if w.t0 == w.t1:
        return Moves(0.0 if w.u0 == w.u1 else -np.inf, *takes.values())
    arcs = {"blank": blank, "label": label}
    alpha = np.full((w.t1 + 1, w.u1 + 1), -np.inf)
    alpha[w.t0, w.u0] = 0.0
    beta = np.full_like(alpha, -np.inf)
    beta[w.t1, w.u1] = 0.0
    nodes = [(t, u) for t in range(w.t0, w.t1) for u in range(w.u0, w.u1 + 1)]
    for t, u in nodes:
        for kind, i, *to in moves_from(t, u, w, durations):
            arc = arcs[kind][t, u] + duration[i, t, u]
            alpha[tuple(to)] = np.logaddexp(alpha[tuple(to)], alpha[t, u] + arc)
    total = float(alpha[w.t1, w.u1])
    for t, u in reversed(nodes):
        for kind, i, *to in moves_from(t, u, w, durations):
            arc = arcs[kind][t, u] + duration[i, t, u]
            beta[t, u] = np.logaddexp(beta[t, u], arc + beta[tuple(to)])
            if np.isfinite(total):
                takes[kind][i, t, u] = np.exp(alpha[t, u] + arc + beta[tuple(to)] - total)
    return Moves(total, *takes.values())


class TdtResult(NamedTuple):
    """Losses, and d sum(loss) / d logits and d duration logits."""

    loss: Array
    grad: Array
    duration_grad: Array


def tdt_loss(
    logits: Array,
    duration_logits: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    durations: Sequence[int],
    sigma: float = 0.0,
    blank_id: int = 0,
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    clamp: float | None = None,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    lattice: Callable[..., Moves] = by_recursion,
) -> TdtResult:
    """`rnnt_loss_tdt` of a flat batch and its gradients for a cotangent of ones."""
    B, T, W, V = logits.shape
    logits, duration_logits = (x.astype(np.float64) for x in (logits, duration_logits))
    log_probs = logits - log_sum_exp(logits)
    duration_log_probs = duration_logits - log_sum_exp(duration_logits)
    losses, grads, duration_grads = [], np.zeros(logits.shape), np.zeros(duration_logits.shape)
    lengths = logit_lengths, label_lengths, logit_begins, label_begins
    for b, w in enumerate(bounds_of_batch(B, T, W - 1, *lengths)):
        wanted = np.zeros(W, np.int64)
        wanted[w.u0 : w.u1] = labels[b, w.u0 : w.u1]
        hot = np.eye(V)[[blank_id]], np.eye(V)[wanted]
        blank, label = ((log_probs[b] * x).sum(-1) - sigma for x in hot)
        duration = np.moveaxis(duration_log_probs[b], -1, 0)
        moves = lattice(blank, penalised(label, w, delay_penalty), duration, w, durations)
        losses.append(0.0 - moves.log_likelihood)
        by_blank, by_label = (x.sum(0)[..., None] for x in (moves.blank, moves.label))
        by_label = (1 + fastemit_lambda) * by_label
        probs = np.exp(log_probs[b])
        grads[b] = (by_blank + by_label) * probs - by_blank * hot[0] - by_label * hot[1]
        taken = np.moveaxis(moves.blank + moves.label, 0, -1)
        duration_grads[b] = taken.sum(-1, keepdims=True) * np.exp(duration_log_probs[b]) - taken
    if clamp is not None:
        grads = np.clip(grads, -clamp, clamp)
    return TdtResult(np.array(losses), grads, duration_grads)
