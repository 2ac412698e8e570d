"""jit, vmap, grad in any order, scan, cond, remat, export: all equal the plain jitted call.

Everything is float64 and compared to 1e-12 with `cases.run`, which test_values.py holds to the
oracle.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import close
from cases import (
    Batch,
    Lengths,
    Options,
    arcs_function,
    each_topology,
    loss_function,
    random_arcs,
    random_batch,
    run,
    run_arcs,
    some_xla,
)
from programs import custom_calls, export, our_targets

import jax_rnnt

B, T, U, V = 8, 5, 3, 6


@pytest.fixture
def batch() -> Batch:
    return random_batch(np.random.default_rng(0), B, T, U, V)


def test_eager(implementation: str, batch: Batch) -> None:
    """Called op by op, value and gradient, on NumPy and on JAX arrays."""
    function = loss_function(implementation)
    loss, grad = run(batch, implementation)
    close(function(*batch), loss)
    on_device = jax.tree.map(jnp.asarray, batch)
    close(function(*on_device), loss)
    close(jax.grad(lambda x: function(x, *on_device[1:]).sum())(on_device.logits), grad)


@pytest.mark.parametrize("topology", **each_topology)
def test_vmap_of_grad(implementation: str, topology: Options) -> None:
    """Per-example gradients of a loss written without batch dims."""
    batch = random_batch(np.random.default_rng(1), B, T, U, V, **topology)
    function = loss_function(implementation, **topology)
    found = jax.jit(jax.vmap(jax.value_and_grad(function)))(*batch)
    close(found, run(batch, implementation, **topology))


@pytest.mark.parametrize(**some_xla)
def test_grad_of_vmap(implementation: str, topology: Options) -> None:
    """Gradient of a sum over a vmapped loss."""
    batch = random_batch(np.random.default_rng(2), B, T, U, V, **topology)
    function = jax.vmap(loss_function(implementation, **topology))
    found = jax.jit(jax.grad(lambda x: function(x, *batch[1:]).sum()))(batch.logits)
    close(found, run(batch, implementation, **topology)[1])


AXES = [
    (0, 0, 0),
    (2, 1, None),
    (-1, None, 1),
    (1, None, None),
    (None, 0, 0),
    (None, None, 1),
    (4, -1, 0),
]


@pytest.mark.parametrize(("logits", "labels", "lengths"), AXES, ids=str)
def test_in_axes(
    implementation: str, logits: int | None, labels: int | None, lengths: int | None
) -> None:
    """vmap over a function with a batch dim of its own; every operand on any axis, or shared."""
    rng = np.random.default_rng(3)
    many = [random_batch(rng, 3, T, U, V) for _ in range(4)]
    axes = (logits, labels, lengths)

    def stacked(parts: list[Any], axis: int | None) -> Any:
        return parts[0] if axis is None else np.stack(parts, axis)

    def pick(i: int) -> Batch:
        one = [many[0 if axis is None else i] for axis in axes]
        return Batch(one[0].logits, one[1].labels, one[2].lengths)

    arguments = (
        stacked([b.logits for b in many], logits),
        stacked([b.labels for b in many], labels),
        Lengths(*(stacked([b.lengths[k] for b in many], lengths) for k in range(4))),
    )
    wanted = [run(pick(i), implementation) for i in range(4)]
    function = loss_function(implementation)

    def total(*arguments: Any) -> jax.Array:
        return function(*arguments).sum()

    values, grads = jax.jit(jax.vmap(jax.value_and_grad(total), axes))(*arguments)
    close(values, [w[0].sum() for w in wanted])
    close(grads, np.stack([w[1] for w in wanted]))
    outer = jax.jit(jax.grad(lambda *a: jax.vmap(total, axes)(*a).sum()))(*arguments)
    expected = np.stack([w[1] for w in wanted])
    close(outer, expected.sum(0) if logits is None else np.moveaxis(expected, 0, logits))


def test_nested_vmap(implementation: str) -> None:
    """Two vmaps over different axes around a grad, with labels shared by the outer one."""
    rng = np.random.default_rng(4)
    flat = random_batch(rng, 6, T, U, V)
    logits = flat.logits.reshape(2, 3, T, U + 1, V)
    inner = jax.vmap(
        jax.value_and_grad(loss_function(implementation)), in_axes=(3, 0, 0), out_axes=(0, 1)
    )
    nested = jax.jit(jax.vmap(inner, in_axes=(1, None, 0)))
    lengths = jax.tree.map(lambda x: x.reshape(2, 3), flat.lengths)
    shared = flat.labels[:3]
    # inner axis of the mapped logits last, outer axis second
    values, grads = nested(np.moveaxis(logits, (0, 1), (1, 4)), shared, lengths)
    loss, grad = run(flat._replace(labels=np.concatenate([shared, shared])), implementation)
    close(values, loss.reshape(2, 3))
    close(np.moveaxis(grads, 2, 1), grad.reshape(logits.shape))


def test_vmap_from_arcs(implementation: str) -> None:
    """Posteriors and gradients of unbatched arcs, one arc plane shared by all."""
    rng = np.random.default_rng(5)
    batch = random_arcs(rng, B, T, U)
    shared = batch._replace(label=np.broadcast_to(batch.label[:1], batch.label.shape))
    function = arcs_function(implementation, return_posteriors=True)
    axes = (0, None, 0)
    grads = jax.vmap(jax.value_and_grad(function, argnums=(0, 1), has_aux=True), axes)
    (loss, posteriors), found = jax.jit(grads)(batch.blank, batch.label[0], batch.lengths)
    wanted = run_arcs(shared, implementation)
    close((loss, found, tuple(posteriors)), (wanted[0], wanted[1], tuple(wanted[2])))

    def total(label: jax.Array) -> jax.Array:
        return jax.vmap(function, axes)(batch.blank, label, batch.lengths)[0].sum()

    close(jax.jit(jax.grad(total))(batch.label[0]), wanted[1][1].sum(0))


def test_vmap_of_where_and_reduction(implementation: str, batch: Batch) -> None:
    """`where` mapped with the rest; a mean inside vmap is over the inner batch only."""
    keep = np.array([True, False, True, True, False, False, True, True])
    halves = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), batch._replace(where=keep))
    function = loss_function(implementation, reduction="mean")
    values, grads = jax.jit(jax.vmap(jax.value_and_grad(function)))(*halves)
    for i in range(2):
        half = jax.tree.map(lambda x, i=i: x[i], halves)
        close((values[i], grads[i]), run(half, implementation, reduction="mean"))


def test_scan(implementation: str, batch: Batch) -> None:
    """Gradient accumulation inside `lax.scan`, and the gradient of a scanned loss."""
    halves = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch)
    function = loss_function(implementation, reduction="sum")
    loss, grad = run(batch, implementation)

    def accumulate(total: jax.Array, part: Batch) -> tuple[jax.Array, jax.Array]:
        value, grad = jax.value_and_grad(function)(*part)
        return total + value, grad

    total, grads = jax.jit(lambda b: jax.lax.scan(accumulate, jnp.zeros(()), b))(halves)
    close((total, grads.reshape(grad.shape)), (loss.sum(), grad))

    def scanned(logits: jax.Array) -> jax.Array:
        parts = halves._replace(logits=logits)
        return jax.lax.scan(lambda s, p: (s + function(*p), None), jnp.zeros(()), parts)[0]

    close(jax.jit(jax.grad(scanned))(halves.logits).reshape(grad.shape), grad)


def test_remat(implementation: str, batch: Batch) -> None:
    """`jax.checkpoint` around the loss, saving everything, nothing and the default."""
    policies = jax.checkpoint_policies
    for policy in (None, policies.nothing_saveable, policies.everything_saveable):
        function = jax.checkpoint(loss_function(implementation, reduction="sum"), policy=policy)
        found = jax.jit(jax.grad(lambda x, f=function: f(jnp.sin(x), *batch[1:])))(batch.logits)
        _, grad = run(batch._replace(logits=np.sin(batch.logits)), implementation)
        close(found, grad * np.cos(batch.logits))


def test_cond(implementation: str, batch: Batch) -> None:
    """In one branch of `lax.cond`, and vmapped, where cond becomes a select."""
    function = loss_function(implementation, reduction="sum")

    def loss(use: jax.Array, part: Batch) -> jax.Array:
        return jax.lax.cond(use, lambda x: function(x, *part[1:]), lambda x: x.sum(), part.logits)

    def value_and_grad(use: jax.Array, part: Batch) -> tuple[jax.Array, jax.Array]:
        return jax.value_and_grad(lambda x: loss(use, part._replace(logits=x)))(part.logits)

    value, grad = run(batch, implementation, reduction="sum")
    other = batch.logits.sum(), np.ones_like(batch.logits)
    one = jax.jit(value_and_grad)
    close(one(np.array(True), batch), (value, grad))
    close(one(np.array(False), batch), other)
    two = jax.jit(jax.vmap(value_and_grad, (0, None)))(np.array([True, False]), batch)
    close(two, (np.stack([value, other[0]]), np.stack([grad, other[1]])))


def test_debug_nans(implementation: str, batch: Batch) -> None:
    """`jax_debug_nans` neither recurses nor complains about a clean batch."""
    function = loss_function(implementation, reduction="sum")
    with jax.debug_nans(True):
        found = jax.jit(jax.value_and_grad(function))(*batch)
        eager = function(*batch)
    loss, grad = run(batch, implementation)
    close((found, eager), ((loss.sum(), grad), loss.sum()))


# ------------------------------------------------------------------------------------------ export

Tree = Any


def value_and_grad(implementation: str, **options: Any) -> Any:
    """`(logits, labels, logit_lengths, label_lengths) -> ((loss, grad), posteriors' sum)`."""
    function = loss_function(implementation, reduction="sum", **options)

    def both(x: jax.Array, labels: jax.Array, t: jax.Array, u: jax.Array) -> Tree:
        return jax.value_and_grad(function)(x, labels, Lengths(t, u))

    return both


def arguments_of(batch: Batch) -> tuple[Any, ...]:
    return (batch.logits, batch.labels, *batch.lengths[:2])


def without_begins(batch: Batch) -> Batch:
    """With full lengths, so that dropping the begins leaves a path for every topology."""
    t, u = np.full(B, T, np.int32), np.full(B, U - 1, np.int32)
    return batch._replace(lengths=Lengths(t, u))


@pytest.mark.parametrize("symbolic", [False, True], ids=["fixed", "symbolic-batch"])
def test_export(implementation: str, batch: Batch, symbolic: bool) -> None:
    """Value and gradient exported, serialised, read back; with a symbolic batch for two sizes."""
    from jax.export import deserialize, symbolic_shape

    batch = without_begins(batch)
    function, arguments = value_and_grad(implementation), arguments_of(batch)
    targets = our_targets(function, *arguments)
    assert bool(targets) == (implementation == "native")
    spec = arguments
    if symbolic:
        (size,) = symbolic_shape("b")
        spec = tuple(jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype) for a in arguments)
    exported = export(function, *spec, targets=targets)
    again = deserialize(exported.serialize())
    for count in (B, 3) if symbolic else (B,):
        part = jax.tree.map(lambda x, n=count: x[:n], batch)
        loss, grad = run(part, implementation)
        close(again.call(*arguments_of(part)), (loss.sum(), grad))


def test_disabled_export_checks(batch: Batch) -> None:
    """They are all that exporting needs, whatever the program calls."""
    from jax.export import deserialize
    from jax.export import export as export_

    batch = without_begins(batch)
    function, arguments = value_and_grad("native"), arguments_of(batch)
    checks = jax_rnnt.disabled_export_checks()
    exported = export_(jax.jit(function), disabled_checks=checks)(*arguments)
    loss, grad = run(batch, "native")
    close(deserialize(exported.serialize()).call(*arguments), (loss.sum(), grad))
    names = {check.is_custom_call() for check in checks}
    assert our_targets(function, *arguments) < names and len(names) == len(checks)


@pytest.mark.parametrize("topology", **each_topology)
def test_lowering_for_tpu(topology: Options, batch: Batch) -> None:
    """`auto` lowers for TPU on a machine that has none, to plain XLA: no custom call of ours."""
    batch = without_begins(batch)
    function, arguments = value_and_grad("auto", **topology), arguments_of(batch)
    here = our_targets(function, *arguments)
    assert here
    text = export(function, *arguments, targets=set(), platforms=("tpu",)).mlir_module()
    assert not (custom_calls(text) & here)
    traced = jax.jit(function).trace(*arguments)
    assert not (custom_calls(traced.lower(lowering_platforms=("tpu",)).as_text()) & here)
    arcs = random_arcs(np.random.default_rng(6), B, T, U)
    text = export(arcs_function("auto", **topology), *arcs, targets=set(), platforms=("tpu",))
    assert "stablehlo" in text.mlir_module() and not (custom_calls(text.mlir_module()) & here)


def test_export_for_two_platforms(batch: Batch) -> None:
    """One artefact for CPU and TPU: the choice is made where it runs."""
    batch = without_begins(batch)
    function, arguments = value_and_grad("auto"), arguments_of(batch)
    targets = our_targets(function, *arguments)
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    exported = export(function, *arguments, targets=targets, platforms=(platform, "tpu"))
    loss, grad = run(batch, "native")
    close(jax.jit(exported.call)(*arguments), (loss.sum(), grad))
