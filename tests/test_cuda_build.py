"""Device code compiles with nvcc for every architecture, without warnings, and without spilling.

This needs no GPU. Where there is no nvcc these tests fail, and say how to get one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.cpu_only("compiles with nvcc alone; the package has just been built")

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "cuda").glob("*.cu"))
EMULATION = ROOT / "tests" / "cuda_emulation"
HOPPER = "90"
# Double precision, and sweeps of utterances too wide for shared memory, Plan::kWorkspace.
SELDOM_RUN = re.compile(r"double|sweep_kernel<.*Plan\)3>")


def compile_all(source: Path, tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    """What benchmarks/cuda_resources.py finds out about the kernels of a file."""
    report = tmp_path / "report.json"
    script = str(ROOT / "benchmarks" / "cuda_resources.py")
    command = [sys.executable, script, str(source), "--output", str(report), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = json.loads(report.read_text())
    assert all(f"`{kernel['name']}`" in done.stdout for kernel in kernels)
    return kernels


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_kernels(source: Path, tmp_path: Path) -> None:
    """Every architecture that the package is built for; no spills, on the one it is tuned for, in
    the kernels that training runs.
    """
    kernels = compile_all(source, tmp_path)
    assert {HOPPER, "75", "120"} <= {kernel["architecture"] for kernel in kernels}
    spills = {
        kernel["name"]: kernel["spill_stores"] + kernel["spill_loads"]
        for kernel in kernels
        if kernel["architecture"] == HOPPER and not SELDOM_RUN.search(kernel["name"])
    }
    assert spills
    assert not any(spills.values()), spills


@pytest.mark.parametrize("program", ["selftest", "numbers"])
def test_emulated_programs(program: str, tmp_path: Path) -> None:
    """What the emulation is tested with is CUDA."""
    source = EMULATION / f"{program}.cu"
    kernels = compile_all(source, tmp_path, "--architectures", "75", HOPPER)
    assert {kernel["architecture"] for kernel in kernels} == {"75", HOPPER}
    assert all(kernel["registers"] > 0 for kernel in kernels)
