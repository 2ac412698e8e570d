"""How the CUDA kernels of arcs find rows and load them, by a program on the CPU.

Rows of arrays of JAX start where the arrays do; here, they start anywhere.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cpp_programs import build_program, run_program

pytestmark = pytest.mark.cpu_only("a program of its own, with the emulation's headers")

EMULATION = Path(__file__).parent / "cuda_emulation"


def test_rows(tmp_path: Path) -> None:
    """Every class is loaded by one lane, and nothing outside of the row."""
    runtime = [str(path) for path in sorted((EMULATION / "runtime").glob("*.cc"))]
    flags = [f"-I{EMULATION / 'include'}", "-Wno-unknown-pragmas", "-fsanitize=address,undefined"]
    done = run_program([build_program("cuda_rows.cc", tmp_path, *flags, *runtime, "-ldl")])
    assert done.stdout == "all passed\n", done.stdout + done.stderr
