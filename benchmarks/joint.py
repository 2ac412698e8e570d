"""Memory and time of `rnnt_loss_joint` against `rnnt_loss` of the same joint network.

The joint network is `tanh(encoder + predictor) @ kernel + bias`; the gradient is taken by all of
its inputs and parameters. Memory is what XLA's `memory_analysis` says of the temporaries of the
compiled step, for 30 utterances of LibriSpeech; nothing has to run for it. Times are medians of
calls that alternate in one process: with all padded cells valid, with half of them, and with larger
logits, whose alignments are few, as those of a trained model; where there is memory for the dense
loss of all the utterances (`--time-utterances`), also these. On a GPU: `--dtype bfloat16
--time-utterances`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import command_line, interleaved, machine, milliseconds, wall_seconds, write_report
from process import keep_freed_memory
from pruned import UTTERANCES, Problem, exact, make_problem

import jax_rnnt

# Frames and labels of four utterances, half of whose padded cells are valid.
HALF = [(400, 80), (230, 46), (190, 40), (220, 48)]


def joint(
    params: dict[str, Any], constants: dict[str, Any], rows_per_tile: int | None = None
) -> jax.Array:
    """The exact loss without logits."""
    return jax_rnnt.rnnt_loss_joint(
        jax_rnnt.LinearJoint(),
        params["joiner"],
        params["encoder"],
        params["predictor"],
        **constants,
        rows_per_tile=rows_per_tile,
        reduction="sum",
    )


Losses = dict[str, Callable[..., jax.Array]]


def compile_step(loss: Callable[..., jax.Array], problem: Problem) -> Any:
    step = jax.jit(jax.value_and_grad(loss))
    return step.lower(problem.params, problem.constants).compile()


def temporaries(losses: Losses, problem: Problem) -> dict[str, int]:
    """Bytes, of each loss's step."""
    found = {}
    for name, loss in losses.items():
        memory = compile_step(loss, problem).memory_analysis()
        assert memory is not None, "no memory analysis on this platform"
        found[name] = memory.temp_size_in_bytes
    return found


def scaled(problem: Problem, scale: float) -> Problem:
    """With larger logits: a trained model's alignments are few, random scores' are many."""
    joiner = jax.tree.map(lambda x: scale * x, problem.params["joiner"])
    return Problem({**problem.params, "joiner": joiner}, problem.constants)


def of_dtype(problem: Problem, dtype: str) -> Problem:
    """With parameters and scores of that type."""
    return Problem(jax.tree.map(lambda x: x.astype(dtype), problem.params), problem.constants)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=len(UTTERANCES), help="for the memory")
    parser.add_argument("--time-utterances", action="store_true", help="run their steps, too")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--width", type=int, default=512, help="of encoder and predictor output")
    parser.add_argument("--classes", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--lengths", type=int, nargs=2, default=HALF[0], help="T and U, timed")
    parser.add_argument("--rows-per-tile", type=int, help="of the joint loss; by default, its own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/joint.json"))
    parser.add_argument("--allocator", default="keep", choices=["keep", "system"])
    args = parser.parse_args()
    if args.allocator == "keep":
        keep_freed_memory()
    losses: Losses = {"dense": exact, "joint": partial(joint, rows_per_tile=args.rows_per_tile)}
    report: dict[str, Any] = {
        "command": command_line(), "machine": machine(), "device": jax.devices()[0].device_kind,
        "dtype": args.dtype, "memory": {}, "times": {},
    }  # fmt: skip
    print(report["machine"])

    utterances = UTTERANCES[: args.utterances]
    for classes in args.classes:
        problem = of_dtype(make_problem(utterances, args.width, classes), args.dtype)
        sizes = temporaries(losses, problem)
        report["memory"][classes] = {"utterances": utterances, "width": args.width, **sizes}
        print(
            f"V={classes}: temporaries {sizes['dense'] / 1e6:.1f} MB dense, "
            f"{sizes['joint'] / 1e6:.1f} MB joint, {sizes['dense'] / sizes['joint']:.0f}x less"
        )

    frames, labels = args.lengths
    classes = args.classes[0]
    full = of_dtype(make_problem([(frames, labels)] * len(HALF), args.width, classes), args.dtype)
    half = [(t * frames // HALF[0][0], u * labels // HALF[0][1]) for t, u in HALF]
    lengths = np.array(half, np.int32)
    constants = {
        **full.constants,
        "logit_lengths": jnp.asarray(lengths[:, 0]),
        "label_lengths": jnp.asarray(lengths[:, 1]),
    }
    steps = {name: compile_step(loss, full) for name, loss in losses.items()}
    cases = {
        "all cells valid": (full, steps),
        "half of them": (Problem(full.params, constants), steps),
        "half, peaked": (scaled(Problem(full.params, constants), 30.0), steps),
    }
    if args.time_utterances:
        problem = of_dtype(make_problem(utterances, args.width, classes), args.dtype)
        steps = {name: compile_step(loss, problem) for name, loss in losses.items()}
        cases["utterances"] = (problem, steps)
    for case, (problem, steps) in cases.items():
        timers = {
            name: partial(wall_seconds, partial(step, problem.params, problem.constants))
            for name, step in steps.items()
        }
        seconds = interleaved(timers, args.rounds, warm_up=1)
        times: dict[str, Any] = {name: milliseconds(x) for name, x in seconds.items()}
        times["ratio"] = times["joint"]["median"] / times["dense"]["median"]
        report["times"][case] = times
        print(
            f"{case}: {times['dense']['median']:.0f} ms dense, {times['joint']['median']:.0f} ms "
            f"joint, {times['ratio']:.2f} of it"
        )
    report["times"]["shape"] = {
        "T": frames,
        "U": labels,
        "D": args.width,
        "V": classes,
        "half": half,
    }
    write_report(args.output, report)
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
