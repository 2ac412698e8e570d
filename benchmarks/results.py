"""What `suite.py` wrote, to be asked for numbers."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLOOR = "floor: "
"""Before the name of each way to stream."""
IN_PLACE = "native in place"
"""The native implementation with its operands donated."""
ARITHMETIC = "arithmetic"
"""Multiply-adds in registers, which need a core and nothing else."""
MATRIX_PRODUCTS = "matrix products"
"""Those of a joint network, without which there is no loss."""


@dataclass(frozen=True)
class Found:
    """One case, as it was measured."""

    data: dict[str, Any]

    @property
    def op(self) -> str:
        return self.data["op"]

    @property
    def shape(self) -> str:
        return self.data["shape"]

    @property
    def dtype(self) -> str:
        return self.data["dtype"]

    @property
    def threads(self) -> int:
        return self.data["threads"]

    @property
    def steps(self) -> list[str]:
        return list(self.data["steps"])

    @property
    def sizes(self) -> str:
        return ", ".join(f"{name}={n}" for name, n in self.data["sizes"].items())

    @property
    def cells(self) -> int:
        sizes = self.data["sizes"]
        return sizes["B"] * sizes["T"] * (sizes["U"] + 1)

    @property
    def peers(self) -> list[str]:
        """The other systems that were measured."""
        return [name for name, peer in self.data["peers"].items() if "loss" in peer]

    def call(self, step: str, name: str) -> dict[str, Any]:
        return self.data["steps"].get(step, {"calls": {}})["calls"].get(name, {})

    def median(self, step: str, name: str, allocator: str = "reused") -> float | None:
        """Milliseconds; None where it was not measured."""
        return self.call(step, name).get("milliseconds", {}).get(allocator, {}).get("median")

    def floor(self, step: str) -> float | None:
        """Milliseconds that streaming takes, in the faster way."""
        calls = self.data["steps"][step]["calls"]
        found = [self.median(step, name) for name in calls if name.startswith(FLOOR)]
        return min((x for x in found if x is not None), default=None)

    def memory(self, step: str, name: str) -> int | None:
        """Bytes above what was resident before the call."""
        return (self.call(step, name).get("memory") or {}).get("rss_above_baseline")

    def fastest_peer(self, step: str) -> str | None:
        times = {name: self.median(step, name) for name in self.peers}
        known = {name: t for name, t in times.items() if t is not None}
        return min(known, key=known.__getitem__) if known else None


class Results:
    """All cases of a run; those that failed are left out."""

    def __init__(self, report: dict[str, Any]):
        self.machine: dict[str, Any] = report["machine"]
        self.command: str = report["command"]
        self.found = [Found(x) for x in report["cases"] if "error" not in x]

    @classmethod
    def read(cls, path: Path) -> Results:
        return cls(json.loads(path.read_text()))

    def select(self, **wanted: Any) -> Iterator[Found]:
        """Cases with these attributes."""
        for found in self.found:
            if all(getattr(found, name) == value for name, value in wanted.items()):
                yield found

    @property
    def threads(self) -> list[int]:
        return sorted({found.threads for found in self.found})

    @property
    def peers(self) -> dict[str, dict[str, Any]]:
        """The other systems of any case, with their versions."""
        return {name: x.data["peers"][name] for x in self.found for name in x.peers}

    def scaling(self, threads: int) -> dict[str, list[tuple[int, float]]]:
        """By axis: sizes, and milliseconds of the loss with its gradient."""
        points = {
            tuple(found.data["sizes"].values()): found.median("both", "native")
            for found in self.select(op="scaling", threads=threads)
        }
        if not points:
            return {}
        base = tuple(map(min, zip(*points, strict=True)))
        curves: dict[str, list[tuple[int, float]]] = {}
        for i, axis in enumerate("BTUV"):
            others = [p for p in points if p[:i] + p[i + 1 :] == base[:i] + base[i + 1 :]]
            times = [(p[i], points[p]) for p in sorted(others)]
            curves[axis] = [(size, time) for size, time in times if time is not None]
        return curves

    def scaling_exponents(self, threads: int) -> dict[str, float]:
        """By axis: how many decades the time grows in a decade."""
        return {
            axis: statistics.linear_regression(
                [math.log(size) for size, _ in curve], [math.log(time) for _, time in curve]
            ).slope
            for axis, curve in self.scaling(threads).items()
            if len(curve) > 1
        }
