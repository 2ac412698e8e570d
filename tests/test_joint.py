"""`rnnt_loss_joint` against `rnnt_loss` of stored logits, and against differences."""

from __future__ import annotations

import functools
import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Batch, Lengths, each_topology
from jax.test_util import check_grads
from joint_cases import (
    B,
    D,
    Problem,
    T,
    U,
    V,
    assert_close,
    constants,
    dense,
    joint,
    pulled_back,
    random_problem,
    rest_of,
    tiled,
)

import jax_rnnt
from jax_rnnt.boxes import BoxGrid
from jax_rnnt.joint_function import default_rows_per_tile


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
@pytest.mark.parametrize("topology", **each_topology)
def test_as_with_stored_logits(topology: dict[str, Any], options: dict[str, Any]) -> None:
    """Value and all gradients, lengths and begins random, one utterance without a cell."""
    options = {**options, **topology}
    problem = random_problem(0, **options)
    cotangent = np.random.default_rng(1).normal(size=B)
    found, wanted = (
        pulled_back(loss(**options), problem, cotangent)
        for loss in (lambda **o: tiled(rows_per_tile=300, **o), dense)
    )
    assert np.isfinite(wanted[0]).all()
    assert_close(found, wanted)


@pytest.mark.parametrize("rows_per_tile", [None, 1, 7, 50, 10000])
def test_any_tile(rows_per_tile: int | None) -> None:
    """The size of a tile makes no difference."""
    problem = random_problem(2)
    found = pulled_back(tiled(rows_per_tile=rows_per_tile), problem)
    assert_close(found, pulled_back(dense(), problem))


def test_pure_jax() -> None:
    problem = random_problem(3)
    options: dict[str, Any] = {"implementation": "xla", "topology": "constrained"}
    found = pulled_back(tiled(rows_per_tile=64, **options), problem)
    assert_close(found, pulled_back(dense(**options), problem))


@pytest.mark.parametrize("topology", **each_topology)
def test_numerical(topology: dict[str, Any]) -> None:
    """`check_grads` by the joiner's parameters, the encoder and the predictor."""
    problem = random_problem(4, size=(3, 5, 3), **topology)
    rest = rest_of(problem.batch)
    loss = jax.jit(lambda *x: tiled(rows_per_tile=8, delay_penalty=0.3, **topology)(*x, rest))
    check_grads(loss, problem[:3], 1, modes=["rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("count", "frames", "labels"), [(2, T, 0), (2, 1, 2), (2, 0, 2), (0, 3, 2), (1, 1, 0)]
)
def test_few_frames_or_labels(count: int, frames: int, labels: int) -> None:
    """Without labels, with one frame, with none, and without utterances."""
    size = (count, frames, labels)
    problem = random_problem(5, size=(max(count, 2), max(frames, 1), labels))
    targets = np.ones((count, labels), np.int32)
    problem = Problem(
        problem.variables,
        problem.encoder[:count, :frames],
        problem.predictor[:count],
        Batch(None, targets),
    )
    found = pulled_back(tiled(), problem)
    wanted = pulled_back(dense(), problem)
    assert found[0].shape == size[:1]
    assert_close(found, wanted)


def test_no_batch_dimension_and_two() -> None:
    problem = random_problem(6, size=(4, T, U))
    wanted = pulled_back(dense(), problem)
    rest = rest_of(problem.batch)
    rows = (*problem[1:3], rest)
    alone = jax.tree.map(lambda x: x[0], rows)
    one = jax.jit(tiled())(problem.variables, *alone)
    np.testing.assert_allclose(one, wanted[0][0], rtol=1e-12)
    squares = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), rows)
    found = jax.jit(tiled())(problem.variables, *squares)
    np.testing.assert_allclose(found.ravel(), wanted[0], rtol=1e-12)


