"""`rnnt_loss_simple` and `rnnt_loss_smoothed` under transformations, sharded, and their memory.

Everything is float32 and holds frames that are computed one at a time, because halves peak at
different classes: control flow that depends on data must survive every transformation.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Lengths, Options
from factored_cases import factored_function, loss_and_grads, random_factored, run_factored
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from oracles_factored import FactoredBatch, FactoredResult
from programs import compiled_memory, custom_calls, export
from shardings import COLLECTIVES, shard_map, sharded

B, T, U, V = 16, 5, 3, 6
DATA = P("data")
SCALES: Options = {"lm_only_scale": 0.2, "am_only_scale": 0.3}
each_loss = pytest.mark.parametrize("scales", [{}, SCALES], ids=["simple", "smoothed"])


def close(found: Any, wanted: Any) -> None:
    """Equal trees up to the rounding of numbers of the size of the peaks."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), b, rtol=2e-5, atol=2e-5),
        found,
        wanted,
    )


@pytest.fixture(scope="module")
def batch() -> FactoredBatch:
    """In every fourth utterance the sums of products underflow."""
    found = random_factored(np.random.default_rng(0), B, T, U, V, dtype=np.float32)
    found.am[::4, 1:4, 1] += 100
    found.lm[::4, :, 2] += 100
    return found


@pytest.fixture
def mesh(devices: list[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), ("data",))


def rows(batch: FactoredBatch, shape: tuple[int, ...]) -> FactoredBatch:
    """With these batch dimensions."""
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), batch)


def flat(result: Any) -> FactoredResult:
    """With one batch dimension."""
    return FactoredResult(
        *(
            np.asarray(x).reshape(-1, *x.shape[x.ndim - n :])
            for x, n in zip(result, (0, 2, 2), strict=True)
        )
    )


# ------------------------------------------------------------------------------------------- vmap


def test_vmap(implementation: str, batch: FactoredBatch) -> None:
    """vmap of grad, grad of vmap, and both nested: per-example losses written without batch."""
    wanted = run_factored(batch, implementation)
    one = loss_and_grads(factored_function(implementation))
    close(jax.jit(jax.vmap(one))(*batch[:4]), wanted)
    many = loss_and_grads(jax.vmap(factored_function(implementation)))
    close(jax.jit(many)(*batch[:4]), wanted)
    nested = jax.jit(jax.vmap(jax.vmap(one), in_axes=1, out_axes=1))
    close(flat(nested(*rows(batch, (4, 4))[:4])), wanted)


def test_vmap_shared(batch: FactoredBatch) -> None:
    """One predictor output for all, mapped on another axis than the first: gradients add up."""
    function = factored_function("native")
    shared = batch._replace(
        lm=np.broadcast_to(batch.lm[:1], batch.lm.shape),
        labels=np.broadcast_to(batch.labels[:1], batch.labels.shape),
    )
    wanted = run_factored(shared, "native")
    mapped = jax.vmap(function, (2, None, None, 0))
    arguments = np.moveaxis(batch.am, 0, 2), batch.lm[0], batch.labels[0], batch.lengths
    found = jax.jit(loss_and_grads(mapped))(*arguments)
    close((found.loss, np.moveaxis(found.d_am, 2, 0)), wanted[:2])
    close(found.d_lm, wanted.d_lm.sum(0))


def test_vmap_smoothed(batch: FactoredBatch) -> None:
    """Each mapped call has a unigram of its own."""
    function = loss_and_grads(factored_function("native", **SCALES))
    found = jax.jit(jax.vmap(function))(*rows(batch, (2, 8))[:4])
    for i in range(2):
        half = jax.tree.map(lambda x, i=i: x[8 * i : 8 * i + 8], batch)
        close([x[i] for x in found], list(run_factored(half, "native", **SCALES)))


@each_loss
def test_eager_scan_remat(batch: FactoredBatch, scales: Options) -> None:
    """Op by op, in `lax.scan`, and under `jax.checkpoint`."""
    function = factored_function("native", **scales)
    wanted = run_factored(batch, "native", **scales)
    close(function(*batch), wanted.loss)
    remat = jax.checkpoint(lambda *x: function(*x, *batch[2:]).sum())
    close(jax.jit(jax.grad(remat, (0, 1)))(*batch[:2]), wanted[1:])

    def step(carry: jax.Array, part: FactoredBatch) -> Any:
        return carry, loss_and_grads(function)(*part[:4])

    _, found = jax.jit(lambda b: jax.lax.scan(step, jnp.zeros(()), b))(rows(batch, (4, 4)))
    for i in range(4):
        part = jax.tree.map(lambda x, i=i: x[4 * i : 4 * i + 4], batch)
        close([x[i] for x in found], list(run_factored(part, "native", **scales)))


