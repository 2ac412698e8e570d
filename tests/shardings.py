"""Batches divided among devices."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

COLLECTIVES = re.compile(
    r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast)"
)


DATA = P("data")


def sharded(tree: Any, mesh: Mesh, spec: P = DATA) -> Any:
    return jax.device_put(tree, NamedSharding(mesh, spec))


def losses_and_grad(function: Any) -> Any:
    """`(logits, ...) -> (per-utterance losses, gradient of their sum)`."""

    def both(logits: jax.Array, *rest: Any) -> tuple[jax.Array, jax.Array]:
        loss, vjp = jax.vjp(lambda x: function(x, *rest), logits)
        return loss, vjp(jnp.ones_like(loss))[0]

    return both


def shard_map(function: Any, mesh: Mesh, in_specs: Any, out_specs: Any) -> Any:
    """With the check of varying axes on, as users have it."""
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs))