def test_padding_and_bad_utterances_have_no_effect() -> None:
    """NaN in padding, in an utterance with NaN in use and in one left out: others as before."""
    problem = random_problem(7)
    t1, u1, t0, u0 = (np.asarray(x)[:, None] for x in problem.batch.lengths)
    where = np.array([True, True, False, True, True])
    bad = 0  # the whole lattice
    t, u = np.arange(T)[None], np.arange(U + 1)[None]
    in_frame, in_position = (t0 <= t) & (t < t1), (u0 <= u) & (u <= u1)
    kept = where & (np.arange(B) != bad)
    encoder = jnp.where((in_frame & kept[:, None])[..., None], problem.encoder, jnp.nan)
    predictor = jnp.where((in_position & where[:, None])[..., None], problem.predictor, jnp.inf)
    found = pulled_back(
        tiled(rows_per_tile=100),
        problem._replace(
            encoder=encoder, predictor=predictor, batch=problem.batch._replace(where=where)
        ),
    )
    wanted = pulled_back(dense(), problem._replace(batch=problem.batch._replace(where=kept)))
    assert np.isnan(found[0][bad])
    np.testing.assert_allclose(found[0][kept], wanted[0][kept], rtol=1e-12)
    assert_close(found[1], wanted[1])


def test_utterance_without_alignment() -> None:
    """More labels than frames, one label a frame: +inf, and no gradient."""
    problem = random_problem(8)
    ranges = Lengths(np.array([T, 3, T, 4, T], np.int32), np.array([U, 5, 2, 4, 0], np.int32))
    problem = problem._replace(batch=Batch(None, problem.batch.labels, ranges))
    found = pulled_back(tiled(topology="modified", rows_per_tile=64), problem)
    assert_close(found, pulled_back(dense(topology="modified"), problem))
    assert np.isposinf(found[0][1])
    assert not np.any(found[1][1][1])


def test_improbable_boxes_are_skipped() -> None:
    """Peaked posteriors: the same gradients, though most boxes are left out."""
    problem = random_problem(9, size=(2, 64, 32))
    problem = problem._replace(
        variables={**problem.variables, "out": 40 * problem.variables["out"]}
    )
    counted = []

    def counting(params: Any, encoder: jax.Array, predictor: jax.Array) -> jax.Array:
        jax.debug.callback(lambda n: counted.append(int(n)), jnp.int32(encoder.shape[0]))
        return joint(params, encoder, predictor)

    def loss(variables: Any, encoder: Any, predictor: Any, rest: Any) -> jax.Array:
        params = {**variables, **constants()}
        return jax_rnnt.rnnt_loss_joint(
            counting, params, encoder, predictor, **rest, rows_per_tile=16
        )

    found = pulled_back(loss, problem)
    jax.effects_barrier()
    total = sum(counted)
    counted.clear()
    jax.block_until_ready(jax.jit(loss)(*problem[:3], rest_of(problem.batch)))
    jax.effects_barrier()
    assert total - sum(counted) < 0.6 * sum(counted)
    assert_close(found, pulled_back(dense(), problem))


def test_label_windows() -> None:
    """As with stored logits; utterance 1 has no alignment that fits."""
    problem = random_problem(19, size=(2, T, U))
    problem = problem._replace(batch=Batch(None, problem.batch.labels))
    u = np.arange(U)
    windows = np.stack([np.stack([u, u + 8], axis=-1), np.stack([U - u, U - u + 1], axis=-1)])
    options = {"label_windows": windows.astype(np.int32), "topology": "modified"}
    found = pulled_back(tiled(rows_per_tile=200, **options), problem)
    assert_close(found, pulled_back(dense(**options), problem))
    assert np.isposinf(found[0][1]) and np.isfinite(found[0][0])