# --------------------------------------------------------------------------------------- sharding


def compiled_on(mesh: Mesh, function: Any, batch: FactoredBatch, spec: P = DATA) -> Any:
    """The results of the function of the sharded batch, and its HLO."""
    arguments = sharded(tuple(batch[:4]), mesh, spec)
    compiled = jax.jit(function).lower(*arguments).compile()
    return compiled(*arguments), compiled.as_text()


def test_sharded_jit(implementation: str, batch: FactoredBatch, mesh: Mesh) -> None:
    """No collective, although pure JAX computes frames as the data needs it; vmapped, too."""
    function = loss_and_grads(factored_function(implementation))
    for mapped in (function, jax.vmap(function)):
        found, text = compiled_on(mesh, mapped, batch)
        close(found, run_factored(batch, implementation))
        assert not COLLECTIVES.findall(text) and (" while(" in text) == (implementation == "xla")
        assert all(x.sharding.spec[0] == "data" for x in found)


def test_sharded_smoothed(batch: FactoredBatch, mesh: Mesh) -> None:
    """The unigram is of the whole batch: sums over devices, the result of one device."""
    function = loss_and_grads(factored_function("native", **SCALES))
    found, _ = compiled_on(mesh, function, batch)
    close(found, run_factored(batch, "native", **SCALES))


def test_two_batch_dims(batch: FactoredBatch, devices: list[jax.Device]) -> None:
    """Both sharded, and one of them with the other half manual in `shard_map`."""
    mesh = Mesh(np.array(devices).reshape(4, 2), ("x", "y"))
    function = loss_and_grads(factored_function("native"))
    found, text = compiled_on(mesh, function, rows(batch, (8, 2)), P("x", "y"))
    close(flat(found), run_factored(batch, "native"))
    assert not COLLECTIVES.findall(text)
    manual = jax.shard_map(
        function, mesh=mesh, in_specs=(P("x"),) * 4, out_specs=P("x"), axis_names={"x"}
    )
    found, text = compiled_on(mesh, manual, batch, P(("x", "y")))
    close(found, run_factored(batch, "native"))
    assert not COLLECTIVES.findall(text)


@each_loss
@pytest.mark.parametrize("size", [(8, 0, 1), (0, 2, 1)], ids=["no frames", "no utterances"])
def test_nothing_in_shard_map(size: tuple[int, int, int], scales: Options, mesh: Mesh) -> None:
    """The branches for platforms with and without kernels have the same types there."""
    batch = random_factored(np.random.default_rng(1), *size, V, dtype=np.float32)
    for implementation in ("auto", "native"):
        function = loss_and_grads(factored_function(implementation, **scales))
        mapped = shard_map(function, mesh, (DATA,) * 4, DATA)
        close(mapped(*batch[:4]), function(*batch[:4]))


@pytest.mark.parametrize("spec", [P(None, "data"), P(None, None, "data"), P()], ids=str)
def test_other_axes(spec: P, mesh: Mesh) -> None:
    """The encoder's half sharded over frames or classes costs communication but stays right."""
    batch = random_factored(np.random.default_rng(3), 3, 8, 3, 16, dtype=np.float32)
    function = jax.jit(loss_and_grads(factored_function("native")))
    rest = sharded(tuple(batch[1:4]), mesh, P())
    close(function(sharded(batch.am, mesh, spec), *rest), run_factored(batch, "native"))


def test_batch_that_does_not_divide(batch: FactoredBatch, mesh: Mesh) -> None:
    """Six utterances on eight devices."""
    few = jax.tree.map(lambda x: x[:6], batch)
    place = NamedSharding(mesh, DATA)
    function = loss_and_grads(factored_function("native"))

    def constrained(*arguments: Any) -> Any:
        return function(*jax.lax.with_sharding_constraint(arguments, place))

    close(jax.jit(constrained)(*few[:4]), run_factored(few, "native"))


def test_pmap(batch: FactoredBatch, devices: list[jax.Device]) -> None:
    """Two utterances on each device."""
    function = loss_and_grads(factored_function("native"))
    found = jax.pmap(function, devices=devices)(*rows(batch, (8, 2))[:4])
    close(flat(found), run_factored(batch, "native"))


@each_loss
def test_shard_map(batch: FactoredBatch, mesh: Mesh, scales: Options) -> None:
    """Gradient inside; smoothed, each shard has its own unigram."""
    function = loss_and_grads(factored_function("native", **scales))
    found = shard_map(function, mesh, (DATA,) * 4, DATA)(*batch[:4])
    parts = [jax.tree.map(lambda x, i=i: x[2 * i : 2 * i + 2], batch) for i in range(8)]
    wanted = [run_factored(part, "native", **scales) for part in parts]
    close(found, FactoredResult(*map(np.concatenate, zip(*wanted, strict=True))))


