"""`rnnt_loss_multi_blank` against the sum over all paths and the recursion in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles_multi_blank
import pytest
from cases import (
    Array,
    Batch,
    Lengths,
    Options,
    assert_grad_close,
    assert_loss_close,
    random_batch,
    run,
)
from jax.test_util import check_grads

import jax_rnnt
from jax_rnnt import rnnt_loss_multi_blank

BIG_BLANKS = [((-1,), (2,)), ((-1, -2, -3), (2, 4, 8)), ((5, -1), (7, 3)), ((-2,), (62,)), ((), ())]
"""Ids and durations."""
CLASSES = 8


def random_problem(seed: int, batch: int, frames: int, labels: int, **options: Any) -> Batch:
    """Utterance 0 is the whole lattice, 1 is empty, the others are anywhere in it.

    The last three classes are no labels, nor are 0 and 5.
    """
    found = random_batch(np.random.default_rng(seed), batch, frames, labels, CLASSES - 3, **options)
    more = np.random.default_rng(seed + 1).normal(size=(*found.logits.shape[:-1], 3))
    logits = np.concatenate([found.logits, more.astype(found.logits.dtype)], -1)
    return found._replace(logits=logits)


@functools.cache
def compiled(implementation: str, items: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    def loss(logits: Array, batch: Batch, **more: Array) -> jax.Array:
        lengths = batch.lengths
        return rnnt_loss_multi_blank(
            logits,
            batch.labels,
            *lengths[:2],
            logit_begins=lengths.logit_begins,
            label_begins=lengths.label_begins,
            implementation=implementation,  # type: ignore[arg-type]
            **dict(items),
            **more,
        )

    def both(batch: Batch, cotangent: Array | None, more: dict[str, Array]) -> Any:
        value, vjp = jax.vjp(lambda x: loss(x, batch, **more), batch.logits)
        return value, *vjp(jnp.ones_like(value) if cotangent is None else cotangent)

    return jax.jit(both)


def run_loss(
    batch: Batch,
    implementation: str,
    cotangent: Array | None = None,
    arrays: dict[str, Array] | None = None,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Jitted losses, and gradients; `arrays` are options that are not static."""
    function = compiled(implementation, tuple(options.items()))
    return jax.device_get(function(batch, cotangent, arrays or {}))


def expected(
    batch: Batch, big_blank_ids: Any, big_blank_durations: Any, blank_id: int = 0, **options: Any
) -> Any:
    classes = [i % batch.logits.shape[-1] for i in big_blank_ids]
    return oracles_multi_blank.multi_blank_loss(
        *batch[:2],
        *batch.lengths[:2],
        logit_begins=batch.lengths.logit_begins,
        label_begins=batch.lengths.label_begins,
        durations={blank_id: 1, **dict(zip(classes, big_blank_durations, strict=True))},
        **options,
    )


def check(
    batch: Batch,
    implementation: str,
    tolerance: float,
    options: Options,
    cotangent: np.ndarray | None = None,
    arrays: dict[str, Array] | None = None,
    **oracle: Any,
) -> None:
    """Losses and gradients; utterances without an alignment have +inf and zeros."""
    wanted = expected(batch, **options, **(arrays or {}), **oracle)
    loss, grad = run_loss(batch, implementation, cotangent, arrays, **options)
    finite = np.isfinite(wanted.loss)
    assert finite.any()
    assert_loss_close(loss[finite], wanted.loss[finite], tolerance)
    assert (loss[~finite] == np.inf).all()
    scale = np.ones(len(loss)) if cotangent is None else cotangent.astype(np.float64)
    assert_grad_close(grad, scale[:, None, None, None] * wanted.grad, tolerance)


def options_of(big_blanks: tuple[tuple[int, ...], tuple[int, ...]]) -> Options:
    return dict(zip(("big_blank_ids", "big_blank_durations"), big_blanks, strict=True))


@pytest.mark.parametrize("big_blanks", BIG_BLANKS, ids=str)
def test_enumeration(implementation: str, big_blanks: Any) -> None:
    """Against all paths of tiny lattices, anywhere in a batch."""
    problem = random_problem(0, 12, 5, 3)
    enumerate_all = oracles_multi_blank.by_enumeration
    check(problem, implementation, 1e-12, options_of(big_blanks), lattice=enumerate_all)


@pytest.mark.parametrize("big_blanks", BIG_BLANKS, ids=str)
def test_float64(implementation: str, big_blanks: Any) -> None:
    """With all options, against the recursion."""
    options = {
        **options_of(big_blanks),
        "sigma": 0.05,
        "blank_id": 3,
        "fastemit_lambda": 0.3,
        "delay_penalty": 0.2,
        "clamp": 0.2,
    }
    rng = np.random.default_rng(1)
    problem = random_problem(2, 10, 13, 6, blank_id=3)
    first = rng.integers(-2, 6, (10, 6, 1))
    windows = np.concatenate([first, first + rng.integers(5, 15, (10, 6, 1))], -1)
    arrays = {"label_windows": windows.astype(np.int32)}
    check(problem, implementation, 1e-12, options, rng.normal(size=10), arrays)


