"""The gradient of the logits in the memory of the logits: the same numbers, and only where nothing
else needs the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    NATIVE_AND_SOME_XLA,
    Batch,
    assert_grad_close,
    expected,
    loss_function,
    random_batch,
    valid_cells,
)
from jax import export
from jax.sharding import PartitionSpec as P
from programs import compiled_memory

import jax_rnnt
from jax_rnnt.arcs import arcs_bwd
from jax_rnnt.types import ArcsOptions

DTYPES = [jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16]
# Rows shorter and longer than what is collected at a time, 512 numbers of 4 bytes; aligned and not.
CLASSES = [1, 2, 28, 50, 129, 500, 1025, 2501]
ALIASED = "output_to_operand_aliasing"


def arcs_operands(
    B: int, T: int, U: int, V: int, dtype: Any, normalization: str = "softmax"
) -> tuple[np.ndarray, ...]:
    """Of `arcs_bwd`: dead rows with anything in them, and rows with one arc or two."""
    rng = np.random.default_rng(V)
    plane = np.float64 if dtype == jnp.float64 else np.float32
    logits = rng.normal(scale=2.0, size=(B, T, U + 1, V))
    labels = rng.integers(min(1, V - 1), V, (B, U))
    blank, label = rng.random((2, B, T, U + 1)) * (rng.random((2, B, T, U + 1)) < 0.7)
    label[..., U] = 0
    if V == 1:
        label[...] = 0  # there is no label but blank
    denominators = np.log(np.exp(logits).sum(-1))
    logits[(blank == 0) & (label == 0)] = np.nan
    cotangents = rng.normal(size=B)
    planes = (x.astype(plane) for x in (denominators, blank, label, cotangents))
    return logits.astype(dtype), labels.astype(np.int32), *planes


def compiled(function: Callable[..., Any], *operands: Any, **options: Any) -> Any:
    return jax.jit(function, **options).lower(*operands).compile()


def check_same_numbers(classes: list[int], dtype: Any, normalization: Any) -> None:
    """The gradient has, bit for bit, the numbers that are written elsewhere."""
    for V in classes:
        clamp = 0.3 if V % 2 else None
        options = ArcsOptions(blank_id=V // 2, normalization=normalization, clamp=clamp)
        values, *others = arcs_operands(3, 7, 4, V, dtype, normalization)

        def gradient(logits: jax.Array, options: Any = options, others: Any = others) -> jax.Array:
            return arcs_bwd(options, logits, *map(jnp.asarray, others))

        elsewhere = compiled(gradient, values)
        in_place = compiled(gradient, values, donate_argnums=0)
        assert ALIASED in in_place.as_text() and ALIASED not in elsewhere.as_text()
        logits = jnp.asarray(values)
        wanted, found = elsewhere(logits), in_place(logits)
        assert logits.is_deleted() and np.isfinite(wanted.astype(jnp.float32)).all()
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("normalization", ["softmax", "none", "hat"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: jnp.dtype(d).name)
def test_same_numbers(dtype: Any, normalization: Any) -> None:
    """Many rows at a time, or parts of one."""
    check_same_numbers(CLASSES, dtype, normalization)


@pytest.mark.parametrize("normalization", ["softmax", "none", "hat"])
@pytest.mark.parametrize("gradient_dtype", [jnp.bfloat16, jnp.float16])
def test_narrower(implementation: str, gradient_dtype: Any, normalization: Any) -> None:
    """A 16-bit gradient of float32 logits is the float32 one, rounded; it leaves them alone."""
    for V in CLASSES:
        clamp = 0.3 if V % 2 else None
        options = ArcsOptions(V // 2, normalization, clamp, implementation)  # type: ignore[arg-type]
        operands = arcs_operands(3, 7, 4, V, jnp.float32, normalization)
        wide = jax.jit(partial(arcs_bwd, options))(*operands)
        narrow = partial(arcs_bwd, options, gradient_dtype=gradient_dtype)
        program = compiled(narrow, *operands, donate_argnums=0)
        assert ALIASED not in program.as_text()
        found = program(*map(jnp.asarray, operands))
        assert found.dtype == gradient_dtype
        np.testing.assert_array_equal(found, wide.astype(gradient_dtype))


def test_large() -> None:
    """More than caches hold, by several threads; elsewhere it would be written past the caches."""
    operands = arcs_operands(2, 60, 12, 3001, jnp.float32)
    assert operands[0].nbytes > 1 << 24
    function = partial(arcs_bwd, ArcsOptions(normalization="hat", blank_id=-1 % 3001))
    wanted = jax.jit(function)(*operands)
    found = jax.jit(function, donate_argnums=0)(jnp.asarray(operands[0]), *operands[1:])
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("order", list(permutations(range(4)))[1::4], ids=str)
def test_any_layout(order: tuple[int, ...]) -> None:
    """The buffer is as the kernels read it, whatever the logits and the gradient are transposed
    to.
    """
    values, *others = map(jnp.asarray, arcs_operands(3, 5, 3, 6, jnp.float32))
    # another dtype: no argument that the logits could be
    values = jnp.transpose(jnp.nan_to_num(values), order).astype(jnp.bfloat16)
    back = [order.index(i) for i in range(4)]

    def gradient(function: Callable[..., Any], x: jax.Array) -> jax.Array:
        x = jnp.transpose(jnp.tanh(x.astype(jnp.float32)), back)
        return jnp.transpose(function(x, *others), order[::-1])

    native = partial(gradient, partial(arcs_bwd, ArcsOptions()))
    in_jax = partial(gradient, partial(arcs_bwd, ArcsOptions(implementation="xla")))
    program = compiled(native, values)
    assert ALIASED in program.as_text()
    np.testing.assert_allclose(program(values), in_jax(values), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------- whole programs

B, T, U, V, D = 4, 20, 10, 200, 8
LOGITS = 4 * B * T * (U + 1) * V
WEIGHTS = tuple(  # of frames, of labels, matrix, bias
    np.ones(shape, np.float32) for shape in ((B, T, D), (B, U + 1, D), (D, V), (V,))
)
AM, LM = np.ones((B, T, V), np.float32), np.ones((B, U + 1, V), np.float32)
IDS = np.ones((B, U), np.int32)
native = partial(loss_function("native", reduction="sum"), labels=IDS)


def hidden(frames: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.tanh(frames[:, :, None] + labels[:, None])


def joiner(frames: jax.Array, labels: jax.Array, matrix: jax.Array, bias: jax.Array) -> jax.Array:
    with jax.numpy_rank_promotion("allow"):
        return hidden(frames, labels) @ matrix + bias


def linear(frames: jax.Array, labels: jax.Array, matrix: jax.Array) -> jax.Array:
    logits = hidden(frames, labels).reshape(-1, D) @ matrix
    return logits.reshape(B, T, U + 1, V)


def additive(am: jax.Array, lm: jax.Array) -> jax.Array:
    return am[:, :, None] + lm[:, None]


def step(function: Callable[..., Any]) -> Callable[..., Any]:
    """Loss and gradients by all operands."""
    return lambda *x: jax.value_and_grad(lambda *y: native(function(*y)), range(len(x)))(*x)


def accumulated(frames: jax.Array, *others: jax.Array) -> Any:
    """Over micro-batches, by the weights of the joint network alone."""

    def add(total: Any, part: jax.Array) -> Any:
        weights = others[1:]
        found = jax.value_and_grad(lambda *w: native(joiner(part, others[0], *w)), (0, 1))(*weights)
        return jax.tree.map(jnp.add, total, found), None

    zeros = jax.tree.map(jnp.zeros_like, (jnp.float32(0), others[1:]))
    return jax.lax.scan(add, zeros, jnp.stack([frames, frames]))[0]


def sharded(frames: jax.Array, *others: jax.Array) -> Any:
    """Each device has utterances of its own."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = (P("data"), P("data"), P(), P())

    def loss(*x: jax.Array) -> jax.Array:
        return loss_function("native", reduction="sum")(joiner(*x), IDS[: B // 2])

    def local(*x: jax.Array) -> Any:
        value, grads = jax.value_and_grad(loss, (0, 1))(*x)
        return jax.lax.psum(value, "data"), grads

    out_specs = (P(), (P("data"), P("data")))
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out_specs)(frames, *others)


PROGRAMS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "joiner": (step(joiner), WEIGHTS),
    "joiner in a jit": (step(jax.jit(joiner)), WEIGHTS),
    "checkpoint": (step(jax.checkpoint(joiner)), WEIGHTS),
    "linear": (step(linear), WEIGHTS[:3]),
    "scan": (accumulated, WEIGHTS),
    "vmap": (jax.vmap(step(joiner)), tuple(np.stack([x, x]) for x in WEIGHTS)),
    "bfloat16": (
        step(lambda *x: joiner(*x).astype(jnp.float32)),
        tuple(x.astype(jnp.bfloat16) for x in WEIGHTS),
    ),
    "additive": (step(additive), (AM, LM)),
    "cond": (lambda *x: jax.lax.cond(x[0].sum() > 0, step(joiner), step(joiner), *x), WEIGHTS),
}


