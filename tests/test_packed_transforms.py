"""Packed rows under transforms and on eight devices, as test_transforms.py and test_sharding.py."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import close
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from packed_cases import PackedBatch, packed_function, random_packed, run_packed
from programs import custom_calls, export

import jax_rnnt

B, T, U, V = 4, 5, 3, 6
N = B * T * (U + 1)


def batch_of(seed: int, rows: int = N) -> PackedBatch:
    """With the same number of rows for all."""
    batch, _ = random_packed(np.random.default_rng(seed), B, T, U, V, spare=0)
    spare = np.full((rows - len(batch.logits), V), np.nan)
    return batch._replace(logits=np.concatenate([batch.logits, spare]))


def stacked(batches: list[PackedBatch]) -> PackedBatch:
    return jax.tree.map(lambda *x: np.stack(x), *batches)


def value_and_grad(function: Any) -> Any:
    def both(logits: jax.Array, *rest: Any) -> tuple[jax.Array, jax.Array]:
        loss, vjp = jax.vjp(lambda x: function(x, *rest), logits)
        return loss, vjp(jnp.ones_like(loss))[0]

    return both


BATCHES = [batch_of(seed) for seed in range(8)]


def wanted_of(batches: list[PackedBatch]) -> Any:
    results = [run_packed(batch, "native") for batch in batches]
    return tuple(np.stack(x) for x in zip(*results, strict=True))


def test_eager_and_vmap(implementation: str) -> None:
    """The vmapped gradient; op by op, the gradient of a vmapped loss, an operand shared."""
    function = packed_function(implementation)
    wanted = wanted_of(BATCHES[:3])
    many = stacked(BATCHES[:3])
    close(jax.jit(jax.vmap(value_and_grad(function)))(*many), wanted)
    if implementation == "xla":
        return  # the rest is the same but for the ops
    close(function(*BATCHES[0]), wanted[0][0])
    grad = jax.jit(jax.grad(lambda x: jax.vmap(function)(x, *many[1:]).sum()))(many.logits)
    close(grad, wanted[1])
    one = BATCHES[0]
    halves = np.stack([one.logits, one.logits / 2])
    found = jax.vmap(value_and_grad(function), (0, None, None, None))(halves, *one[1:4])
    close(found, wanted_of([one, one._replace(logits=one.logits / 2)]))


def test_scan_remat_and_nested_vmap() -> None:
    function = jax.checkpoint(packed_function("native"))
    many = stacked(BATCHES[:4])

    def step(total: jax.Array, batch: PackedBatch) -> tuple[jax.Array, Any]:
        return total, value_and_grad(function)(*batch)

    close(jax.jit(lambda b: jax.lax.scan(step, jnp.float64(0), b)[1])(many), wanted_of(BATCHES[:4]))
    nested = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), many)
    loss, grad = jax.jit(jax.vmap(jax.vmap(value_and_grad(function))))(*nested)
    close((loss.reshape(4, B), grad.reshape(4, N, V)), wanted_of(BATCHES[:4]))


def test_pmap_and_shard_map(implementation: str, devices: list[jax.Device]) -> None:
    """Each device has packed utterances of its own."""
    both = value_and_grad(packed_function(implementation))
    many = stacked(BATCHES)
    wanted = wanted_of(BATCHES)
    close(jax.pmap(both, devices=devices)(*many), wanted)
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))

    def local(*arguments: Any) -> Any:
        return jax.tree.map(lambda x: x[None], both(*(x[0] for x in arguments)))

    mapped = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    close(jax.jit(mapped)(*many[:4]), wanted)


def test_gradient_of_replicated_operand(implementation: str, devices: list[jax.Device]) -> None:
    """Inside shard_map, the gradient of what all devices share is the sum over devices."""
    function = packed_function(implementation)
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    one = BATCHES[0]
    scales = np.arange(1.0, 9.0)

    def local(logits: jax.Array, scale: jax.Array) -> jax.Array:
        return jax.lax.psum((function(logits, *one[1:4]) * scale).sum(), "data")

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    grad = jax.jit(jax.grad(lambda x: mapped(x, scales)))(one.logits)
    close(grad, scales.sum() * run_packed(one, "native")[1])


@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_sharded_rows(devices: list[jax.Device], axis_type: str) -> None:
    """Rows divided among devices: right, the gradient divided likewise, and only arcs travel."""
    kind = getattr(jax.sharding.AxisType, axis_type)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,), devices=devices)
    one = BATCHES[0]
    logits = jax.device_put(one.logits, NamedSharding(mesh, P("data")))
    rest = jax.device_put(one[1:4], NamedSharding(mesh, P()))
    both = jax.jit(value_and_grad(packed_function("native")))
    with jax.set_mesh(mesh):
        loss, grad = both(logits, *rest)
        close((loss, grad), run_packed(one, "native"))
        assert grad.sharding.is_equivalent_to(logits.sharding, 2)
        text = both.lower(logits, *rest).compile().as_text()
    assert text is not None
    collectives = re.findall(r"= (\S+)\{\S* (?:all|collective|reduce-scatter)\S*\(", text)
    assert f"f64[{N}]" in collectives
    assert set(collectives) <= {f"f64[{N}]", f"s32[{N}]"}


def test_tpu_lowering() -> None:
    """Pure JAX, without custom call."""
    function = value_and_grad(packed_function())
    lowered = jax.jit(function).trace(*BATCHES[0][:4]).lower(lowering_platforms=("tpu",))
    assert "jax_rnnt" not in lowered.as_text().replace("jit_", "")


@pytest.mark.parametrize(
    ("implementation", "function"), [("native", "loss"), ("native", "align"), ("xla", "loss")]
)
def test_symbolic_export(implementation: str, function: str) -> None:
    """For any number of rows; any number of utterances is an error that says so."""
    from jax.export import deserialize, symbolic_shape

    def align(*batch: Any) -> Any:
        options: Any = {"implementation": implementation, "check": False}
        return tuple(jax_rnnt.rnnt_align_packed(*batch, **options))

    run = align
    if function == "loss":
        run = value_and_grad(packed_function(implementation, check=False))
    targets = custom_calls(jax.jit(run).lower(*BATCHES[0][:4]).as_text())
    assert bool(targets) == (implementation == "native")
    rows, utterances = symbolic_shape("n, b")
    spec = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in BATCHES[0][:4]]
    spec[0] = jax.ShapeDtypeStruct((rows, V), np.float64)
    again = deserialize(export(run, *spec, targets=targets).serialize())
    batch = batch_of(9, N + 30)
    close(again.call(*batch[:4]), jax.jit(run)(*batch[:4]))
    spec[1] = jax.ShapeDtypeStruct((utterances, U), np.int32)
    with pytest.raises(NotImplementedError, match=r"labels has the symbolic number .* B = b"):
        export(run, *spec, targets=targets)


def test_native_memory() -> None:
    """Beside logits and gradient, a few planes of rows."""
    rows, classes = 40_000, 200
    types = (
        jax.ShapeDtypeStruct((rows, classes), jnp.float32),
        *(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((8, 50), (8,), (8,))),
    )
    compiled = jax.jit(value_and_grad(packed_function("native"))).lower(*types).compile()
    memory: Any = compiled.memory_analysis()
    planes = memory.temp_size_in_bytes / (4 * rows)
    assert planes < 25, f"{planes:.1f} planes; logits are {classes}"
    assert jax_rnnt.packed_size(np.full(8, 98), np.full(8, 50)) <= rows
