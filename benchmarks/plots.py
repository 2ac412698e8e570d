"""Pictures of what `suite.py` measured."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from results import Results

AXES = {"B": "utterances", "T": "frames", "U": "labels", "V": "classes"}


def draw_scaling(results: Results, file: Path) -> None:
    """Time over each axis, on doubly logarithmic scales: linear growth is parallel to the line."""
    figure, panels = plt.subplots(1, 4, figsize=(10, 3), sharey=True, layout="constrained")
    for panel, (axis, meaning) in zip(panels, AXES.items(), strict=True):
        for threads in results.threads:
            curve = results.scaling(threads).get(axis, [])
            if curve:
                sizes, times = zip(*curve, strict=True)
                label = f"{threads} thread{'s' * (threads > 1)}"
                panel.plot(sizes, times, marker="o", label=label)
                if threads == results.threads[0]:
                    linear = [times[0] * size / sizes[0] for size in sizes]
                    panel.plot(sizes, linear, color="grey", linestyle=":", label="linear")
        panel.set(xscale="log", yscale="log", xlabel=f"{axis}: {meaning}")
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
    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    width = 0.8 / len(systems)
    for i, (name, label) in enumerate(systems.items()):
        times = {x: found.median("both", name) for x, found in enumerate(cases)}
        bars = {x + (i - len(systems) / 2) * width: t for x, t in times.items() if t is not None}
        if bars:
            axes.bar(list(bars), list(bars.values()), width, align="edge", label=label)
    axes.set_xticks(
        range(len(cases)), [f"{x.op}\n{x.sizes.replace(', ', ' ')}" for x in cases], fontsize=6
    )
    axes.set(yscale="log", ylabel="loss with gradient, ms")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(ncols=4, fontsize=7, loc="upper left")
    axes.margins(y=0.3)
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)
