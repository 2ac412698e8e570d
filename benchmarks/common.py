"""What all benchmarks share: interleaved timing, what the numbers depend on, the report."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import jax_rnnt

_MOST_OF_A_LINE = 240


def wall_seconds(call: Callable[[], Any]) -> float:
    """Seconds until all results of a call are there."""
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    elapsed = time.perf_counter() - start
    del result  # its memory is given back outside of the measurement
    return elapsed


def interleaved(
    timers: dict[str, Callable[[], float]], rounds: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds that each timer returns, every round calling all of them once."""
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for i in range(rounds + warm_up):
        for name, timer in timers.items():
            elapsed = timer()
            if i >= warm_up:
                seconds[name].append(elapsed)
    return seconds


def milliseconds(seconds: list[float], per: int = 1) -> dict[str, float]:
    """Median and minimum, each divided by `per`."""
    return {
        "median": 1e3 * statistics.median(seconds) / per,
        "min": 1e3 * min(seconds) / per,
    }


def command_line(private: str | None = None) -> str:
    """This program's, as it is typed in the repository's root; a private path is `PYTHON`."""
    words = ("PYTHON" if word == private else word for word in sys.argv[1:])
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def cpu_name() -> str:
    """The processor, as the kernel names it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    from jax_rnnt._native import _cpu

    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "kernels": _cpu.active_target(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "numpy": importlib.metadata.version("numpy"),
        "jax_rnnt": jax_rnnt.__version__,
        "load_average": os.getloadavg()[0],
    }


def write_report(path: Path, report: dict[str, Any]) -> None:
    """As JSON. What has no parts stands on a line of its own if it fits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2)
    path.write_text(re.sub(r"[\[{][^\[\]{}]*[\]}]", _on_one_line, text) + "\n")


def _on_one_line(found: re.Match[str]) -> str:
    text = found[0]
    line = text[0] + re.sub(r"\n\s*", " ", text[1:-1]).strip() + text[-1]
    return line if len(line) <= _MOST_OF_A_LINE else text
