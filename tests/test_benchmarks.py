"""The benchmark runs, and writes what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_rnnt_loss_benchmark(tmp_path: Path) -> None:
    """One small case: a positive time for each call, and a ratio that is that of the medians."""
    output = tmp_path / "report.json"
    command = [
        sys.executable,
        str(BENCHMARKS / "rnnt_loss.py"),
        "--shapes",
        "single",
        "--rounds",
        "2",
    ]
    subprocess.run([*command, "--output", str(output)], check=True)
    report = json.loads(output.read_text())
    assert report["machine"]["jax"] and report["machine"]["kernels"]
    case = report["cases"]["single"]
    times = {name: call["median"] for name, call in case["milliseconds"].items()}
    assert set(times) == {f"{i} {s}" for i in ("native", "xla") for s in ("forward", "both")}
    assert min(times.values()) > 0
    assert case["ratio"]["both"] == times["xla both"] / times["native both"]


def test_pruned_benchmark(tmp_path: Path) -> None:
    """Few utterances: less memory the less is stored; a time for what was run."""
    output = tmp_path / "report.json"
    options = "--utterances 2 --width 16 --classes 50 --rounds 1 --skip-dense-run"
    command = [sys.executable, str(BENCHMARKS / "pruned.py"), *options.split()]
    subprocess.run([*command, "--output", str(output)], check=True)
    report = json.loads(output.read_text())
    assert report["machine"]["jax"] and report["shape"]["B"] == 2
    losses = report["losses"]
    assert list(losses) == ["exact", "pruned", "pruned joint"]
    assert losses["exact"]["milliseconds"] is None and losses["exact"]["ratio"] == 1
    assert min(losses[name]["milliseconds"] for name in ("pruned", "pruned joint")) > 0
    assert losses["pruned"]["ratio"] > 2
