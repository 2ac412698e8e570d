"""Times `rnnt_loss` natively against the pure-JAX implementation, interleaved in one process.

Writes JSON with the hardware and versions, and prints ratios. Times are medians of single calls of
a jitted function; a ratio is that of the medians.

By default the process keeps the memory that it frees, for both implementations: with glibc's own
settings the gradient of every call is mapped and unmapped anew, and its page faults, which have
nothing to do with the loss, can take longer than the rest (`--allocator system` measures that).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import cpu_name, interleaved, milliseconds, wall_seconds, write_report

import jax_rnnt

# (B, T, U, V): the shapes of warp-rnnt's benchmark, and the latency of a single utterance.
SHAPES = {
    "A": (16, 150, 40, 28),
    "B1": (1, 150, 20, 5000),
    "B4": (4, 150, 20, 5000),
    "C": (1, 1500, 300, 50),
    "single": (1, 150, 40, 28),
}


def make_problem(shape: tuple[int, int, int, int], dtype: Any) -> dict[str, jax.Array]:
    """Random logits and labels, all lengths full."""
    B, T, U, V = shape
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((B, T, U + 1, V), dtype=np.float32)
    labels = rng.integers(1, V, size=(B, U), dtype=np.int32)
    return {"logits": jnp.asarray(logits, dtype), "labels": jnp.asarray(labels)}


def make_calls(problem: dict[str, jax.Array]) -> dict[str, Callable[[], Any]]:
    """Compiled forward and value-and-gradient calls of both implementations."""
    calls = {}
    for implementation in ("native", "xla"):

        def total(logits: jax.Array, labels: jax.Array, implementation: Any = implementation):
            return jax_rnnt.rnnt_loss(logits, labels, implementation=implementation).sum()

        for name, function in (("forward", total), ("both", jax.value_and_grad(total))):
            operands = (problem["logits"], problem["labels"])
            compiled = jax.jit(function).lower(*operands).compile()
            calls[f"{implementation} {name}"] = partial(compiled, *operands)
    return calls


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    from jax_rnnt._native import _cpu

    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "kernels": _cpu.active_target(),
        "jax": jax.__version__,
        "jax_rnnt": jax_rnnt.__version__,
        "load_average": os.getloadavg()[0],
    }


def keep_freed_memory() -> None:
    """Starts the program again with glibc told not to give memory back to the system."""
    settings = {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**33),
        "MALLOC_TOP_PAD_": str(2**28),
    }
    if not settings.items() <= os.environ.items():
        os.environ.update(settings)
        os.execv(sys.executable, [sys.executable, *sys.argv])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/rnnt_loss.json"))
    parser.add_argument("--allocator", default="keep", choices=["keep", "system"])
    args = parser.parse_args()
    if args.allocator == "keep":
        keep_freed_memory()

    report: dict[str, Any] = {"machine": machine(), "dtype": args.dtype, "cases": {}}
    report["allocator"] = args.allocator
    print(f"{report['machine']}")
    print(f"{'case':7} {'(B, T, U, V)':22} {'':8} {'native ms':>10} {'XLA ms':>10} {'ratio':>7}")
    for name in args.shapes:
        calls = make_calls(make_problem(SHAPES[name], args.dtype))
        timers = {call: partial(wall_seconds, function) for call, function in calls.items()}
        seconds = interleaved(timers, args.rounds)
        case: dict[str, Any] = {"shape": SHAPES[name], "milliseconds": {}, "ratio": {}}
        for call, times in seconds.items():
            case["milliseconds"][call] = milliseconds(times)
        for step in ("forward", "both"):
            native, xla = (case["milliseconds"][f"{i} {step}"]["median"] for i in ("native", "xla"))
            case["ratio"][step] = xla / native
            print(
                f"{name:7} {SHAPES[name]!s:22} {step:8} {native:10.3f} {xla:10.3f} "
                f"{xla / native:6.2f}x",
                flush=True,
            )
        report["cases"][name] = case
    write_report(args.output, report)
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
