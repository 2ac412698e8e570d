"""`rnnt_loss_tdt` against the sum over all paths and the recursion in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles_tdt
import pytest
from cases import (
    WHOLE,
    Array,
    Lengths,
    Options,
    assert_grad_close,
    assert_loss_close,
    random_batch,
    run,
)
from jax.test_util import check_grads

import jax_rnnt

DURATIONS = [(0, 1, 2, 3, 4), (1,), (0, 1), (0, 2, 5), (1, 3), (0, 62), (0, 1, 2, 3, 4, 5, 7)]


class Problem(NamedTuple):
    """Arguments of `rnnt_loss_tdt`."""

    logits: Array
    duration_logits: Array
    labels: Array
    lengths: Lengths = WHOLE
    where: Array | None = None


def random_problem(
    seed: int,
    batch: int,
    frames: int,
    labels: int,
    classes: int,
    durations: tuple[int, ...],
    *,
    dtype: Any = np.float64,
    scale: float = 1.0,
) -> Problem:
    """Utterance 0 is the whole lattice, 1 is empty, the others are anywhere in it."""
    rng = np.random.default_rng(seed)
    logits, ids, lengths, _ = random_batch(
        rng, batch, frames, labels, classes, dtype=dtype, scale=scale
    )
    shape = (batch, frames, labels + 1, len(durations))
    return Problem(logits, rng.normal(scale=scale, size=shape).astype(dtype), ids, lengths)


@functools.cache
def compiled(implementation: str, items: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    options = dict(items)

    def loss(logits: Array, duration_logits: Array, problem: Problem) -> jax.Array:
        lengths = problem.lengths
        return jax_rnnt.rnnt_loss_tdt(
            logits,
            duration_logits,
            problem.labels,
            *lengths[:2],
            logit_begins=lengths.logit_begins,
            label_begins=lengths.label_begins,
            where=problem.where,
            implementation=implementation,
            **options,
        )

    def both(problem: Problem, cotangent: Array | None) -> Any:
        scores = problem.logits, problem.duration_logits
        value, vjp = jax.vjp(lambda *x: loss(*x, problem), *scores)
        return value, vjp(jnp.ones_like(value) if cotangent is None else cotangent)

    return jax.jit(both)


def run_tdt(
    problem: Problem, implementation: str, cotangent: Array | None = None, **options: Any
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Jitted losses, and gradients by both logits."""
    return jax.device_get(compiled(implementation, tuple(options.items()))(problem, cotangent))


def expected(problem: Problem, **options: Any) -> oracles_tdt.TdtResult:
    lengths = problem.lengths
    return oracles_tdt.tdt_loss(
        *problem[:3],
        *lengths[:2],
        logit_begins=lengths.logit_begins,
        label_begins=lengths.label_begins,
        **options,
    )


def check(
    problem: Problem,
    implementation: str,
    tolerance: float,
    options: Options,
    cotangent: np.ndarray | None = None,
    **oracle: Any,
) -> None:
    """Losses and both gradients; utterances without an alignment have +inf and zeros."""
    wanted = expected(problem, **options, **oracle)
    loss, grads = run_tdt(problem, implementation, cotangent, **options)
    finite = np.isfinite(wanted.loss)
    assert_loss_close(loss[finite], wanted.loss[finite], tolerance)
    assert (loss[~finite] == np.inf).all()
    scale = np.ones(len(loss)) if cotangent is None else cotangent.astype(np.float64)
    for grad, exact in zip(grads, wanted[1:], strict=True):
        assert_grad_close(grad, scale[:, None, None, None] * exact, tolerance)


@pytest.mark.parametrize("durations", DURATIONS, ids=str)
def test_enumeration(implementation: str, durations: tuple[int, ...]) -> None:
    """Against all paths of tiny lattices, anywhere in a batch."""
    options = {"durations": durations}
    problem = random_problem(0, 12, 4, 3, 5, durations)
    check(problem, implementation, 1e-12, options, lattice=oracles_tdt.by_enumeration)


@pytest.mark.parametrize("durations", DURATIONS, ids=str)
def test_float64(implementation: str, durations: tuple[int, ...]) -> None:
    """With all options, against the recursion."""
    options = {
        "durations": durations,
        "sigma": 0.05,
        "blank_id": 3,
        "fastemit_lambda": 0.3,
        "delay_penalty": 0.2,
        "clamp": 0.2,
    }
    rng = np.random.default_rng(1)
    logits = random_batch(rng, 10, 13, 6, 7, blank_id=3)
    shape = (10, 13, 7, len(durations))
    problem = Problem(logits.logits, rng.normal(size=shape), logits.labels, logits.lengths)
    check(problem, implementation, 1e-12, options, rng.normal(size=10))


