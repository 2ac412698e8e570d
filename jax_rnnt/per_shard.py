"""Control flow that depends on the data, without communication between devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from ._native.jax_versions import without_explicit_axes


def per_shard(
    function: Callable[..., tuple[jax.Array, ...]], num_batch_dims: int, *operands: jax.Array
) -> tuple[jax.Array, ...]:
    """`function(*operands)`, computed by each device for the utterances that it holds.

    A `lax.cond` or `lax.while_loop` whose predicate looks at a batch needs one value of it for all
    devices among which the compiler divides the batch: a collective; and `jax.vmap` makes it a
    select between both branches. Here the predicate is each device's own, and mapped axes become
    batch dimensions.

    Args:
      function: maps arrays with one batch dimension to a tuple of such arrays, utterance by
        utterance. It is not differentiated.
      num_batch_dims: leading batch dimensions of each operand, and of each result.
      operands: with the same varying axes, see `align_varying_axes`.
    """

    def local(*args: jax.Array) -> tuple[jax.Array, ...]:
        batch = args[0].shape[:num_batch_dims]
        flat = (x.reshape(math.prod(batch), *x.shape[num_batch_dims:]) for x in args)
        return tuple(x.reshape(*batch, *x.shape[1:]) for x in function(*flat))

    def rule(mesh: Any, operand_types: Sequence[Any], result_types: Sequence[Any]) -> Any:
        del mesh
        ranks = ([len(t.shape) for t in types] for types in (operand_types, result_types))
        return _sharding_rule(num_batch_dims, *ranks)

    def infer_sharding(mesh: Any, arguments: Any, results: Any) -> Any:
        del mesh
        return tuple(_batch_sharding(arguments[0].sharding, num_batch_dims, x) for x in results)

    def partition(mesh: Any, arguments: Any, results: Any) -> Any:
        of = arguments[0].sharding
        argument_shardings = tuple(_batch_sharding(of, num_batch_dims, x) for x in arguments)
        result_shardings = tuple(_batch_sharding(of, num_batch_dims, x) for x in results)
        return mesh, local, result_shardings, argument_shardings

    partitioned = custom_partitioning(local)
    partitioned.def_partition(
        partition=partition, infer_sharding_from_operands=infer_sharding, sharding_rule=rule
    )
    mapped = custom_vmap(partial(without_explicit_axes, partitioned, num_batch_dims))

    @mapped.def_vmap
    def _(size: int, is_mapped: Sequence[bool], *args: jax.Array) -> Any:
        args = tuple(
            x if yes else jnp.broadcast_to(x, (size, *x.shape))
            for x, yes in zip(args, is_mapped, strict=True)
        )
        results = per_shard(function, num_batch_dims + 1, *args)
        return results, (True,) * len(results)

    return mapped(*operands)


def _batch_sharding(reference: Any, num_batch_dims: int, x: Any) -> Any:
    """The sharding of `reference` in the batch dimensions of `x`, and none in the others."""
    if not isinstance(reference, NamedSharding):
        # In a partly manual `shard_map` the compiler's own notation arrives. The sharding rule has
        # kept the other dimensions whole.
        return x.sharding if hasattr(x, "sharding") else reference
    spec = [*reference.spec[:num_batch_dims], *[None] * len(x.shape)]
    return NamedSharding(reference.mesh, PartitionSpec(*spec[: len(x.shape)]))


def _sharding_rule(
    num_batch_dims: int, operand_ranks: Sequence[int], result_ranks: Sequence[int]
) -> tuple[str, dict[str, Any]]:
    """Factors of `custom_partitioning`: the batch may be divided, all other dimensions not."""
    batch = [f"b{i}" for i in range(num_batch_dims)]
    private: list[str] = []

    def factors(rank: int) -> str:
        own = [f"c{len(private) + i}" for i in range(rank - num_batch_dims)]
        private.extend(own)
        return " ".join([*batch, *own])

    operands = ", ".join(map(factors, operand_ranks))
    results = ", ".join(map(factors, result_ranks))
    return f"{operands} -> {results}", {"need_replication_factors": tuple(private)}
