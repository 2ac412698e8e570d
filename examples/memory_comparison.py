"""How much memory a loss needs, by the size of the batch: dense, packed, pruned, joint.

    python examples/memory_comparison.py            a table, and runs/memory_comparison.png

The joint network is `tanh(encoder + predictor) @ kernel + bias`, of width 512 and 500 classes; the
utterances are about as long as those of LibriSpeech at a subsampling of four, in no order. Memory
is what the compiler plans for the temporaries of the loss and its gradient by everything: nothing
has to run, so the batches may be larger than the machine.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from jax_rnnt import (
    LinearJoint,
    do_rnnt_pruning,
    get_rnnt_prune_ranges,
    pack_joint_inputs,
    rnnt_loss,
    rnnt_loss_joint,
    rnnt_loss_packed,
    rnnt_loss_pruned,
    rnnt_loss_simple,
)

matplotlib.use("agg")
import matplotlib.pyplot as plt

WIDTH, CLASSES, S_RANGE = 512, 500, 5
JOINT = LinearJoint()

Operands: TypeAlias = dict[str, Any]
Lengths: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Frames and labels of each utterance."""


def draw_lengths(size: int) -> Lengths:
    """Of a batch: 1 to 17.5 seconds, most of them long; five labels a second, more or less."""
    rng = np.random.default_rng(0)
    seconds = 1 + 16.5 * rng.beta(3.0, 1.2, size)
    labels = seconds * rng.normal(5.2, 0.9, size)
    return (25 * seconds).astype(np.int32), np.maximum(labels, 1).astype(np.int32)


def dense(lengths: Lengths, operands: Operands) -> jax.Array:
    """All logits of the padded batch."""
    encoded, predicted = operands["encoded"], operands["predicted"]
    logits = JOINT(operands["joint"], encoded[:, :, None], predicted[:, None])
    return rnnt_loss(logits, operands["labels"], *lengths, reduction="sum")


def packed(lengths: Lengths, operands: Operands) -> jax.Array:
    """The logits of the cells that are not padding."""
    total = int(np.sum(lengths[0] * (lengths[1] + 1)))
    rows = pack_joint_inputs(operands["encoded"], operands["predicted"], *lengths, total=total)
    logits = JOINT(operands["joint"], rows, jnp.zeros_like(rows))
    return rnnt_loss_packed(logits, operands["labels"], *lengths, reduction="sum")


def pruned(lengths: Lengths, operands: Operands) -> jax.Array:
    """The logits of five cells a frame, chosen by an additive joiner (arXiv 2206.13236)."""
    encoded, predicted = operands["encoded"], operands["predicted"]
    am, lm = encoded @ operands["am"], predicted @ operands["lm"]
    simple, posteriors = rnnt_loss_simple(
        am, lm, operands["labels"], *lengths, return_posteriors=True, reduction="sum"
    )
    ranges = get_rnnt_prune_ranges(posteriors, *lengths, s_range=S_RANGE)
    logits = JOINT(operands["joint"], *do_rnnt_pruning(encoded, predicted, ranges))
    return simple + rnnt_loss_pruned(logits, operands["labels"], ranges, *lengths, reduction="sum")


def joint(lengths: Lengths, operands: Operands) -> jax.Array:
    """No logits but those of a tile, of cells that are not padding."""
    encoded, predicted = operands["encoded"], operands["predicted"]
    return rnnt_loss_joint(
        JOINT,
        operands["joint"],
        encoded,
        predicted,
        operands["labels"],
        *lengths,
        reduction="sum",
    )


LOSSES: dict[str, Callable[[Lengths, Operands], jax.Array]] = {
    "dense": dense,
    "packed": packed,
    "pruned": pruned,
    "joint": joint,
}


def temporary_bytes(loss: Callable[[Lengths, Operands], jax.Array], lengths: Lengths) -> int:
    """Of the value and the gradient by everything that is floating point."""
    size, T, U = len(lengths[0]), int(lengths[0].max()), int(lengths[1].max())

    def float32(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    variables = {
        "encoded": float32(size, T, WIDTH),
        "predicted": float32(size, U + 1, WIDTH),
        "joint": {"kernel": float32(WIDTH, CLASSES), "bias": float32(CLASSES)},
        "am": float32(WIDTH, CLASSES),
        "lm": float32(WIDTH, CLASSES),
    }
    labels = jax.ShapeDtypeStruct((size, U), jnp.int32)

    def step(variables: Operands, labels: jax.Array) -> Any:
        return jax.value_and_grad(lambda variables: loss(lengths, {**variables, "labels": labels}))(
            variables
        )

    memory = jax.jit(step).lower(variables, labels).compile().memory_analysis()
    assert memory is not None, "no memory analysis on this platform"
    return memory.temp_size_in_bytes


def draw(megabytes: dict[str, dict[int, float]], file: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, by_size in megabytes.items():
        axes.plot(list(by_size), list(by_size.values()), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="utterances in a batch", ylabel="temporaries, MB")
    sizes = list(next(iter(megabytes.values())))
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.grid(alpha=0.3)
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=64, help="batch; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("runs/memory_comparison.png"))
    options = parser.parse_args()
    sizes = [2**i for i in range(int(math.log2(options.largest)) + 1)]
    megabytes: dict[str, dict[int, float]] = {name: {} for name in LOSSES}
    print(f"{'batch':>6}" + "".join(f"{name + ' MB':>13}" for name in LOSSES))
    for size in sizes:
        lengths = draw_lengths(size)
        for name, loss in LOSSES.items():
            megabytes[name][size] = temporary_bytes(loss, lengths) / 1e6
        print(f"{size:6}" + "".join(f"{by_size[size]:13.1f}" for by_size in megabytes.values()))
    draw(megabytes, options.out)
    print(f"The picture is in {options.out}")


if __name__ == "__main__":
    main()
