"""Runs the CUDA kernels on small cases under NVIDIA's compute-sanitizer; fails if it complains.

    python tests/sanitize_gpu.py [--tools memcheck racecheck ...]

For each tool this program starts itself once more, under the tool, to run the cases. Each case is
one op in a program of its own with operands made on the host, and JAX takes every buffer from CUDA
by itself: an access beyond a buffer is then one beyond an allocation, which memcheck sees.
`--bare` runs the cases without a tool, on any platform that has kernels.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_rnnt._native.duration_ops import (
    best_duration_path,
    duration_lattice,
    duration_lattice_score,
)
from jax_rnnt._native.factored_ops import factored_bwd, factored_fwd, smoothed_bwd, smoothed_fwd
from jax_rnnt._native.row_ops import row_sums
from jax_rnnt.arcs import arcs_bwd, arcs_fwd
from jax_rnnt.lattice import (
    banded_best_path,
    banded_lattice,
    banded_lattice_score,
    best_path,
    lattice,
    lattice_score,
    packed_best_path,
    packed_lattice,
    packed_lattice_score,
)
from jax_rnnt.types import ArcsOptions, LatticeOptions

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
CLEAN = {
    "racecheck": re.compile(r"RACECHECK SUMMARY: 0 hazards displayed \(0 errors, 0 warnings\)"),
}
CLEAN_OTHERS = re.compile(r"ERROR SUMMARY: 0 errors")
ALL_RAN = "cases ran"
IN_PLACE = "in place"  # the first operand is donated

ENVIRONMENT = {
    "JAX_PLATFORMS": "cuda",
    "XLA_PYTHON_CLIENT_ALLOCATOR": "platform",  # one CUDA allocation for each buffer
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "XLA_FLAGS": "--xla_gpu_enable_command_buffer=",  # every launch by itself, not in a graph
}

# Rows of every kind: shorter than a vector, than a warp, longer than many; aligned and not.
CLASSES = [1, 2, 7, 28, 33, 257, 1025, 5000]
# (T, U): one node, one row, one column, several tiles, tall, flat, tiles that do not fit on chip
LATTICES = [(1, 0), (1, 3), (9, 0), (7, 4), (35, 18), (90, 37), (20, 130), (3, 6000)]
NORMALIZATIONS: tuple[Any, ...] = ("softmax", "none", "hat")
TOPOLOGIES: tuple[Any, ...] = ("regular", "modified", "constrained")

Case = tuple[str, Any, tuple[np.ndarray, ...]]  # what it is, the function, its operands


def bounds_of(T: int, U: int) -> np.ndarray:
    """Whole, with begins, empty, without labels, bad: frame begin and end, label begin and end."""
    rows = [(0, T, 0, U), (T // 3, T, U // 2, U), (0, 0, 0, 0), (0, T, U, U), (-1, -1, -1, -1)]
    return np.array(rows, np.int32)


def arcs_cases() -> Iterator[Case]:
    rng = np.random.default_rng(0)
    T, U = 5, 3
    bounds = bounds_of(T, U)
    B = len(bounds)
    for dtype in (jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16):
        accumulator = np.float64 if dtype == jnp.float64 else np.float32
        for classes in CLASSES:
            labels = rng.integers(min(1, classes - 1), classes, size=(B, U), dtype=np.int32)
            logits = rng.normal(size=(B, T, U + 1, classes)).astype(dtype)
            planes = [rng.random((B, T, U + 1)).astype(accumulator) for _ in range(3)]
            cotangents = np.ones(B, accumulator)
            for normalization in NORMALIZATIONS:
                what = f"{jnp.dtype(dtype).name} V={classes} {normalization}"
                options = ArcsOptions(normalization=normalization, clamp=0.5)
                yield f"arcs_fwd {what}", partial(arcs_fwd, options), (logits, labels, bounds)
                operands = (logits, labels, *planes, cotangents)
                yield f"arcs_bwd {what}", partial(arcs_bwd, options), operands
                yield f"arcs_bwd {IN_PLACE} {what}", partial(arcs_bwd, options), operands
                if dtype == jnp.float32:
                    rounded = partial(arcs_bwd, options, gradient_dtype=jnp.bfloat16)
                    yield f"arcs_bwd to bfloat16 {what}", rounded, operands


def lattice_cases() -> Iterator[Case]:
    rng = np.random.default_rng(1)
    for T, U in LATTICES:
        bounds = bounds_of(T, U)
        planes = -rng.exponential(size=(2, len(bounds), T, U + 1))
        for dtype in (np.float32, np.float64):
            blank, label = planes.astype(dtype)
            for topology in TOPOLOGIES:
                options = LatticeOptions(topology, final_blank=topology == "modified")
                for op in (lattice, lattice_score, best_path):
                    what = f"{op.__name__} {np.dtype(dtype).name} T={T} U={U} {topology}"
                    yield what, partial(op, options), (blank, label, bounds)


def packed_cases() -> Iterator[Case]:
    """Utterances of every kind one after another; the last one lacks a row."""
    rng = np.random.default_rng(2)
    frames, labels = np.array([(7, 4), (1, 0), (0, 0), (90, 37), (2, 130), (5, 3)], np.int32).T
    counts = frames * (labels + 1)
    offsets = np.cumsum(counts, dtype=np.int32) - counts
    zeros = np.zeros_like(frames)
    bounds = np.stack([zeros, frames, zeros, labels], axis=-1)
    for most_labels in (130, 6000):
        for dtype in (np.float32, np.float64):
            planes = -rng.exponential(size=(2, counts.sum() - 1)).astype(dtype)
            for topology in TOPOLOGIES:
                options = LatticeOptions(topology, final_blank=topology == "modified")
                for op in (packed_lattice, packed_lattice_score, packed_best_path):
                    what = f"{op.__name__} {np.dtype(dtype).name} U<={most_labels} {topology}"
                    yield what, partial(op, options, most_labels), (*planes, offsets, bounds)


def banded_cases() -> Iterator[Case]:
    """Bands of every width, rising as they please, of the utterances of `bounds_of`."""
    rng = np.random.default_rng(3)
    for T, U, S in ((1, 3, 4), (9, 0, 1), (35, 18, 5), (90, 37, 12), (20, 3000, 33), (7, 90, 91)):
        bounds = bounds_of(T, U)
        starts = rng.integers(0, max(S, 2), (len(bounds), T)).cumsum(1)
        starts = np.minimum(starts, U + 1 - S).astype(np.int32)
        for dtype in (np.float32, np.float64):
            planes = -rng.exponential(size=(2, len(bounds), T, S)).astype(dtype)
            for topology in TOPOLOGIES:
                options = LatticeOptions(topology)
                for op in (banded_lattice, banded_lattice_score, banded_best_path):
                    what = f"{op.__name__} {np.dtype(dtype).name} T={T} U={U} S={S} {topology}"
                    yield what, partial(op, options, U), (*planes, starts, bounds)


def duration_cases() -> Iterator[Case]:
    """Durations of every kind, in utterances shorter and longer than they are."""
    rng = np.random.default_rng(6)
    for T, U in ((1, 0), (1, 3), (9, 0), (35, 18), (90, 37), (20, 300)):
        bounds = bounds_of(T, U)
        for durations, labels_stay in (
            ((0, 1, 2, 3, 4), False), ((0, 1, 2, 4, 8), True), ((1,), False), ((0, 3, 50), False)
        ):  # fmt: skip
            shape = len(bounds), len(durations), T, U + 1
            for dtype in (np.float32, np.float64):
                planes = -rng.exponential(size=(2, len(bounds), T, U + 1)).astype(dtype)
                duration = -rng.exponential(size=shape).astype(dtype)
                params = {"durations": durations, "labels_stay": labels_stay}
                for op in (duration_lattice, duration_lattice_score, best_duration_path):
                    what = f"{op.__name__} {np.dtype(dtype).name} T={T} U={U} {durations}"
                    function = partial(op, **params, native=True)
                    yield what, function, (*planes, duration, bounds)


def additive_cases() -> Iterator[Case]:
    """Halves of several tiles and of less than one, with cells that are computed one by one."""
    rng = np.random.default_rng(4)
    for T, U, V in ((1, 0, 1), (9, 3, 5), (150, 70, 33), (300, 5, 140)):
        bounds = bounds_of(T, U)
        B = len(bounds)
        labels = rng.integers(min(1, V - 1), V, size=(B, U), dtype=np.int32)
        for dtype in (jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16):
            kind = np.float64 if dtype == jnp.float64 else np.float32
            am, lm = (rng.normal(size=(B, n, V)).astype(dtype) for n in (T, U + 1))
            average, *scores = (
                -rng.exponential(size=(B, n)).astype(kind) for n in (V, U + 1, U + 1)
            )
            planes = [rng.random((B, T, U + 1)).astype(kind) for _ in range(3)]
            planes[0].flat[::97] = -1000
            rows = [rng.random((B, n)).astype(kind) for n in (T, U + 1, T)]
            cotangents = np.ones(B, kind)
            for normalization in NORMALIZATIONS:
                params: Any = {"blank_id": 0, "normalization": normalization}
                what = f"{jnp.dtype(dtype).name} T={T} U={U} V={V} {normalization}"
                yield (
                    f"factored_fwd {what}",
                    partial(factored_fwd, native=True, **params),
                    (am, lm, labels, bounds),
                )
                operands = (am, lm, labels, planes[0], *rows[:2], *planes[1:], cotangents)
                yield f"factored_bwd {what}", partial(factored_bwd, native=True, **params), operands
            params = {"blank_id": 0, "joint_share": 0.7, "am_share": 0.1}
            what = f"{jnp.dtype(dtype).name} T={T} U={U} V={V}"
            operands = (am, lm, average, *scores, labels, bounds)
            yield f"smoothed_fwd {what}", partial(smoothed_fwd, native=True, **params), operands
            operands = (am, lm, average, labels, planes[0], *rows, *planes[1:], cotangents)
            yield f"smoothed_bwd {what}", partial(smoothed_bwd, native=True, **params), operands


def row_cases() -> Iterator[Case]:
    """Sums of few and of many rows, of part of a warp's columns and of several warps'."""
    rng = np.random.default_rng(5)
    for rows, sums, columns in ((1, 1, 1), (40, 7, 5), (300, 9, 133), (1000, 300, 64), (0, 3, 4)):
        numbers = rng.integers(0, sums, size=(2, rows), dtype=np.int32)
        numbers[:, rows // 2 :] = 0
        for dtype in (jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16):
            values = rng.normal(size=(2, rows, columns)).astype(dtype)
            what = f"row_sums {jnp.dtype(dtype).name} {rows} rows, {sums} sums, {columns} columns"
            yield what, partial(row_sums, num_sums=sums), (values, numbers)


def run_cases(every: int) -> None:
    """Runs one in `every` cases, all of them once on the device that JAX chooses."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    kinds = (
        arcs_cases, lattice_cases, packed_cases, banded_cases, duration_cases, additive_cases,
        row_cases,
    )  # fmt: skip
    cases = [case for kind in kinds for case in kind()][::every]
    for done, (what, function, operands) in enumerate(cases):
        if done % 50 == 0:
            print(f"{done} of {len(cases)} are done", flush=True)
        try:
            donated = (0,) if IN_PLACE in what else ()
            jax.block_until_ready(jax.jit(function, donate_argnums=donated)(*operands))
        except Exception as error:
            raise RuntimeError(what) from error
    print(len(cases), ALL_RAN, "on", jax.devices()[0].device_kind, flush=True)