def test_reductions() -> None:
    problem = random_problem(10)
    rest = {**rest_of(problem.batch), "where": np.array([True, False, True, True, False])}
    for reduction in ("mean", "sum"):
        found = jax.jit(tiled(reduction=reduction))(*problem[:3], rest)
        wanted = jax.jit(dense(reduction=reduction))(*problem[:3], rest)
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_narrow_dtypes(dtype: Any) -> None:
    """As near to float64 as stored logits are, and gradients in the dtypes of the operands."""
    problem = random_problem(11, dtype=dtype)
    found = pulled_back(tiled(rows_per_tile=128), problem)
    stored = pulled_back(dense(), problem)
    wide = problem._replace(
        **{
            name: jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), getattr(problem, name))
            for name in ("variables", "encoder", "predictor")
        }
    )
    exact = pulled_back(dense(), wide)

    def error(x: Any, y: Any) -> float:
        return float(np.linalg.norm(np.float64(x) - y) / max(np.linalg.norm(y), 1e-30))

    assert found[0].dtype == jnp.float32
    for x, y, z in zip(*map(jax.tree.leaves, (found, stored, exact)), strict=True):
        assert x.dtype == y.dtype
        assert error(x, z) <= 1.5 * error(y, z) + 4 * jnp.finfo(jnp.float32).eps


def test_random_key_among_the_parameters() -> None:
    problem = random_problem(18)
    rest = rest_of(problem.batch)

    def noisy(params: Any, encoder: jax.Array, predictor: jax.Array) -> jax.Array:
        noise = jax.random.normal(params["key"], (1, V))
        return joint({**params["rest"], **constants()}, encoder, predictor) + noise

    def loss(variables: Any) -> jax.Array:
        params = {"key": jax.random.key(1), "rest": variables}
        return jax_rnnt.rnnt_loss_joint(
            noisy, params, problem.encoder, problem.predictor, **rest, reduction="sum"
        )

    noise = jax.random.normal(jax.random.key(1), (1, V))
    biased = {**problem.variables, "bias": problem.variables["bias"] + noise.ravel()}
    found = jax.jit(jax.value_and_grad(loss))(problem.variables)
    wanted = jax.value_and_grad(lambda x: dense(reduction="sum")(x, *problem[1:3], rest))(biased)
    assert_close(found, wanted)


