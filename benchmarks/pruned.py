"""Memory and time of a training step's loss: exact, pruned, and pruned from the joint network.

The setting is that of arXiv 2206.13236: a joint network `tanh(encoder + predictor) @ W + b`, whose
gradient by all of its inputs and parameters is taken. Memory is what XLA's `memory_analysis` says
of the temporaries of the compiled step; nothing has to run for it. Times are medians of calls.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import machine
from process import keep_freed_memory

import jax_rnnt

# Encoder frames and labels of the first utterances of LibriSpeech train-clean-100.
UTTERANCES = [
    (433, 101), (288, 73), (325, 92), (342, 83), (381, 77), (360, 73),
    (419, 73), (396, 77), (323, 59), (133, 32), (320, 70), (326, 87),
    (361, 72), (312, 76), (354, 80), (282, 67), (370, 76), (393, 89),
    (335, 93), (354, 93), (236, 32), (185, 53), (336, 82), (283, 78),
    (347, 67), (76, 18), (327, 70), (54, 18), (80, 19), (437, 64),
]  # fmt: skip
"""Utterances of a batch, as long as they are; padded to the longest of both."""


@dataclass(frozen=True)
class Problem:
    """Operands of the losses: what they are differentiated by, and the rest."""

    params: dict[str, Any]
    constants: dict[str, Any]


def make_problem(utterances: list[tuple[int, int]], width: int, classes: int) -> Problem:
    """Random encoder and predictor output, labels and parameters."""
    rng = np.random.default_rng(0)
    lengths = np.array(utterances, np.int32)
    B, (T, U) = len(lengths), lengths.max(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, dtype=np.float32) / shape[-2] ** 0.5)

    params = {
        "encoder": normal(B, T, width),
        "predictor": normal(B, U + 1, width),
        "joiner": {"kernel": normal(width, classes), "bias": jnp.zeros(classes)},
        "am": normal(width, classes),
        "lm": normal(width, classes),
    }
    labels = rng.integers(1, classes, size=(B, U), dtype=np.int32)
    constants = {
        "labels": jnp.asarray(labels),
        "logit_lengths": jnp.asarray(lengths[:, 0]),
        "label_lengths": jnp.asarray(lengths[:, 1]),
    }
    return Problem(params, constants)


def joiner(params: dict[str, jax.Array], encoder: jax.Array, predictor: jax.Array) -> jax.Array:
    return jnp.tanh(encoder + predictor) @ params["kernel"] + params["bias"]


def exact(params: dict[str, Any], constants: dict[str, Any]) -> jax.Array:
    """`rnnt_loss` of all logits."""
    logits = joiner(params["joiner"], params["encoder"][:, :, None], params["predictor"][:, None])
    return jax_rnnt.rnnt_loss(logits, **constants, reduction="sum")


def simple(
    params: dict[str, Any], constants: dict[str, Any], s_range: int
) -> tuple[jax.Array, jax.Array]:
    """The additive joiner's loss, and the ranges that its posteriors suggest."""
    am, lm = params["encoder"] @ params["am"], params["predictor"] @ params["lm"]
    labels, lengths = constants["labels"], (constants["logit_lengths"], constants["label_lengths"])
    losses, posteriors = jax_rnnt.rnnt_loss_simple(
        am, lm, labels, *lengths, return_posteriors=True, reduction="sum"
    )
    return losses, jax_rnnt.get_rnnt_prune_ranges(posteriors, *lengths, s_range=s_range)


def pruned(params: dict[str, Any], constants: dict[str, Any], s_range: int) -> jax.Array:
    """`rnnt_loss_simple` and `rnnt_loss_pruned`, as in arXiv 2206.13236."""
    loss, ranges = simple(params, constants, s_range)
    rows = jax_rnnt.do_rnnt_pruning(params["encoder"], params["predictor"], ranges)
    logits = joiner(params["joiner"], *rows)
    return loss + jax_rnnt.rnnt_loss_pruned(logits, ranges=ranges, **constants, reduction="sum")


def pruned_joint(params: dict[str, Any], constants: dict[str, Any], s_range: int) -> jax.Array:
    """The same with `rnnt_loss_pruned_joint`, which stores no logits."""
    loss, ranges = simple(params, constants, s_range)
    return loss + jax_rnnt.rnnt_loss_pruned_joint(
        joiner,
        params["joiner"],
        params["encoder"],
        params["predictor"],
        ranges=ranges,
        **constants,
        reduction="sum",
    )


def milliseconds(call: Callable[[], Any], rounds: int) -> float:
    """Median, after one call that warms up."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        result = jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
        del result
    return 1e3 * statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=len(UTTERANCES), help="the first of them")
    parser.add_argument("--width", type=int, default=512, help="of encoder and predictor output")
    parser.add_argument("--classes", type=int, default=500)
    parser.add_argument("--s-range", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--skip-dense-run",
        action="store_true",
        help="only compile the exact loss, which needs 11 GB by default",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/pruned.json"))
    parser.add_argument("--allocator", default="keep", choices=["keep", "system"])
    args = parser.parse_args()
    if args.allocator == "keep":
        keep_freed_memory()

    problem = make_problem(UTTERANCES[: args.utterances], args.width, args.classes)
    B, T, _ = problem.params["encoder"].shape
    shape = {
        "B": B,
        "T": T,
        "U": problem.constants["labels"].shape[1],
        "D": args.width,
        "V": args.classes,
        "s_range": args.s_range,
    }
    report: dict[str, Any] = {"machine": machine(), "shape": shape, "losses": {}}
    print(f"{report['machine']}\n{shape}")
    print(f"{'loss':14} {'temporaries MB':>15} {'exact / this':>13} {'ms':>10}")
    losses: dict[str, Callable[..., jax.Array]] = {
        "exact": exact,
        "pruned": partial(pruned, s_range=args.s_range),
        "pruned joint": partial(pruned_joint, s_range=args.s_range),
    }
    operands = problem.params, problem.constants
    for name, loss in losses.items():
        step = jax.jit(jax.value_and_grad(loss)).lower(*operands).compile()
        memory = step.memory_analysis()
        assert memory is not None, "no memory analysis on this platform"
        size = memory.temp_size_in_bytes
        result: dict[str, Any] = {"temporary_bytes": size, "milliseconds": None}
        report["losses"][name] = result
        result["ratio"] = report["losses"]["exact"]["temporary_bytes"] / size
        if not (args.skip_dense_run and name == "exact"):
            result["milliseconds"] = milliseconds(partial(step, *operands), args.rounds)
        timed = "" if result["milliseconds"] is None else f"{result['milliseconds']:.1f}"
        print(f"{name:14} {size / 1e6:15.1f} {result['ratio']:12.1f}x {timed:>10}", flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2))
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