@each_loss
def test_shard_map_replicated(batch: FactoredBatch, mesh: Mesh, scales: Options) -> None:
    """A replicated predictor output: cotangents add up over the devices, inside and outside."""
    function = factored_function("native", **scales)
    few = batch.lm[:2]
    parts = [jax.tree.map(lambda x, i=i: x[2 * i : 2 * i + 2], batch) for i in range(8)]
    wanted = [run_factored(part._replace(lm=few), "native", **scales) for part in parts]
    loss, d_am, d_lm = zip(*wanted, strict=True)
    expected = np.sum(loss), (np.concatenate(d_am), np.sum(d_lm, 0))

    def total(am: jax.Array, lm: jax.Array, *rest: Any) -> jax.Array:
        return jax.lax.psum(function(am, lm, *rest).sum(), "data")

    specs = (DATA, P(), DATA, DATA)
    arguments = batch.am, few, *batch[2:4]
    step = jax.value_and_grad(total, (0, 1))
    inside = shard_map(step, mesh, specs, (P(), (DATA, P())))
    close(inside(*arguments), expected)
    outside = jax.jit(jax.value_and_grad(shard_map(total, mesh, specs, P()), (0, 1)))
    close(outside(*arguments), expected)


@each_loss
def test_explicit_mesh(batch: FactoredBatch, devices: list[jax.Device], scales: Options) -> None:
    """Sharding in types: loss and gradients keep the batch axis; vmapped, too."""
    mesh = jax.make_mesh(
        (8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,), devices=devices
    )
    function = loss_and_grads(factored_function("native", **scales))
    with jax.set_mesh(mesh):
        found, text = compiled_on(mesh, function, batch)
        assert all(jax.typeof(x).sharding.spec[0] == "data" for x in found)
        close(found, run_factored(batch, "native", **scales))
        if scales:
            return
        assert not COLLECTIVES.findall(text)
        found, text = compiled_on(mesh, jax.vmap(function), batch)
        close(found, run_factored(batch, "native"))
        assert not COLLECTIVES.findall(text)


# ---------------------------------------------------------------------------------- export, memory


@each_loss
def test_export(batch: FactoredBatch, scales: Options) -> None:
    """Serialised with a symbolic batch; for TPU there is no custom call of ours."""
    from jax.export import deserialize, symbolic_shape

    plain = batch._replace(lengths=Lengths())
    (size,) = symbolic_shape("b")
    spec = [jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for x in plain[:3]]
    both = loss_and_grads(factored_function("auto", **scales))

    def function(*arguments: Any) -> tuple[jax.Array, ...]:
        return tuple(both(*arguments))

    targets = custom_calls(jax.jit(function).lower(*plain[:3]).as_text())
    again = deserialize(export(function, *spec, targets=targets).serialize())
    for count in (4, B):
        part = jax.tree.map(lambda x, n=count: x[:n], plain)
        close(again.call(*part[:3]), tuple(run_factored(part, "native", **scales)))
    text = export(function, *plain[:3], targets=set(), platforms=("tpu",)).mlir_module()
    assert not (custom_calls(text) & targets)


@pytest.mark.cpu_only("so little memory that the workspace of a GPU's matrix products counts")
@each_loss
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_memory(dtype: Any, scales: Options) -> None:
    """Temporaries are planes and no more than am's size in float32, far from T * U * V."""
    frames, labels, classes = 2000, 100, 1000
    am = jax.ShapeDtypeStruct((2, frames, classes), dtype)
    lm = jax.ShapeDtypeStruct((2, labels + 1, classes), dtype)
    ids = jax.ShapeDtypeStruct((2, labels), jnp.int32)
    function = factored_function("native", reduction="mean", **scales)
    memory = compiled_memory(jax.value_and_grad(lambda *x: function(*x), (0, 1)), am, lm, ids)
    plane = 4 * 2 * frames * (labels + 1)
    of_am = 4 * 2 * frames * classes
    assert memory.temp_size_in_bytes < 10 * plane + of_am < 0.1 * plane * classes


@each_loss
def test_memory_at_many_classes(scales: Options) -> None:
    """Little beside inputs and gradients: temporaries are below a quarter of the scores."""
    count, frames, labels, classes = 8, 2000, 100, 10000
    am = jax.ShapeDtypeStruct((count, frames, classes), jnp.float32)
    lm = jax.ShapeDtypeStruct((count, labels + 1, classes), jnp.float32)
    ids = jax.ShapeDtypeStruct((count, labels), jnp.int32)
    function = factored_function("native", reduction="mean", **scales)
    memory = compiled_memory(jax.value_and_grad(lambda *x: function(*x), (0, 1)), am, lm, ids)
    assert memory.temp_size_in_bytes < 0.25 * 4 * count * frames * classes
