"""Pruning under every transform and on several devices, and its memory.

Values are float64 and compared to 1e-12 with `run_pruned`, which test_pruning.py holds to oracles.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import close
from cases import Lengths
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from programs import custom_calls, export
from pruned_cases import TOPOLOGIES, PrunedBatch, pruned_function, random_pruned, run_pruned
from shardings import COLLECTIVES, losses_and_grad, shard_map, sharded

import jax_rnnt
from jax_rnnt import Posteriors

B, T, U, S, V = 16, 6, 5, 3, 5


@pytest.fixture
def batch() -> PrunedBatch:
    return random_pruned(np.random.default_rng(0), B, T, U, S, V)


@pytest.fixture
def mesh(devices: list[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), ("data",))


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_vmap(implementation: str, topology: str) -> None:
    """vmap of grad without batch dims, and grad of vmap with labels and ranges shared."""
    batch = random_pruned(np.random.default_rng(1), B, T, U, S, V, topology=topology)
    function = pruned_function(implementation, topology=topology)
    found = jax.jit(jax.vmap(jax.value_and_grad(function)))(*batch[:4])
    close(found, run_pruned(batch, implementation, topology=topology))

    one = jax.tree.map(lambda x: x[0], batch[1:4])
    axes = (-1, None, None, None)
    mapped = jax.vmap(function, axes)
    logits = np.moveaxis(batch.logits, 0, -1)
    grad = jax.jit(jax.grad(lambda x: mapped(x, *one).sum()))(logits)
    shared = jax.tree.map(lambda x: np.stack([x] * B), one)
    wanted = run_pruned(PrunedBatch(batch.logits, *shared), implementation, topology=topology)
    close(np.moveaxis(grad, -1, 0), wanted[1])


def test_scan_and_remat(implementation: str, batch: PrunedBatch) -> None:
    """Gradient accumulation in a scan of a rematerialised loss."""
    parts = jax.tree.map(lambda x: x.reshape(4, 4, *x.shape[1:]), batch)
    function = jax.checkpoint(pruned_function(implementation, reduction="sum"))

    def step(total: jax.Array, part: PrunedBatch) -> tuple[jax.Array, jax.Array]:
        value, grad = jax.value_and_grad(function)(*part)
        return total + value, grad

    total, grads = jax.jit(lambda b: jax.lax.scan(step, jnp.zeros(()), b))(parts)
    loss, grad = run_pruned(batch, implementation)
    close((total, grads.reshape(grad.shape)), (loss.sum(), grad))


def test_debug_nans(implementation: str, batch: PrunedBatch) -> None:
    """`jax_debug_nans` does not complain about a clean batch, though its padding is -inf."""
    function = pruned_function(implementation, reduction="sum")
    with jax.debug_nans(True):
        found = jax.jit(jax.value_and_grad(function))(*batch)
    loss, grad = run_pruned(batch, implementation)
    close(found, (loss.sum(), grad))


# ---------------------------------------------------------------------------------- several devices


def test_pmap(implementation: str, batch: PrunedBatch, devices: list[jax.Device]) -> None:
    """value_and_grad on eight devices, two utterances each."""
    split = jax.tree.map(lambda x: x.reshape(8, B // 8, *x.shape[1:]), tuple(batch[:4]))
    function = losses_and_grad(pruned_function(implementation))
    loss, grad = jax.pmap(function, devices=devices)(*split)
    close((loss.reshape(B), grad.reshape(batch.logits.shape)), run_pruned(batch, implementation))


def pipeline(implementation: str, topology: str) -> Any:
    """`(posteriors, am, lm, weights, labels, lengths) -> losses`: ranges, pruning, joiner, loss."""

    def losses(posteriors: Any, am: Any, lm: Any, weights: Any, labels: Any, lengths: Any) -> Any:
        options = {"topology": topology, "check": False}
        ranges = jax_rnnt.get_rnnt_prune_ranges(
            Posteriors(*posteriors), *lengths[:2], s_range=S, **options
        )
        am_pruned, lm_pruned = jax_rnnt.do_rnnt_pruning(am, lm, ranges)
        logits = jnp.tanh(am_pruned + lm_pruned) @ weights
        return jax_rnnt.rnnt_loss_pruned(
            logits, labels, ranges, *lengths[:2], implementation=implementation, **options
        )

    return losses


def pipeline_arguments() -> tuple[Any, ...]:
    rng = np.random.default_rng(2)
    am, lm = rng.normal(size=(2, B, T, 4))
    posteriors = tuple(rng.random((2, B, T, T)))
    lengths = np.full(B, T), np.arange(B) % T
    return posteriors, am, lm, rng.normal(size=(4, V)), rng.integers(1, V, (B, T - 1)), lengths


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_sharded_jit(implementation: str, topology: str, mesh: Mesh) -> None:
    """Lengths, pruning, joiner and loss, batch-sharded: right, sharded, no collective."""
    function = pipeline(implementation, topology)
    arguments = pipeline_arguments()
    by_am_and_lm = jax.grad(lambda am, lm, rest: function(rest[0], am, lm, *rest[1:]).sum(), (0, 1))

    def both(posteriors: Any, am: Any, lm: Any, *rest: Any) -> Any:
        return function(posteriors, am, lm, *rest), by_am_and_lm(am, lm, (posteriors, *rest))

    wanted = jax.jit(both)(*arguments)
    specs = [P() if i == 3 else P("data") for i in range(len(arguments))]
    placed = [sharded(x, mesh, spec) for x, spec in zip(arguments, specs, strict=True)]
    compiled = jax.jit(both).lower(*placed).compile()
    found = compiled(*placed)
    close(found, wanted)
    assert not COLLECTIVES.findall(compiled.as_text())
    assert all(not x.sharding.is_fully_replicated for x in jax.tree.leaves(found))


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_shard_map(implementation: str, topology: str, mesh: Mesh) -> None:
    """The same in shard_map, with gradients by a replicated weight inside and outside."""
    function = pipeline(implementation, topology)
    arguments = pipeline_arguments()
    by_weights = jax.value_and_grad(lambda w, a: function(*a[:3], w, *a[4:]).sum())
    wanted = jax.jit(by_weights)(arguments[3], arguments)

    def total(w: jax.Array, *a: Any) -> jax.Array:
        return jax.lax.psum(function(*a[:3], w, *a[3:]).sum(), "data")

    rest = (*arguments[:3], *arguments[4:])
    specs = (P(), *[P("data")] * len(rest))
    inside = shard_map(jax.value_and_grad(total), mesh, specs, P())
    close(inside(arguments[3], *rest), wanted)
    outside = jax.jit(jax.value_and_grad(shard_map(total, mesh, specs, P())))
    close(outside(arguments[3], *rest), wanted)


def test_shard_map_replicated(implementation: str, batch: PrunedBatch, mesh: Mesh) -> None:
    """Logits and ranges replicated, labels and lengths sharded: cotangents add up."""
    few = jax.tree.map(lambda x: x[: B // 8], (batch.logits, batch.ranges))
    tiled = [np.tile(x, (8,) + (1,) * (x.ndim - 1)) for x in few]
    lengths = jax.tree.map(lambda x: np.tile(x[: B // 8], 8), batch.lengths)
    whole = PrunedBatch(tiled[0], batch.labels, tiled[1], lengths)
    loss, grad = run_pruned(whole, implementation)
    function = pruned_function(implementation)

    def total(logits: jax.Array, *rest: Any) -> jax.Array:
        return jax.lax.psum(function(logits, *rest).sum(), "data")

    specs = (P(), P("data"), P(), P("data"))
    found = shard_map(jax.value_and_grad(total), mesh, specs, P())(
        few[0], batch.labels, few[1], lengths
    )
    close(found, (loss.sum(), grad.reshape(8, *few[0].shape).sum(0)))


def test_explicit_mesh(implementation: str, batch: PrunedBatch, devices: list[jax.Device]) -> None:
    """Sharding in types: the loss and the gradient keep the batch axis of their operands."""
    mesh = jax.make_mesh(
        (8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,), devices=devices
    )
    with jax.set_mesh(mesh):
        arguments = sharded(tuple(batch[:4]), mesh)
        function = losses_and_grad(pruned_function(implementation, check=False))
        loss, grad = jax.jit(function)(*arguments)
        assert jax.typeof(loss).sharding.spec[0] == "data"
        assert jax.typeof(grad).sharding.spec[0] == "data"
        close((loss, grad), run_pruned(batch, implementation))
        assert not COLLECTIVES.findall(jax.jit(function).lower(*arguments).compile().as_text())
        place = NamedSharding(mesh, P("data"))
        others = jax.device_put(pipeline_arguments()[:3], place)
        ranges = jax_rnnt.get_rnnt_prune_ranges(Posteriors(*others[0]), s_range=S, check=False)
        pruned = jax.jit(jax_rnnt.do_rnnt_pruning)(*others[1:3], ranges)
        assert all(jax.typeof(x).sharding.spec[0] == "data" for x in (ranges, *pruned))


@pytest.mark.parametrize("symbolic", [False, True], ids=["fixed", "symbolic-batch"])
def test_export(implementation: str, batch: PrunedBatch, symbolic: bool) -> None:
    """Value and gradient exported and read back; with a symbolic batch for two sizes."""
    from jax.export import deserialize, symbolic_shape

    function = losses_and_grad(pruned_function(implementation))

    def both(logits: Any, labels: Any, ranges: Any, t: Any, u: Any) -> Any:
        return function(logits, labels, ranges, Lengths(t, u))

    lengths = np.full(B, T), np.minimum(np.arange(B) % U, U)
    arguments = *batch[:2], np.broadcast_to(np.arange(S), (B, T, S)), *lengths
    targets = custom_calls(jax.jit(both).lower(*arguments).as_text())
    assert bool(targets) == (implementation == "native")
    spec = arguments
    if symbolic:
        (size,) = symbolic_shape("b")
        spec = tuple(jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype) for a in arguments)
    again = deserialize(export(both, *spec, targets=targets).serialize())
    for count in (B, 3) if symbolic else (B,):
        part = tuple(x[:count] for x in arguments)
        close(again.call(*part), jax.jit(both)(*part))


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_lowering_for_tpu(topology: str) -> None:
    """`auto` lowers for TPU to plain XLA: no custom call of ours."""
    function, arguments = pipeline("auto", topology), pipeline_arguments()
    here = custom_calls(jax.jit(function).lower(*arguments).as_text())
    assert {"jax_rnnt_arcs_fwd", "jax_rnnt_banded_lattice_score"} <= here
    text = export(function, *arguments, targets=set(), platforms=("tpu",)).mlir_module()
    assert not (custom_calls(text) & here)


# ------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_memory(implementation: str, topology: str) -> None:
    """Nothing is as large as the whole lattice, (T, U+1) cells, let alone its logits."""
    B, T, U, S, V = 4, 200, 150, 5, 40
    function = losses_and_grad(pruned_function(implementation, topology=topology))
    arguments = (
        jax.ShapeDtypeStruct((B, T, S, V), jnp.float32),
        jax.ShapeDtypeStruct((B, U), jnp.int32),
        jax.ShapeDtypeStruct((B, T, S), jnp.int32),
    )
    compiled = jax.jit(function).lower(*arguments).compile()
    text = compiled.as_text()
    shapes = {s for s in re.findall(r"[a-z]\d+\[([\d,]+)\]", text)}
    sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in shapes]
    assert max(sizes) == B * T * S * V
    assert all(n < B * T * U or n in (B * T * S * V, T * S * V) for n in sizes)
    memory = compiled.memory_analysis()
    assert memory is not None
    logits = 4 * B * T * S * V
    assert memory.output_size_in_bytes >= logits
    limit = 0.75 if implementation == "native" else 6
    assert memory.temp_size_in_bytes < limit * logits
