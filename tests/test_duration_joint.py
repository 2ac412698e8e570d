"""`rnnt_loss_tdt_joint` and `rnnt_loss_multi_blank_joint` against the losses of stored scores.

Those have tests of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.export import deserialize, symbolic_shape
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads
from joint_cases import (
    BIG_BLANKS,
    DURATIONS,
    MORE,
    B,
    D,
    T,
    U,
    V,
    all_scores,
    assert_close,
    duration_problem,
    of_all_pairs,
    pair_of_scores,
    pulled_back,
    random_problem,
    rest_of,
)
from programs import custom_calls, export

import jax_rnnt


class Loss(NamedTuple):
    """In tiles, and of stored scores; both of (variables, encoder, predictor, rest)."""

    tiled: Callable[..., Callable[..., jax.Array]]
    stored: Callable[..., Callable[..., jax.Array]]


def tdt_tiled(**options: Any) -> Callable[..., jax.Array]:
    loss = partial(jax_rnnt.rnnt_loss_tdt_joint, pair_of_scores, durations=DURATIONS, **options)
    return lambda *operands: loss(*operands[:-1], **operands[-1])


def tdt_stored(**options: Any) -> Callable[..., jax.Array]:
    def loss(*operands: Any) -> jax.Array:
        scores = of_all_pairs(pair_of_scores, *operands[:-1])
        return jax_rnnt.rnnt_loss_tdt(*scores, **operands[-1], durations=DURATIONS, **options)

    return loss


def multi_blank_tiled(**options: Any) -> Callable[..., jax.Array]:
    loss = partial(jax_rnnt.rnnt_loss_multi_blank_joint, all_scores, **BIG_BLANKS, **options)
    return lambda *operands: loss(*operands[:-1], **operands[-1])


def multi_blank_stored(**options: Any) -> Callable[..., jax.Array]:
    def loss(*operands: Any) -> jax.Array:
        logits = of_all_pairs(all_scores, *operands[:-1])
        return jax_rnnt.rnnt_loss_multi_blank(logits, **operands[-1], **BIG_BLANKS, **options)

    return loss


@pytest.fixture(
    params=[Loss(tdt_tiled, tdt_stored), Loss(multi_blank_tiled, multi_blank_stored)],
    ids=["tdt", "multi-blank"],
)
def loss(request: pytest.FixtureRequest) -> Loss:
    return request.param


@pytest.mark.parametrize("implementation", ["native", "xla"])
@pytest.mark.parametrize(
    "options",
    [{}, {"sigma": 0.05, "fastemit_lambda": 0.3, "clamp": 0.1, "delay_penalty": 0.2}],
    ids=["plain", "options"],
)
def test_as_with_stored_scores(loss: Loss, options: dict[str, Any], implementation: str) -> None:
    """Value and all gradients, lengths and begins random, one utterance without a cell."""
    problem = duration_problem(0)
    options = {**options, "implementation": implementation}
    cotangent = np.random.default_rng(1).normal(size=B)
    found = pulled_back(loss.tiled(rows_per_tile=300, **options), problem, cotangent)
    wanted = pulled_back(loss.stored(**options), problem, cotangent)
    assert np.isfinite(wanted[0]).sum() > B // 2
    assert_close(found, wanted)


@pytest.mark.parametrize("rows_per_tile", [None, 1, 7, 50, 10000])
def test_any_tile(loss: Loss, rows_per_tile: int | None) -> None:
    """The size of a tile makes no difference."""
    problem = duration_problem(2)
    found = pulled_back(loss.tiled(rows_per_tile=rows_per_tile), problem)
    assert_close(found, pulled_back(loss.stored(), problem))


def test_numerical(loss: Loss) -> None:
    """`check_grads` by the joiner's parameters, the encoder and the predictor."""
    problem = duration_problem(4, size=(3, 5, 3))
    rest = rest_of(problem.batch)
    tiled = loss.tiled(rows_per_tile=8, delay_penalty=0.3, sigma=0.1, reduction="sum")
    where = np.isfinite(np.asarray(loss.stored()(*problem[:3], rest)))
    assert where.any()
    rest = {**rest, "where": where}
    function = jax.jit(lambda *x: tiled(*x, rest))
    check_grads(function, problem[:3], 1, modes=["rev"], eps=1e-5, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("count", "frames", "labels"), [(2, T, 0), (2, 1, 2), (2, 0, 2), (0, 3, 2), (1, 1, 0)]
)
def test_few_frames_or_labels(loss: Loss, count: int, frames: int, labels: int) -> None:
    """Without labels, with one frame, with none, and without utterances."""
    problem = duration_problem(5, size=(max(count, 2), max(frames, 1), labels))
    problem = problem._replace(
        encoder=problem.encoder[:count, :frames],
        predictor=problem.predictor[:count],
        batch=problem.batch._replace(labels=np.ones((count, labels), np.int32)),
    )
    rest = {"labels": jnp.asarray(problem.batch.labels)}
    found, wanted = (
        jax.jit(jax.value_and_grad(lambda *x, f=f: jnp.sum(f(*x, rest)), argnums=(0, 1, 2)))(
            *problem[:3]
        )
        for f in (loss.tiled(), loss.stored())
    )
    assert_close(found, wanted)