def copies_of_logits(text: str) -> list[str]:
    """Copies, also as parts of a fusion, of something with the logits' shape or number."""
    shapes = [(B, T, U + 1, V), (2, B, T, U + 1, V), (B // 2, T, U + 1, V)]
    names = [f"[{','.join(map(str, shape))}]" for shape in shapes] + [f"[{LOGITS // 4}]"]
    return [
        line for line in text.splitlines() if " copy(" in line and any(n in line for n in names)
    ]


CPU_ONLY = pytest.mark.cpu_only("about what the compiler for CPUs makes of it")


@CPU_ONLY
@pytest.mark.parametrize("name", PROGRAMS)
def test_no_copy(name: str) -> None:
    """In place in training steps, without a copy of the logits or of the gradient."""
    function, operands = PROGRAMS[name]
    text = compiled(function, *operands).as_text()
    assert ALIASED in text
    assert not copies_of_logits(text)


@CPU_ONLY
def test_no_copy_in_shard_map(devices: list[jax.Device]) -> None:
    """The part of a device."""
    text = compiled(sharded, *WEIGHTS).as_text()
    assert ALIASED in text and not copies_of_logits(text)


@CPU_ONLY
def test_memory_of_a_step() -> None:
    """One array of the logits' size where there were two, and none where they are donated."""
    for function, operands in (PROGRAMS["additive"], PROGRAMS["linear"]):
        assert compiled_memory(function, *operands).temp_size_in_bytes < 1.4 * LOGITS
    logits = jax.ShapeDtypeStruct((B, T, U + 1, V), jnp.float32)
    program = compiled(jax.value_and_grad(native), logits, donate_argnums=0)
    assert ALIASED in program.as_text() and not copies_of_logits(program.as_text())
    memory = program.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 0.2 * LOGITS and memory.alias_size_in_bytes >= LOGITS


def test_not_where_it_would_be_copied(devices: list[jax.Device]) -> None:
    """Arguments that are not donated, also in inner functions; programs that are divided."""
    gradient = jax.grad(native)
    logits = jax.ShapeDtypeStruct((B, T, U + 1, V), jnp.float32)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, P("data"))
    flat = jax.ShapeDtypeStruct((B * T, U + 1, V), jnp.float32)

    def local(x: jax.Array) -> jax.Array:
        function = loss_function("native", reduction="sum")
        return jax.grad(lambda x: function(x, IDS[: B // 2]))(x)

    manual = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    lowered = [
        jax.jit(gradient).lower(logits),
        jax.jit(lambda x: jax.jit(gradient)(x)).lower(logits),
        jax.jit(lambda x: gradient(x.reshape(logits.shape))).lower(flat),
        jax.jit(gradient, in_shardings=sharding, donate_argnums=0).lower(logits),
        jax.jit(manual).lower(logits),
    ]
    for program in lowered:
        assert "jax_rnnt_arcs_bwd" in program.as_text()
        assert "output_operand_alias" not in program.as_text()
    assert "output_operand_alias" in jax.jit(gradient, donate_argnums=0).lower(logits).as_text()
    assert "output_operand_alias" in jax.jit(manual, donate_argnums=0).lower(logits).as_text()
    mapped = jax.pmap(gradient, donate_argnums=0)
    several = jax.ShapeDtypeStruct((2, *logits.shape), jnp.float32)
    assert "output_operand_alias" in mapped.lower(several).as_text()


# ------------------------------------------------------------------------------------------ values


def random_logits(normalization: str = "softmax") -> Batch:
    """With NaN in padding."""
    batch = random_batch(np.random.default_rng(0), 5, 6, 4, 7, normalization=normalization)
    batch.logits[~valid_cells(batch)] = np.nan
    return batch


@pytest.mark.parametrize("normalization", ["softmax", "none", "hat"])
@pytest.mark.parametrize("topology", [o for i, o in NATIVE_AND_SOME_XLA if i == "native"])
def test_donated_logits(topology: dict[str, Any], normalization: str) -> None:
    """Against the dynamic programme; padding is written over with zeros."""
    batch = random_batch(
        np.random.default_rng(1), 5, 6, 4, 7, normalization=normalization, **topology
    )
    batch.logits[~valid_cells(batch)] = np.nan
    options = dict(topology, normalization=normalization, fastemit_lambda=0.3)
    function = loss_function("native", reduction="sum", **options)
    program = jax.jit(jax.grad(lambda x: function(x, *batch[1:])), donate_argnums=0)
    found = np.asarray(program(jnp.asarray(batch.logits)))
    clean = batch._replace(logits=np.nan_to_num(batch.logits))
    assert_grad_close(found, expected(clean, **options).grad, 1e-12)
    assert (found[~valid_cells(batch)] == 0).all()


def test_donated_rows_and_bands() -> None:
    """Packed rows and bands have the same gradient donated or not."""
    rng = np.random.default_rng(2)
    labels = rng.integers(1, 9, (3, 4))
    lengths = np.array([6, 2, 5]), np.array([4, 0, 3])
    ranges = np.minimum(np.arange(6) // 2, 2)[:, None] + np.arange(3)
    ranges = np.broadcast_to(ranges, (3, 6, 3)).astype(np.int32)

    def packed(x: jax.Array) -> jax.Array:
        return jax_rnnt.rnnt_loss_packed(x, labels, *lengths, reduction="sum")

    def pruned(x: jax.Array) -> jax.Array:
        return jax_rnnt.rnnt_loss_pruned(x, labels, ranges, *lengths, reduction="sum")

    for function, shape in ((packed, (60, 9)), (pruned, (3, 6, 3, 9))):
        logits = jnp.asarray(rng.normal(size=shape))
        wanted = jax.jit(jax.grad(function))(logits)
        assert (wanted != 0).any()
        program = compiled(jax.grad(function), logits, donate_argnums=0)
        assert ALIASED in program.as_text()
        np.testing.assert_array_equal(program(logits), wanted)


def test_logits_that_are_needed_afterwards() -> None:
    """Returned, in the derivative of what made them, in two gradients of the same loss."""
    batch = random_logits()
    clean = jnp.asarray(np.nan_to_num(batch.logits))
    wanted = expected(batch._replace(logits=np.tanh(clean))).grad
    cotangents = np.arange(1.0, 6.0)

    def made(x: jax.Array) -> Any:
        # from another dtype: logits of the right type are an argument that might be kept
        logits = jnp.tanh(x.astype(jnp.float64))
        loss, back = jax.vjp(lambda x: loss_function("native")(x, *batch[1:]), logits)
        return logits, back(jnp.ones_like(loss))[0], back(jnp.asarray(cotangents))[0]

    def through(x: jax.Array) -> jax.Array:
        loss = loss_function("native", reduction="sum")
        return jax.grad(lambda x: loss(jnp.tanh(x.astype(jnp.float64)), *batch[1:]))(x)

    program = compiled(made, clean.astype(jnp.float32))
    assert ALIASED in program.as_text()
    logits, one, other = program(clean.astype(jnp.float32))
    np.testing.assert_allclose(logits, np.tanh(clean), rtol=0, atol=1e-6)
    assert_grad_close(np.asarray(one), wanted, 1e-6)
    assert_grad_close(np.asarray(other), cotangents[:, None, None, None] * wanted, 1e-6)
    found = jax.jit(through)(clean.astype(jnp.float32))
    assert_grad_close(np.asarray(found), wanted * (1 - np.tanh(clean) ** 2), 1e-6)


def test_debug_nans() -> None:
    """Donated logits under `jax_debug_nans`: nothing that is computed has a NaN."""
    batch = random_batch(np.random.default_rng(3), 3, 4, 2, 5)
    function = partial(loss_function("native", reduction="sum"), labels=batch.labels)
    with jax.debug_nans(True):
        found = jax.jit(jax.grad(function), donate_argnums=0)(jnp.asarray(batch.logits))
        eager = jax.grad(function)(jnp.asarray(batch.logits))
    np.testing.assert_array_equal(found, eager)


@CPU_ONLY
def test_exported() -> None:
    """Exported programs leave their arguments alone, and need no other calls than documented."""
    targets = ("jax_rnnt_arcs_fwd", "jax_rnnt_lattice", "jax_rnnt_arcs_bwd")
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in targets]
    program = jax.jit(step(additive))
    exported = export.export(program, disabled_checks=checks)(AM, LM)
    jax.tree.map(np.testing.assert_array_equal, exported.call(AM, LM), program(AM, LM))
