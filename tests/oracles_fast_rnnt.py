"""Float64 oracles of fast_rnnt and k2, from their documentation: label axis first, begins and ends.

`recursion` fills the table `p[s, t]` cell by cell. `logprobs` writes `(px, py)` with dense
log-softmaxes of everything, and JAX differentiates these.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = np.ndarray


def recursion(px: Array, py: Array, boundary: Array) -> tuple[float, Array, Array]:
    """Score of one utterance, and its derivatives by `px` (S, T+1) or (S, T) and `py` (S+1, T)."""
    s0, t0, s1, t1 = boundary
    S, T = px.shape[0], py.shape[1]
    step = 0 if px.shape[1] == T + 1 else 1  # frames that a label takes

    def arc(x: Array, s: int, t: int) -> float:
        return x[s, t] if s < x.shape[0] and t < x.shape[1] else -np.inf

    p, q = np.full((S + 2, T + 2), -np.inf), np.full((S + 2, T + 2), -np.inf)
    p[s0, t0] = q[s1, t1] = 0.0
    for s in range(s0, s1 + 1):
        for t in range(t0, t1 + 1):
            if s > s0 and t - step >= t0:
                p[s, t] = np.logaddexp(p[s, t], p[s - 1, t - step] + arc(px, s - 1, t - step))
            if t > t0:
                p[s, t] = np.logaddexp(p[s, t], p[s, t - 1] + arc(py, s, t - 1))
    px_grad, py_grad = np.zeros(px.shape), np.zeros(py.shape)
    if p[s1, t1] == -np.inf:
        return -np.inf, px_grad, py_grad
    for s in range(s1, s0 - 1, -1):
        for t in range(t1, t0 - 1, -1):
            if s < s1 and t + step <= t1:
                through = arc(px, s, t) + q[s + 1, t + step]
                q[s, t] = np.logaddexp(q[s, t], through)
                if through > -np.inf:
                    px_grad[s, t] = np.exp(p[s, t] + through - p[s1, t1])
            if t < t1:
                through = arc(py, s, t) + q[s, t + 1]
                q[s, t] = np.logaddexp(q[s, t], through)
                py_grad[s, t] = np.exp(p[s, t] + through - p[s1, t1])
    return float(p[s1, t1]), px_grad, py_grad


def batch_recursion(
    px: Array, py: Array, boundary: Array | None
) -> tuple[Array, tuple[Array, Array]]:
    """Scores (B,) and `(px_grad, py_grad)`."""
    if boundary is None:
        boundary = np.array([[0, 0, py.shape[1] - 1, py.shape[2]]] * len(px))
    rows = [recursion(*row) for row in zip(px, py, boundary, strict=True)]
    scores, px_grad, py_grad = (np.array(x) for x in zip(*rows, strict=True))
    return scores, (px_grad, py_grad)


def _arcs(kind: str, scores: Any, blank: int, options: Any) -> Any:
    """Log-probabilities of all classes, (B, T, S+1, C)."""
    if kind == "joint":
        return jax.nn.log_softmax(scores[0])
    am, lm = scores
    joint = jax.nn.log_softmax(am[:, :, None] + lm[:, None])
    if kind == "simple":
        return joint
    lm_share, am_share = options["lm_only_scale"], options["am_only_scale"]
    unigram = jnp.mean(jax.nn.softmax(lm), axis=(0, 1))
    encoder = jax.nn.log_softmax(am + jnp.log(unigram))
    mixed = lm_share * jax.nn.log_softmax(lm)[:, None] + am_share * encoder[:, :, None]
    return (1 - lm_share - am_share) * joint + mixed


def logprobs(
    kind: str,
    scores: Any,
    symbols: Array,
    blank: int,
    rnnt_type: str,
    boundary: Array | None,
    ranges: Array | None = None,
    **options: Any,
) -> Any:
    """`(px, py)` for "simple", "smoothed" (am, lm), "joint", "pruned" and "hat" (logits,)."""
    with jax.numpy_rank_promotion("allow"):
        S = symbols.shape[1]
        padded = np.pad(symbols, ((0, 0), (0, 1)))
        if ranges is not None:
            (logits,) = scores
            if kind == "hat":
                z = logits[..., blank]
                others = jnp.where(np.arange(logits.shape[-1]) == blank, -jnp.inf, logits)
                label = jax.nn.log_softmax(others) + jax.nn.log_sigmoid(-z)[..., None]
                first = jax.nn.log_sigmoid(z)
            else:
                label = jax.nn.log_softmax(logits)
                first = label[..., blank]
            wanted = np.take_along_axis(padded[:, None], ranges, 2)
            label = jnp.take_along_axis(label, wanted[..., None], -1)[..., 0]
            b, t = np.ogrid[: len(ranges), : ranges.shape[1]]
            empty = jnp.full((*ranges.shape[:2], S + 1), -jnp.inf)
            planes = (empty.at[b[..., None], t[..., None], ranges].set(x) for x in (first, label))
            blanks, labels = planes
        else:
            every = _arcs(kind, scores, blank, options)
            blanks = every[..., blank]
            wanted = np.broadcast_to(padded[:, None], blanks.shape)[..., None]
            labels = jnp.take_along_axis(every, wanted, -1)[..., 0]
        py, px = blanks.swapaxes(1, 2), labels.swapaxes(1, 2)[:, :S]
        if rnnt_type == "constrained":
            px = px + py[:, 1:]
        if rnnt_type == "regular":
            px = jnp.pad(px, ((0, 0), (0, 0), (0, 1)), constant_values=-jnp.inf)
            if boundary is not None:
                t = np.arange(px.shape[2])
                px = jnp.where(t == boundary[:, 3, None, None], -jnp.inf, px)
        return px, py


def loss_and_grads(
    *arguments: Any, delay_penalty: float = 0.0, cotangent: Array | None = None, **options: Any
) -> tuple[Array, tuple[Array, Array], Any]:
    """Losses (B,), `(px_grad, py_grad)`, and the gradients by the scores."""
    kind, scores, symbols, blank, rnnt_type, boundary, *rest = arguments

    def by_scores(*scores: Any) -> Any:
        return logprobs(kind, scores, symbols, blank, rnnt_type, boundary, *rest, **options)

    px, py = map(np.asarray, jax.jit(by_scores)(*scores))
    T = py.shape[2]
    ends = np.full(len(px), T) if boundary is None else boundary[:, 3]
    if delay_penalty > 0:
        t = np.arange(px.shape[2])
        px = px + delay_penalty * ((ends[:, None, None] - 1) / 2 - t)
    result, (px_grad, py_grad) = batch_recursion(px, py, boundary)
    weight = np.ones(len(px)) if cotangent is None else cotangent
    weight = weight[:, None, None]
    weighted = -weight * px_grad, -weight * py_grad
    grads = jax.jit(lambda *x: jax.vjp(by_scores, *x)[1](weighted))(*scores)
    return -result, (px_grad, py_grad), grads