def test_padding_and_bad_utterances_have_no_effect(loss: Loss) -> None:
    """NaN in padding, in an utterance with NaN in use and in one left out: others as before."""
    problem = duration_problem(7)
    t1, u1, t0, u0 = (np.asarray(x)[:, None] for x in problem.batch.lengths)
    where = np.array([True, True, False, True, True])
    bad = 0  # the whole lattice
    t, u = np.arange(T)[None], np.arange(U + 1)[None]
    in_frame, in_position = (t0 <= t) & (t < t1), (u0 <= u) & (u <= u1)
    kept = where & (np.arange(B) != bad)
    encoder = jnp.where((in_frame & kept[:, None])[..., None], problem.encoder, jnp.nan)
    predictor = jnp.where((in_position & where[:, None])[..., None], problem.predictor, jnp.inf)
    found = pulled_back(
        loss.tiled(rows_per_tile=100),
        problem._replace(
            encoder=encoder, predictor=predictor, batch=problem.batch._replace(where=where)
        ),
    )
    wanted = pulled_back(loss.stored(), problem._replace(batch=problem.batch._replace(where=kept)))
    assert np.isnan(found[0][bad])
    np.testing.assert_allclose(found[0][kept], wanted[0][kept], rtol=1e-12)
    assert_close(found[1], wanted[1])


@pytest.mark.parametrize("field", ["labels", "logit_lengths", "label_lengths"])
def test_bad_values_that_are_not_known(loss: Loss, field: str) -> None:
    """NaN, whether traced or not to be checked, and no gradient; others as before."""
    problem = duration_problem(21)
    kept = np.arange(B) != 2
    wanted = pulled_back(loss.stored(), problem, kept.astype(float))
    excessive = {"labels": V + MORE, "logit_lengths": T + 1, "label_lengths": U + 1}[field]
    batch = problem.batch
    given = {"labels": batch.labels, **batch.lengths._asdict()}
    values = np.array(given[field])
    values[2] = excessive
    if field == "labels":
        batch = batch._replace(labels=values)
    else:
        batch = batch._replace(lengths=batch.lengths._replace(**{field: values}))
    rest = rest_of(batch)
    with pytest.raises(ValueError, match=rf"{field}\[2.* is {excessive}; expected"):
        loss.tiled()(*problem[:3], rest)
    traced = jax.jit(loss.tiled(rows_per_tile=100))
    found, vjp = jax.vjp(lambda *x: traced(*x, rest), *problem[:3])
    assert np.isnan(found[2])
    np.testing.assert_allclose(found[kept], wanted[0][kept], rtol=1e-12)
    assert_close(vjp(jnp.ones(B)), wanted[1])
    unchecked = loss.tiled(check=False)(*problem[:3], rest)
    np.testing.assert_allclose(unchecked, found, rtol=1e-12)


@pytest.mark.parametrize("batch", [(), (2, 2)], ids=["none", "two"])
def test_batch_dimensions(loss: Loss, batch: tuple[int, ...]) -> None:
    problem = duration_problem(22, size=(4, T, U))
    rest = rest_of(problem.batch)
    count = math.prod(batch)

    def shaped(x: Any) -> jax.Array:
        return x[:count].reshape(*batch, *x.shape[1:])

    wanted = jax.jit(loss.stored())(*problem[:3], rest)[:count]
    rows = map(shaped, (problem.encoder, problem.predictor))
    found = jax.jit(loss.tiled())(problem.variables, *rows, jax.tree.map(shaped, rest))
    assert_close(found, wanted.reshape(batch))


