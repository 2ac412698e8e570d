"""`pack_joint_inputs` and `packed_size` against a loop over cells; a joint network on rows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import close
from packed_cases import pack

import jax_rnnt
from jax_rnnt import pack_joint_inputs, packed_size

B, T, U, D = 4, 5, 3, 7
FRAMES, LABELS = np.array([5, 0, 3, 1]), np.array([2, 3, 0, 3])
ROWS = 5 * 3 + 0 + 3 * 1 + 1 * 4
TOTAL = ROWS + 3


def inputs(dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(B, T, D)).astype(dtype), rng.normal(size=(B, U + 1, D)).astype(dtype)


def run(encoder: Any, predictor: Any, cotangent: Any, *rest: Any) -> Any:
    """Rows and gradients, from one program for all lengths."""

    @jax.jit
    def both(encoder: Any, predictor: Any, cotangent: Any, frames: Any, labels: Any) -> Any:
        rows, vjp = jax.vjp(
            lambda *x: pack_joint_inputs(*x, frames, labels, TOTAL), encoder, predictor
        )
        return rows, vjp(cotangent)

    return jax.device_get(both(encoder, predictor, cotangent, *rest))


def expected(
    encoder: np.ndarray, predictor: np.ndarray, cotangent: np.ndarray, keep: Any = range(B)
) -> Any:
    """By a loop over the cells of the utterances to keep; the others' rows are zero."""
    rows = np.zeros((TOTAL, D))
    grads = np.zeros(encoder.shape), np.zeros(predictor.shape)
    row = 0
    for b in range(B):
        for t in range(FRAMES[b]):
            for u in range(LABELS[b] + 1):
                if b in keep:
                    rows[row] = encoder[b, t] + predictor[b, u]
                    grads[0][b, t] += cotangent[row]
                    grads[1][b, u] += cotangent[row]
                row += 1
    return rows, grads


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-6), (jnp.bfloat16, 4e-2)]
)
def test_rows_and_gradients(dtype: Any, tolerance: float) -> None:
    """Garbage in padding, and in the cotangent of rows left over, has no effect."""
    encoder, predictor = inputs(dtype)
    for b in range(B):
        encoder[b, FRAMES[b] :], predictor[b, LABELS[b] + 1 :] = np.nan, np.inf
    cotangent = np.random.default_rng(1).normal(size=(TOTAL, D)).astype(dtype)
    cotangent[ROWS:] = np.nan
    found = run(encoder, predictor, cotangent, FRAMES, LABELS)
    assert all(x.dtype == dtype for x in jax.tree.leaves(found))
    wide = (np.asarray(x, np.float64) for x in (encoder, predictor, cotangent))
    close(found, expected(*wide), tolerance)


@pytest.mark.parametrize(
    ("field", "index", "value", "kept"),
    [
        ("frames", 3, T + 1, (0, 1, 2)),
        ("frames", 3, -1, (0, 1, 2)),
        ("frames", 2, 2**31 - 1, (0, 1)),
        ("labels", 3, -1, (0, 1, 2)),
        ("labels", 2, U + 9, (0, 1)),
    ],
)
def test_bad_lengths_in_jit(field: str, index: int, value: int, kept: tuple[int, ...]) -> None:
    """Zero rows and gradients for the utterance, and for those that then lack rows."""
    encoder, predictor = inputs()
    cotangent = np.random.default_rng(1).normal(size=(TOTAL, D))
    lengths = {"frames": FRAMES.copy(), "labels": LABELS.copy()}
    lengths[field][index] = value
    found = run(encoder, predictor, cotangent, lengths["frames"], lengths["labels"])
    close(found, expected(encoder, predictor, cotangent, kept))


def test_loss_of_a_joint_network() -> None:
    """Rows through a network give the loss and gradients of all cells through it."""
    encoder, predictor = inputs()
    weights = np.random.default_rng(2).normal(size=(D, 6))
    labels = np.random.default_rng(3).integers(1, 6, (B, U))
    labels_of = np.where(FRAMES > 0, LABELS, 0)

    def packed(encoder: Any, predictor: Any, weights: Any) -> jax.Array:
        rows = pack_joint_inputs(encoder, predictor, FRAMES, labels_of, TOTAL)
        logits = jnp.tanh(rows) @ weights
        return jax_rnnt.rnnt_loss_packed(logits, labels, FRAMES, labels_of, reduction="sum")

    def padded(encoder: Any, predictor: Any, weights: Any) -> jax.Array:
        logits = jnp.tanh(encoder[:, :, None] + predictor[:, None]) @ weights
        return jax_rnnt.rnnt_loss(logits, labels, FRAMES, labels_of, reduction="sum")

    arguments = encoder, predictor, weights
    found, wanted = (
        jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*arguments) for f in (packed, padded)
    )
    close(found, wanted)


