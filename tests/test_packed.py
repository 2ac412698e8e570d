"""Losses of packed rows against the oracle, packed; bad input."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import (
    NATIVE_AND_SOME_XLA,
    Options,
    assert_loss_close,
    dtypes,
    each_topology,
    name,
)
from packed_cases import PackedBatch, pack, packed_function, random_packed, rows_of, run_packed

import jax_rnnt
from jax_rnnt._native.platforms import KERNELS

# (B, T, U, V): ordinary, without labels, one frame, one class beside blank, wide rows of classes,
# many utterances
SHAPES = [(5, 7, 4, 6), (3, 6, 0, 5), (2, 1, 3, 4), (4, 40, 21, 2), (3, 9, 5, 67), (90, 3, 2, 4)]
CASES = [
    pytest.param(i, o, shape, id=f"{i}-{name(o)}-{shape}")
    for shapes, implementations in ((SHAPES, "native"), (SHAPES[:1], "xla"))
    for shape in shapes
    for i, o in NATIVE_AND_SOME_XLA
    if i == implementations
]
EVERYTHING: Options = {"fastemit_lambda": 0.3, "delay_penalty": 0.1, "clamp": 0.05}


def promised(dtype: Any) -> float:
    return 1e-12 if dtype == np.float64 else 1e-5


def check_packed(
    batch: PackedBatch, wanted: oracles.LogitsResult, implementation: str, options: Options
) -> None:
    """Loss and gradient, in the dtype of the logits; zero in the rows that are left over."""
    found = run_packed(batch, implementation, **options)
    assert found[1].dtype == batch.logits.dtype
    assert_close(found, wanted, promised(batch.logits.dtype))
    assert (found[1][-3:] == 0).all()


def assert_close(found: Any, wanted: Any, tolerance: float) -> None:
    """Losses relatively, gradients by their norm; where that is zero, exactly."""
    assert_loss_close(found[0], wanted[0], tolerance)
    error = np.linalg.norm(found[1].astype(np.float64) - wanted[1])
    assert error <= tolerance * np.linalg.norm(wanted[1])


@pytest.mark.parametrize(("implementation", "topology", "shape"), CASES)
def test_values(implementation: str, topology: Options, shape: tuple[int, ...]) -> None:
    """Loss and gradient of every topology and dtype, with NaN in the rows that are left over."""
    if topology["topology"] != "regular" and shape[1] < shape[2]:
        shape = (shape[0], shape[2] + 1, *shape[2:])
    for dtype in dtypes(implementation, np.float32):
        rng = np.random.default_rng(0)
        batch, wanted = random_packed(rng, *shape, dtype=dtype, **topology)
        check_packed(batch, wanted, implementation, topology)
    score = jax.jit(packed_function(implementation, **topology))(*batch)  # forward alone
    assert_loss_close(np.asarray(score), wanted.loss, promised(batch.logits.dtype))


@pytest.mark.parametrize("normalization", ["softmax", "hat", "none"])
@pytest.mark.parametrize("topology", **each_topology)
def test_options(topology: Options, normalization: str) -> None:
    """All regularisers at once, another blank, a cotangent for each utterance, `where`."""
    # Arcs in pure JAX are those of padded logits; its lattice is tested with one of each option.
    implementation = "xla" if normalization == "hat" and "final_blank" in topology else "native"
    options = {**topology, **EVERYTHING, "normalization": normalization, "blank_id": -2}
    batch, wanted = random_packed(np.random.default_rng(1), 6, 8, 4, 7, **options)
    cotangent = np.array([1.0, -2.0, 0.5, 3.0, 0.0, 1e-3])
    where = np.array([True, True, False, True, True, True])
    found = run_packed(batch._replace(where=where), implementation, cotangent, **options)
    loss, grad = np.where(where, wanted.loss, 0), wanted.grad.copy()
    for b in range(6):
        grad[rows_of(batch, b)] *= cotangent[b] * where[b]
    assert_close(found, (loss, grad), 1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=str)
def test_small_dtypes(dtype: Any) -> None:
    """16 bits in and out, float32 in between."""
    batch, wanted = random_packed(np.random.default_rng(2), 3, 9, 4, 19, dtype=dtype)
    loss, grad = run_packed(batch, "native")
    assert_loss_close(loss, wanted.loss, 1e-5)
    np.testing.assert_allclose(
        np.asarray(grad, np.float64), wanted.grad, rtol=float(jnp.finfo(dtype).eps), atol=1e-7
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions(reduction: str) -> None:
    batch, wanted = random_packed(np.random.default_rng(3), 4, 6, 3, 5)
    loss, grad = run_packed(batch, "native", reduction=reduction)
    count = 4 if reduction == "mean" else 1
    np.testing.assert_allclose(loss, wanted.loss.sum() / count, rtol=1e-12)
    np.testing.assert_allclose(grad, wanted.grad / count, atol=1e-12)


@pytest.mark.parametrize(
    ("implementation", "topology"), [*NATIVE_AND_SOME_XLA, ("xla", {"topology": "constrained"})]
)
def test_from_arcs(implementation: str, topology: Options) -> None:
    """Losses, gradients and posteriors of packed arcs; both in one array, with FastEmit."""
    return_posteriors = topology["topology"] != "regular"
    rng = np.random.default_rng(4)
    t, u = np.array([7, 0, 3, 6]), np.array([4, 0, 2, 0])
    padded = -rng.exponential(size=(2, 4, 7, 5)) - 0.1
    options = {**topology, "fastemit_lambda": 0.2, "delay_penalty": 0.1}
    wanted = oracles.arcs_loss(*padded, t, u, **options)
    rows = jax_rnnt.packed_size(t, u) + 2
    assert rows == 7 * 5 + 3 * 3 + 6 + 2
    arcs = np.stack([pack(x, t, u, rows, fill=np.nan) for x in padded], axis=-1)

    @jax.jit
    def run(arcs: jax.Array) -> Any:
        def loss(arcs: jax.Array) -> Any:
            result = jax_rnnt.rnnt_loss_packed_from_arcs(
                arcs[:, 0], arcs[:, 1], t, u, max_labels=5, implementation=implementation,
                return_posteriors=return_posteriors, **options,
            )  # fmt: skip
            return result if return_posteriors else (result, None)

        value, vjp, posteriors = jax.vjp(loss, arcs, has_aux=True)
        return value, vjp(jnp.ones_like(value))[0], posteriors

    loss, grad, posteriors = jax.device_get(run(arcs))
    np.testing.assert_allclose(loss, wanted.loss, rtol=1e-12)
    grads = [pack(x, t, u, rows) for x in (wanted.grad_blank, wanted.grad_label)]
    np.testing.assert_allclose(grad, np.stack(grads, -1), atol=1e-12)
    if return_posteriors:
        for found, plane in zip(posteriors, wanted.posteriors, strict=True):
            np.testing.assert_allclose(found, pack(plane, t, u, rows), atol=1e-12)


# Utterances for which the bound on the workspace is tight: few labels beside many that there
# might be, and many labels in few frames; and so many blocks of fronts that some are partial.
SKEWED = [
    ([70, 1, 33], [0, 0, 1], 3),
    ([2, 130, 17], [90, 2, 5], 90),
    ([49, 1, 64], [40, 0, 7], 40),
]


@pytest.mark.parametrize(("frames", "labels", "max_labels"), SKEWED, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_skewed_lattices(frames: list[int], labels: list[int], max_labels: int, dtype: Any) -> None:
    """Loss and posteriors of lattices that are much longer than wide, and wider than long."""
    check_skewed(frames, labels, max_labels, dtype)


def check_skewed(frames: list[int], labels: list[int], max_labels: int, dtype: Any) -> None:
    t, u = np.array(frames), np.array(labels)
    size = (2, len(t), t.max(), u.max() + 1)
    padded = -np.random.default_rng(5).exponential(size=size).astype(dtype).astype(np.float64)
    wanted = oracles.arcs_loss(*padded, t, u)
    rows = jax_rnnt.packed_size(t, u)
    blank, label = (pack(x, t, u, rows).astype(dtype) for x in padded)
    loss, posteriors = jax_rnnt.rnnt_loss_packed_from_arcs(
        blank, label, t, u, max_labels=max_labels, return_posteriors=True, implementation="native"
    )
    tolerance = promised(dtype)
    np.testing.assert_allclose(loss, wanted.loss, rtol=tolerance)
    for found, plane in zip(posteriors, wanted.posteriors, strict=True):
        error = np.linalg.norm(np.asarray(found, np.float64) - pack(plane, t, u, rows))
        assert error <= tolerance * np.linalg.norm(plane)


def test_workspace_is_linear_in_rows() -> None:
    """A few planes of rows, and what the widest utterance may need; not frames times labels."""
    for kernels in KERNELS.values():
        for element_bytes in (4, 8):
            of_row, of_utterance = kernels.packed_workspace_elements(101, 0, True, element_bytes)
            assert of_row <= 8
            assert of_utterance <= 3 * 101**2


# ---------------------------------------------------------------------------------------- bad input

LARGE = 2**31 - 1
BAD_VALUES = [
    ("labels", 7, "int32"),
    ("labels", 0, "int32"),  # blank
    ("logit_lengths", -1, "int32"),
    ("label_lengths", -1, "int32"),
    ("label_lengths", -LARGE - 1, "int32"),
    ("logit_lengths", -(2**40), "int64"),
]
B, T, U, V = 4, 6, 3, 7


@pytest.mark.parametrize(("field", "value", "dtype"), BAD_VALUES)
def test_values_in_jit(implementation: str, field: str, value: int, dtype: str) -> None:
    """Of one utterance: NaN and zero gradient for it. Where it has rows, others keep theirs."""
    legal, wanted = random_packed(np.random.default_rng(6), B, T, U, V)
    batch = jax.tree.map(lambda x: np.array(x, dtype if x.dtype.kind == "i" else None), legal)
    bad = {"labels": 0}.get(field, B - 1)  # rows of those after it would be elsewhere
    index = (bad, 0) if field == "labels" else (bad,)
    getattr(batch, field)[index] = value
    loss, grad = run_packed(batch, implementation)
    others = np.arange(B) != bad
    assert np.isnan(loss[bad])
    assert_loss_close(loss[others], wanted.loss[others], 1e-12)
    mine = slice(0, T * (U + 1)) if bad == 0 else slice(rows_of(legal, B - 1).start, None)
    expected = wanted.grad.copy()
    expected[mine] = 0
    np.testing.assert_allclose(grad, expected, atol=1e-12)
    assert (grad[mine] == 0).all()


@pytest.mark.parametrize(
    ("lengths", "value"),
    [("logit_lengths", 50), ("logit_lengths", LARGE), ("label_lengths", LARGE)],
)
def test_too_few_rows_in_jit(implementation: str, lengths: str, value: int) -> None:
    """Utterances from the one that has not all of its rows on: NaN, zero gradient."""
    batch, wanted = random_packed(np.random.default_rng(7), B, T, U, V)
    rows = rows_of(batch, 2)
    getattr(batch, lengths)[2] = value
    loss, grad = run_packed(batch, implementation)
    assert_loss_close(loss[:2], wanted.loss[:2], 1e-12)
    assert np.isnan(loss[2:]).all()
    np.testing.assert_allclose(grad[: rows.start], wanted.grad[: rows.start], atol=1e-12)
    assert (grad[rows.start :] == 0).all()


def test_truncation() -> None:
    """Utterances with all of their rows are right, the others NaN; those without any have them."""
    implementation = "native"  # shapes are compiled one by one
    batch, wanted = random_packed(np.random.default_rng(8), 3, 3, 2, 4, spare=0)
    ends = np.cumsum(batch.logit_lengths * (batch.label_lengths + 1))
    for rows in {0, 1, int(ends[0]), int(ends[-1]) - 1, int(ends[-1])}:
        cut = batch._replace(logits=batch.logits[:rows])
        loss, grad = run_packed(cut, implementation)
        fits = (ends <= rows) | (batch.logit_lengths == 0)
        assert_loss_close(loss[fits], wanted.loss[fits], 1e-12)
        assert np.isnan(loss[~fits]).all()
        used = ends[ends <= rows].max(initial=0)
        np.testing.assert_allclose(grad[:used], wanted.grad[:used], atol=1e-12)
        assert (grad[used:] == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bad_logits(implementation: str, value: float) -> None:
    """NaN and +inf spoil their utterance, a forbidden blank leaves it without a path."""
    batch, wanted = random_packed(np.random.default_rng(9), B, T, U, V)
    rows = rows_of(batch, 0)
    batch.logits[rows.stop - 1, 0] = value
    loss, grad = run_packed(batch, implementation)
    assert loss[0] == np.inf if value == -np.inf else np.isnan(loss[0])
    assert_loss_close(loss[1:], wanted.loss[1:], 1e-12)
    assert (grad[rows] == 0).all()
    np.testing.assert_allclose(grad[rows.stop :], wanted.grad[rows.stop :], atol=1e-12)


@pytest.mark.parametrize("count", [0, 2])
def test_nothing_to_do(implementation: str, count: int) -> None:
    """No utterances, or none with frames; no rows at all, or padding alone."""
    for rows in (0, 5):
        zeros = np.zeros(count, np.int32)
        batch = PackedBatch(
            np.full((rows, V), np.nan), np.zeros((count, U), np.int32), zeros, zeros
        )
        loss, grad = run_packed(batch, implementation)
        assert (loss == 0).all() and loss.shape == (count,)
        assert (grad == 0).all() and grad.shape == (rows, V)
        loss, posteriors = jax_rnnt.rnnt_loss_packed_from_arcs(
            np.full(rows, np.nan), np.full(rows, np.nan), zeros, zeros,
            max_labels=2, return_posteriors=True, implementation=implementation,
        )  # fmt: skip
        assert (loss == 0).all() and loss.shape == (count,)
        assert all((x == 0).all() and x.shape == (rows,) for x in posteriors)


def good_arguments() -> dict[str, Any]:
    batch, _ = random_packed(np.random.default_rng(10), B, T, U, V)
    return {**batch._asdict(), "where": None}


ERRORS = [
    ({"logits": np.zeros((2, 3, 4))}, ValueError, r"logits has shape \(2, 3, 4\).*\(N, V\)"),
    ({"logits": np.zeros((3, 0))}, ValueError, "without classes"),
    ({"labels": None}, TypeError, "labels is None"),
    ({"labels": np.zeros(9, int)}, ValueError, r"labels has shape \(9,\).*padded, not packed"),
    ({"logit_lengths": None}, TypeError, "logit_lengths is None"),
    ({"label_lengths": np.zeros(3, int)}, ValueError, r"label_lengths has shape \(3,\)"),
    ({"logit_lengths": np.full(B, 9)}, ValueError, "N = .* rows.*packed_size"),
    ({"logit_lengths": np.array([1, 999, 1, 1])}, ValueError, r"\[1\] is 999.*N = \d+, the number"),
    ({"logit_lengths": np.array([1, 1, 1, -1])}, ValueError, r"logit_lengths\[3\] is -1"),
    ({"label_lengths": np.array([0, 0, 4, 0])}, ValueError, r"label_lengths\[2\] is 4.*U = 3"),
    ({"labels": np.zeros((B, U), int)}, ValueError, r"labels\[0, 0\] is 0.*other than blank"),
    ({"final_blank": True}, ValueError, "final_blank"),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS)
def test_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        jax_rnnt.rnnt_loss_packed(**{**good_arguments(), **change})


ARCS_ERRORS = [
    ({"max_labels": 2.0}, TypeError, "max_labels is 2.0; expected a Python integer"),
    ({"max_labels": -1}, ValueError, "max_labels is -1"),
    ({"max_labels": 1}, ValueError, r"label_lengths\[0\] is 2.*max_labels = 1"),
    ({"blank_log_probs": np.zeros((6, 2))}, ValueError, "label_log_probs has shape"),
    ({"logit_lengths": 2}, ValueError, r"logit_lengths has shape \(\)"),
    ({"logit_lengths": np.array([3])}, ValueError, "N = 6 packed rows; expected at least 9 rows"),
]


@pytest.mark.parametrize(("change", "error", "message"), ARCS_ERRORS)
def test_errors_of_arcs(change: dict[str, Any], error: type[Exception], message: str) -> None:
    good: dict[str, Any] = {
        "blank_log_probs": np.zeros(6), "label_log_probs": np.zeros(6),
        "logit_lengths": np.array([2]), "label_lengths": np.array([2]), "max_labels": 2,
    }  # fmt: skip
    with pytest.raises(error, match=f"(?s){message}"):
        jax_rnnt.rnnt_loss_packed_from_arcs(**{**good, **change})