class Scores(NamedTuple):
    logits: jax.Array
    durations: jax.Array


@pytest.mark.parametrize("kind", [list, lambda x: Scores(*x)], ids=["list", "named"])
def test_pairs_of_other_types(kind: Any) -> None:
    """A list, or a named tuple; scores of durations in a dtype of their own."""
    problem = duration_problem(23, dtype=np.float32)

    def network(*rows: Any) -> Any:
        logits, durations = pair_of_scores(*rows)
        return kind((logits, durations.astype(jnp.bfloat16)))

    def tiled(*operands: Any) -> jax.Array:
        return jax_rnnt.rnnt_loss_tdt_joint(
            network, *operands[:-1], **operands[-1], durations=DURATIONS, rows_per_tile=100
        )

    def stored(*operands: Any) -> jax.Array:
        scores = of_all_pairs(network, *operands[:-1])
        return jax_rnnt.rnnt_loss_tdt(*scores, **operands[-1], durations=DURATIONS)

    assert_close(pulled_back(tiled, problem), pulled_back(stored, problem), 1e-5)


def test_label_windows(loss: Loss) -> None:
    """As with stored scores; utterance 1 has no alignment that fits."""
    problem = duration_problem(19, size=(2, T, U))
    u = np.arange(U)
    windows = np.stack([np.stack([u, u + 8], axis=-1), np.stack([U - u, U - u + 1], axis=-1)])
    rest = {"labels": jnp.asarray(problem.batch.labels)}
    options = {"label_windows": windows.astype(np.int32)}
    found, wanted = (jax.jit(f(**options))(*problem[:3], rest) for f in (loss.tiled, loss.stored))
    assert_close(found, wanted)
    assert np.isposinf(found[1]) and np.isfinite(found[0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_narrow_dtypes(loss: Loss, dtype: Any) -> None:
    """As near to float64 as stored scores are, and gradients in the dtypes of the operands."""
    problem = duration_problem(11, dtype=dtype)
    found = pulled_back(loss.tiled(rows_per_tile=128), problem)
    stored = pulled_back(loss.stored(), problem)
    wide = problem._replace(
        **{
            name: jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), getattr(problem, name))
            for name in ("variables", "encoder", "predictor")
        }
    )
    exact = pulled_back(loss.stored(), wide)

    def error(x: Any, y: Any) -> float:
        good = np.isfinite(y)
        x, y = np.float64(x)[good], np.float64(y)[good]
        return float(np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-30))

    assert found[0].dtype == jnp.float32
    for x, y, z in zip(*map(jax.tree.leaves, (found, stored, exact)), strict=True):
        assert x.dtype == y.dtype
        assert error(x, z) <= 1.5 * error(y, z) + 4 * jnp.finfo(jnp.float32).eps


def test_dropout() -> None:
    """`rng` gives each cell its own key, in both passes."""
    problem = duration_problem(12, size=(2, 4, 2))

    def with_dropout(params: Any, encoder: Any, predictor: Any, keys: Any) -> Any:
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.6, (D,)))(keys)
        return pair_of_scores(params, encoder, jnp.where(kept, predictor, 0))

    def total(*operands: Any, seed: int) -> jax.Array:
        return jax_rnnt.rnnt_loss_tdt_joint(
            with_dropout, *operands, jnp.ones((2, 2), jnp.int32),
            durations=DURATIONS, rng=jax.random.key(seed), rows_per_tile=3, reduction="sum",
        )  # fmt: skip

    assert not np.allclose(*(jax.jit(partial(total, seed=i))(*problem[:3]) for i in (1, 2)))
    function = jax.jit(partial(total, seed=1))
    check_grads(function, problem[:3], 1, modes=["rev"], eps=1e-5, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("implementation", ["native", "xla"])
@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_sharded(
    loss: Loss, axis_type: str, implementation: str, devices: list[jax.Device]
) -> None:
    """A batch divided among devices, and mapped by `vmap`, is as on one."""
    problem = duration_problem(13, size=(8, T, U))
    rest = rest_of(problem.batch)
    tiled = loss.tiled(rows_per_tile=100, implementation=implementation)
    wanted_losses = np.asarray(jax.jit(loss.stored())(*problem[:3], rest))
    rest["where"] = jnp.isfinite(wanted_losses)

    def total(function: Any, *operands: Any) -> jax.Array:
        return jnp.sum(function(*operands))

    def step(function: Any) -> Any:
        return jax.jit(jax.value_and_grad(partial(total, function), argnums=(0, 1, 2)))

    wanted = step(loss.stored())(*problem[:3], rest)
    kind = getattr(jax.sharding.AxisType, axis_type)
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(kind,), devices=devices)
    with jax.set_mesh(mesh):
        variables = jax.device_put(problem.variables, NamedSharding(mesh, PartitionSpec()))
        rows = jax.device_put(
            (problem.encoder, problem.predictor, rest),
            NamedSharding(mesh, PartitionSpec("data")),
        )
        for function in (tiled, jax.vmap(tiled, in_axes=(None, 0, 0, 0))):
            found = step(function)(variables, *rows)
            assert found[1][1].sharding.spec[0] == "data"
            assert_close(found, wanted)


