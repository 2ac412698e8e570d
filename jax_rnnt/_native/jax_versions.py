"""Every conditional on JAX's version."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.interpreters import mlir
from jax.sharding import NamedSharding, PartitionSpec


def varying_axes(aval: Any) -> frozenset[str]:
    """The `shard_map` mesh axes along which a value varies."""
    manual_axis_type = getattr(aval, "mat", None)  # JAX 0.10 and newer
    if manual_axis_type is not None:
        return frozenset(manual_axis_type.varying)
    return frozenset(getattr(aval, "vma", ()))


def _as_varying(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, axes, to="varying")
    return jax.lax.pvary(x, axes)  # pyright: ignore[reportAttributeAccessIssue]


def align_varying_axes(*operands: Any) -> tuple[Any, ...]:
    """Gives all operands, arrays or pytrees, the same varying axes inside `shard_map`.

    The cast is what sums the cotangent of a replicated operand over the mesh. It must lie outside
    of a `custom_vjp`, whose gradients would otherwise silently be those of one shard.
    """
    leaves, structure = jax.tree.flatten(operands)
    varying = [varying_axes(jax.typeof(x)) for x in leaves]
    union = frozenset().union(*varying)
    return structure.unflatten(
        _as_varying(x, tuple(sorted(union - axes, key=str))) if union - axes else x
        for x, axes in zip(leaves, varying, strict=True)
    )


def varying_zeros(x: jax.Array, dtype: Any = None) -> jax.Array:
    """Zeros for the carry of a loop that makes them vary as `x` does inside `shard_map`."""
    return align_varying_axes(x, jax.numpy.zeros_like(x, dtype))[1]


def explicit_sharding(x: Any) -> NamedSharding | None:
    """That of an array which is divided along explicit axes of a mesh."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    # Specs of axes that are not explicit are empty.
    return sharding if sharding is not None and any(sharding.spec) else None


def has_whole_rows(x: jax.Array) -> bool:
    """Whether no explicit axis of a mesh divides the last dimension."""
    sharding = explicit_sharding(x)
    return sharding is None or len(sharding.spec) < x.ndim or sharding.spec[x.ndim - 1] is None


def with_batch_sharding_of(reference: jax.Array, num_batch_dims: int, x: jax.Array) -> jax.Array:
    """`x`, on an explicit mesh divided as `reference` is in its leading dimensions, else whole.

    Explicit axes refuse to combine a sharded operand with a replicated one. On other meshes, where
    the compiler decides, `x` is returned as it is.
    """
    sharding = explicit_sharding(reference) or explicit_sharding(x)
    if sharding is None:
        return x
    batch = tuple(jax.typeof(reference).sharding.spec)[:num_batch_dims]
    spec = PartitionSpec(*batch, *[None] * (x.ndim - len(batch)))
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, spec))


def with_whole_rows(num_batch_dims: int, *scores: jax.Array) -> tuple[jax.Array, ...]:
    """Scores that, on an explicit mesh, are divided as the batch of the first is, and no further.

    It must lie outside of a `custom_vjp`, whose gradients have to be divided as its operands are.
    """
    return tuple(with_batch_sharding_of(scores[0], num_batch_dims, x) for x in scores)


def replicated(x: jax.Array) -> jax.Array:
    """`x` whole on every device of an explicit mesh; on others, where the compiler decides, `x`."""
    return with_batch_sharding_of(x, 0, x)


def output_type(reference: Any, num_batch_dims: int, shape: tuple[int, ...], dtype: Any) -> Any:
    """The abstract value of an output with the batch dimensions of `reference`.

    `shape` excludes the batch dimensions. Explicit sharding of the batch dimensions and varying
    axes are carried over; without them gradients fail under explicit meshes and in `shard_map`.
    """
    update: dict[str, Any] = {
        "shape": (*reference.shape[:num_batch_dims], *shape),
        "dtype": jax.numpy.dtype(dtype),
        "weak_type": False,
    }
    sharding = getattr(reference, "sharding", None)
    if sharding is not None:
        spec = (*sharding.spec, *[None] * (reference.ndim - len(sharding.spec)))
        spec = (*spec[:num_batch_dims], *[None] * len(shape))
        update["sharding"] = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    return reference.update(**update)


def uses_shardy() -> bool:
    """Whether programs are partitioned by Shardy, which wants a rule for each custom call."""
    return bool(getattr(jax.config, "jax_use_shardy_partitioner", True))


def num_partitions(ctx: mlir.LoweringRuleContext) -> int:
    """Among how many devices the program is divided, by the compiler or by `shard_map`."""
    attributes = ctx.module_context.module.operation.attributes
    return mlir.ir.IntegerAttr(attributes["mhlo.num_partitions"]).value


def is_for_one_device(ctx: mlir.LoweringRuleContext) -> bool:
    """Whether the compiler will not divide an op: on one device, or where all axes are manual."""
    if num_partitions(ctx) == 1:
        return True
    sharding = getattr(ctx.avals_in[0], "sharding", None)
    if sharding is None:
        return False
    axes = set(sharding.mesh.axis_names)
    return bool(axes) and axes == set(sharding.mesh.manual_axes)


def is_for_export(ctx: mlir.LoweringRuleContext) -> bool:
    return ctx.module_context.lowering_parameters.for_export


def kept_arguments(ctx: mlir.LoweringRuleContext) -> list[mlir.ir.Type]:
    """The types of the program's arguments that are not donated."""
    main: Any = ctx.module_context.symbol_table["main"]
    return [
        argument
        for argument, attributes in zip(main.type.inputs, main.arg_attrs, strict=True)
        if not any(name in attributes for name in ("jax.buffer_donor", "tf.aliasing_output"))
    ]


def batch_sharding_rule(rule: str, private_factors: Sequence[str]) -> Any:
    """What a `custom_partitioning` sharding rule in einsum notation may return.

    JAX 0.7 has no words for dimensions that must stay whole. The rule's `partition` sees to it
    there.
    """
    if "need_replication_factors" not in signature(custom_partitioning.def_partition).parameters:
        return rule
    return rule, {"need_replication_factors": tuple(private_factors)}


def without_mesh() -> AbstractContextManager[Any]:
    """A context without mesh, for what one device computes by itself.

    Tracing it in the context of an explicit mesh puts constraints on shardings into it, on which
    JAX before 0.9 fails. JAX 0.7.0 cannot leave the context.
    """
    if not hasattr(jax.sharding, "use_abstract_mesh"):
        return nullcontext()
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))
