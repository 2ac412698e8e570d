"""Eight devices: pmap, shard_map, sharded jit, explicit meshes. Values, and no communication.

Everything is float64 and compared to 1e-12 with `cases.run` on one device.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import close
from cases import (
    ArcsBatch,
    Batch,
    Options,
    arcs_function,
    each_topology,
    loss_function,
    random_arcs,
    random_batch,
    run,
    run_arcs,
)
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from shardings import COLLECTIVES, losses_and_grad, shard_map, sharded

B, T, U, V = 16, 5, 3, 6


@pytest.fixture
def batch() -> Batch:
    return random_batch(np.random.default_rng(0), B, T, U, V)


@pytest.fixture
def mesh(devices: list[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), ("data",))


def test_pmap(implementation: str, batch: Batch, devices: list[jax.Device]) -> None:
    """value_and_grad on eight devices, two utterances each, one operand broadcast."""
    split = jax.tree.map(lambda x: x.reshape(8, B // 8, *x.shape[1:]), batch)
    function = losses_and_grad(loss_function(implementation))
    loss, grad = jax.pmap(function, devices=devices)(*split)
    wanted = run(batch, implementation)
    close((loss.reshape(B), grad.reshape(batch.logits.shape)), wanted)
    shared = jax.tree.map(lambda x: x[:2], batch)
    loss, grad = jax.pmap(function, in_axes=(0, None, None), devices=devices)(
        split.logits, *shared[1:3]
    )
    for i in (0, 7):
        close((loss[i], grad[i]), run(shared._replace(logits=split.logits[i]), implementation))


@pytest.mark.parametrize("topology", **each_topology)
def test_sharded_jit_logits(implementation: str, topology: Options, mesh: Mesh) -> None:
    """Batch-sharded jitted value and gradient: right, sharded, no collective in the HLO."""
    batch = random_batch(np.random.default_rng(1), B, T, U, V, **topology)
    function = losses_and_grad(loss_function(implementation, **topology))
    arguments = sharded(tuple(batch[:3]), mesh)
    compiled = jax.jit(function).lower(*arguments).compile()
    found = compiled(*arguments)
    close(found, run(batch, implementation, **topology))
    assert not COLLECTIVES.findall(compiled.as_text())
    assert all(not x.sharding.is_fully_replicated for x in found)


@pytest.mark.parametrize("topology", **each_topology)
def test_sharded_jit_arcs(implementation: str, topology: Options, mesh: Mesh) -> None:
    """The same from arcs, posteriors included."""
    batch = random_arcs(np.random.default_rng(2), B, T, U, **topology)
    function = arcs_function(implementation, return_posteriors=True, **topology)

    def both(blank: jax.Array, label: jax.Array, ranges: Any) -> Any:
        loss, vjp, posteriors = jax.vjp(lambda *x: function(*x, ranges), blank, label, has_aux=True)
        return loss, vjp(jnp.ones_like(loss)), tuple(posteriors)

    arguments = sharded(tuple(batch[:3]), mesh)
    compiled = jax.jit(both).lower(*arguments).compile()
    wanted = run_arcs(batch, implementation, **topology)
    close(compiled(*arguments), (*wanted[:2], tuple(wanted[2])))
    assert not COLLECTIVES.findall(compiled.as_text())


def test_two_batch_dims(implementation: str, batch: Batch, devices: list[jax.Device]) -> None:
    """Two leading dims over the two axes of a 4 x 2 mesh, and a regularised, clamped loss."""
    mesh = Mesh(np.array(devices).reshape(4, 2), ("x", "y"))
    options = {"fastemit_lambda": 0.1, "delay_penalty": 0.1, "clamp": 0.2}
    shaped = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), batch)
    function = losses_and_grad(loss_function(implementation, **options))
    arguments = sharded(tuple(shaped[:3]), mesh, P("x", "y"))
    compiled = jax.jit(function).lower(*arguments).compile()
    loss, grad = compiled(*arguments)
    wanted = run(batch, implementation, **options)
    close((loss.reshape(B), grad.reshape(batch.logits.shape)), wanted)
    assert not COLLECTIVES.findall(compiled.as_text())


def test_sharded_vmap(implementation: str, batch: Batch, mesh: Mesh) -> None:
    """vmap of grad of an unbatched loss, sharded over the mapped axis: still no collective."""
    function = jax.vmap(jax.value_and_grad(loss_function(implementation)))
    arguments = sharded(tuple(batch[:3]), mesh)
    compiled = jax.jit(function).lower(*arguments).compile()
    close(compiled(*arguments), run(batch, implementation))
    assert not COLLECTIVES.findall(compiled.as_text())


@pytest.mark.parametrize(
    "spec", [P(None, "data"), P(None, None, None, "data"), P()], ids=["frames", "classes", "none"]
)
def test_other_axes(implementation: str, spec: P, mesh: Mesh) -> None:
    """Logits sharded over frames or classes, or not at all, cost communication but stay right."""
    batch = random_batch(np.random.default_rng(3), 3, 8, 3, 16)
    function = jax.jit(losses_and_grad(loss_function(implementation)))
    logits = sharded(batch.logits, mesh, spec)
    rest = sharded(tuple(batch[1:3]), mesh, P())
    close(function(logits, *rest), run(batch, implementation))


def test_mixed_placement(implementation: str, batch: Batch, mesh: Mesh) -> None:
    """Sharded logits with replicated labels and lengths, and the other way round."""
    function = jax.jit(losses_and_grad(loss_function(implementation)))
    wanted = run(batch, implementation)
    for first, second in ((P("data"), P()), (P(), P("data"))):
        logits, rest = sharded(batch.logits, mesh, first), sharded(tuple(batch[1:3]), mesh, second)
        close(function(logits, *rest), wanted)


def test_batch_that_does_not_divide(implementation: str, mesh: Mesh) -> None:
    """Six utterances constrained to eight devices: XLA pads, and padded rows must do no harm."""
    batch = random_batch(np.random.default_rng(4), 6, T, U, V)
    function = losses_and_grad(loss_function(implementation))
    place = NamedSharding(mesh, P("data"))

    def constrained(*arguments: Any) -> Any:
        return function(*jax.lax.with_sharding_constraint(arguments, place))

    close(jax.jit(constrained)(*batch[:3]), run(batch, implementation))


# --------------------------------------------------------------------------------------- shard_map


def test_shard_map(implementation: str, batch: Batch, mesh: Mesh) -> None:
    """Everything sharded: gradient inside, and gradient of the mapped loss outside."""
    function = loss_function(implementation)
    wanted = run(batch, implementation)
    specs = (P("data"),) * 3
    inside = shard_map(losses_and_grad(function), mesh, specs, P("data"))
    close(inside(*batch[:3]), wanted)

    def total(logits: jax.Array, *rest: Any) -> jax.Array:
        return jax.lax.psum(function(logits, *rest).sum(), "data")

    outside = jax.jit(jax.value_and_grad(shard_map(total, mesh, specs, P())))
    close(outside(*batch[:3]), (wanted[0].sum(), wanted[1]))


def test_shard_map_replicated_logits(implementation: str, batch: Batch, mesh: Mesh) -> None:
    """Logits replicated, labels and lengths sharded: cotangents add up over the devices."""
    function = loss_function(implementation)
    few = batch.logits[: B // 8]
    tiled = batch._replace(logits=np.tile(few, (8, 1, 1, 1)))
    loss, grad = run(tiled, implementation)
    wanted = loss.sum(), grad.reshape(8, *few.shape).sum(0)
    specs = (P(), P("data"), P("data"))

    def total(logits: jax.Array, *rest: Any) -> jax.Array:
        return jax.lax.psum(function(logits, *rest).sum(), "data")

    arguments = few, *batch[1:3]
    outside = jax.jit(jax.value_and_grad(shard_map(total, mesh, specs, P())))
    close(outside(*arguments), wanted)
    inside = shard_map(jax.value_and_grad(total), mesh, specs, P())
    close(inside(*arguments), wanted)


def test_shard_map_replicated_parameters(implementation: str, batch: Batch, mesh: Mesh) -> None:
    """A data-parallel step: replicated weights make the sharded logits."""
    function = loss_function(implementation)
    weights = np.random.default_rng(5).normal(size=(V, V))

    def local(w: jax.Array, logits: jax.Array, *rest: Any) -> jax.Array:
        return jax.lax.psum(function(logits @ w, *rest).sum(), "data")

    specs = (P(), P("data"), P("data"), P("data"))
    found = shard_map(jax.value_and_grad(local), mesh, specs, P())(weights, *batch[:3])
    loss, grad = run(batch._replace(logits=batch.logits @ weights), implementation)
    close(found, (loss.sum(), np.einsum("btui,btuj->ij", batch.logits, grad)))


def test_shard_map_replicated_labels(implementation: str, batch: Batch, mesh: Mesh) -> None:
    """Sharded logits with replicated labels and lengths."""
    function = loss_function(implementation)
    few = jax.tree.map(lambda x: x[: B // 8], batch[1:3])
    rest = jax.tree.map(lambda x: np.tile(x, (8,) + (1,) * (x.ndim - 1)), few)
    inside = shard_map(losses_and_grad(function), mesh, (P("data"), P(), P()), P("data"))
    close(inside(batch.logits, *few), run(Batch(batch.logits, *rest), implementation))


@pytest.mark.parametrize("replicated", [0, 1])
def test_shard_map_replicated_arcs(implementation: str, replicated: int, mesh: Mesh) -> None:
    """One of the two arc planes replicated; gradients by both."""
    batch = random_arcs(np.random.default_rng(6), B, T, U)
    arcs = [batch.blank, batch.label]
    few = arcs[replicated][: B // 8]
    arcs[replicated] = np.tile(few, (8, 1, 1))
    loss, grads, _ = run_arcs(ArcsBatch(*arcs, batch.lengths), implementation)
    wanted = list(grads)
    wanted[replicated] = wanted[replicated].reshape(8, *few.shape).sum(0)
    arcs[replicated] = few
    specs = [P("data"), P("data"), P("data")]
    specs[replicated] = P()
    function = arcs_function(implementation)

    def total(blank: jax.Array, label: jax.Array, ranges: Any) -> jax.Array:
        return jax.lax.psum(function(blank, label, ranges).sum(), "data")

    out = (P(), (specs[0], specs[1]))
    step = shard_map(jax.value_and_grad(total, (0, 1)), mesh, tuple(specs), out)
    close(step(*arcs, batch.lengths), (loss.sum(), tuple(wanted)))


# ---------------------------------------------------------------------------------- explicit meshes


def test_explicit_mesh(implementation: str, batch: Batch, devices: list[jax.Device]) -> None:
    """Sharding in types: the loss and the gradient keep the batch axis of their operands."""
    mesh = jax.make_mesh(
        (8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,), devices=devices
    )
    with jax.set_mesh(mesh):
        arguments = sharded(tuple(batch[:3]), mesh)
        function = losses_and_grad(loss_function(implementation))
        loss, grad = jax.jit(function)(*arguments)
        assert jax.typeof(loss).sharding.spec[0] == "data"
        assert jax.typeof(grad).sharding.spec[0] == "data"
        close((loss, grad), run(batch, implementation))
        text = jax.jit(function).lower(*arguments).compile().as_text()
        assert not COLLECTIVES.findall(text)
        mapped = jax.jit(jax.vmap(jax.value_and_grad(loss_function(implementation))))
        close(mapped(*arguments), run(batch, implementation))
