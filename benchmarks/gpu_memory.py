"""Memory of losses on a GPU, as XLA plans it for an NVIDIA H200; no GPU is needed.

    make bench-gpu-memory

First the loss from logits, with its gradient: the most memory at a time, operands and results
included, beside the bytes of logits and gradient, which every system has whose gradient is not in
the memory of the logits; and where they are donated, so that it is. Then 30 utterances of
LibriSpeech with a joint network, with the gradient by everything: temporaries of the dense loss
and of those that have no logits, or fewer. Last, the dense loss of bfloat16 logits padded to
numbers of rows and of classes that are multiples of eight, or are not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from common import command_line, machine, write_report
from gpu_target import CARD, compile_for_gpu
from problems import S_RANGE
from pruned import UTTERANCES, exact, make_problem, pruned, pruned_joint
from workloads import librispeech_joint, librispeech_packed

import jax_rnnt

# (B, T, U+1, V)
LOGITS_SHAPES = [(16, 1500, 300, 50), (32, 150, 20, 5000)]
DTYPES = ("float32", "bfloat16")
WIDTH, CLASSES = 512, 500
LONGEST = max(frames for frames, _ in UTTERANCES)
# Frames and classes.
MULTIPLES = [(LONGEST, CLASSES), (LONGEST, 504), (440, CLASSES), (440, 504)]

LOSSES: dict[str, Callable[..., jax.Array]] = {
    "rnnt_loss": exact,
    "rnnt_loss_packed": librispeech_packed,
    "rnnt_loss_pruned": partial(pruned, s_range=S_RANGE),
    "rnnt_loss_pruned_joint": partial(pruned_joint, s_range=S_RANGE),
    "rnnt_loss_joint": librispeech_joint,
}


def loss_and_gradient(logits: jax.Array, *rest: jax.Array) -> Any:
    return jax.value_and_grad(lambda x: jax_rnnt.rnnt_loss(x, *rest).sum())(logits)


def of_logits(shape: tuple[int, int, int, int], dtype: str) -> dict[str, Any]:
    """Bytes of the loss of logits of a shape."""
    B, _, positions, _ = shape
    logits = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    integers = (jax.ShapeDtypeStruct(x, jnp.int32) for x in ((B, positions - 1), (B,), (B,)))
    operands = logits, *integers
    size = logits.size * logits.dtype.itemsize
    return {
        "shape": shape,
        "dtype": dtype,
        "logits_and_gradient": 2 * size,
        "peak": compile_for_gpu(loss_and_gradient, *operands).peak,
        "peak_donated": compile_for_gpu(loss_and_gradient, *operands, donate=0).peak,
    }


def of_librispeech(name: str, dtype: str, *, frames: int = LONGEST, classes: int = CLASSES) -> int:
    """Bytes of temporaries of a loss with the gradient by all parameters; the longest utterance has
    so many frames.
    """
    utterances = [(frames if t == LONGEST else t, u) for t, u in UTTERANCES]
    problem = make_problem(utterances, WIDTH, classes)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), problem.params)
    # Lengths are known, as the packed loss needs them.
    step = jax.value_and_grad(partial(LOSSES[name], constants=problem.constants))
    return compile_for_gpu(step, params).temporaries


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/gpu_memory.json"))
    args = parser.parse_args()
    report: dict[str, Any] = {
        "command": command_line(), "compiled_for": CARD, "machine": machine(),
        "logits": [of_logits(shape, dtype) for shape in LOGITS_SHAPES for dtype in DTYPES],
        "librispeech": {
            dtype: {name: of_librispeech(name, dtype) for name in LOSSES} for dtype in DTYPES
        },
        "multiples_of_eight": [
            {"T": T, "V": V, "bytes": of_librispeech("rnnt_loss", "bfloat16", frames=T, classes=V)}
            for T, V in MULTIPLES
        ],
    }  # fmt: skip

    print("| B, T, U+1, V | dtype | logits + gradient MB | at most MB | of it | logits donated |")
    print("|---|---|---|---|---|---|")
    for found in report["logits"]:
        both = found["logits_and_gradient"]
        shares = " | ".join(f"{found[name] / both:.3f}" for name in ("peak", "peak_donated"))
        print(
            f"| {', '.join(map(str, found['shape']))} | {found['dtype']} | {both / 1e6:.0f} "
            f"| {found['peak'] / 1e6:.0f} | {shares} |"
        )
    print("\n| loss | " + " | ".join(f"{dtype} MB | less than dense" for dtype in DTYPES) + " |")
    print("|---|" + "---|---|" * len(DTYPES))
    for name in LOSSES:
        cells = []
        for of_dtype in report["librispeech"].values():
            less = of_dtype["rnnt_loss"] / of_dtype[name]
            cells.append(f"{of_dtype[name] / 1e6:.1f} | {less:.1f}×")
        print(f"| `{name}` | " + " | ".join(cells) + " |")
    print("\n| T | V | `rnnt_loss`, bfloat16 MB |\n|---|---|---|")
    for found in report["multiples_of_eight"]:
        print(f"| {found['T']} | {found['V']} | {found['bytes'] / 1e6:.0f} |")
    write_report(args.output, report)
    print(f"\nwritten to {args.output}")


if __name__ == "__main__":
    main()
