"""The training loop: one jitted step, held-out evaluation, checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from tqdm import tqdm

from speech.batching import Batch, TrainingData, assemble
from speech.decode import transcribe
from speech.losses import Loss, exact_loss
from speech.metrics import edit_counts
from speech.task import SpeechTask


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Loss and hyper-parameters of the optimizer, whatever the length of the run."""

    peak_rate: float = 3e-3
    warmup_fraction: float = 0.05
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    average_decay: float = 0.999
    seed: int = 0
    loss: Loss = exact_loss

    def rates(self, steps: int) -> optax.Schedule:
        """Learning rate of each step: linear warm-up, then cosine decay to 0."""
        warmup = max(1, round(self.warmup_fraction * steps))
        return optax.warmup_cosine_decay_schedule(0.0, self.peak_rate, warmup, steps)

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW under a clipped gradient norm; the rate multiplies its updates afterwards."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.scale_by_adam(b2=0.98),
            optax.add_decayed_weights(self.weight_decay),
        )


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: jax.Array
    params: nnx.State
    average: nnx.State
    optimizer: optax.OptState


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_step(
    graph: nnx.GraphDef, recipe: Recipe, state: TrainState, batch: Batch, rate: np.float32
) -> tuple[TrainState, jax.Array]:
    """One update; returns the new state and the loss in nats per character.

    Compiled once for each batch shape. `state` is donated.
    """
    key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)

    def loss_of(params: nnx.State) -> jax.Array:
        model = nnx.merge(graph, params)
        losses = recipe.loss(model, batch, nnx.Rngs(dropout=key), state.step)
        return losses.sum() / batch.label_lengths.sum()

    loss, gradient = jax.value_and_grad(loss_of)(state.params)
    updates, optimizer = recipe.optimizer().update(gradient, state.optimizer, state.params)
    updates = jax.tree.map(lambda update: -rate * update, updates)
    params = cast(nnx.State, optax.apply_updates(state.params, updates))
    # The average forgets its start: early on it follows the parameters more closely.
    decay = jnp.minimum(recipe.average_decay, (1 + state.step) / (10 + state.step))
    average = cast(nnx.State, optax.incremental_update(params, state.average, 1 - decay))
    return TrainState(state.step + 1, params, average, optimizer), loss


def initial_state(model: nnx.Module, recipe: Recipe) -> tuple[nnx.GraphDef, TrainState]:
    graph, params = nnx.split(model)
    average = jax.tree.map(jnp.copy, params)
    optimizer = recipe.optimizer().init(params)
    return graph, TrainState(jnp.zeros((), jnp.int32), params, average, optimizer)


@dataclasses.dataclass
class History:
    """What the loss curves show."""

    losses: list[float] = dataclasses.field(default_factory=list)
    evaluations: list[dict[str, float]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0


class Checkpoints:
    """The latest training state and history of a run."""

    def __init__(self, directory: Path, *, fresh: bool):
        if fresh:
            shutil.rmtree(directory, ignore_errors=True)
        self.manager = ocp.CheckpointManager(
            directory.resolve(), options=ocp.CheckpointManagerOptions(max_to_keep=1)
        )

    def save(self, state: TrainState, history: History) -> None:
        self.manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state._asdict()),
                history=ocp.args.JsonSave(dataclasses.asdict(history)),
            ),
        )
        self.manager.wait_until_finished()

    def restore(self, like: TrainState) -> tuple[TrainState, History]:
        """The saved state, in the structure of a fresh one."""
        step = self.manager.latest_step()
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self.manager.directory}")
        saved: Any = self.manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(like._asdict()), history=ocp.args.JsonRestore()
            ),
        )
        return TrainState(**saved["state"]), History(**saved["history"])


def train(
    graph: nnx.GraphDef,
    state: TrainState,
    recipe: Recipe,
    steps: int,
    task: SpeechTask,
    history: History,
    *,
    checkpoints: Checkpoints,
    evaluate_every: int,
    stop_at: int,
) -> TrainState:
    """Train up to step `stop_at` of a schedule of `steps`.

    Evaluates the averaged model on the held-out prompts on the way, extends `history`, and
    saves a checkpoint each time. Nothing is chosen by these evaluations.
    """
    rates = np.asarray(recipe.rates(steps)(jnp.arange(steps)))
    held_out = task.held_out_batch
    begin = time.monotonic() - history.seconds
    pending: list[jax.Array] = []
    first = int(state.step)
    with tqdm(total=steps, initial=first, unit="step", smoothing=0.05) as bar:
        for step, batch in zip(
            range(first + 1, stop_at + 1), task.data.batches(first), strict=False
        ):
            state, loss = train_step(graph, recipe, state, batch, rates[step - 1])
            pending.append(loss)
            if len(pending) > 1:
                pending[-2].block_until_ready()  # The next batch is made while this step runs.
            bar.update()
            if step % evaluate_every and step != stop_at:
                continue
            recent = [float(loss) for loss in pending]
            pending.clear()
            history.losses += recent
            hypotheses = transcribe(graph, state.average, held_out)
            edits, characters = edit_counts(task.references, hypotheses).sum(0)
            cer, mean = float(edits / characters), sum(recent) / len(recent)
            history.evaluations.append({"step": step, "loss": mean, "cer": cer})
            history.seconds = time.monotonic() - begin
            checkpoints.save(state, history)
            bar.set_postfix(loss=f"{mean:.2f}", CER=f"{cer:.1%}")
    return state


def seconds_per_step(
    graph: nnx.GraphDef, recipe: Recipe, state: TrainState, data: TrainingData
) -> float:
    """Mean duration of a step over one pass; compiles every shape of it on the way."""
    spare = jax.tree.map(jnp.copy, state)  # The step takes its argument's memory.
    plan = data.plan(0)
    seconds = {}
    for bucket, members in dict(plan).items():
        rows = [data.join(parts) for parts in members]
        batch = assemble(rows, bucket, data.subsampling)
        for _ in range(3):
            start = time.monotonic()
            spare, loss = train_step(graph, recipe, spare, batch, np.float32(0))
            loss.block_until_ready()
            seconds[bucket] = time.monotonic() - start
    return sum(seconds[bucket] for bucket, _ in plan) / len(plan)
