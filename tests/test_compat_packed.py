"""The interfaces of optimized_transducer and warp-rnnt, as they are documented, by the oracle."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import Options
from packed_cases import pack

from jax_rnnt.compat import optimized_transducer, warp_rnnt

B, T, U, V = 3, 6, 3, 5
FRAMES, LABELS = np.array([6, 4, 5], np.int32), np.array([3, 0, 2], np.int32)
TARGETS = np.array([[4, 1, 2], [0, 0, 0], [2, 2, 0]], np.int32)
PACKED_TARGETS = np.array([4, 1, 2, 2, 2], np.int32)
ROWS = 6 * 4 + 4 * 1 + 5 * 3


def scores(log_probs: bool) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(B, T, U + 1, V))
    return x - oracles.log_sum_exp(x) if log_probs else x


def value_and_grad(function: Any, x: Any) -> Any:
    """With a gradient also of several losses, of their sum."""
    loss, vjp = jax.vjp(jax.jit(function), x)
    return jax.device_get((loss, vjp(jnp.ones_like(loss))[0]))


def reduced(loss: np.ndarray, weights: Any, reduction: str | None) -> tuple[Any, np.ndarray]:
    """The reduced loss, and each utterance's share in it."""
    share = weights / (B if reduction == "mean" else 1) * np.ones(B)
    losses = loss * weights
    wanted = losses if reduction in (None, "none") else (losses * share / weights).sum()
    return wanted, share


def test_signatures() -> None:
    """Names, order and defaults."""

    def signature(function: Any) -> list[Any]:
        parameters = inspect.signature(function).parameters.values()
        return [p.name if p.default is p.empty else (p.name, p.default) for p in parameters]

    assert signature(optimized_transducer.transducer_loss) == [
        "logits", "targets", "logit_lengths", "target_lengths", "blank", "from_log_softmax",
        ("one_sym_per_frame", False), ("reduction", "mean"),
    ]  # fmt: skip
    assert signature(optimized_transducer.TransducerLoss) == ["blank", ("reduction", "mean")]
    call = signature(optimized_transducer.TransducerLoss(0).forward)
    assert call == [
        "logits", "targets", "logit_lengths", "target_lengths", "from_log_softmax",
        ("one_sym_per_frame", False),
    ]  # fmt: skip
    assert signature(warp_rnnt.rnnt_loss) == [
        "log_probs", "labels", "frames_lengths", "labels_lengths", ("average_frames", False),
        ("reduction", "none"), ("blank", 0), ("gather", False), ("fastemit_lambda", 0.0),
        ("compact", False),
    ]  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("one_sym_per_frame", [False, True])
@pytest.mark.parametrize("from_log_softmax", [False, True])
def test_optimized_transducer(
    reduction: Any, one_sym_per_frame: bool, from_log_softmax: bool
) -> None:
    x, blank = scores(from_log_softmax), 3
    options: Options = {"topology": "modified", "final_blank": True} if one_sym_per_frame else {}
    normalization = "none" if from_log_softmax else "softmax"
    wanted = oracles.logits_loss(
        x, TARGETS, FRAMES, LABELS, blank_id=blank, normalization=normalization, **options
    )
    loss, share = reduced(wanted.loss, np.ones(B), reduction)
    grad = pack(wanted.grad * share[:, None, None, None], FRAMES, LABELS, ROWS)
    packed = pack(x, FRAMES, LABELS, ROWS)
    loss_module = optimized_transducer.TransducerLoss(blank, reduction)
    arguments = TARGETS, FRAMES, LABELS
    for function in (
        lambda x: optimized_transducer.transducer_loss(
            x, *arguments, blank, from_log_softmax, one_sym_per_frame, reduction
        ),
        lambda x: loss_module(x, *arguments, from_log_softmax, one_sym_per_frame),
    ):
        found = value_and_grad(function, packed)
        np.testing.assert_allclose(found[0], loss, rtol=1e-12)
        np.testing.assert_allclose(found[1], grad, atol=1e-12)


def test_optimized_transducer_defaults() -> None:
    """The mean, of regular alignments."""
    packed = pack(scores(False), FRAMES, LABELS, ROWS)
    found = optimized_transducer.TransducerLoss(3)(packed, TARGETS, FRAMES, LABELS, False)
    wanted = oracles.logits_loss(scores(False), TARGETS, FRAMES, LABELS, blank_id=3)
    np.testing.assert_allclose(found, wanted.loss.mean(), rtol=1e-12)


