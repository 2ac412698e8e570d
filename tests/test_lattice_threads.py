"""Threads that share a lattice give the results of one thread, to the last bit, without a race.

As a program, `python tests/test_lattice_threads.py FILE` writes this process's results to FILE.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from cases import (
    ArcsBatch,
    Options,
    assert_grad_close,
    assert_loss_close,
    expected_arcs,
    random_arcs,
    run_arcs,
)
from cpp_programs import WORKSPACES, build_program, run_program
from oracles import LogitsResult
from packed_cases import PackedBatch, random_packed, run_packed

pytestmark = pytest.mark.cpu_only("about the threads of the CPU kernels")

THREADS = [1, 2, 5]

# Utterances, frames, labels, dtype: few utterances of at least 16,384 cells are shared, and the
# last ones of many.
CASES: dict[str, tuple[int, int, int, Any, Options]] = {
    "regular": (1, 400, 60, np.float32, {"topology": "regular"}),
    "long": (1, 6000, 4, np.float32, {"topology": "regular", "delay_penalty": 0.01}),
    "wide": (1, 40, 450, np.float64, {"topology": "regular"}),
    "bounds": (4, 250, 70, np.float64, {"topology": "regular"}),
    "many": (11, 300, 60, np.float32, {"topology": "regular"}),
    "modified": (3, 300, 60, np.float32, {"topology": "modified", "final_blank": True}),
    "constrained": (1, 300, 60, np.float32, {"topology": "constrained"}),
}


def arcs(name: str) -> ArcsBatch:
    batch, frames, labels, dtype, options = CASES[name]
    rng = np.random.default_rng(0)
    return random_arcs(rng, batch, frames, labels, dtype=dtype, scale=2.0, **options)


def packed() -> tuple[PackedBatch, LogitsResult]:
    return random_packed(np.random.default_rng(3), 3, 500, 100, 3, dtype=np.float32)


def write_results(path: str) -> None:
    """And how many threads the process has."""
    jax.config.update("jax_enable_x64", True)
    results = {name: run_arcs(arcs(name), "native", **CASES[name][-1]) for name in CASES}
    leaves = {
        f"{name} {i}": leaf
        for name, result in {**results, "packed": run_packed(packed()[0], "native")}.items()
        for i, leaf in enumerate(jax.tree.leaves(result))
    }
    np.savez(path, threads=len(os.listdir("/proc/self/task")), **leaves)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    """Of processes with more and more threads."""
    directory = tmp_path_factory.mktemp("results")
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    processes = []
    for threads in THREADS:
        command = [sys.executable, __file__, str(directory / f"{threads}.npz")]
        # XLA's thread pool has as many.
        processes.append(subprocess.Popen(command, env={**environment, "NPROC": str(threads)}))
    assert [process.wait(timeout=300) for process in processes] == [0] * len(THREADS)
    found = []
    for threads in THREADS:
        with np.load(directory / f"{threads}.npz") as arrays:
            found.append(dict(arrays))
    count = [int(result.pop("threads")) for result in found]
    assert count == sorted(set(count)), "NPROC has no effect"
    return found


def test_same_bits(results: list[dict[str, np.ndarray]]) -> None:
    alone, *others = results
    for other in others:
        assert other.keys() == alone.keys()
        for name, wanted in alone.items():
            assert other[name].tobytes() == wanted.tobytes(), name


@pytest.mark.parametrize("name", CASES)
def test_values(results: list[dict[str, np.ndarray]], name: str) -> None:
    """Against the float64 dynamic programme."""
    dtype, options = CASES[name][3:]
    wanted = expected_arcs(arcs(name), **options)
    tolerance = 1e-5 if dtype == np.float32 else 1e-11
    found = results[-1]
    assert_loss_close(found[f"{name} 0"], wanted.loss, tolerance)
    for i, gradient in enumerate((wanted.grad_blank, wanted.grad_label), 1):
        assert_grad_close(found[f"{name} {i}"], gradient, tolerance)


def test_packed_values(results: list[dict[str, np.ndarray]]) -> None:
    wanted = packed()[1]
    assert_loss_close(results[-1]["packed 0"], wanted.loss, 1e-5)
    assert_grad_close(results[-1]["packed 1"][None], wanted.grad[None], 1e-5)


def test_no_race(tmp_path: Path) -> None:
    """The same kernels and dealing out of work under ThreadSanitizer."""
    flags = ["-g", "-fsanitize=thread", WORKSPACES]
    program = build_program("lattice_threads.cc", tmp_path, *flags)
    done = run_program([program])
    if "unexpected memory mapping" in done.stderr:
        # Older sanitizers do not get on with all that kernels do to place memory at random.
        done = run_program(["setarch", "--addr-no-randomize", program])
    assert done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    write_results(sys.argv[1])