class TestDropout:
    """`rng` gives each cell its own key."""

    @staticmethod
    def loss(variables: Any, encoder: Any, predictor: Any, rest: Any, **options: Any) -> jax.Array:
        def with_dropout(params: Any, encoder: Any, predictor: Any, keys: Any) -> jax.Array:
            hidden = jnp.tanh(encoder @ params["encoder"] + predictor)
            kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.6, (D,)))(keys)
            return jnp.where(kept, hidden, 0) @ params["out"] + params["bias"].reshape(1, V)

        return jax_rnnt.rnnt_loss_joint(
            with_dropout, variables, encoder, predictor, **rest, **options
        )

    def test_does_not_depend_on_tiles_or_padding(self) -> None:
        problem = random_problem(12)
        rng = jax.random.key(1)
        wanted = pulled_back(lambda *x: self.loss(*x, rng=rng, rows_per_tile=5), problem)
        padded = problem._replace(
            encoder=jnp.pad(problem.encoder, ((0, 0), (0, 4), (0, 0))),
            predictor=jnp.pad(problem.predictor, ((0, 0), (0, 3), (0, 0))),
            batch=problem.batch._replace(labels=np.pad(problem.batch.labels, ((0, 0), (0, 3)))),
        )
        found = pulled_back(lambda *x: self.loss(*x, rng=rng), padded)
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-12)
        assert_close(found[1][1][:, :T], wanted[1][1])
        other = pulled_back(lambda *x: self.loss(*x, rng=jax.random.key(2)), problem)[0]
        assert not np.allclose(other[0], wanted[0][0])

    @pytest.mark.parametrize("rng", [jax.random.key(3), jax.random.PRNGKey(3)], ids=["key", "raw"])
    def test_gradient(self, rng: jax.Array) -> None:
        """The backward pass sees the masks of the forward pass."""
        problem = random_problem(13, size=(2, 4, 2))
        rest = rest_of(problem.batch)
        loss = jax.jit(partial(self.loss, rest=rest, rng=rng, rows_per_tile=3))
        check_grads(loss, problem[:3], 1, modes=["rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_linear_joint(activation: Any, dtype: Any) -> None:
    """The ready-made joint network; the kernel's gradient is summed in float32."""
    rng = np.random.default_rng(14)
    params = {"kernel": jnp.asarray(rng.normal(size=(D, V)), dtype), "bias": jnp.zeros(V, dtype)}
    encoder, predictor = (jnp.asarray(rng.normal(size=(3, n, D)), dtype) for n in (40, 9))
    labels = rng.integers(1, V, size=(3, 8))
    network = jax_rnnt.LinearJoint(activation)

    def found(params: Any, encoder: jax.Array, predictor: jax.Array) -> jax.Array:
        return jax_rnnt.rnnt_loss_joint(
            network, params, encoder, predictor, labels, reduction="sum", rows_per_tile=64
        )

    def wanted(params: Any, encoder: jax.Array, predictor: jax.Array) -> jax.Array:
        hidden = encoder[:, :, None] + predictor[:, None]
        hidden = jnp.tanh(hidden) if activation == "tanh" else jnp.maximum(hidden, 0)
        logits = hidden @ params["kernel"] + params["bias"].reshape(1, 1, 1, V)
        return jax_rnnt.rnnt_loss(logits, labels, reduction="sum")

    operands = params, encoder, predictor
    wide = jax.tree.map(lambda x: x.astype(jnp.float64), operands)
    exact = jax.jit(jax.value_and_grad(wanted, argnums=(0, 1, 2)))(*wide)
    result = jax.jit(jax.value_and_grad(found, argnums=(0, 1, 2)))(*operands)
    tolerance = 1e-10 if dtype == jnp.float64 else 0.02
    assert jax.tree.all(jax.tree.map(lambda x: x.dtype == dtype, result[1]))
    assert_close(jax.tree.map(lambda x: x.astype(jnp.float64), result), exact, tolerance)


@pytest.mark.parametrize("classes", [13, 16, 28, 100])
@pytest.mark.parametrize("bias", [float, int, None])
@pytest.mark.parametrize("normalization", ["softmax", "hat", "none"])
def test_linear_joint_classes(classes: int, bias: Any, normalization: Any) -> None:
    """Spare classes, which there may be in tiles, change nothing; nor do parameters it ignores."""
    rng = np.random.default_rng(19)
    params = {"kernel": jnp.asarray(rng.normal(size=(D, classes))), "other": jnp.ones(2)}
    if bias:
        params["bias"] = jnp.asarray(2 * rng.normal(size=classes)).astype(bias)
    encoder, predictor = (jnp.asarray(rng.normal(size=(2, n, D))) for n in (7, 5))
    labels = rng.integers(1, classes, size=(2, 4)) - 1
    options = {
        "normalization": normalization, "blank_id": classes - 1, "clamp": 0.3, "reduction": "sum",
    }  # fmt: skip

    def found(params: Any, encoder: jax.Array, predictor: jax.Array) -> jax.Array:
        network = jax_rnnt.LinearJoint()
        return jax_rnnt.rnnt_loss_joint(network, params, encoder, predictor, labels, **options)

    def wanted(params: Any, encoder: jax.Array, predictor: jax.Array) -> jax.Array:
        hidden = jnp.tanh(encoder[:, :, None] + predictor[:, None])
        offsets = params.get("bias", jnp.zeros(classes)).astype(float)
        logits = hidden @ params["kernel"] + offsets[None, None, None]
        return jax_rnnt.rnnt_loss(logits, labels, **options)

    operands = params, encoder, predictor
    result, expected = (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), allow_int=True))(*operands)
        for loss in (found, wanted)
    )
    if bias is int:
        del result[1][0]["bias"], expected[1][0]["bias"]  # there are none
    assert_close(result, expected)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (np.ones((3, 5)), TypeError, "params is a .*; expected a mapping with 'kernel'"),
        ({"kernel": [[1.0]]}, TypeError, r"params\['kernel'\] is a list; expected an array"),
        ({"weight": np.ones((3, 5))}, TypeError, r"params has the keys \['weight'\]"),
        ({"kernel": np.ones((2, 5))}, ValueError, r"\['kernel'\] has shape \(2, 5\).*D = 3"),
        (
            {"kernel": np.ones((3, 5)), "bias": np.ones(4)},
            ValueError,
            "'bias'. has shape .4,.;.*V,. = .5,",
        ),
        ({"kernel": np.ones((4, 5))}, ValueError, "predictor_out has 3 features and encoder_out 4"),
    ],
    ids=["array", "list", "keys", "kernel", "bias", "features"],
)
def test_bad_parameters_of_linear_joint(params: Any, error: type[Exception], message: str) -> None:
    features = 4 if "features" in message else 3
    rows = np.ones((1, 2, features)), np.ones((1, 2, 3))
    with pytest.raises(error, match=message):
        jax_rnnt.rnnt_loss_joint(jax_rnnt.LinearJoint(), params, *rows, np.ones((1, 1), int))


