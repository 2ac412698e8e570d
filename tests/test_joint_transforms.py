"""`rnnt_loss_joint` under transformations, and on eight devices without needless communication."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from joint_cases import Array, Problem, assert_close, dense, random_problem, rest_of, tiled
from programs import custom_calls, export

import jax_rnnt

B = 8
DATA = PartitionSpec("data")
loss = tiled(rows_per_tile=100)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return random_problem(0, size=(B, 19, 11))


@pytest.fixture(scope="module")
def weights() -> Array:
    return jnp.arange(1.0, B + 1)


@pytest.fixture(scope="module")
def operands(problem: Problem, weights: Array) -> tuple[Any, ...]:
    """Of `total`: encoder, predictor, rest, weights."""
    return problem.encoder, problem.predictor, rest_of(problem.batch), weights


def value_and_grad(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Of the weighted sum of losses, by variables, encoder and predictor."""

    def total(variables: Any, encoder: Any, predictor: Any, rest: Any, weights: Any) -> jax.Array:
        return jnp.sum(weights * function(variables, encoder, predictor, rest))

    return jax.value_and_grad(total, argnums=(0, 1, 2))


@pytest.fixture(scope="module")
def wanted(problem: Problem, operands: tuple[Any, ...]) -> Any:
    return jax.jit(value_and_grad(dense()))(problem.variables, *operands)


def mapped(variables: Any, *operands: Any) -> jax.Array:
    """The loss of one utterance, mapped over all of them."""
    return jax.vmap(loss, in_axes=(None, 0, 0, 0))(variables, *operands)


@pytest.mark.parametrize("function", [mapped, jax.checkpoint(loss)], ids=["vmap", "remat"])
def test_transformed(function: Any, problem: Problem, operands: Any, wanted: Any) -> None:
    assert_close(jax.jit(value_and_grad(function))(problem.variables, *operands), wanted)


def test_vmap_of_gradient(problem: Problem, operands: Any, weights: Array, wanted: Any) -> None:
    """Each utterance has its own gradient by the parameters."""
    each = jax.vmap(value_and_grad(loss), in_axes=(None, 0, 0, 0, 0))
    value, (d_variables, *rows) = jax.jit(each)(problem.variables, *operands)
    summed = jax.tree.map(lambda x: x.sum(0), d_variables)
    assert_close((value.sum(), (summed, *rows)), wanted)


def test_vmap_over_parameters(problem: Problem, operands: Any, wanted: Any) -> None:
    """And over lengths alone."""
    both = jax.tree.map(lambda x: jnp.stack([0.5 * x, x]), problem.variables)
    found = jax.jit(jax.vmap(value_and_grad(loss), in_axes=(0, *[None] * 4)))(both, *operands)
    assert_close(jax.tree.map(lambda x: x[1], found), wanted)
    encoder, predictor, rest, _ = operands
    lengths = rest.pop("logit_lengths")
    many = jnp.stack([jnp.maximum(lengths, rest["logit_begins"] + 1), lengths])

    def of_lengths(lengths: jax.Array) -> jax.Array:
        return loss(problem.variables, encoder, predictor, {**rest, "logit_lengths": lengths})

    found = jax.jit(jax.vmap(of_lengths))(many)
    rest["logit_lengths"] = lengths
    np.testing.assert_allclose(
        found[1], jax.jit(loss)(problem.variables, encoder, predictor, rest), rtol=1e-12
    )


def test_scan(problem: Problem, operands: Any, wanted: Any) -> None:
    def total(variables: Any, *operands: Any) -> jax.Array:
        def step(carry: Any, part: Any) -> Any:
            return carry + jnp.sum(part[3] * loss(variables, *part[:3])), None

        parts = jax.tree.map(lambda x: x.reshape(2, B // 2, *x.shape[1:]), operands)
        return jax.lax.scan(step, jnp.zeros(()), parts)[0]

    found = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(problem.variables, *operands)
    assert_close(found, wanted)


def test_pmap(problem: Problem, operands: Any, wanted: Any, devices: list[jax.Device]) -> None:
    parts = jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), operands)
    each = jax.pmap(value_and_grad(loss), in_axes=(None, 0, 0, 0, 0), devices=devices)
    value, (d_variables, *rows) = each(problem.variables, *parts)
    summed = jax.tree.map(lambda x: x.sum(0), d_variables)
    rows = (x.reshape(B, *x.shape[2:]) for x in rows)
    assert_close((value.sum(), (summed, *rows)), wanted)


def collectives(compiled: Any) -> set[str]:
    """Kinds of communication in a program."""
    names = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    return set(re.findall(rf"\b({names})(?:-start)?\(", compiled.as_text()))