def is_clean(tool: str, code: int, output: str) -> bool:
    """Whether all cases ran and the tool says in so many words that it has found nothing."""
    verdict = CLEAN.get(tool, CLEAN_OTHERS)
    return code == 0 and ALL_RAN in output and verdict.search(output) is not None


def sanitizer() -> str | None:
    """The program, from the PATH or from the toolkit, whose folder is often left out there."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    folders = [os.environ.get("PATH", ""), f"{home}/bin", f"{home}/compute-sanitizer"]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def start(tool: str, every: int, output: Path) -> subprocess.Popen[bytes]:
    """What it prints is written to a file: a pipe that nobody reads yet would stop it."""
    # JAX asks the driver for things that it may not have, which are no errors of the kernels.
    options = ["--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no"]
    with output.open("wb") as file:
        return subprocess.Popen(
            [str(sanitizer()), *options]
            + [sys.executable, os.path.abspath(__file__), "--bare", "--every", str(every)],
            env=os.environ | ENVIRONMENT,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=["memcheck", "racecheck"])
    parser.add_argument("--every", type=int, default=1, help="run one case in so many")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/sanitizer"), help="folder of what the tools print"
    )
    parser.add_argument("--bare", action="store_true", help="run the cases, without a tool")
    args = parser.parse_args()
    if args.bare:
        run_cases(args.every)
        return 0
    if sanitizer() is None:
        print(
            "FAILED: compute-sanitizer IS NOT INSTALLED, the kernels' memory accesses were NOT "
            "CHECKED. It comes with the CUDA toolkit; its folder must be on the PATH, or CUDA_HOME "
            "be that of the toolkit."
        )
        return 2
    begin = time.monotonic()
    args.output.mkdir(parents=True, exist_ok=True)
    files = {tool: args.output / f"{tool}.txt" for tool in args.tools}
    running = {tool: start(tool, args.every, file) for tool, file in files.items()}  # all at once
    failed = []
    for tool, process in running.items():
        process.wait()
        output = files[tool].read_text(errors="replace")
        clean = is_clean(tool, process.returncode, output)
        print(f"compute-sanitizer {tool}: {'clean' if clean else 'FAILED'}, ", end="")
        print(f"{time.monotonic() - begin:.0f} s")
        if not clean:
            failed.append(tool)
            lines = output.splitlines()
            print("\n".join([*lines[:60], "...", *lines[-20:]] if len(lines) > 80 else lines))
        else:
            print("   ", next(line for line in output.splitlines() if ALL_RAN in line))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