def test_nnx_module() -> None:
    """A Flax NNX module as the joint network: its state is the parameters."""
    nnx = pytest.importorskip("flax.nnx", reason="NEEDS flax: pip install 'jax-rnnt[examples]'")
    problem = random_problem(15)
    layer = nnx.Linear(D, V, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    graph, state = nnx.split(layer)

    def network(state: Any, encoder: jax.Array, predictor: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(jnp.tanh(encoder[:, :D] + predictor))

    rest = rest_of(problem.batch)

    def found(state: Any) -> jax.Array:
        return jax_rnnt.rnnt_loss_joint(
            network, state, problem.encoder, problem.predictor, **rest, reduction="sum"
        )

    def wanted(state: Any) -> jax.Array:
        hidden = problem.encoder[:, :, None, :D] + problem.predictor[:, None]
        return jax_rnnt.rnnt_loss(
            nnx.merge(graph, state)(jnp.tanh(hidden)), **rest, reduction="sum"
        )

    with jax.numpy_rank_promotion("allow"):  # Flax adds biases so
        results = [jax.jit(jax.value_and_grad(f))(state) for f in (found, wanted)]
    assert_close(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]))


def test_what_the_function_closes_over() -> None:
    """Constants are fine; a traced value is an error that says what to do."""
    problem = random_problem(16)
    rest = rest_of(problem.batch)
    out = jnp.asarray(np.random.default_rng(0).normal(size=(D, V)))

    def loss(out: jax.Array) -> jax.Array:
        return jax_rnnt.rnnt_loss_joint(
            lambda params, encoder, predictor: jnp.tanh(encoder[:, :D] + predictor) @ out,
            {}, problem.encoder, problem.predictor, **rest,
        )  # fmt: skip

    hidden = jnp.tanh(problem.encoder[:, :, None, :D] + problem.predictor[:, None])
    np.testing.assert_allclose(loss(out), jax_rnnt.rnnt_loss(hidden @ out, **rest), rtol=1e-12)
    for transform in (jax.jit, jax.jacrev):
        with pytest.raises(TypeError, match=r"closes over a traced value, float64\[3,6\].*params"):
            transform(loss)(out)


