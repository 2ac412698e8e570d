"""What a training step costs: time and memory."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speech.batching import Batch
from speech.losses import Loss
from speech.task import BUCKETS, SpeechTask
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


def compare_costs(
    losses: dict[str, Loss],
    graph: nnx.GraphDef,
    recipe: Recipe,
    state: TrainState,
    task: SpeechTask,
    file: Path,
) -> None:
    """Print and write what a step with each loss costs, for the largest bucket."""
    bucket = max(BUCKETS, key=lambda bucket: bucket.frames * bucket.labels * bucket.size)
    batch = task.data.fullest(bucket)
    print(
        f"\nA step with {bucket.size} x {bucket.frames} frames and {bucket.labels} labels:\n"
        f"{'loss':8}{'ms':>8}{'peak MB':>10}{'temporaries MB':>16}"
    )
    costs = {"bucket": dataclasses.asdict(bucket)}
    for name, loss in losses.items():
        cost = step_cost(graph, dataclasses.replace(recipe, loss=loss), state, batch)
        costs[name] = cost._asdict()
        print(
            f"{name:8}{1000 * cost.seconds:8.1f}{cost.peak_bytes / 1e6:10.1f}"
            f"{cost.temporary_bytes / 1e6:16.1f}"
        )
    file.write_text(json.dumps(costs, indent=2) + "\n")