def test_transforms(devices: list[jax.Device]) -> None:
    """vmap, second derivatives, shard_map with inputs that all devices share."""
    encoder, predictor = inputs()

    def rows(encoder: Any, predictor: Any) -> jax.Array:
        return pack_joint_inputs(encoder, predictor, FRAMES, LABELS, TOTAL)

    both = np.stack([encoder, -encoder]), np.stack([predictor, predictor])
    close(jax.vmap(rows)(*both), np.stack([rows(encoder, predictor), rows(-encoder, predictor)]))

    def energy(encoder: Any) -> jax.Array:
        return (rows(encoder, predictor) ** 3).sum()

    def plain(encoder: Any) -> jax.Array:
        cells = encoder[:, :, None] + predictor[:, None]
        inside = pack(np.ones((B, T, U + 1)), FRAMES, LABELS, ROWS)
        packed = jnp.stack([
            cells[b, t, u]
            for b in range(B) for t in range(FRAMES[b]) for u in range(LABELS[b] + 1)
        ])  # fmt: skip
        return (packed**3 * inside[:, None]).sum()

    def of_gradient(function: Any) -> Any:
        return jax.grad(lambda x: (jax.grad(function)(x) ** 2).sum())

    close(of_gradient(energy)(encoder), of_gradient(plain)(encoder))
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    local = jax.shard_map(
        lambda x, scale: jax.lax.psum(energy(x) * scale[0], "data"),
        mesh=mesh, in_specs=(jax.P(), jax.P("data")), out_specs=jax.P(),
    )  # fmt: skip
    scales = np.arange(8.0)
    close(jax.jit(jax.grad(lambda x: local(x, scales)))(encoder), 28 * jax.grad(energy)(encoder))


def test_packed_size() -> None:
    """Exact also beyond 32 bits."""
    assert packed_size(FRAMES, LABELS) == ROWS
    assert packed_size(jnp.asarray(FRAMES), jnp.asarray(LABELS)) == ROWS
    many = np.full(4, 2**31 - 1, np.int32)
    assert packed_size(many, many) == 4 * (2**31 - 1) * 2**31
    assert packed_size(np.zeros(0, int), np.zeros(0, int)) == 0


ERRORS = [
    ({"total": ROWS - 1}, ValueError, f"total is {ROWS - 1}; expected at least {ROWS} rows"),
    ({"total": 2.5}, TypeError, "total is 2.5; expected a Python integer"),
    ({"total": -1}, ValueError, "total is -1"),
    ({"logit_lengths": FRAMES + 1}, ValueError, r"logit_lengths\[0\] is 6.*T = 5"),
    ({"label_lengths": LABELS[:3]}, ValueError, r"label_lengths has shape \(3,\)"),
    ({"encoder_out": np.zeros((T, D))}, ValueError, r"encoder_out has shape \(5, 7\)"),
    ({"predictor_out": np.zeros((B, U + 1, 2))}, ValueError, "of the same B and D"),
    ({"predictor_out": np.zeros((B, 0, D))}, ValueError, "start symbol"),
    ({"predictor_out": np.zeros((B, U + 1, D), np.float32)}, TypeError, "dtype of encoder_out"),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS)
def test_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    encoder, predictor = inputs()
    good: dict[str, Any] = {
        "encoder_out": encoder, "predictor_out": predictor, "logit_lengths": FRAMES,
        "label_lengths": LABELS, "total": TOTAL,
    }  # fmt: skip
    with pytest.raises(error, match=f"(?s){message}"):
        pack_joint_inputs(**{**good, **change})


@pytest.mark.parametrize(
    ("frames", "labels", "error", "message"),
    [
        (np.zeros(2), np.zeros(2, int), TypeError, "logit_lengths has dtype float64"),
        (np.zeros(2, int), np.zeros(3, int), ValueError, r"label_lengths has shape \(3,\)"),
        (np.zeros(2, int), np.array([0, -1]), ValueError, "label_lengths has negative values"),
    ],
)
def test_errors_of_packed_size(frames: Any, labels: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        packed_size(frames, labels)
    with pytest.raises(TypeError, match="logit_lengths is traced"):
        jax.jit(packed_size)(FRAMES, LABELS)