def test_constants_that_depend_on_the_number_of_rows() -> None:
    """An error, not the constants of another number; the same ones may be made anew."""
    problem = random_problem(16)
    rest = rest_of(problem.batch)
    few, many = (jnp.asarray(np.random.default_rng(i).normal(size=(D, V))) for i in range(2))
    key = jax.random.key(0)

    def loss(constants: Any) -> jax.Array:
        def joint(params: Any, encoder: jax.Array, predictor: jax.Array) -> jax.Array:
            out, *more = constants(encoder.shape[0])
            return jnp.tanh(encoder[:, :D] + predictor) @ sum(more, out)

        return jax_rnnt.rnnt_loss_joint(joint, {}, problem.encoder, problem.predictor, **rest)

    for chosen in (lambda n: [few if n == 2 else many], lambda n: [few] + [many] * (n > 2)):
        with pytest.raises(TypeError, match=r"closes over different arrays.*Pass the arrays"):
            loss(chosen)
    anew = np.asarray(few), float(jax.random.normal(key))
    found = loss(lambda n: [jnp.asarray(anew[0]), jax.random.normal(key)])
    hidden = jnp.tanh(problem.encoder[:, :, None, :D] + problem.predictor[:, None])
    wanted = jax_rnnt.rnnt_loss(hidden @ (anew[0] + anew[1]), **rest)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rows_per_tile": 0}, ValueError, "rows_per_tile is 0"),
        ({"rows_per_tile": 2.5}, TypeError, "rows_per_tile is 2.5"),
        ({"encoder_out": np.zeros(3)}, ValueError, r"encoder_out has shape \(3,\)"),
        ({"encoder_out": np.zeros((B, T, 4), int)}, TypeError, "encoder_out has dtype int64"),
        ({"predictor_out": np.zeros((B + 1, U + 1, D))}, ValueError, "predictor_out has shape"),
        ({"predictor_out": np.zeros((B, 0, D))}, ValueError, "predictor_out .* start symbol"),
        ({"joint_fn": lambda p, am, lm: am[0]}, ValueError, "joint_fn returned logits of shape"),
        ({"joint_fn": lambda p, am, lm: (am, lm)}, TypeError, "joint_fn returned a tuple"),
        ({"joint_fn": lambda p, am, lm: am > 0}, TypeError, "of dtype bool"),
        (
            {"joint_fn": lambda p, am: am},
            TypeError,
            r"arguments \(p, am\).*predictor_rows\)",
        ),
        ({"rng": jax.random.key(0)}, TypeError, "predictor_rows, keys.: with rng, it gets a key"),
        ({"joint_fn": None}, TypeError, r"joint_fn is None.*\(params, encoder_rows, predictor_r"),
        ({"joint_fn": jax_rnnt.LinearJoint}, TypeError, r"class LinearJoint.*LinearJoint\(\)"),
        ({"labels": np.ones((B, U + 1), int)}, ValueError, "labels .* have U.1 label positions"),
        (
            {"labels": np.ones((B, T - 1), int)},
            ValueError,
            "T = 19 frames: are encoder_out and predictor_out swapped",
        ),
        ({"rng": 1}, TypeError, "rng is 1"),
        ({"rng": jax.random.split(jax.random.key(0))}, ValueError, r"rng has shape \(2,\)"),
        ({"labels": np.zeros((B, U), int)}, ValueError, "labels.*blank"),
        ({"blank_id": V}, ValueError, "blank_id"),
        ({"clamp": "much"}, TypeError, "clamp"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else None,
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    """Errors name the argument."""
    problem = random_problem(17)
    named = {
        "joint_fn": joint,
        "params": {**problem.variables, **constants()},
        "encoder_out": problem.encoder,
        "predictor_out": problem.predictor,
        **rest_of(problem.batch),
    }
    with pytest.raises(error, match=message):
        jax_rnnt.rnnt_loss_joint(**{**named, **change})


def test_function_that_wraps_another() -> None:
    """It is called with its own arguments, whatever those of the other are."""

    def scaled(scale: float, params: Any, encoder: Any, predictor: Any) -> jax.Array:
        return scale * joint(params, encoder, predictor)

    @functools.wraps(scaled)
    def wrapped(*arguments: Any) -> jax.Array:
        return scaled(1.0, *arguments)

    problem = random_problem(17)
    rows = {**problem.variables, **constants()}, problem.encoder, problem.predictor
    losses = [
        jax_rnnt.rnnt_loss_joint(f, *rows, **rest_of(problem.batch)) for f in (joint, wrapped)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-12)


def test_no_leaked_tracers() -> None:
    """JAX keeps the functions of a loop for good, and with them what these close over."""
    problem = random_problem(18, size=(2, 5, 3))
    ranges = np.broadcast_to(np.arange(4), (2, 5, 4))

    def losses(variables: Any, encoder: jax.Array) -> jax.Array:
        params = {**variables, **constants()}
        operands = joint, params, encoder, problem.predictor, problem.batch.labels
        pruned = jax_rnnt.rnnt_loss_pruned_joint(*operands, ranges)
        return jnp.sum(jax_rnnt.rnnt_loss_joint(*operands) + pruned)

    with jax.checking_leaks():
        jax.jit(jax.grad(losses, (0, 1)))(problem.variables, problem.encoder)


@pytest.mark.parametrize("boxes_per_tile", [1, 3, 8, 100])
def test_sums_of_boxes(boxes_per_tile: int) -> None:
    """Rows of boxes that share frames or positions are all added; a NaN stays in its own rows."""
    rng = np.random.default_rng(0)
    grid = BoxGrid(batch=3, T=10, W=7, box_frames=4, box_positions=2, boxes_per_tile=boxes_per_tile)
    visited = rng.random((3, grid.rows, grid.columns)) < 0.7
    visited[1] = True
    tiles = grid.tiles(jnp.asarray(visited))
    values = rng.normal(size=(grid.num_boxes, 4 + 2, 5))
    values[grid.rows * grid.columns :][:1] = np.nan  # the first box of the second utterance
    of_frames, of_positions = jnp.zeros((3, 10, 5)), jnp.zeros((3, 7, 5))
    for index in range(int(tiles.number)):
        tile = grid.tile(tiles, jnp.int32(index))
        rows = values[np.minimum(tile.boxes, grid.num_boxes - 1)]
        of_frames = grid.add_to_frames(of_frames, tile, jnp.asarray(rows[:, :4]))
        of_positions = grid.add_to_positions(of_positions, tile, jnp.asarray(rows[:, 4:]))
    boxed = np.where(visited.reshape(-1, 1, 1), values, 0).reshape(3, grid.rows, grid.columns, 6, 5)
    wanted = boxed[:, :, :, :4].sum(2), boxed[:, :, :, 4:].sum(1)
    assert np.isnan(wanted[0]).sum() == 4 * 5 and np.isnan(wanted[1]).sum() == 2 * 5
    for found, sums, length in zip((of_frames, of_positions), wanted, (10, 7), strict=True):
        sums = sums.reshape(3, -1, 5)[:, :length]
        np.testing.assert_allclose(found, sums, rtol=1e-12, atol=1e-12)


@pytest.mark.cpu_only("about cores")
@pytest.mark.parametrize(
    ("cores", "most", "wanted"),
    [(1, None, 1024), (2, None, 2048), (100, None, 16 * 1024), (4, 3000, 3000), (4, 5, 1024)],
)
def test_default_tile(
    monkeypatch: pytest.MonkeyPatch, cores: int, most: int | None, wanted: int
) -> None:
    """Rows of 2 kB: those of 2 MB for each core, up to a limit, which one core may exceed."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    logits, encoder, predictor = (jax.ShapeDtypeStruct((9, n), jnp.float32) for n in (7, 512, 20))
    assert default_rows_per_tile(logits, encoder, predictor, most=most) == wanted


@pytest.mark.cpu_only("so little memory that the workspace of a GPU's matrix products counts")
def test_memory_does_not_grow_with_logits() -> None:
    """Temporaries are forty times smaller than those of the dense loss, gradient by all."""
    count, frames, labels, classes, width = 4, 200, 40, 500, 64

    def step(loss: Any) -> int:
        def float32(*shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, jnp.float32)

        params = {"kernel": float32(width, classes), "bias": float32(classes)}
        rows = float32(count, frames, width), float32(count, labels + 1, width)
        targets = jax.ShapeDtypeStruct((count, labels), jnp.int32)
        both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
        memory = both.lower(params, *rows, targets).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    network = jax_rnnt.LinearJoint()

    def stored(params: Any, encoder: jax.Array, predictor: jax.Array, labels: Any) -> jax.Array:
        logits = network(params, encoder[:, :, None], predictor[:, None])
        return jax_rnnt.rnnt_loss(logits, labels, reduction="sum")

    def in_tiles(*args: Any) -> jax.Array:
        return jax_rnnt.rnnt_loss_joint(network, *args, reduction="sum", rows_per_tile=128)

    assert step(in_tiles) * 40 < step(stored)