@pytest.mark.parametrize("labels", [0, 1, 7, 8, 15, 16, 17, 31, 32, 64])
def test_widths(labels: int) -> None:
    """Native kernels at widths U + 1 around those of vectors, in both precisions."""
    for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-12)):
        problem = random_problem(labels, 4, 9, labels, dtype=dtype)
        check(problem, "native", tolerance, options_of(BIG_BLANKS[1]))


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_long_float32(implementation: str, scale: float) -> None:
    """From flat to very peaked scores: losses and gradients to 1e-5."""
    problem = random_problem(3, 3, 250, 60, dtype=np.float32, scale=scale)
    check(problem, implementation, 1e-5, options_of(BIG_BLANKS[1]))


def test_offset(implementation: str) -> None:
    """Logits with an offset of thousands lose no more than they did on being rounded."""
    problem = random_problem(4, 3, 60, 20, dtype=np.float32)
    problem = problem._replace(logits=problem.logits + np.float32(5000))
    wanted = expected(problem, *BIG_BLANKS[1])
    loss, _ = run_loss(problem, implementation, **options_of(BIG_BLANKS[1]))
    finite = np.isfinite(wanted.loss)
    assert_loss_close(loss[finite], wanted.loss[finite], 1e-6)


@pytest.mark.parametrize("forbidden", [False, True])
def test_without_big_blanks(implementation: str, forbidden: bool) -> None:
    """It is `rnnt_loss`, also if they are there with logits of -inf."""
    problem = random_problem(5, 8, 9, 5)
    if forbidden:
        problem.logits[..., -3:] = -np.inf
    big_blanks = BIG_BLANKS[1] if forbidden else ((), ())
    loss, grad = run(problem, implementation)
    found, found_grad = run_loss(problem, implementation, **options_of(big_blanks))
    np.testing.assert_allclose(found, loss, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found_grad, grad, rtol=1e-10, atol=1e-13)


def test_forbidden_blank(implementation: str) -> None:
    """The usual blank may have logits of -inf: then all steps are big."""
    problem = random_problem(6, 4, 8, 2)
    problem = problem._replace(lengths=Lengths(np.array([8, 6, 7, 4]), np.array([2, 0, 1, 2])))
    problem.logits[..., 0] = -np.inf
    options = options_of(((-1,), (2,)))
    loss, grad = run_loss(problem, implementation, **options)
    problem.logits[..., 0] = -1e5
    wanted = expected(problem, **options)
    assert loss[2] == np.inf and (grad[2] == 0).all()  # seven frames
    np.testing.assert_allclose(loss[[0, 1, 3]], wanted.loss[[0, 1, 3]], rtol=1e-12)
    np.testing.assert_allclose(grad[[0, 1, 3]], wanted.grad[[0, 1, 3]], rtol=1e-10, atol=1e-13)


