"""The CPU kernels touch no memory but their arrays': on random problems, under sanitizers."""

from __future__ import annotations

from pathlib import Path

import pytest
from cpp_programs import WORKSPACES, build_program, run_program

from jax_rnnt._native import _cpu

pytestmark = pytest.mark.cpu_only("about the CPU kernels")

VECTOR_BYTES = {"baseline": 16, "avx2": 32, "avx512": 64}
TARGET_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mbmi2"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mbmi2"],
}

# The shortest and the longest vectors.
targets = pytest.mark.parametrize("target", sorted({"baseline", _cpu.available_targets()[0]}))


def run_for_target(target: str, source: str, directory: Path, *flags: str) -> None:
    vectors = [f"-DJAX_RNNT_TARGET={target}", f"-DJAX_RNNT_VECTOR_BYTES={VECTOR_BYTES[target]}"]
    program = build_program(source, directory, *vectors, *TARGET_FLAGS[target], *flags)
    done = run_program([program])
    assert done.returncode == 0, done.stdout + done.stderr


@targets
def test_arcs(target: str, tmp_path: Path) -> None:
    """Also those of the additive joiner."""
    run_for_target(target, "cpu_arcs.cc", tmp_path, "-fsanitize=address")


@targets
def test_recursions(target: str, tmp_path: Path) -> None:
    """Lattices, with durations and without, bands and best paths."""
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", WORKSPACES]
    run_for_target(target, "cpu_recursions.cc", tmp_path, *flags)