@pytest.mark.parametrize("layout", ["padded", "gather", "gathered"])
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize(
    ("average_frames", "reduction", "fastemit_lambda"),
    [(False, "none", 0.0), (True, None, 0.3), (True, "mean", 0.0), (False, "sum", 0.3)],
)
def test_warp_rnnt(
    layout: str, compact: bool, average_frames: bool, reduction: Any, fastemit_lambda: float
) -> None:
    """`gathered`: the two log-probabilities of each cell, with blank = -1."""
    x, blank = scores(True), 3
    wanted = oracles.logits_loss(
        x, TARGETS, FRAMES, LABELS, blank_id=blank, normalization="none",
        fastemit_lambda=fastemit_lambda,
    )  # fmt: skip
    weights = 1 / FRAMES if average_frames else np.ones(B)
    loss, share = reduced(wanted.loss, weights, reduction)
    grad = wanted.grad * share[:, None, None, None]
    if layout == "gathered":
        index = np.full((B, T, U + 1, 2), blank)
        index[:, :, :U, 1] = TARGETS[:, None]
        index[:, :, U, 1] = 0
        x, grad = (np.take_along_axis(y, index, -1) for y in (x, grad))
        for b in range(B):  # no label leaves the last cell of a frame
            grad[b, :, LABELS[b] :, 1] = 0
    if compact:
        x, grad = (pack(y, FRAMES, LABELS, ROWS) for y in (x, grad))

    def function(x: jax.Array) -> jax.Array:
        return warp_rnnt.rnnt_loss(
            x, PACKED_TARGETS if compact else TARGETS, FRAMES, LABELS, average_frames, reduction,
            -1 if layout == "gathered" else blank, layout == "gather", fastemit_lambda, compact,
        )  # fmt: skip

    found = value_and_grad(function, x)
    np.testing.assert_allclose(found[0], loss, rtol=1e-12)
    np.testing.assert_allclose(found[1], grad, atol=1e-12)


def test_warp_rnnt_compact_in_jit() -> None:
    """With lengths that are not known, and labels to spare."""
    x = pack(scores(True), FRAMES, LABELS, ROWS + 2)
    labels = np.append(PACKED_TARGETS, [1, 1])
    function = jax.jit(lambda *arguments: warp_rnnt.rnnt_loss(*arguments, blank=3, compact=True))
    wanted = oracles.logits_loss(
        scores(True), TARGETS, FRAMES, LABELS, blank_id=3, normalization="none"
    )
    np.testing.assert_allclose(function(x, labels, FRAMES, LABELS), wanted.loss, rtol=1e-12)


def test_warp_rnnt_errors() -> None:
    x = pack(scores(True), FRAMES, LABELS, ROWS)
    with pytest.raises(TypeError, match=r"labels has dtype float64; expected an integer"):
        warp_rnnt.rnnt_loss(x, PACKED_TARGETS * 1.0, FRAMES, LABELS, compact=True)
    with pytest.raises(ValueError, match=r"labels has shape \(3, 3\).*compact=True"):
        warp_rnnt.rnnt_loss(x, TARGETS, FRAMES, LABELS, compact=True)
    with pytest.raises(ValueError, match=r"expected at least 5 labels"):
        warp_rnnt.rnnt_loss(x, PACKED_TARGETS[:4], FRAMES, LABELS, compact=True)
    with pytest.raises(ValueError, match=r"^labels_lengths has shape \(\); expected \(N,\)"):
        warp_rnnt.rnnt_loss(x, PACKED_TARGETS, FRAMES, LABELS[0], compact=True)
    with pytest.raises(TypeError, match=r"^blank is "):
        jax.jit(lambda blank: warp_rnnt.rnnt_loss(x, PACKED_TARGETS, FRAMES, LABELS, blank=blank))(
            0
        )
    with pytest.raises(ValueError, match=r"log_probs has shape .*\(\.\.\., 2\) with blank=-1"):
        warp_rnnt.rnnt_loss(scores(True), TARGETS, FRAMES, LABELS, blank=-1)


def test_warp_rnnt_large_label(ordinary_jax: None) -> None:
    """Beyond int32, which would wrap around to a label that there is."""
    x = np.float32(pack(scores(True), FRAMES, LABELS, ROWS))
    targets = PACKED_TARGETS.astype(np.int64)
    targets[0] += 2**32
    with pytest.raises(ValueError, match=r"labels\[0, 0\] is .*expected 0 <= label"):
        warp_rnnt.rnnt_loss(x, targets, FRAMES, LABELS, compact=True)


def test_warp_rnnt_compact_without_enough_labels() -> None:
    """NaN inside `jit` for the utterance whose labels are missing, and an error outside."""
    log_probs = jax.nn.log_softmax(jnp.asarray(np.random.default_rng(7).normal(size=(18, 5))))
    lengths = np.array([4, 3]), np.array([2, 1])

    def loss(labels: Any, *lengths: Any) -> jax.Array:
        return warp_rnnt.rnnt_loss(log_probs, labels, *lengths, compact=True)

    whole = jax.jit(loss)(np.array([1, 2, 3]), *lengths)
    for labels in (np.array([1, 2]), np.zeros(0, np.int32)):
        found = jax.jit(loss)(labels, *lengths)
        assert np.isnan(found[1])
        assert len(labels) == 0 or found[0] == whole[0]
    with pytest.raises(ValueError, match="labels"):
        loss(np.array([1, 2]), *lengths)