def test_numerical(implementation: str) -> None:
    problem = random_problem(7, 4, 5, 3)

    def loss(logits: jax.Array) -> jax.Array:
        return rnnt_loss_multi_blank(
            logits,
            problem.labels,
            big_blank_ids=(-1, -2),
            big_blank_durations=(2, 3),
            sigma=0.1,
            implementation=implementation,  # type: ignore[arg-type]
        )

    check_grads(jax.jit(loss), (problem.logits,), 1, modes=["rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit(implementation: str, dtype: Any) -> None:
    """Losses are float32's, gradients are rounded once."""
    problem = random_problem(8, 4, 12, 5, dtype=dtype)
    options = options_of(BIG_BLANKS[1])
    wanted = expected(problem, **options)
    loss, grad = run_loss(problem, implementation, **options)
    assert loss.dtype == np.float32 and grad.dtype == dtype
    finite = np.isfinite(wanted.loss)
    assert_loss_close(loss[finite], wanted.loss[finite], 1e-5)
    assert_grad_close(grad, wanted.grad, float(jnp.finfo(dtype).eps))


def test_empty_shapes(implementation: str) -> None:
    """No labels, no frames, no utterances."""
    options = options_of(BIG_BLANKS[1])
    for batch, frames, labels in ((2, 5, 0), (2, 0, 2), (0, 4, 2)):
        shape = batch, frames, labels + 1, CLASSES
        loss, grad = run_loss(
            Batch(np.zeros(shape), np.ones((batch, labels), np.int32)), implementation, **options
        )
        assert loss.shape == (batch,) and grad.shape == shape
        assert np.isfinite(loss).all() == (frames > 0 or batch == 0)


def test_bad_scores_and_padding(implementation: str) -> None:
    """NaN and +inf give NaN and no gradient, and not to other utterances; padding may be anything,
    and `where` leaves utterances out. A label that is a big blank is a bad label.
    """
    options = options_of(BIG_BLANKS[1])
    clean = random_problem(9, 6, 7, 4)
    lengths = Lengths(np.full(6, 6, np.int32), np.full(6, 3, np.int32))
    clean = clean._replace(lengths=lengths)
    logits, labels = clean.logits.copy(), clean.labels.copy()
    logits[:, 6:], logits[:, :, 4:] = np.nan, np.inf
    labels[:, 3] = -7
    logits[1, 0, 0, -1] = np.nan  # a big blank's
    logits[2, 5, 3, 0] = np.inf
    logits[4] = np.nan
    labels[3, 1] = CLASSES - 2
    where = np.arange(6) != 4
    arrays = {"where": where}
    loss, grad = run_loss(Batch(logits, labels, lengths), implementation, arrays=arrays, **options)
    assert np.isnan(loss[1:4]).all() and loss[4] == 0
    assert (grad[1:5] == 0).all()
    assert (grad[:, 6:] == 0).all() and (grad[:, :, 4:] == 0).all()
    wanted = expected(clean, **options)
    for i in (0, 5):
        np.testing.assert_allclose(loss[i], wanted.loss[i], rtol=1e-12)
        assert_grad_close(grad[i : i + 1], wanted.grad[i : i + 1], 1e-12)


def test_transforms() -> None:
    """vmap, several batch dimensions, reductions and none."""
    problem = random_problem(10, 6, 8, 4)
    loss = functools.partial(rnnt_loss_multi_blank, **options_of(BIG_BLANKS[1]))
    operands = problem.logits, problem.labels
    flat = loss(*operands)
    np.testing.assert_allclose(jax.vmap(loss)(*operands), flat, rtol=1e-12)
    folded = [x.reshape(2, 3, *x.shape[1:]) for x in operands]
    np.testing.assert_allclose(loss(*folded), flat.reshape(2, 3), rtol=1e-12)
    np.testing.assert_allclose(loss(*operands, reduction="mean"), flat.mean(), rtol=1e-12)
    np.testing.assert_allclose(loss(*(x[0] for x in operands)), flat[0], rtol=1e-12)


@pytest.mark.cpu_only("what XLA plans for a CPU")
def test_memory() -> None:
    """Beside logits and gradient, some planes for each blank, whatever V is."""
    B, T, U, V = 4, 50, 20, 400
    logits = jax.ShapeDtypeStruct((B, T, U + 1, V), jnp.float32)
    labels = jax.ShapeDtypeStruct((B, U), jnp.int32)

    def loss(*operands: Array) -> jax.Array:
        return rnnt_loss_multi_blank(*operands, **options_of(BIG_BLANKS[1])).sum()

    cells, planes = B * T * (U + 1), 5
    step: Any = jax.jit(jax.grad(loss))
    used = step.lower(logits, labels).compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * cells * 5 * planes < 4 * cells * V / 10


def arguments(**change: Any) -> Options:
    return {
        "logits": np.zeros((2, 3, 3, 6)),
        "labels": np.ones((2, 2), np.int32),
        **options_of(((-1, -2), (2, 4))),
        **change,
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"big_blank_durations": (1, 2)}, ValueError, r"expected big_blank_durations\[0\] >= 2"),
        ({"big_blank_durations": (2, 2)}, ValueError, r"big_blank_durations is \(2, 2\); .*differ"),
        ({"big_blank_durations": (2, 63)}, ValueError, "from 2 to 62"),
        ({"big_blank_durations": (2, 2.5)}, TypeError, r"big_blank_durations\[1\] is 2.5"),
        ({"big_blank_durations": 2}, TypeError, r"big_blank_durations is 2; .* as \(2, 4, 8\)"),
        ({"big_blank_durations": (2,)}, ValueError, r"big_blank_ids is \(5, 4\); .* each of the"),
        ({"big_blank_ids": (-1, -1)}, ValueError, "all different"),
        ({"big_blank_ids": (0, 1)}, ValueError, "none of them blank_id = 0"),
        ({"big_blank_ids": (4, 6)}, ValueError, "big_blank_ids is 6; expected -6 <= big_blank_ids"),
        ({"big_blank_ids": (4, 5.0)}, TypeError, "big_blank_ids is 5.0"),
        ({"big_blank_ids": 4}, TypeError, "big_blank_ids is 4; expected a class for each"),
        (
            {"labels": np.full((2, 2), 4)},
            ValueError,
            r"labels\[0, 0\] is 4; .*big blanks \(class 4 is",
        ),
        ({"labels": np.zeros((2, 2), int)}, ValueError, r"labels other than blank \(class 0\)"),
        ({"sigma": -0.1}, ValueError, "sigma is -0.1; expected a finite number >= 0"),
        ({"logits": np.zeros((3, 3))}, ValueError, "logits has shape"),
    ],
)
def test_bad_arguments(change: Options, error: type[Exception], message: str) -> None:
    """Errors name the argument, its value and what was expected."""
    jax_rnnt.rnnt_loss_multi_blank(**arguments())
    with pytest.raises(error, match=message):
        jax_rnnt.rnnt_loss_multi_blank(**arguments(**change))