@pytest.mark.parametrize("function", [loss, mapped], ids=["batch", "vmap"])
@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_sharded_jit(
    axis_type: str,
    function: Any,
    problem: Problem,
    operands: Any,
    wanted: Any,
    devices: list[jax.Device],
) -> None:
    """Each device runs as many tiles as its utterances need; gradients by the rows stay there."""
    kind = getattr(jax.sharding.AxisType, axis_type)
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(kind,), devices=devices)
    with jax.set_mesh(mesh):
        variables = jax.device_put(problem.variables, NamedSharding(mesh, PartitionSpec()))
        rows = jax.device_put(operands, NamedSharding(mesh, DATA))
        step = jax.jit(value_and_grad(function))
        step = step.lower(variables, *rows).compile()
        assert collectives(step) == {"all-reduce"}
        found = step(variables, *rows)
        assert found[1][1].sharding.spec[0] == "data"
        assert_close(found, wanted)
        forward = jax.jit(function).lower(variables, *rows[:3]).compile()
        assert not collectives(forward)


@pytest.mark.parametrize("gradient_inside", [False, True])
def test_shard_map(
    gradient_inside: bool,
    problem: Problem,
    operands: Any,
    wanted: Any,
    devices: list[jax.Device],
) -> None:
    """The gradient by replicated parameters is summed over the devices."""
    mesh = Mesh(np.array(devices), ("data",))
    whole = PartitionSpec()

    def total(variables: Any, *operands: Any) -> jax.Array:
        local = jnp.sum(operands[3] * loss(variables, *operands[:3]))
        return jax.lax.psum(local, "data")

    differentiated = jax.value_and_grad(total, argnums=(0, 1, 2))
    specs = {"mesh": mesh, "in_specs": (whole, DATA, DATA, DATA, DATA)}
    if gradient_inside:
        step = jax.shard_map(differentiated, **specs, out_specs=(whole, (whole, DATA, DATA)))
    else:
        outside = jax.shard_map(total, **specs, out_specs=whole)
        step = jax.value_and_grad(outside, argnums=(0, 1, 2))
    assert_close(jax.jit(step)(problem.variables, *operands), wanted)


def test_linear_joint_in_shard_map(devices: list[jax.Device]) -> None:
    """Called by itself: a replicated kernel and bias have the sum of all devices' gradients."""
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 4))), "bias": jnp.zeros(4)}
    rows = [jnp.asarray(rng.normal(size=(2 * B, 3))) for _ in range(2)]
    mesh = Mesh(np.array(devices), ("data",))

    def total(network: Any, params: Any, *rows: Any) -> jax.Array:
        return jnp.sum(jnp.sin(network(params, *rows)))

    def plain(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.tanh(x + y) @ params["kernel"] + params["bias"][None]

    step = jax.shard_map(
        jax.grad(lambda *args: jax.lax.psum(total(jax_rnnt.LinearJoint(), *args), "data")),
        mesh=mesh,
        in_specs=(PartitionSpec(), DATA, DATA),
        out_specs=PartitionSpec(),
    )
    assert_close(jax.jit(step)(params, *rows), jax.grad(total, 1)(plain, params, *rows))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_spare_classes_in_shard_map(bias: bool, devices: list[jax.Device]) -> None:
    """In the loss, where `LinearJoint` has more classes than its parameters."""
    rng = np.random.default_rng(1)
    classes, size = 13, len(devices)
    params = {"kernel": jnp.asarray(rng.normal(size=(3, classes)))}
    if bias:
        params["bias"] = jnp.asarray(rng.normal(size=classes))
    rows = [jnp.asarray(rng.normal(size=(size, n, 3))) for n in (5, 3)]
    labels = rng.integers(1, classes, size=(size, 2))

    def total(*args: Any) -> jax.Array:
        return jax_rnnt.rnnt_loss_joint(jax_rnnt.LinearJoint(), *args, reduction="sum")

    step = jax.shard_map(
        jax.grad(lambda *args: jax.lax.psum(total(*args), "data"), argnums=(0, 1, 2)),
        mesh=Mesh(np.array(devices), ("data",)),
        in_specs=(PartitionSpec(), DATA, DATA, DATA),
        out_specs=(PartitionSpec(), DATA, DATA),
    )
    wanted = jax.grad(total, argnums=(0, 1, 2))(params, *rows, labels)
    assert_close(jax.jit(step)(params, *rows, labels), wanted)


def test_export(problem: Problem, operands: Any, wanted: Any) -> None:
    """Serialised with a symbolic batch; for TPU there is no custom call of ours."""
    from jax.export import deserialize, symbolic_shape

    encoder, predictor, rest, weights = operands
    names = list(rest)

    def function(variables: Any, *arrays: Any) -> Any:
        encoder, predictor, weights, *others = arrays
        others = dict(zip(names, others, strict=True))
        return value_and_grad(loss)(variables, encoder, predictor, others, weights)

    given = (encoder, predictor, weights, *rest.values())
    targets = custom_calls(jax.jit(function).lower(problem.variables, *given).as_text())
    (size,) = symbolic_shape("b")
    spec = [jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for x in given]
    exported = export(function, problem.variables, *spec, targets=targets)
    assert_close(deserialize(exported.serialize()).call(problem.variables, *given), wanted)
    text = export(function, problem.variables, *given, targets=set(), platforms=("tpu",))
    assert not (custom_calls(text.mlir_module()) & targets)
