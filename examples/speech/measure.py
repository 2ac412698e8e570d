"""What a training step costs: time and memory."""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speech.batching import Batch
from speech.training import Recipe, TrainState, train_step


class StepCost(NamedTuple):
    """Of one step; `peak_bytes` are arguments, results and temporaries together."""

    seconds: float
    peak_bytes: int
    temporary_bytes: int


def step_cost(
    graph: nnx.GraphDef, recipe: Recipe, state: TrainState, batch: Batch, rounds: int = 5
) -> StepCost:
    """Median duration, and the memory that the compiler has planned for the step."""
    rate = np.float32(0)
    step = train_step.lower(graph, recipe, state, batch, rate).compile()
    memory = step.memory_analysis()
    assert memory is not None, "no memory analysis on this platform"
    spare = jax.tree.map(jnp.copy, state)  # The step takes its argument's memory.
    seconds = []
    for _ in range(rounds + 1):  # The first one warms up.
        start = time.monotonic()
        spare, loss = step(spare, batch, rate)
        loss.block_until_ready()
        seconds.append(time.monotonic() - start)
    given = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return StepCost(
        statistics.median(seconds[1:]),
        given - memory.alias_size_in_bytes + memory.temp_size_in_bytes,
        memory.temp_size_in_bytes,
    )
