"""Two float64 oracles for the transducer losses, sharing nothing with the library.

* `by_enumeration` walks every path through a tiny lattice and adds up probabilities.
* `by_recursion` is a forward-backward dynamic programme, vectorised over label positions.

Both map the arcs of one utterance to its log-likelihood and to how often a path takes each
*step*. `arcs_loss` and `logits_loss` put scores in front and the hand-derived gradients behind,
with either.

A step is what moves a path forward: a *blank step* (the arc `blank[t, u]`), or a *label step*
(the arc `label[t, u]`; in the constrained topology `label[t, u] + blank[t, u + 1]`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Bounds(NamedTuple):
    """The part of the lattice that an utterance uses: frames [t0, t1), label positions [u0, u1]."""

    t0: int
    t1: int
    u0: int
    u1: int


class Steps(NamedTuple):
    """Log-likelihood of an utterance, and the posteriors of its blank and label steps, (T, U+1)
    each.
    """

    log_likelihood: float
    blank: Array
    label: Array


class Posteriors(NamedTuple):
    """d log-likelihood / d arcs."""

    blank: Array
    label: Array


class ArcsResult(NamedTuple):
    """Per-utterance losses, unit posteriors, and d sum(loss) / d arcs (with FastEmit)."""

    loss: Array
    posteriors: Posteriors
    grad_blank: Array
    grad_label: Array


class LogitsResult(NamedTuple):
    """Per-utterance losses, and d sum(loss) / d logits (with FastEmit and clamp)."""

    loss: Array
    grad: Array


# ------------------------------------------------------------------------------------- enumeration


def paths(w: Bounds, topology: str, final_blank: bool) -> Iterator[list[tuple[str, int, int]]]:
    """Every complete path as a list of steps ("blank" | "label", t, u)."""
    frames_with_labels = w.t1 - 1 if final_blank else w.t1

    def walk(
        t: int, u: int, so_far: list[tuple[str, int, int]]
    ) -> Iterator[list[tuple[str, int, int]]]:
        if t == w.t1:
            if u == w.u1:
                yield so_far
            return
        if t < frames_with_labels and u < w.u1:
            next_t = t if topology == "regular" else t + 1
            yield from walk(next_t, u + 1, [*so_far, ("label", t, u)])
        yield from walk(t + 1, u, [*so_far, ("blank", t, u)])

    return walk(w.t0, w.u0, [])


def used_arcs(
    bounds: Bounds, shape: tuple[int, int], topology: str, final_blank: bool
) -> tuple[Array, Array]:
    """Which blank and which label arcs are on some path, by walking all paths."""
    blank, label = np.zeros(shape, bool), np.zeros(shape, bool)
    for path in paths(bounds, topology, final_blank):
        for kind, t, u in path:
            if kind == "blank":
                blank[t, u] = True
            else:
                label[t, u] = True
                if topology == "constrained":
                    blank[t, u + 1] = True
    return blank, label


def fits(path: list[tuple[str, int, int]], label_windows: Array | None) -> bool:
    """Whether a path emits each label u in a frame of its window, [first, end)."""
    if label_windows is None:
        return True
    labels = [(t, u) for kind, t, u in path if kind == "label"]
    return all(label_windows[u, 0] <= t < label_windows[u, 1] for t, u in labels)


def by_enumeration(
    blank: Array,
    label: Array,
    w: Bounds,
    topology: str,
    final_blank: bool,
    label_windows: Array | None = None,
) -> Steps:
    """Sum of the probabilities of all paths, and each step's share of it. Exponential: tiny
    lattices only.
    """
    scores, takes = [], []
    for path in paths(w, topology, final_blank):
        if not fits(path, label_windows):
            continue
        score, take = 0.0, np.zeros((2, *blank.shape))
        for kind, t, u in path:
            if kind == "blank":
                score += blank[t, u]
            else:
                score += label[t, u] + (blank[t, u + 1] if topology == "constrained" else 0.0)
            take[0 if kind == "blank" else 1, t, u] = 1.0
        scores.append(score)
        takes.append(take)
    best = max(scores, default=-np.inf)
    if best == -np.inf:
        return Steps(-np.inf, np.zeros(blank.shape), np.zeros(blank.shape))
    weights = np.exp(np.array(scores) - best)
    shares = np.tensordot(weights / weights.sum(), np.array(takes), 1)
    return Steps(float(best + np.log(weights.sum())), shares[0], shares[1])


# --------------------------------------------------------------------------------------- recursion


def by_recursion(blank: Array, label: Array, w: Bounds, topology: str, final_blank: bool) -> Steps:
    """Forward-backward over n, where every step goes from n to n + 1 and a label step also from u
    to u + 1.

    In the modified and constrained topologies n is the frame. In the regular one n = t + u
    numbers the anti-diagonals, which makes it the same recursion on sheared arcs. A regular
    path ends with the blank of the last frame, as `final_blank` has it, so that only the steps
    before that blank are in the recursion.

    Steps outside the parallelogram u <= n, U - u <= N - n lie on no complete path and are not
    looked at.
    """
    zeros = np.zeros(blank.shape), np.zeros(blank.shape)
    frames, labels = w.t1 - w.t0, w.u1 - w.u0
    if frames == 0:
        return Steps(0.0 if labels == 0 else -np.inf, *zeros)
    ends_with_blank = topology == "regular" or final_blank
    steps = frames - ends_with_blank + (labels if topology == "regular" else 0)
    if steps < labels:
        return Steps(-np.inf, *zeros)

    n, u = np.arange(steps)[:, None], np.arange(labels + 1)[None]
    started = u <= n
    blank_live = started & (labels - u <= steps - n - 1)
    label_live = started & (labels - u <= steps - n) & (u < labels)
    t = np.clip(n - u if topology == "regular" else n + 0 * u, 0, frames - 1)
    rows, columns = w.t0 + t, w.u0 + np.broadcast_to(u, t.shape)
    right = np.minimum(columns + 1, w.u1)
    follow = blank[rows, right] if topology == "constrained" else 0.0
    b = np.where(blank_live, blank[rows, columns], -np.inf)
    a = np.where(label_live, label[rows, columns] + follow, -np.inf)  # a as in advance
    last = blank[w.t1 - 1, w.u1] if ends_with_blank else 0.0

    def shifted(x: Array) -> Array:
        return np.concatenate([[-np.inf], x[:-1]])

    alpha = np.full((steps + 1, labels + 1), -np.inf)
    beta = np.full((steps + 1, labels + 1), -np.inf)
    alpha[0, 0], beta[steps, labels] = 0.0, last
    for i in range(steps):
        alpha[i + 1] = np.logaddexp(alpha[i] + b[i], shifted(alpha[i] + a[i]))
    for i in reversed(range(steps)):
        beta[i] = np.logaddexp(b[i] + beta[i + 1], a[i] + np.append(beta[i + 1, 1:], -np.inf))
    log_likelihood = float(alpha[steps, labels] + last)
    if not np.isfinite(log_likelihood):
        bad = np.isnan(log_likelihood) or log_likelihood > 0
        return Steps(np.nan if bad else -np.inf, *zeros)

    pad = np.full((steps, 1), -np.inf)
    zeros[0][rows[blank_live], columns[blank_live]] = np.exp(
        alpha[:-1] + b + beta[1:] - log_likelihood
    )[blank_live]
    after = np.concatenate([beta[1:, 1:], pad], 1)
    zeros[1][rows[label_live], columns[label_live]] = np.exp(
        alpha[:-1] + a + after - log_likelihood
    )[label_live]
    if ends_with_blank:
        zeros[0][w.t1 - 1, w.u1] = 1.0
    return Steps(log_likelihood, *zeros)


# ------------------------------------------------------------------------------- losses, gradients

Lattice = Callable[[Array, Array, Bounds, str, bool], Steps]


def bounds_of_batch(
    batch: int,
    frames: int,
    labels: int,
    logit_lengths: Array | None,
    label_lengths: Array | None,
    logit_begins: Array | None,
    label_begins: Array | None,
) -> list[Bounds]:
    """Those of the utterances of a flat batch; None means from zero, or to the end."""

    def given(x: Array | None, default: int) -> list[int]:
        return [default] * batch if x is None else [int(i) for i in np.ravel(x)]

    return [
        Bounds(*four)
        for four in zip(
            given(logit_begins, 0),
            given(logit_lengths, frames),
            given(label_begins, 0),
            given(label_lengths, labels),
            strict=True,
        )
    ]


def penalised(label: Array, w: Bounds, delay_penalty: float) -> Array:
    """Label arcs plus `delay_penalty * ((T_end - 1) / 2 - t)`."""
    return label + delay_penalty * ((w.t1 - 1) / 2 - np.arange(label.shape[0])[:, None])


def arc_weights(steps: Steps, topology: str, label_weight: float = 1.0) -> tuple[Array, Array]:
    """Posteriors of the two arcs from those of steps, label steps counting `label_weight` times."""
    blank, label = steps.blank.copy(), label_weight * steps.label
    if topology == "constrained":
        blank[:, 1:] += label[:, :-1]
    return blank, label


def arcs_loss(
    blank: Array,
    label: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    topology: str = "regular",
    final_blank: bool = False,
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    lattice: Lattice = by_recursion,
) -> ArcsResult:
    """`rnnt_loss_from_arcs` with the posteriors and the gradient for a cotangent of ones; arcs
    (*batch, T, U+1).
    """
    batch, (frames, width) = blank.shape[:-2], blank.shape[-2:]
    blank, label = (
        x.reshape(int(np.prod(batch)), frames, width).astype(np.float64) for x in (blank, label)
    )
    lengths = logit_lengths, label_lengths, logit_begins, label_begins
    rows = []
    with np.errstate(invalid="ignore", over="ignore"):
        for i, w in enumerate(bounds_of_batch(len(blank), frames, width - 1, *lengths)):
            steps = lattice(
                blank[i], penalised(label[i], w, delay_penalty), w, topology, final_blank
            )
            unit, emit = (
                arc_weights(steps, topology),
                arc_weights(steps, topology, 1 + fastemit_lambda),
            )
            rows.append((0.0 - steps.log_likelihood, *unit, -emit[0], -emit[1]))
    shapes = (batch, *[(*batch, frames, width)] * 4)
    loss, b, a, gb, ga = (
        np.array([row[k] for row in rows]).reshape(shape) for k, shape in enumerate(shapes)
    )
    return ArcsResult(loss, Posteriors(b, a), gb, ga)


def log_sigmoid(x: Array) -> Array:
    return -np.logaddexp(0.0, -x)


def log_sum_exp(x: Array) -> Array:
    """Over the last axis, which is kept; -inf for a row of -inf or of length zero."""
    high = np.max(x, -1, keepdims=True, initial=-np.inf)
    high = np.where(high == -np.inf, 0.0, high)
    with np.errstate(divide="ignore"):
        return high + np.log(np.sum(np.exp(x - high), -1, keepdims=True))


def arcs_and_jacobians(
    logits: Array, wanted: Array, blank_id: int, normalization: str
) -> tuple[Array, Array, Array, Array]:
    """Arcs (T, U+1) and their derivatives by the logits (T, U+1, V); `wanted` (U+1,) holds each
    column's label.

    softmax: arc_k = z_k - log sum exp z, so d arc_k / d z = onehot(k) - softmax(z).
    hat: d blank / d z_blank = sigmoid(-z_blank), d label / d z_blank = -sigmoid(z_blank), and
    among the other classes d label / d z = onehot(label) - softmax(z without blank).
    A row with a NaN or +inf anywhere makes both arcs NaN (with "none" only those two entries
    are read).
    """
    classes = np.arange(logits.shape[-1])
    blank_hot = (classes == blank_id).astype(np.float64)
    label_hot = np.broadcast_to((classes == wanted[:, None]).astype(np.float64), logits.shape)
    blank = logits[..., blank_id]
    label = np.take_along_axis(logits, np.broadcast_to(wanted, blank.shape)[..., None], -1)[..., 0]
    if normalization == "none":
        return blank, label, np.broadcast_to(blank_hot, logits.shape), label_hot
    spoiled = ~(logits < np.inf).all(-1, keepdims=True)
    logits = np.where(spoiled, np.nan, logits)
    others = np.where(classes == blank_id, -np.inf, logits) if normalization == "hat" else logits
    total = log_sum_exp(others)
    alive = np.isfinite(total)
    softmax = np.where(alive, np.exp(others - np.where(alive, total, 0.0)), 0.0)
    dead = -np.inf + np.zeros_like(blank)

    def minus_total(x: Array) -> Array:
        return np.where(total[..., 0] == -np.inf, dead, x - total[..., 0])

    blank, label = (np.where(spoiled[..., 0], np.nan, x) for x in (blank, label))
    if normalization == "softmax":
        return minus_total(blank), minus_total(label), blank_hot - softmax, label_hot - softmax
    yes, no = np.exp(log_sigmoid(blank))[..., None], np.exp(log_sigmoid(-blank))[..., None]
    return (
        log_sigmoid(blank),
        log_sigmoid(-blank) + minus_total(label),
        blank_hot * no,
        label_hot - softmax - blank_hot * yes,
    )


def logits_loss(
    logits: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    blank_id: int = 0,
    normalization: str = "softmax",
    topology: str = "regular",
    final_blank: bool = False,
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    clamp: float | None = None,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    lattice: Lattice = by_recursion,
) -> LogitsResult:
    """`rnnt_loss` and its gradient for a cotangent of ones; labels outside an utterance's range
    are not used.
    """
    batch, shape = logits.shape[:-3], logits.shape[-3:]
    count = int(np.prod(batch))
    logits = logits.reshape(count, *shape).astype(np.float64)
    labels = np.asarray(labels).reshape(count, shape[1] - 1)
    blank_id %= shape[2]
    lengths = logit_lengths, label_lengths, logit_begins, label_begins
    losses, grads = [], np.zeros(logits.shape)
    with np.errstate(invalid="ignore", over="ignore"):
        for i, w in enumerate(bounds_of_batch(len(logits), shape[0], shape[1] - 1, *lengths)):
            wanted = np.zeros(shape[1], np.int64)
            wanted[w.u0 : w.u1] = labels[i, w.u0 : w.u1]
            blank, label, d_blank, d_label = arcs_and_jacobians(
                logits[i], wanted, blank_id, normalization
            )
            steps = lattice(blank, penalised(label, w, delay_penalty), w, topology, final_blank)
            losses.append(0.0 - steps.log_likelihood)
            weights = arc_weights(steps, topology, 1 + fastemit_lambda)
            for weight, jacobian in zip(weights, (d_blank, d_label), strict=True):
                taken = weight != 0
                grads[i][taken] -= weight[taken][:, None] * jacobian[taken]
    if clamp is not None and clamp > 0:
        grads = np.clip(grads, -clamp, clamp)
    return LogitsResult(np.array(losses).reshape(batch), grads.reshape(*batch, *shape))
