"""`rnnt_loss_pruned_joint` under transformations and on several devices."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from programs import custom_calls, export
from test_pruned_joint import (
    B,
    assert_close,
    joint,
    pulled_back,
    random_problem,
    stored,
    tiled,
    with_dropout,
)

import jax_rnnt


def test_vmap_is_a_batch_dimension() -> None:
    """Mapped over the utterances, parameters shared; also with mapped parameters."""
    problem = random_problem(6)
    lengths = tuple(map(jnp.asarray, problem.batch.lengths))
    operands = (problem.encoder, problem.predictor, problem.batch.labels, problem.batch.ranges)

    def one(params: Any, encoder: Any, predictor: Any, labels: Any, ranges: Any, t1, u1, t0, u0):
        return jax_rnnt.rnnt_loss_pruned_joint(
            joint, params, encoder, predictor, labels, ranges, t1, u1,
            logit_begins=t0, label_begins=u0, frames_per_tile=3,
        )  # fmt: skip

    def mapped(*scores: Any) -> jax.Array:
        return jax.vmap(one, in_axes=(None, *[0] * 8))(*scores, *operands[2:], *lengths)

    found = pulled_back(jax.jit(mapped), problem, np.ones(B))
    wanted = pulled_back(stored(problem.batch), problem, np.ones(B))
    assert_close(found, wanted)

    variables = {k: v for k, v in problem.params.items() if k != "roll"}
    many = jax.tree.map(lambda x: jnp.stack([x, x / 2]), variables)

    def total(variables: Any, encoder: Any, predictor: Any) -> jax.Array:
        return tiled(problem.batch)({**problem.params, **variables}, encoder, predictor).sum()

    each = jax.vmap(jax.grad(total, argnums=(0, 1, 2)), in_axes=(0, None, None))
    twice = jax.jit(each)(many, *problem[1:3])
    assert_close(jax.tree.map(lambda x: x[0], twice), wanted[1:])


def test_shard_map(devices: list[jax.Device]) -> None:
    """Utterances divided among devices, parameters replicated: their gradient is summed."""
    parts = [random_problem(seed) for seed in range(2)]
    batches = [part.batch for part in parts]
    params = parts[0].params
    rows = [
        (p.encoder, p.predictor, p.batch.labels, p.batch.ranges, *p.batch.lengths) for p in parts
    ]
    operands = [np.concatenate(x) for x in zip(*rows, strict=True)]

    def local(params: Any, encoder: Any, predictor: Any, labels: Any, ranges: Any, t1, u1, t0, u0):
        return jax_rnnt.rnnt_loss_pruned_joint(
            joint, params, encoder, predictor, labels, ranges, t1, u1,
            logit_begins=t0, label_begins=u0, frames_per_tile=3,
        )  # fmt: skip

    mesh = Mesh(np.array(devices[:2]), ("data",))
    sharded = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), *[PartitionSpec("data")] * 8),
        out_specs=PartitionSpec("data"),
    )
    variables = {k: v for k, v in params.items() if k != "roll"}

    def total(variables: Any, *operands: Any) -> jax.Array:
        return sharded({**params, **variables}, *operands).sum()

    def whole(variables: Any, *scores: Any) -> Any:
        halves = ((batch, slice(i * B, (i + 1) * B)) for i, batch in enumerate(batches))
        both = {**params, **variables}
        return sum(stored(batch)(both, *(x[half] for x in scores)).sum() for batch, half in halves)

    found = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(variables, *operands)
    wanted = jax.grad(whole, argnums=(0, 1, 2))(variables, *map(jnp.asarray, operands[:2]))
    assert_close(found, wanted)


@pytest.mark.parametrize("function", ["batch", "vmap"])
@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_sharded_jit(axis_type: str, function: str, devices: list[jax.Device]) -> None:
    """The batch divided by the compiler: the gradient by each parameter is summed once, not in the
    loop over tiles; nothing else is sent.
    """
    kind = getattr(jax.sharding.AxisType, axis_type)
    mesh = jax.make_mesh((B,), ("data",), axis_types=(kind,), devices=devices[:B])
    problem = random_problem(8)
    batch = problem.batch
    operands = (batch.labels, batch.ranges, *batch.lengths)
    weight = jnp.asarray(0.7)  # the joint closes over it
    variables = {k: v for k, v in problem.params.items() if k != "roll"}

    def losses(params: Any, encoder: Any, predictor: Any, labels: Any, ranges: Any, t1, u1, t0, u0):
        return jax_rnnt.rnnt_loss_pruned_joint(
            lambda params, am, lm: joint(params, am, lm * weight),
            params, encoder, predictor, labels, ranges, t1, u1,
            logit_begins=t0, label_begins=u0, frames_per_tile=3,
        )  # fmt: skip

    def total(variables: Any, *operands: Any) -> jax.Array:
        params = {**problem.params, **variables}
        if function == "vmap":
            return jax.vmap(losses, in_axes=(None, *[0] * 8))(params, *operands).sum()
        return losses(params, *operands).sum()

    gradients = jax.grad(total, argnums=(0, 1, 2))
    wanted = jax.grad(lambda v, e, p: stored(batch)({**problem.params, **v}, e, p * weight).sum(),
                      argnums=(0, 1, 2))(variables, *problem[1:3])  # fmt: skip
    with jax.set_mesh(mesh):
        rows = jax.device_put(
            (problem.encoder, problem.predictor, *operands),
            NamedSharding(mesh, PartitionSpec("data")),
        )
        whole = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
        compiled = jax.jit(gradients).lower(whole, *rows).compile()
        found = compiled(whole, *rows)
        text: Any = compiled.as_text()
        assert found[1].sharding.spec[0] == "data"
    assert_close(found, wanted)
    sent = re.findall(r"\b(all-\w+|reduce-scatter|collective-permute)(?:-start)?\(", text)
    assert set(sent) == {"all-reduce"} and len(sent) <= len(variables)


@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_sharded_dropout(axis_type: str, devices: list[jax.Device]) -> None:
    """Keys of cells do not depend on devices."""
    kind = getattr(jax.sharding.AxisType, axis_type)
    mesh = jax.make_mesh((B,), ("data",), axis_types=(kind,), devices=devices[:B])
    problem = random_problem(23)
    operands = problem.batch.labels, problem.batch.ranges, *problem.batch.lengths

    def total(encoder: Any, predictor: Any, labels: Any, ranges: Any, t1, u1, t0, u0):
        return jax_rnnt.rnnt_loss_pruned_joint(
            with_dropout, problem.params, encoder, predictor, labels, ranges, t1, u1,
            logit_begins=t0, label_begins=u0, rng=jax.random.key(1), frames_per_tile=3,
        ).sum()  # fmt: skip

    gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    rows = problem.encoder, problem.predictor, *operands
    wanted = gradients(*rows)
    with jax.set_mesh(mesh):
        found = gradients(*jax.device_put(rows, NamedSharding(mesh, PartitionSpec("data"))))
    assert_close(found, wanted)


def test_symbolic_export() -> None:
    """Value and gradient for any number of utterances."""
    from jax.export import deserialize, symbolic_shape

    problem = random_problem(10)
    batch = problem.batch
    rows = (problem.encoder, problem.predictor, batch.labels, batch.ranges, *batch.lengths)

    def total(encoder: Any, predictor: Any, labels: Any, ranges: Any, t1, u1, t0, u0):
        return jax_rnnt.rnnt_loss_pruned_joint(
            joint, problem.params, encoder, predictor, labels, ranges, t1, u1,
            logit_begins=t0, label_begins=u0, check=False,
        ).sum()  # fmt: skip

    both = jax.value_and_grad(total, argnums=(0, 1))
    (size,) = symbolic_shape("b")
    spec = [jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for x in rows]
    targets = custom_calls(jax.jit(both).lower(*rows).as_text())
    again = deserialize(export(both, *spec, targets=targets).serialize())
    wanted = jax.value_and_grad(lambda *x: stored(batch)(problem.params, *x).sum(), (0, 1))
    assert_close(again.call(*rows), wanted(*problem[1:3]))