@pytest.mark.parametrize("labels", [0, 1, 6, 7, 8, 14, 15, 16, 17, 30, 31, 32, 33, 64, 400])
def test_widths(labels: int) -> None:
    """Native kernels at widths U + 1 around those of vectors, in both precisions."""
    for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-12)):
        for durations in ((0, 1, 2), (1, 3)):
            problem = random_problem(labels, 4, 9, labels, 6, durations, dtype=dtype)
            check(problem, "native", tolerance, {"durations": durations})


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_long_float32(implementation: str, scale: float) -> None:
    """From flat to very peaked scores: losses and gradients to 1e-5."""
    durations = (0, 1, 2, 3, 4)
    problem = random_problem(2, 3, 250, 60, 8, durations, dtype=np.float32, scale=scale)
    check(problem, implementation, 1e-5, {"durations": durations})


def test_one_frame_each(implementation: str) -> None:
    """With a duration of 1 alone, it is the modified topology with a final blank."""
    batch = random_batch(
        np.random.default_rng(3), 8, 9, 5, 6, topology="modified", final_blank=True
    )
    loss, grad = run(batch, implementation, topology="modified", final_blank=True)
    problem = Problem(batch.logits, np.zeros((8, 9, 6, 1)), batch.labels, batch.lengths)
    found, (found_grad, duration_grad) = run_tdt(problem, implementation, durations=(1,))
    np.testing.assert_allclose(found, loss, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found_grad, grad, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(duration_grad, 0, atol=1e-13)


def test_numerical(implementation: str) -> None:
    """Numerical differentiation by both logits."""
    problem = random_problem(4, 4, 5, 3, 4, (0, 1, 2))

    def loss(*scores: jax.Array) -> jax.Array:
        return jax_rnnt.rnnt_loss_tdt(
            *scores,
            problem.labels,
            durations=(0, 1, 2),
            sigma=0.1,
            implementation=implementation,  # type: ignore[arg-type]
        )

    check_grads(jax.jit(loss), problem[:2], order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit(implementation: str, dtype: Any) -> None:
    """Losses are float32's, gradients are rounded to the dtype of each operand."""
    durations = (0, 1, 2)
    problem = random_problem(5, 4, 12, 5, 7, durations, dtype=dtype)
    problem = problem._replace(duration_logits=problem.duration_logits.astype(np.float32))
    wanted = expected(problem, durations=durations)
    loss, grads = run_tdt(problem, implementation, durations=durations)
    assert loss.dtype == np.float32 and grads[0].dtype == dtype and grads[1].dtype == np.float32
    assert_loss_close(loss, wanted.loss, 1e-5)
    assert_grad_close(grads[0], wanted.grad, float(jnp.finfo(dtype).eps))
    assert_grad_close(grads[1], wanted.duration_grad, 1e-5)


def test_without_alignment(implementation: str) -> None:
    """Steps of two frames do not end after three: +inf and zeros, and nothing of it elsewhere."""
    problem = random_problem(6, 3, 4, 2, 5, (2,))
    lengths = Lengths(np.array([3, 4, 0], np.int32), np.array([1, 1, 2], np.int32))
    problem = problem._replace(lengths=lengths)
    loss, grads = run_tdt(problem, implementation, durations=(2,))
    assert loss[0] == np.inf and np.isfinite(loss[1]) and loss[2] == np.inf
    for grad in grads:
        assert (grad[0] == 0).all() and (grad[2] == 0).all()
    assert (grads[0][1] != 0).any()


def test_large_durations_and_empty_shapes(implementation: str) -> None:
    """Durations beyond the utterance, no labels, no frames, no utterances."""
    options = {"durations": (0, 1, 50)}
    check(random_problem(7, 4, 6, 3, 5, (0, 1, 50)), implementation, 1e-12, options)
    for batch, frames, labels in ((2, 5, 0), (2, 0, 2), (0, 4, 2)):
        problem = Problem(
            np.zeros((batch, frames, labels + 1, 4)),
            np.zeros((batch, frames, labels + 1, 3)),
            np.ones((batch, labels), np.int32),
        )
        loss, grads = run_tdt(problem, implementation, **options)
        assert loss.shape == (batch,) and grads[1].shape == problem.duration_logits.shape
        assert np.isfinite(loss).all() == (frames > 0 or batch == 0)


def test_bad_scores_and_padding(implementation: str) -> None:
    """NaN and +inf give NaN and no gradient, wherever they are, and not to other utterances;
    padding may be anything, and `where` leaves utterances out.
    """
    durations = (0, 1, 2)
    clean = random_problem(8, 6, 7, 4, 5, durations)
    lengths = Lengths(np.full(6, 6, np.int32), np.full(6, 3, np.int32))
    clean = clean._replace(lengths=lengths)
    logits, duration_logits = clean.logits.copy(), clean.duration_logits.copy()
    logits[:, 6:], logits[:, :, 4:] = np.nan, np.inf
    duration_logits[:, 6:], duration_logits[:, :, 4:] = np.inf, np.nan
    logits[1, 0, 0, 2], duration_logits[2, 0, 0, 1] = np.nan, np.nan
    duration_logits[3, 5, 3, 0] = np.inf
    logits[4] = np.nan
    duration_logits[5, 1, 1, 1] = -np.inf  # a duration that is forbidden
    where = np.arange(6) != 4
    loss, grads = run_tdt(
        Problem(logits, duration_logits, clean.labels, lengths, where),
        implementation,
        durations=durations,
    )
    assert np.isnan(loss[1:4]).all() and loss[4] == 0
    for grad in grads:
        assert (grad[1:5] == 0).all()
        assert (grad[:, 6:] == 0).all() and (grad[:, :, 4:] == 0).all()
    duration_logits = np.where(np.isfinite(duration_logits), duration_logits, 0)
    duration_logits[5, 1, 1, 1] = -1e4
    wanted = expected(clean._replace(duration_logits=duration_logits), durations=durations)
    for i in (0, 5):
        np.testing.assert_allclose(loss[i], wanted.loss[i], rtol=1e-12)
        for grad, exact in zip(grads, wanted[1:], strict=True):
            assert_grad_close(grad[i : i + 1], exact[i : i + 1], 1e-12)


def test_far_from_certain(implementation: str) -> None:
    """Scores of -1e4 through long utterances are not forbidden."""
    durations = (0, 1, 2)
    T, U = 400, 3
    logits = np.zeros((1, T, U + 1, 2), np.float32)
    logits[..., 0] = -1e4  # blank
    duration_logits = np.zeros((1, T, U + 1, 3), np.float32)
    problem = Problem(logits, duration_logits, np.ones((1, U), np.int32))
    wanted = expected(problem, durations=durations)
    assert wanted.loss[0] > 1e6
    check(problem, implementation, 1e-5, {"durations": durations})


def test_transforms() -> None:
    """vmap, several batch dimensions, reductions and none."""
    durations = (0, 1, 3)
    problem = random_problem(9, 6, 8, 4, 5, durations)
    loss = functools.partial(jax_rnnt.rnnt_loss_tdt, durations=durations)
    t1, u1, t0, u0 = problem.lengths
    operands = (*problem[:3], t1 - t0, u1 - u0)
    flat = loss(*operands)
    np.testing.assert_allclose(jax.vmap(loss)(*operands), flat, rtol=1e-12)
    folded = [x.reshape(2, 3, *x.shape[1:]) for x in operands]
    np.testing.assert_allclose(loss(*folded), flat.reshape(2, 3), rtol=1e-12)
    np.testing.assert_allclose(loss(*operands, reduction="mean"), flat.mean(), rtol=1e-12)
    single = [x[0] for x in operands]
    np.testing.assert_allclose(loss(*single), flat[0], rtol=1e-12)


def test_sharded(devices: list[jax.Device]) -> None:
    """A batch divided among devices, under jit and in `shard_map`, is as on one."""
    durations = (0, 1, 2)
    problem = random_problem(10, 8, 6, 3, 5, durations)
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    spec = jax.sharding.PartitionSpec("batch")
    sharding = jax.sharding.NamedSharding(mesh, spec)

    def step(logits: Array, duration_logits: Array, labels: Array) -> Any:
        def losses(*scores: Array) -> jax.Array:
            return jax_rnnt.rnnt_loss_tdt(*scores, labels, durations=durations)

        value, vjp = jax.vjp(losses, logits, duration_logits)
        return value, vjp(jnp.ones_like(value))

    wanted = jax.jit(step)(*problem[:3])
    placed = jax.device_put(problem[:3], sharding)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=spec)
    for function in (step, mapped):
        found = jax.jit(function)(*placed)
        assert found[1][0].sharding.is_equivalent_to(sharding, 4)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.cpu_only("exported for a CPU and a TPU")
def test_export(implementation: str) -> None:
    """With a batch of any size; in pure JAX also for a TPU."""
    from jax.export import deserialize, export, symbolic_shape

    problem = random_problem(11, 4, 6, 3, 5, (0, 1, 2))

    def step(*operands: Array) -> Any:
        def loss(*scores: Array) -> jax.Array:
            return jax_rnnt.rnnt_loss_tdt(
                *scores,
                operands[2],
                durations=(0, 1, 2),
                implementation=implementation,  # type: ignore[arg-type]
            ).sum()

        return jax.value_and_grad(loss, (0, 1))(*operands[:2])

    (size,) = symbolic_shape("b")
    spec = [jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for x in problem[:3]]
    checks = jax_rnnt.disabled_export_checks()
    platforms = ["cpu", "tpu"] if implementation == "xla" else ["cpu"]
    exported = export(jax.jit(step), disabled_checks=checks, platforms=platforms)(*spec)
    calls_kernels = "custom_call @jax_rnnt" in exported.mlir_module()
    assert calls_kernels == (implementation == "native")
    for count in (4, 3):
        operands = [x[:count] for x in problem[:3]]
        found = deserialize(exported.serialize()).call(*operands)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(step(*operands)), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.cpu_only("what XLA plans for a CPU")
def test_memory() -> None:
    """Beside logits and gradients, some planes for each duration, whatever V is."""
    durations, cells, V = (0, 1, 2), 4 * 50 * 21, 400
    scores = [jax.ShapeDtypeStruct((4, 50, 21, n), jnp.float32) for n in (V, 3)]
    labels = jax.ShapeDtypeStruct((4, 20), jnp.int32)

    def loss(*operands: Array) -> jax.Array:
        return jax_rnnt.rnnt_loss_tdt(*operands, durations=durations).sum()

    step: Any = jax.jit(jax.grad(loss, (0, 1)))
    used = step.lower(*scores, labels).compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * cells * 12 * len(durations) < 4 * cells * V / 10


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"durations": (0, 2, 1)}, ValueError, r"durations is \(0, 2, 1\); expected increasing"),
        ({"durations": (0,)}, ValueError, "one of them positive"),
        ({"durations": ()}, ValueError, "one of them positive"),
        ({"durations": (1, 63)}, ValueError, "from 0 to 62"),
        ({"durations": (1, 1)}, ValueError, "increasing"),
        ({"durations": (-1, 1)}, ValueError, r"durations\[0\] is -1; expected durations\[0\] >= 0"),
        ({"durations": (0, 1.5)}, TypeError, r"durations\[1\] is 1.5"),
        ({"durations": 3}, TypeError, r"durations is 3; expected .* as \(0, 1, 2, 3, 4\)"),
        ({"durations": (0, 1)}, ValueError, r"duration_logits has shape .* = \(2, 3, 3, 2\)"),
        ({"sigma": float("nan")}, ValueError, "sigma is nan"),
        ({"sigma": -0.1}, ValueError, "sigma is -0.1; expected a finite number >= 0"),
        ({"duration_logits": np.zeros((2, 3, 3, 3), int)}, TypeError, "duration_logits has dtype"),
        ({"duration_logits": np.zeros((2, 3, 2, 3))}, ValueError, "duration_logits has shape"),
        ({"logits": np.zeros((3, 3))}, ValueError, "^logits has shape"),
        (  # both scores in one array
            {"duration_logits": np.ones((2, 2), np.int32), "labels": np.array([3, 3])},
            TypeError,
            "duration_logits has dtype int32",
        ),
        ({"labels": np.zeros((2, 2), int)}, ValueError, "labels other than blank"),
        ({"logit_lengths": np.array([4, 3])}, ValueError, "logit_lengths"),
        ({"implementation": "cuda"}, ValueError, "implementation"),
    ],
)
def test_bad_arguments(change: Options, error: type[Exception], message: str) -> None:
    """Errors name the argument, its value and what was expected."""
    arguments: Options = {
        "logits": np.zeros((2, 3, 3, 4)),
        "duration_logits": np.zeros((2, 3, 3, 3)),
        "labels": np.ones((2, 2), np.int32),
        "durations": (0, 1, 2),
    }
    with pytest.raises(error, match=message):
        jax_rnnt.rnnt_loss_tdt(**(arguments | change))
