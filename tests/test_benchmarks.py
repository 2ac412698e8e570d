"""The benchmark runs, and writes what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "rnnt_loss.py"


def test_rnnt_loss_benchmark(tmp_path: Path) -> None:
    """One small case: a positive time for each call, and a ratio that is that of the medians."""
    output = tmp_path / "report.json"
    command = [sys.executable, str(BENCHMARK), "--shapes", "single", "--rounds", "2"]
    subprocess.run([*command, "--output", str(output)], check=True)
    report = json.loads(output.read_text())
    assert report["machine"]["jax"] and report["machine"]["kernels"]
    case = report["cases"]["single"]
    times = {name: call["median"] for name, call in case["milliseconds"].items()}
    assert set(times) == {f"{i} {s}" for i in ("native", "xla") for s in ("forward", "both")}
    assert min(times.values()) > 0
    assert case["ratio"]["both"] == times["xla both"] / times["native both"]
