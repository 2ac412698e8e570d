"""`rnnt_loss_pruned_joint` against the same loss of stored logits, and against differences."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Array
from jax.test_util import check_grads
from pruned_cases import TOPOLOGIES, PrunedBatch, random_pruned

import jax_rnnt

B, T, U, S, V, D = 5, 7, 4, 3, 5, 3


class Problem(NamedTuple):
    """What the losses are differentiated by, and the rest."""

    params: Any
    encoder: Array
    predictor: Array
    batch: PrunedBatch


def joint(params: Any, encoder: jax.Array, predictor: jax.Array) -> jax.Array:
    """A tanh joiner whose parameters have an integer leaf, too."""
    hidden = jnp.tanh(encoder @ params["encoder"] + predictor)
    hidden = jnp.roll(hidden, params["roll"], axis=-1)
    bias = params["bias"].reshape([1] * (hidden.ndim - 1) + [-1])
    return hidden @ params["out"] + bias


def random_problem(
    seed: int, frames: int = T, labels: int = U, dtype: Any = np.float64, **options: Any
) -> Problem:
    rng = np.random.default_rng(seed)
    batch = random_pruned(rng, B, frames, labels, S, V, **options)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), dtype)

    params = {
        "encoder": normal(D + 1, D),
        "out": normal(D, V),
        "bias": normal(V),
        "roll": jnp.int32(1),
    }
    return Problem(params, normal(B, frames, D + 1), normal(B, labels + 1, D), batch)


def arguments(batch: PrunedBatch, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "labels": batch.labels,
        "ranges": batch.ranges,
        **batch.lengths._asdict(),
        "where": batch.where,
        **options,
    }


def tiled(batch: PrunedBatch, **options: Any) -> Callable[..., jax.Array]:
    """The loss under test, by (params, encoder, predictor)."""

    def loss(*scores: Any) -> jax.Array:
        return jax_rnnt.rnnt_loss_pruned_joint(joint, *scores, **arguments(batch, options))

    return jax.jit(loss)


def stored(batch: PrunedBatch, **options: Any) -> Callable[..., jax.Array]:
    """The composition that it stands for."""

    def loss(params: Any, encoder: jax.Array, predictor: jax.Array) -> jax.Array:
        starts = jnp.clip(batch.ranges[..., :1], 0, U + 1 - S)  # those of padding are anything
        ranges = starts + np.arange(S, dtype=np.int32).reshape(1, 1, S)
        logits = joint(params, *jax_rnnt.do_rnnt_pruning(encoder, predictor, ranges))
        return jax_rnnt.rnnt_loss_pruned(logits, **arguments(batch, options))

    return jax.jit(loss)


def pulled_back(loss: Callable[..., jax.Array], problem: Problem, cotangent: Array) -> Any:
    """Loss and gradients by the parameters that have some, the encoder and the predictor."""
    value, vjp = jax.vjp(loss, *problem[:3])
    d_params, *rest = vjp(cotangent)
    assert d_params.pop("roll").dtype == jax.dtypes.float0
    return value, d_params, *rest


def assert_close(found: Any, wanted: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-12), found, wanted)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalization": "hat", "blank_id": -1},
        {"normalization": "none", "delay_penalty": 0.2},
        {"fastemit_lambda": 0.3, "clamp": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_as_with_stored_logits(topology: str, options: dict[str, Any]) -> None:
    """Value and all gradients, for tiles that do not divide the frames."""
    options = dict(options, topology=topology)
    names = {k: v for k, v in options.items() if k in ("topology", "blank_id")}
    problem = random_problem(0, **names)
    cotangent = np.random.default_rng(1).normal(size=B)
    found, wanted = (
        pulled_back(loss, problem, cotangent)
        for loss in (
            tiled(problem.batch, frames_per_tile=3, **options),
            stored(problem.batch, **options),
        )
    )
    assert np.isfinite(wanted[0]).all()
    assert_close(found, wanted)


@pytest.mark.parametrize("frames_per_tile", [None, 1, 4, 7, 100])
def test_any_tile(implementation: str, frames_per_tile: int | None) -> None:
    """The size of a tile makes no difference, nor does the implementation."""
    problem = random_problem(2)
    options: dict[str, Any] = {"implementation": implementation}
    found, wanted = (
        pulled_back(loss, problem, np.ones(B))
        for loss in (
            tiled(problem.batch, frames_per_tile=frames_per_tile, **options),
            stored(problem.batch, **options),
        )
    )
    assert_close(found, wanted)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_numerical(topology: str) -> None:
    """`check_grads` by the joiner's parameters, the encoder and the predictor."""
    problem = random_problem(3, topology=topology)
    function = tiled(problem.batch, frames_per_tile=2, topology=topology, delay_penalty=0.3)
    params = dict(problem.params)
    roll = params.pop("roll")

    def loss(params: Any, *rest: jax.Array) -> jax.Array:
        return function({**params, "roll": roll}, *rest)

    check_grads(loss, (params, *problem[1:3]), 1, modes=["rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("frames", "labels"), [(T, 0), (1, 2), (0, 2)])
def test_few_frames_or_labels(frames: int, labels: int) -> None:
    """Without labels, with one frame, and with none: as `rnnt_loss` of the whole lattice."""
    rng = np.random.default_rng(4)
    params = random_problem(4).params
    encoder, predictor = rng.normal(size=(2, frames, D + 1)), rng.normal(size=(2, labels + 1, D))
    targets = rng.integers(1, V, size=(2, labels))
    ranges = np.broadcast_to(np.arange(labels + 1, dtype=np.int32), (2, frames, labels + 1))

    def found(*scores: Any) -> jax.Array:
        return jax_rnnt.rnnt_loss_pruned_joint(joint, *scores, targets, ranges, frames_per_tile=2)

    def wanted(params: Any, encoder: jax.Array, predictor: jax.Array) -> jax.Array:
        shape = (2, frames, labels + 1)
        am = jnp.broadcast_to(encoder[:, :, None], (*shape, D + 1))
        lm = jnp.broadcast_to(predictor[:, None], (*shape, D))
        return jax_rnnt.rnnt_loss(joint(params, am, lm), targets)

    problem = Problem(
        params, jnp.asarray(encoder), jnp.asarray(predictor), PrunedBatch(*[None] * 3)
    )
    one, other = (pulled_back(jax.jit(f), problem, np.ones(2)) for f in (found, wanted))
    assert_close(one, other)


def test_padding_and_bad_utterances_have_no_effect() -> None:
    """NaN in padding, in an utterance with NaN in use and in one left out: others as before."""
    problem = random_problem(5)
    where = np.array([True, True, False, True, True])
    t = np.arange(T)[None]
    used = (t >= problem.batch.lengths.logit_begins[:, None]) & (
        t < problem.batch.lengths.logit_lengths[:, None]
    )
    bad = int(np.argmax(used.sum(1) * where))
    encoder = jnp.where((used & where[:, None])[..., None], problem.encoder, jnp.nan)
    encoder = encoder.at[bad].set(jnp.nan)
    kept = where & (np.arange(B) != bad)
    found = pulled_back(
        tiled(problem.batch._replace(where=where), frames_per_tile=3),
        problem._replace(encoder=encoder),
        np.ones(B),
    )
    wanted = pulled_back(tiled(problem.batch._replace(where=kept)), problem, np.ones(B))
    assert np.isnan(found[0][bad])
    np.testing.assert_allclose(found[0][kept], wanted[0][kept], rtol=1e-12)
    assert_close(found[1:], wanted[1:])


def test_bfloat16() -> None:
    """Gradients have the dtypes of what they are by, and are about those in float64."""
    problem = random_problem(7, dtype=jnp.bfloat16)
    found = pulled_back(tiled(problem.batch, frames_per_tile=2), problem, np.ones(B, np.float32))
    exact = problem._replace(
        **{
            name: jax.tree.map(
                lambda x: x.astype(jnp.float64) if x.dtype == jnp.bfloat16 else x, value
            )
            for name, value in problem._asdict().items()
            if name != "batch"
        }
    )
    wanted = pulled_back(stored(problem.batch), exact, np.ones(B))
    assert found[0].dtype == jnp.float32
    np.testing.assert_allclose(found[0], wanted[0], rtol=0.02)
    for x, y in zip(jax.tree.leaves(found[1:]), jax.tree.leaves(wanted[1:]), strict=True):
        assert x.dtype == jnp.bfloat16
        error = np.linalg.norm(x.astype(np.float64) - y) / np.linalg.norm(y)
        assert error < 0.03


@pytest.mark.cpu_only("so little memory that the workspace of a GPU's matrix products counts")
@pytest.mark.parametrize("classes", [13, 16, 28])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_linear_joint(monkeypatch: pytest.MonkeyPatch, classes: int, bias: bool) -> None:
    """Spare classes in tiles, and tiles that overlap to have multiples of eight rows."""
    monkeypatch.setattr("jax_rnnt.pruned_joint.default_rows_per_tile", lambda *_: 340)
    rng = np.random.default_rng(19)
    size, frames, labels, width, cells = 3, 70, 6, 4, 3
    params = {"kernel": jnp.asarray(rng.normal(size=(width, classes)))}
    if bias:
        params["bias"] = jnp.asarray(rng.normal(size=classes))
    rows = [jnp.asarray(rng.normal(size=(size, n, width))) for n in (frames, labels + 1)]
    targets = rng.integers(1, classes, size=(size, labels))
    starts = np.minimum(np.arange(frames) // 10, labels + 1 - cells)
    ranges = np.tile(starts[:, None] + np.arange(cells), (size, 1, 1))

    def found(params: Any, *rows: jax.Array) -> jax.Array:
        network = jax_rnnt.LinearJoint()
        return jax_rnnt.rnnt_loss_pruned_joint(
            network, params, *rows, targets, ranges, reduction="sum"
        )

    def wanted(params: Any, *rows: jax.Array) -> jax.Array:
        encoder, predictor = jax_rnnt.do_rnnt_pruning(*rows, ranges)
        offsets = params.get("bias", jnp.zeros(classes))[None, None, None]
        logits = jnp.tanh(encoder + predictor) @ params["kernel"] + offsets
        return jax_rnnt.rnnt_loss_pruned(logits, targets, ranges, reduction="sum")

    result, expected = (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(params, *rows)
        for loss in (found, wanted)
    )
    assert np.isfinite(expected[0])
    assert_close(result, expected)


@pytest.mark.parametrize(
    ("frames", "classes", "width", "frames_per_tile"), [(400, 500, 32, 10), (4000, 8, 512, None)]
)
def test_memory_does_not_grow_with_logits(
    monkeypatch: pytest.MonkeyPatch,
    frames: int,
    classes: int,
    width: int,
    frames_per_tile: int | None,
) -> None:
    """Temporaries of value and gradient are far below the size of the pruned logits, or of the
    rows of encoder or predictor, if these are wider.
    """
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    count, labels = 4, 30
    size = 4 * count * frames * S * max(classes, width)

    def loss(weights: jax.Array, encoder: jax.Array, predictor: jax.Array, *rest: jax.Array):
        return jax_rnnt.rnnt_loss_pruned_joint(
            lambda w, am, lm: jnp.tanh(am + lm) @ w, weights, encoder, predictor, *rest,
            reduction="sum", frames_per_tile=frames_per_tile,
        )  # fmt: skip

    def float32(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    integers = [
        jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((count, labels), (count, frames, S))
    ]
    operands = (
        float32(width, classes), float32(count, frames, width), float32(count, labels + 1, width),
    )  # fmt: skip
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    memory = step.lower(*operands, *integers).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.2 * size


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"frames_per_tile": 0}, ValueError, "frames_per_tile is 0"),
        ({"frames_per_tile": 2.5}, TypeError, "frames_per_tile is 2.5"),
        ({"predictor_out": np.zeros((B, U, D))}, ValueError, "predictor_out has shape"),
        ({"encoder_out": np.zeros((B, T + 1, D + 1))}, ValueError, "encoder_out"),
        ({"joint_fn": lambda p, am, lm: am[..., 0, :]}, ValueError, "joint_fn returned logits of"),
        ({"joint_fn": lambda p, am, lm: (am, lm)}, TypeError, "joint_fn returned a tuple"),
        ({"joint_fn": lambda p, am, lm: am > 0}, TypeError, "of dtype bool"),
        ({"blank_id": V}, ValueError, "blank_id"),
        ({"clamp": "much"}, TypeError, "clamp"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else str(x),
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    """Errors name the argument."""
    problem = random_problem(8)
    named = {
        "joint_fn": joint,
        "params": problem.params,
        "encoder_out": problem.encoder,
        "predictor_out": problem.predictor,
        **arguments(problem.batch, {}),
    }
    with pytest.raises(error, match=message):
        jax_rnnt.rnnt_loss_pruned_joint(**{**named, **change})


def with_dropout(params: Any, encoder: jax.Array, predictor: jax.Array, keys: Any) -> jax.Array:
    """`joint`, each of whose cells keeps other outputs of the encoder. For rows of any rank."""
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 0.6, (D + 1,)))
    kept = keep(keys.reshape(-1)).reshape(*keys.shape, D + 1)
    return joint(params, jnp.where(kept, encoder, 0), predictor)


class TestDropout:
    """`rng` gives each cell its own key."""

    @staticmethod
    def everywhere(batch: PrunedBatch) -> PrunedBatch:
        """With a band that has all label positions."""
        ranges = np.broadcast_to(np.arange(U + 1, dtype=np.int32), (B, T, U + 1))
        return batch._replace(ranges=ranges)

    def loss(self, batch: PrunedBatch, rng: Any, **options: Any) -> Callable[..., jax.Array]:
        given = arguments(self.everywhere(batch), {"rng": rng, **options})
        return jax.jit(
            lambda *scores: jax_rnnt.rnnt_loss_pruned_joint(with_dropout, *scores, **given)
        )

    @pytest.mark.parametrize("frames_per_tile", [None, 1, 3])
    def test_as_the_exact_loss(self, frames_per_tile: int | None) -> None:
        """A cell drops the same in both losses, whatever the tiles: without pruning, all agrees."""
        problem, rng = random_problem(20), jax.random.key(1)
        given = arguments(problem.batch, {"rng": rng, "rows_per_tile": 5})
        given.pop("ranges")

        def exact(*scores: Any) -> jax.Array:
            return jax_rnnt.rnnt_loss_joint(with_dropout, *scores, **given)

        cotangent = np.random.default_rng(1).normal(size=B)
        tiles = {"frames_per_tile": frames_per_tile}
        found, wanted, other = (
            pulled_back(loss, problem, cotangent)
            for loss in (
                self.loss(problem.batch, rng, **tiles),
                jax.jit(exact),
                self.loss(problem.batch, jax.random.key(2), **tiles),
            )
        )
        assert_close(found, wanted)
        assert not np.allclose(other[0], wanted[0])

    @pytest.mark.parametrize("rng", [jax.random.key(3), jax.random.PRNGKey(3)], ids=["key", "raw"])
    def test_gradient(self, rng: jax.Array) -> None:
        """The backward pass sees the masks of the forward pass."""
        problem = random_problem(21)
        loss = self.loss(problem.batch, rng, frames_per_tile=3, reduction="sum")
        roll = problem.params["roll"]

        def of_variables(variables: Any, *rows: Any) -> jax.Array:
            return loss({**variables, "roll": roll}, *rows)

        variables = {name: x for name, x in problem.params.items() if name != "roll"}
        operands = variables, problem.encoder, problem.predictor
        check_grads(of_variables, operands, 1, modes=["rev"], atol=1e-6, rtol=1e-6)

    def test_no_frames(self) -> None:
        problem = random_problem(23, frames=0)
        operands = *problem[:3], problem.batch.labels, problem.batch.ranges
        rng = jax.random.key(0)
        losses = jax_rnnt.rnnt_loss_pruned_joint(with_dropout, *operands, rng=rng)
        np.testing.assert_array_equal(losses, np.full(B, np.inf))

    def test_function_without_keys(self) -> None:
        problem = random_problem(22)
        given = arguments(problem.batch, {"rng": jax.random.key(0)})
        with pytest.raises(TypeError, match="with rng, it gets a key for each row"):
            jax_rnnt.rnnt_loss_pruned_joint(joint, *problem[:3], **given)