def test_in_shard_map(loss: Loss, devices: list[jax.Device]) -> None:
    """The gradient by replicated parameters is summed over the devices."""
    problem = duration_problem(14, size=(8, T, U))
    rest = rest_of(problem.batch)
    rest["where"] = jnp.isfinite(jax.jit(loss.stored())(*problem[:3], rest))
    data, whole = PartitionSpec("data"), PartitionSpec()

    def total(*operands: Any) -> jax.Array:
        return jax.lax.psum(jnp.sum(loss.tiled(rows_per_tile=100)(*operands)), "data")

    step = jax.shard_map(
        jax.value_and_grad(total, argnums=(0, 1, 2)),
        mesh=Mesh(np.array(devices), ("data",)),
        in_specs=(whole, data, data, data),
        out_specs=(whole, (whole, data, data)),
    )
    wanted = jax.value_and_grad(lambda *x: jnp.sum(loss.stored()(*x, rest)), argnums=(0, 1, 2))
    assert_close(jax.jit(step)(*problem[:3], rest), jax.jit(wanted)(*problem[:3]))


@pytest.mark.cpu_only("exported for a CPU and a TPU")
def test_export(loss: Loss) -> None:
    """Serialised with a symbolic batch; for TPU there is no custom call of ours."""
    problem = duration_problem(17, size=(4, T, U))
    given = problem.encoder, problem.predictor, jnp.asarray(problem.batch.labels)

    def step(variables: Any, *arrays: Any) -> Any:
        def total(*operands: Any) -> jax.Array:
            return jnp.sum(loss.tiled(rows_per_tile=100)(*operands, {"labels": arrays[-1]}))

        return jax.value_and_grad(total, argnums=(0, 1, 2))(variables, *arrays[:-1])

    wanted = jax.jit(step)(problem.variables, *given)
    targets = custom_calls(jax.jit(step).lower(problem.variables, *given).as_text())
    assert any("duration_lattice" in x for x in targets)
    (size,) = symbolic_shape("b")
    spec = [jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for x in given]
    exported = export(step, problem.variables, *spec, targets=targets)
    assert_close(deserialize(exported.serialize()).call(problem.variables, *given), wanted)
    text = export(step, problem.variables, *given, targets=set(), platforms=("tpu",))
    assert not (custom_calls(text.mlir_module()) & targets)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (lambda x: x, TypeError, r"returned one array of shape \(2, 9\).*pair.*D = 3"),
        (lambda x: (x,), TypeError, "returned a tuple of 1; expected a pair"),
        (lambda x: (x, x), ValueError, r"duration_logits of shape \(2, 9\).*\(2, 3\)"),
        (lambda x: (x, x[:, :3] > 0), TypeError, "duration_logits of dtype bool"),
        (lambda x: (x, None), TypeError, "a NoneType as duration_logits; expected an array"),
        (lambda x: ((x, x), x[:, :3]), TypeError, "a tuple of 2 as logits; expected an array"),
        (lambda x: (x[0], x[:, :3]), ValueError, "logits of shape"),
    ],
    ids=["array", "one", "shape", "dtype", "none", "nested", "logits"],
)
def test_bad_results_of_joint_fn(
    result: Callable[..., Any], error: type[Exception], message: str
) -> None:
    """Errors say what a network with durations returns."""
    problem = duration_problem(15)

    def network(*operands: Any) -> Any:
        return result(all_scores(*operands))

    with pytest.raises(error, match=message):
        jax_rnnt.rnnt_loss_tdt_joint(
            network, *problem[:3], problem.batch.labels, durations=DURATIONS
        )


