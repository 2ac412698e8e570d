"""Control flow that depends on the data, without communication between devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from ._native.jax_versions import (
    batch_sharding_rule,
    explicit_sharding,
    without_mesh,
)
from ._native.primitive import HIGHER_DERIVATIVES

_Results = tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]  # by utterance, and sums


def per_shard(
    function: Callable[..., tuple[jax.Array, ...]],
    num_batch_dims: int,
    *operands: jax.Array,
    shared: Sequence[jax.Array] = (),
    num_sums: int = 0,
    num_mapped_dims: int = 0,
) -> tuple[jax.Array, ...]:
    """`function(*operands, *shared)`, computed by each device for the utterances that it holds.

    A `lax.cond` or `lax.while_loop` whose predicate looks at a batch needs one value of it for all
    devices among which the compiler divides the batch: a collective; and `jax.vmap` makes it a
    select between both branches. Here the predicate is each device's own, and mapped axes become
    batch dimensions.

    Args:
      function: maps arrays with one batch dimension, and shared ones, to a tuple of arrays with
        that batch dimension, utterance by utterance, and of sums over utterances. It is not
        differentiated. If there are sums, it is called with `num_groups`: each sum has a leading
        dimension of that size, for the batch divided into as many equal parts.
      num_batch_dims: leading batch dimensions of each operand, and of each result but the sums.
      operands: with the same varying axes as `shared`, see `align_varying_axes`.
      shared: operands without batch dimensions, such as parameters.
      num_sums: how many of the last results are sums. Devices communicate for nothing else.
      num_mapped_dims: leading batch dimensions that the sums keep.
    """
    # What the functions below close over is kept with the traced program: no arrays.
    num_operands, num_shared = len(operands), len(shared)

    def local(*args: jax.Array) -> _Results:
        batch = args[0].shape[:num_batch_dims]
        mapped = batch[:num_mapped_dims]
        flat = (x.reshape(math.prod(batch), *x.shape[num_batch_dims:]) for x in args[:num_operands])
        groups = {"num_groups": math.prod(mapped)} if num_sums else {}
        results = function(*flat, *args[num_operands:], **groups)
        last = len(results) - num_sums
        by_utterance = tuple(x.reshape(*batch, *x.shape[1:]) for x in results[:last])
        return by_utterance, tuple(x.reshape(*mapped, *x.shape[1:]) for x in results[last:])

    def rule(mesh: Any, operand_types: Sequence[Any], result_types: Sequence[Any]) -> Any:
        del mesh
        last = len(result_types) - num_sums
        operand_dims = [num_batch_dims] * num_operands + [0] * num_shared
        result_dims = [num_batch_dims] * last + [num_mapped_dims] * num_sums
        return _sharding_rule(
            num_batch_dims,
            [(n, len(t.shape)) for n, t in zip(operand_dims, operand_types, strict=True)],
            [(n, len(t.shape)) for n, t in zip(result_dims, result_types, strict=True)],
        )

    def result_shardings(of: Any, results: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        by_utterance, sums = results
        return (
            tuple(_batch_sharding(of, num_batch_dims, x) for x in by_utterance),
            tuple(_batch_sharding(of, num_mapped_dims, x) for x in sums),
        )

    def infer_sharding(mesh: Any, arguments: Any, results: Any) -> Any:
        del mesh
        return result_shardings(arguments[0].sharding, results)

    def partition(mesh: Any, arguments: Any, results: Any) -> Any:
        of = arguments[0].sharding
        if num_sums and not isinstance(of, NamedSharding):
            # The axes to sum over have no names here: each device computes everything.
            of = NamedSharding(mesh, PartitionSpec())
        axes = _axes(of, num_mapped_dims, num_batch_dims) if num_sums else ()

        def per_device(*args: jax.Array) -> _Results:
            with without_mesh():
                by_utterance, sums = local(*args)
                return by_utterance, lax.psum(sums, axes) if axes else sums

        argument_shardings = (
            *(_batch_sharding(of, num_batch_dims, x) for x in arguments[:num_operands]),
            *(_batch_sharding(of, 0, x) for x in arguments[num_operands:]),
        )
        return mesh, per_device, result_shardings(of, results), argument_shardings

    partitioned = custom_partitioning(local)
    partitioned.def_partition(
        partition=partition, infer_sharding_from_operands=infer_sharding, sharding_rule=rule
    )

    def on_any_mesh(*args: jax.Array) -> _Results:
        """Each device's share where axes are explicit; the compiler divides the others."""
        of = explicit_sharding(args[0])
        if of is None:
            return partitioned(*args)
        shardings = (
            *(_batch_sharding(of, num_batch_dims, x) for x in args[:num_operands]),
            *(_batch_sharding(of, 0, x) for x in args[num_operands:]),
        )
        batch, kept = (PartitionSpec(*of.spec[:n]) for n in (num_batch_dims, num_mapped_dims))
        axes = _axes(of, num_mapped_dims, num_batch_dims)

        def per_device(*args: jax.Array) -> _Results:
            by_utterance, sums = partitioned(*args)
            return by_utterance, lax.psum(sums, axes) if axes else sums

        manual = jax.shard_map(
            per_device,
            mesh=of.mesh,
            in_specs=tuple(x.spec for x in shardings),
            out_specs=(batch, kept),
            axis_names=set(of.mesh.explicit_axes),
            check_vma=False,
        )
        # Outside of jit, JAX has no shard_map over some of a mesh's axes.
        return jax.jit(manual)(*map(jax.sharding.reshard, args, shardings))

    mapped = custom_vmap(on_any_mesh)

    @mapped.def_vmap
    def _(size: int, is_mapped: Sequence[bool], *args: jax.Array) -> Any:
        def again(*args: jax.Array, num_new_dims: int) -> tuple[jax.Array, ...]:
            return per_shard(
                function,
                num_batch_dims + num_new_dims,
                *args[:num_operands],
                shared=args[num_operands:],
                num_sums=num_sums,
                num_mapped_dims=num_mapped_dims + num_new_dims,
            )

        if any(is_mapped[num_operands:]):
            # One after another: a loop whose length depends on the data has no other form.
            def one(given: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
                rest = iter(given)
                whole = (next(rest) if yes else x for x, yes in zip(args, is_mapped, strict=True))
                return again(*whole, num_new_dims=0)

            given = [x for x, yes in zip(args, is_mapped, strict=True) if yes]
            results = lax.map(one, given)
        else:
            operands = (
                x if yes else jnp.broadcast_to(x, (size, *x.shape))
                for x, yes in zip(args[:num_operands], is_mapped[:num_operands], strict=True)
            )
            results = again(*operands, *args[num_operands:], num_new_dims=1)
        last = len(results) - num_sums
        results = results[:last], results[last:]
        return results, jax.tree.map(lambda _: True, results)

    @jax.custom_jvp
    def undifferentiated(*args: jax.Array) -> _Results:
        return mapped(*args)

    @undifferentiated.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        raise NotImplementedError(
            f"this loss has first derivatives in reverse mode only. {HIGHER_DERIVATIVES}"
        )

    by_utterance, sums = undifferentiated(*operands, *shared)
    return (*by_utterance, *sums)


def tile_begins(size: int, tile: int) -> jax.Array:
    """0, tile, 2 tile, ..., below `size`, `(tiles,)` int32.

    Not an arange with a step, which is a constant, and those JAX 0.7 refuses in a partitioned
    function.
    """
    return tile * jnp.arange(-(-size // tile), dtype=jnp.int32)


def _batch_sharding(reference: Any, num_batch_dims: int, x: Any) -> Any:
    """The sharding of `reference` in the batch dimensions of `x`, and none in the others."""
    if not isinstance(reference, NamedSharding):
        # In a partly manual `shard_map` the compiler's own notation arrives. The sharding rule has
        # kept the other dimensions whole.
        return x.sharding if hasattr(x, "sharding") else reference
    spec = [*reference.spec[:num_batch_dims], *[None] * len(x.shape)]
    return NamedSharding(reference.mesh, PartitionSpec(*spec[: len(x.shape)]))


def _axes(sharding: NamedSharding, first: int, end: int) -> tuple[str, ...]:
    """The mesh axes among which some dimensions are divided."""
    entries = (e if isinstance(e, tuple) else (e,) for e in sharding.spec[first:end])
    return tuple(axis for entry in entries for axis in entry if axis is not None)


def _sharding_rule(
    num_batch_dims: int,
    operands: Sequence[tuple[int, int]],
    results: Sequence[tuple[int, int]],
) -> Any:
    """The batch may be divided, all other dimensions not.

    Operands and results are given by their numbers of batch dimensions and of all dimensions.
    """
    batch = [f"b{i}" for i in range(num_batch_dims)]
    private: list[str] = []

    def factors(of_batch: int, rank: int) -> str:
        own = [f"c{len(private) + i}" for i in range(rank - of_batch)]
        private.extend(own)
        return " ".join([*batch[:of_batch], *own])

    sides = (", ".join(factors(*dims) for dims in side) for side in (operands, results))
    return batch_sharding_rule(" -> ".join(sides), private)
