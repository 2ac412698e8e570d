"""The CPU kernels touch no memory but their arrays', under AddressSanitizer."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path

import pytest

from jax_rnnt._native import _cpu

pytestmark = pytest.mark.cpu_only("about the CPU kernels")

HERE = Path(__file__).parent
VECTOR_BYTES = {"baseline": 16, "avx2": 32, "avx512": 64}
TARGET_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mbmi2"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mbmi2"],
}


@pytest.mark.parametrize("target", sorted({"baseline", _cpu.available_targets()[0]}))
def test_memory(target: str, tmp_path: Path) -> None:
    """Arcs and the additive joiner, with the shortest and the longest vectors."""
    program = str(tmp_path / "cpu_kernels")
    flags = ["-std=c++20", "-O1", "-fsanitize=address", "-Wall", "-Wextra", "-Wno-psabi"]
    flags += ["-fno-math-errno", "-fno-trapping-math", "-fwrapv", "-fno-strict-aliasing"]
    flags += [f"-DJAX_RNNT_TARGET={target}", f"-DJAX_RNNT_VECTOR_BYTES={VECTOR_BYTES[target]}"]
    flags += [*TARGET_FLAGS[target], f"-I{HERE.parent / 'cpp'}"]
    run = partial(subprocess.run, capture_output=True, text=True, timeout=300)
    compiler = os.environ.get("CXX", "g++")
    done = run([compiler, *flags, str(HERE / "cpu_kernels.cc"), "-o", program])
    assert done.returncode == 0, done.stderr
    done = run([program])
    assert done.returncode == 0, done.stdout + done.stderr