def test_bad_big_blanks() -> None:
    """As of stored logits: the number of classes is that of the network."""
    problem = duration_problem(16)
    operands = all_scores, *problem[:3]
    with pytest.raises(ValueError, match="big_blank_ids"):
        jax_rnnt.rnnt_loss_multi_blank_joint(
            *operands, problem.batch.labels, big_blank_ids=(V + MORE,), big_blank_durations=(2,)
        )
    with pytest.raises(ValueError, match="labels"):
        jax_rnnt.rnnt_loss_multi_blank_joint(
            *operands, np.full((B, U), V), big_blank_ids=(V,), big_blank_durations=(2,)
        )


def test_without_big_blanks_and_one_frame_each() -> None:
    """They are `rnnt_loss_joint`, the second in the modified topology with a final blank."""
    problem = random_problem(18, topology="modified", final_blank=True)
    network = all_scores

    def with_certain_duration(*operands: Any) -> Any:
        logits = network(*operands)
        return logits, jnp.zeros_like(logits[:, :1])

    def usual(*operands: Any, **options: Any) -> jax.Array:
        rest = operands[-1]
        return jax_rnnt.rnnt_loss_joint(network, *operands[:-1], **rest, **options)

    def multi_blank(*operands: Any) -> jax.Array:
        return jax_rnnt.rnnt_loss_multi_blank_joint(
            network, *operands[:-1], **operands[-1], big_blank_ids=(), big_blank_durations=()
        )

    def tdt(*operands: Any) -> jax.Array:
        return jax_rnnt.rnnt_loss_tdt_joint(
            with_certain_duration, *operands[:-1], **operands[-1], durations=(1,)
        )

    modified = partial(usual, topology="modified", final_blank=True)
    for found, wanted in ((multi_blank, usual), (tdt, modified)):
        assert_close(pulled_back(found, problem), pulled_back(wanted, problem))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_linear_joint_with_big_blanks(bias: bool) -> None:
    """Ids count from the end of its classes, not of those that fill up whole vectors."""
    rng = np.random.default_rng(19)
    classes = 29
    params = {"kernel": jnp.asarray(rng.normal(size=(D, classes)))}
    if bias:
        params["bias"] = jnp.asarray(rng.normal(size=classes))
    rows = [jnp.asarray(rng.normal(size=(2, n, D))) for n in (7, 5)]
    options = {
        "labels": rng.integers(1, classes - 2, size=(2, 4)),
        "big_blank_ids": (-1, -2), "big_blank_durations": (2, 4), "clamp": 0.3, "reduction": "sum",
    }  # fmt: skip

    def found(*operands: Any) -> jax.Array:
        network = jax_rnnt.LinearJoint()
        return jax_rnnt.rnnt_loss_multi_blank_joint(network, *operands, **options)

    def wanted(params: Any, encoder: jax.Array, predictor: jax.Array) -> jax.Array:
        hidden = jnp.tanh(encoder[:, :, None] + predictor[:, None])
        logits = hidden @ params["kernel"]
        if bias:
            logits += params["bias"].reshape(1, 1, 1, classes)
        return jax_rnnt.rnnt_loss_multi_blank(logits, **options)

    results = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(params, *rows) for f in (found, wanted))
    assert_close(*results)


