"""The command line of the demos: a training run from its settings to its report."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from flax import nnx

from speech.losses import Loss, exact_loss
from speech.measure import compare_costs
from speech.model import ModelConfig, Transducer
from speech.report import report
from speech.task import SpeechTask, prepare
from speech.training import (
    Checkpoints,
    History,
    Recipe,
    TrainState,
    initial_state,
    seconds_per_step,
    train,
)

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS = 10_000
EVALUATIONS = 20
CLOSING_SECONDS = 12
"""What evaluation and pictures take, of the minutes given."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a resumed run must share with the run that it continues."""

    corpus: str
    steps: int
    seed: int
    loss: str


def arguments(description: str, name: str, losses: Iterable[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--corpus",
        choices=("auto", "asterisk", "synthetic"),
        default="auto",
        help="auto: recordings where they can be had, otherwise synthetic (default)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=ROOT / ".cache" / "speech",
        help="where the recordings are kept once fetched",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "runs" / name,
        help="a run without --resume starts anew and replaces what is there",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=STEPS, help="default: %(default)s")
    length.add_argument("--minutes", type=float, help="as many steps as fit, all told")
    parser.add_argument("--seed", type=int, default=0, help="of split, data and model")
    parser.add_argument("--loss", choices=list(losses), default=next(iter(losses)))
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--stop-at", type=int, help="stop after this step, as if interrupted")
    return parser.parse_args()


class Run(NamedTuple):
    """A finished training."""

    graph: nnx.GraphDef
    state: TrainState
    recipe: Recipe
    task: SpeechTask
    out: Path


def run(
    description: str, name: str, begin: float, config: ModelConfig, losses: dict[str, Loss]
) -> Run | None:
    """Train and evaluate as the command line says; None if it was to stop before the end.

    At the end, a step with another loss than the exact one is measured beside one with that.

    `name`: of the directory in runs/; `begin`: when the program started; `losses`: to choose from,
    the first one by default.
    """
    options = arguments(description, name, losses)
    settings_file = options.out / "settings.json"
    if options.resume:
        if not settings_file.exists():
            raise SystemExit(f"--resume: there is no run in {options.out}")
        settings = Settings(**json.loads(settings_file.read_text()))
    else:
        settings = Settings(options.corpus, options.steps, options.seed, options.loss)

    loss = losses[settings.loss]
    recipe = Recipe(seed=settings.seed, loss=loss)
    task = prepare(
        settings.corpus, options.cache, subsampling=config.subsampling, seed=settings.seed
    )
    graph, state = initial_state(Transducer(config, rngs=nnx.Rngs(settings.seed)), recipe)
    checkpoints = Checkpoints(options.out / "checkpoints", fresh=not options.resume)
    history = History()
    if options.resume:
        state, history = checkpoints.restore(state)
        begin -= history.seconds  # The time that the run has taken already counts.
        print(f"Resuming after step {int(state.step)} of {settings.steps}")
    else:
        if options.minutes is not None:
            pace = seconds_per_step(graph, recipe, state, task.data)
            left = 60 * options.minutes - (time.monotonic() - begin) - CLOSING_SECONDS
            settings = dataclasses.replace(settings, steps=max(20, int(left / pace)))
        # The corpus that was found is noted, so that a resumed run cannot take another.
        settings = dataclasses.replace(settings, corpus=task.corpus)
        settings_file.write_text(json.dumps(dataclasses.asdict(settings), indent=2) + "\n")
    print(
        f"{task.corpus} corpus: {len(task.training)} training and {len(task.held_out)} held-out "
        f"prompts; {settings.steps} steps"
    )

    state = train(
        graph,
        state,
        recipe,
        settings.steps,
        task,
        history,
        checkpoints=checkpoints,
        evaluate_every=max(1, settings.steps // EVALUATIONS),
        stop_at=min(settings.steps, options.stop_at or settings.steps),
    )
    if int(state.step) < settings.steps:
        print(f"Stopped after step {int(state.step)}; go on with --resume")
        return None
    report(graph, state, task, history, options.out, begin)
    if loss is not exact_loss:
        both = {"exact": exact_loss, settings.loss: loss}
        compare_costs(both, graph, recipe, state, task, options.out / "costs.json")
    return Run(graph, state, recipe, task, options.out)
