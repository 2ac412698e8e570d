"""The CPU kernels touch no memory but their arrays', under AddressSanitizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from cpp_programs import build_program, run_program

from jax_rnnt._native import _cpu

pytestmark = pytest.mark.cpu_only("about the CPU kernels")

VECTOR_BYTES = {"baseline": 16, "avx2": 32, "avx512": 64}
TARGET_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mbmi2"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mbmi2"],
}


@pytest.mark.parametrize("target", sorted({"baseline", _cpu.available_targets()[0]}))
def test_memory(target: str, tmp_path: Path) -> None:
    """Arcs and the additive joiner, with the shortest and the longest vectors."""
    vectors = [f"-DJAX_RNNT_TARGET={target}", f"-DJAX_RNNT_VECTOR_BYTES={VECTOR_BYTES[target]}"]
    flags = ["-fsanitize=address", *vectors, *TARGET_FLAGS[target]]
    done = run_program([build_program("cpu_kernels.cc", tmp_path, *flags)])
    assert done.returncode == 0, done.stdout + done.stderr