@pytest.mark.parametrize("classes", [13, 16, 28])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_linear_duration_joint(classes: int, bias: bool, dtype: Any) -> None:
    """The ready-made joint network, with spare classes in tiles or without; the gradient by the
    kernel is summed in float32, as is that by its columns of durations."""
    rng = np.random.default_rng(20)
    outputs = classes + len(DURATIONS)
    params = {"kernel": jnp.asarray(rng.normal(size=(D, outputs)), dtype), "other": jnp.ones(())}
    if bias:
        params["bias"] = jnp.asarray(rng.normal(size=outputs), dtype)
    rows = [jnp.asarray(rng.normal(size=(3, n, D)), dtype) for n in (40, 9)]
    labels = rng.integers(1, classes, size=(3, 8))
    options = {"labels": labels, "durations": DURATIONS, "sigma": 0.1, "reduction": "sum"}
    network = jax_rnnt.LinearDurationJoint(len(DURATIONS))

    def found(*operands: Any) -> jax.Array:
        return jax_rnnt.rnnt_loss_tdt_joint(network, *operands, **options, rows_per_tile=64)

    def wanted(params: Any, encoder: jax.Array, predictor: jax.Array) -> jax.Array:
        scores = jnp.tanh(encoder[:, :, None] + predictor[:, None]) @ params["kernel"]
        if bias:
            scores += params["bias"].reshape(1, 1, 1, outputs)
        return jax_rnnt.rnnt_loss_tdt(scores[..., :classes], scores[..., classes:], **options)

    operands = params, *rows
    wide = jax.tree.map(lambda x: x.astype(jnp.float64), operands)
    exact = jax.jit(jax.value_and_grad(wanted, (0, 1, 2)))(*wide)
    result = jax.jit(jax.value_and_grad(found, (0, 1, 2)))(*operands)
    found_dtypes = jax.tree.map(lambda x: x.dtype, result[1])
    assert found_dtypes == jax.tree.map(lambda x: x.dtype, operands)
    tolerance = 1e-10 if dtype == jnp.float64 else 0.02
    assert_close(jax.tree.map(lambda x: x.astype(jnp.float64), result), exact, tolerance)
    logits, durations = jax.tree.map(lambda x: x.shape, network(params, *(x[:, :9] for x in rows)))
    assert (logits, durations) == ((3, 9, classes), (3, 9, len(DURATIONS)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_durations": 0}, ValueError, "num_durations is 0; expected num_durations >= 1"),
        ({"num_durations": 2.0}, TypeError, r"num_durations is 2\.0; expected a Python integer"),
        (
            {"activation": "gelu"},
            ValueError,
            "activation is 'gelu'; expected one of 'tanh'",
        ),
        (
            {"num_durations": 6},
            ValueError,
            r"params\['kernel'\] has shape \(4, 6\); .* V >= 1 and num_durations = 6",
        ),
        ({"num_durations": 2}, ValueError, r"duration_logits of shape \(2, 2\) for n = 2 .* 3 dur"),
        (
            {"params": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(5)}},
            ValueError,
            r"params\['bias'\] has shape \(5,\); expected \(V \+ num_durations,\) = \(6,\)",
        ),
    ],
)
def test_wrong_duration_joint(change: Any, error: type[Exception], message: str) -> None:
    given = {"num_durations": 3, "activation": "tanh", "params": {"kernel": jnp.ones((4, 6))}}
    given |= change
    params = given.pop("params")
    with pytest.raises(error, match=message):
        jax_rnnt.rnnt_loss_tdt_joint(
            jax_rnnt.LinearDurationJoint(**given),
            params,
            jnp.ones((1, 2, 4)),
            jnp.ones((1, 2, 4)),
            np.ones((1, 1), int),
            durations=DURATIONS,
        )


@pytest.mark.cpu_only("what XLA plans for a CPU")
def test_memory() -> None:
    """Temporaries are ten times smaller than those of stored scores, gradient by all."""
    count, frames, labels, classes, width = 4, 200, 40, 500, 64

    def float32(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def network(params: Any, encoder: jax.Array, predictor: jax.Array) -> Any:
        hidden = jnp.tanh(encoder + predictor)
        return hidden @ params["tokens"], hidden @ params["durations"]

    def stored(params: Any, encoder: jax.Array, predictor: jax.Array, labels: Any) -> jax.Array:
        scores = network(params, encoder[:, :, None], predictor[:, None])
        return jax_rnnt.rnnt_loss_tdt(*scores, labels, durations=DURATIONS, reduction="sum")

    def tiled(*operands: Any) -> jax.Array:
        return jax_rnnt.rnnt_loss_tdt_joint(
            network, *operands, durations=DURATIONS, reduction="sum"
        )

    def temporaries(loss: Any) -> int:
        params = {"tokens": float32(width, classes), "durations": float32(width, 3)}
        rows = float32(count, frames, width), float32(count, labels + 1, width)
        targets = jax.ShapeDtypeStruct((count, labels), jnp.int32)
        both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
        memory = both.lower(params, *rows, targets).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert 10 * temporaries(tiled) < temporaries(stored)
