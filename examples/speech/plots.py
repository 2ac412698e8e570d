"""Pictures of a run: loss and error curves, and the lattice of one utterance."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from speech.alignment import emission_frames
from speech.training import History

matplotlib.use("Agg")  # Writes files; needs no display.

from matplotlib import pyplot as plt
from matplotlib.colors import LogNorm
from matplotlib.ticker import FixedLocator, NullLocator

LINE = "#1f77b4"
ACCENT = "#d62728"
FAINTEST = 1e-4
"""Probability below which lattice cells look alike."""


def plot_training(history: History, path: Path) -> None:
    """Loss per character of every step, and held-out character error rate."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    losses = np.asarray(history.losses)
    steps = np.arange(1, len(losses) + 1)
    width = max(1, len(losses) // 50)
    left.plot(steps, losses, color=LINE, alpha=0.25, linewidth=0.6, label="each step")
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    left.plot(steps[width - 1 :], smooth, color=LINE, label=f"mean of {width} steps")
    left.set_yscale("log")
    left.yaxis.set_major_locator(FixedLocator([0.1, 0.3, 1, 3, 10]))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_locator(NullLocator())
    left.set_ylabel("transducer loss, nats per character")
    left.legend(frameon=False)
    right.plot(
        [point["step"] for point in history.evaluations],
        [100 * point["cer"] for point in history.evaluations],
        "o-",
        color=ACCENT,
        markersize=3,
    )
    right.set_ylim(0, 105)
    right.set_ylabel("held-out character error rate, %")
    final = history.evaluations[-1]
    right.annotate(
        f"{final['cer']:.1%}",
        (final["step"], 100 * final["cer"]),
        xytext=(0, 8),
        textcoords="offset points",
        ha="right",
        color=ACCENT,
    )
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_lattice(
    features: np.ndarray,
    posterior: np.ndarray,
    path_cells: np.ndarray,
    text: str,
    frame_seconds: float,
    subsampling: int,
    path: Path,
    band: np.ndarray | None = None,
) -> None:
    """Spectrogram over the posterior lattice of one utterance, on one time axis.

    `features`: log-mels (frames, mels), `frame_seconds` apart; `posterior`: probability
    (T, U + 1) that a path goes through each cell, a frame of which is `subsampling` of those;
    `path_cells`: the best path, (T + U, 2); `text`: the U characters; `band`: the label positions
    (T, S) that pruning keeps.
    """
    cell_seconds = subsampling * frame_seconds
    frames, positions = posterior.shape
    seconds = frames * cell_seconds
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 7), sharex=True, height_ratios=(1, 2.6), layout="constrained"
    )
    top.imshow(
        features.T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        extent=(0, len(features) * frame_seconds, 0, features.shape[1]),
    )
    top.set_yticks([])
    top.set_ylabel("log-mel energy\n(0 to 4 kHz)")
    top.set_title(f"held-out prompt: “{text}”\n\n", fontsize=10)
    # Labels of one frame are drawn side by side within it; names of neighbours on two heights.
    emitted = emission_frames(path_cells)
    times = emitted + 0.5
    for frame in np.unique(emitted):
        inside = emitted == frame
        times[inside] = frame + (np.arange(inside.sum()) + 0.5) / inside.sum()
    letters = [index for index, character in enumerate(text) if character != " "]
    for place, index in enumerate(letters):
        time = times[index] * cell_seconds
        top.axvline(time, color="white", alpha=0.25, linewidth=0.5)
        top.annotate(
            text[index],
            (time, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3 + 10 * (place % 2)),
            textcoords="offset points",
            ha="center",
            family="monospace",
            fontsize=10,
        )
    image = bottom.imshow(
        np.maximum(posterior.T, FAINTEST),
        origin="lower",
        aspect="auto",
        cmap="viridis",
        norm=LogNorm(vmin=FAINTEST, vmax=1),
        extent=(0, seconds, -0.5, positions - 0.5),
    )
    bottom.plot(
        (path_cells[:, 0] + 0.5) * cell_seconds,
        path_cells[:, 1],
        color=ACCENT,
        linewidth=1.2,
        label="best alignment",
    )
    if band is not None:
        edges = np.arange(frames + 1) * cell_seconds
        for bound, name in ((band[:, 0] - 0.5, None), (band[:, -1] + 0.5, "band that is kept")):
            bottom.stairs(bound, edges, baseline=None, color="white", label=name)
    bottom.set_xlim(0, seconds)
    bottom.set_ylim(-0.5, positions - 0.5)
    bottom.set_yticks(np.arange(positions))
    bottom.set_yticklabels(["∅", *text], family="monospace", fontsize=8)
    bottom.tick_params(axis="y", length=0)
    bottom.set_ylabel("last character emitted")
    bottom.set_xlabel("time, s")
    bottom.legend(loc="upper left", facecolor="0.75")
    figure.colorbar(image, ax=bottom, label="probability that a path goes through the cell")
    figure.savefig(path, dpi=90)
    plt.close(figure)
