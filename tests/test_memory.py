"""Temporaries of a jitted value-and-gradient, as XLA accounts for them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from cases import Options, each_topology, loss_function
from programs import compiled_memory

import jax_rnnt

B, T, U, V = 4, 100, 20, 500


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("topology", **each_topology)
@pytest.mark.parametrize("normalization", ["softmax", "none", "hat"])
def test_native_temporaries(normalization: str, topology: Options, dtype: Any) -> None:
    """Below a tenth of the logits' bytes at V = 500, the gradient itself not counted."""
    function = loss_function(
        "native", reduction="mean", normalization=normalization, clamp=0.5, **topology
    )
    logits = jax.ShapeDtypeStruct((B, T, U + 1, V), dtype)
    labels = jax.ShapeDtypeStruct((B, U), jnp.int32)
    memory = compiled_memory(jax.value_and_grad(function), logits, labels)
    size = B * T * (U + 1) * V * jnp.dtype(dtype).itemsize
    assert memory.argument_size_in_bytes >= size and memory.output_size_in_bytes >= size
    assert memory.temp_size_in_bytes < 0.1 * size


def test_forward_alone_is_smaller() -> None:
    """The loss without gradient needs no more temporaries than with, and no logits-sized output."""
    logits = jax.ShapeDtypeStruct((B, T, U + 1, V), jnp.float32)
    labels = jax.ShapeDtypeStruct((B, U), jnp.int32)
    memory = compiled_memory(jax_rnnt.rnnt_loss, logits, labels)
    assert memory.temp_size_in_bytes < 0.1 * 4 * B * T * (U + 1) * V
    assert memory.output_size_in_bytes <= 64
