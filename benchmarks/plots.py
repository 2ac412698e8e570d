"""Pictures of what `suite.py` measured."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from results import Found, Results

AXES = {"B": "utterances", "T": "frames", "U": "labels", "V": "classes"}


def draw_scaling(results: Results, file: Path) -> None:
    """Time over each axis, on doubly logarithmic scales: linear growth is parallel to the line."""
    figure, panels = plt.subplots(1, 4, figsize=(10, 3), sharey=True, layout="constrained")
    for panel, (axis, meaning) in zip(panels, AXES.items(), strict=True):
        curves = {threads: results.scaling(threads).get(axis, []) for threads in results.threads}
        for threads, curve in curves.items():
            label = f"{threads} thread{'s' * (threads > 1)}"
            panel.plot(*zip(*curve, strict=True), marker="o", label=label)
        sizes, times = zip(*curves[results.threads[0]], strict=True)
        linear = [times[0] * size / sizes[0] for size in sizes]
        panel.plot(sizes, linear, color="grey", linestyle=":", label="linear")
        panel.set(xscale="log", yscale="log", xlabel=f"{axis}: {meaning}")
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("loss with gradient, ms")
    panels[0].legend()
    _save(figure, file)


def draw_peers(results: Results, file: Path, names: dict[str, str]) -> None:
    """The loss with its gradient by all systems, on one thread."""
    cases = [
        found
        for found in results.select(dtype="float32", threads=1)
        if found.peers and found.op.startswith("rnnt_loss") and found.shape != "single"
    ]
    systems = {"native": "jax_rnnt", "xla": "jax_rnnt, pure JAX", **names}
    colors = {name: f"C{i}" for i, name in enumerate(systems)}
    figure, axes = plt.subplots(figsize=(11, 3.8), layout="constrained")
    width = 0.13
    for x, found in enumerate(cases):
        times = {name: found.median("both", name) for name in systems}
        times = {name: time for name, time in times.items() if time is not None}
        for i, (name, time) in enumerate(times.items()):
            at = x + (i - (len(times) - 1) / 2) * width
            axes.bar(at, time, width, color=colors[name], label=systems[name])
    axes.set_xticks(range(len(cases)), [_label(found) for found in cases], fontsize=7)
    axes.set(yscale="log", ylabel="loss with gradient, ms")
    axes.grid(axis="y", alpha=0.3)
    labels = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # each once
    axes.legend(labels.values(), labels.keys(), ncols=4, fontsize=7, loc="upper left")
    axes.margins(y=0.3)
    _save(figure, file)


def _label(found: Found) -> str:
    sizes = found.sizes.split(", ")
    return "\n".join([found.op, " ".join(sizes[:2]), " ".join(sizes[2:])])


def _save(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)
