"""What a finished run has reached: printed, written as JSON and drawn."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from speech.alignment import kept_band, posterior_lattice
from speech.batching import Bucket, assemble
from speech.decode import transcribe
from speech.features import log_mel
from speech.metrics import edit_counts, error_rate
from speech.plots import plot_lattice, plot_training
from speech.task import FRAME_SECONDS, SpeechTask
from speech.training import History, TrainState

SAMPLES = 12
PICTURE_SECONDS = 2.5


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def report(
    graph: nnx.GraphDef,
    state: TrainState,
    task: SpeechTask,
    history: History,
    out: Path,
    begin: float,
) -> None:
    """Evaluate the averaged model of the last step; `begin` is when the program started."""
    references = task.references
    hypotheses = transcribe(graph, state.average, task.held_out_batch)
    characters = error_rate(edit_counts(references, hypotheses))
    words = error_rate(edit_counts(references, hypotheses, words=True))
    pictures(graph, state, task, history, out)
    metrics = {
        "corpus": task.corpus,
        "training_prompts": len(task.training),
        "training_minutes": sum(prompt.seconds for prompt in task.training) / 60,
        "held_out_prompts": len(references),
        "cer": dataclasses.asdict(characters),
        "wer": dataclasses.asdict(words),
        "steps": int(state.step),
        "training_seconds": history.seconds,
        "seconds_per_step": history.seconds / int(state.step),
        "wall_seconds": time.monotonic() - begin,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "evaluations": history.evaluations,
        "transcripts": [
            {"name": prompt.name, "reference": prompt.text, "hypothesis": hypothesis}
            for prompt, hypothesis in zip(task.held_out, hypotheses, strict=True)
        ],
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")

    print("\nHeld-out prompts, reference and what the model heard:")
    for index in np.linspace(0, len(references) - 1, min(SAMPLES, len(references))).astype(int):
        print(f"  ref  {references[index]}\n  hyp  {hypotheses[index]}\n")
    for name, rate in (("CER", characters), ("WER", words)):
        print(
            f"{name} {rate.rate:.1%} (95% interval {rate.low:.1%} to {rate.high:.1%}) "
            f"on {len(references)} held-out prompts"
        )
    print(
        f"{metrics['parameters']:,} parameters; {metrics['steps']} steps of "
        f"{1000 * metrics['seconds_per_step']:.0f} ms, evaluation included; "
        f"{metrics['wall_seconds']:.0f} s in all on {metrics['cores']} cores of {metrics['cpu']}\n"
        f"Pictures and metrics.json are in {out}"
    )


def pictures(
    graph: nnx.GraphDef, state: TrainState, task: SpeechTask, history: History, out: Path
) -> None:
    """Draw training.png and lattice.png."""
    plot_training(history, out / "training.png")
    draw_lattice(graph, state, task, out / "lattice.png")


def draw_lattice(
    graph: nnx.GraphDef,
    state: TrainState,
    task: SpeechTask,
    path: Path,
    s_range: int | None = None,
) -> None:
    """Draw the lattice of a held-out prompt of middling length.

    With `s_range`, also the band of so many label positions that the additive joiner chooses.
    """
    prompt = min(task.held_out, key=lambda prompt: abs(prompt.seconds - PICTURE_SECONDS))
    utterance = task.normaliser.utterance(prompt)
    shape = Bucket(utterance.encoder_frames(task.subsampling), len(utterance.labels), 1)
    batch = assemble([utterance], shape, task.subsampling)
    posterior, cells = posterior_lattice(graph, state.average, batch)
    band = None if s_range is None else kept_band(graph, state.average, batch, s_range)
    plot_lattice(
        log_mel(prompt.samples),
        posterior,
        cells,
        prompt.text,
        FRAME_SECONDS,
        task.subsampling,
        path,
        band,
    )
