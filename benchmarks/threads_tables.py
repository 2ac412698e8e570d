"""Tables of what `threads.py` measured, on one machine or on several side by side."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from results import ARITHMETIC, FLOOR, IN_PLACE, MATRIX_PRODUCTS
from tables import machine_and_command, number, ratio, table

ENOUGH = 1.7
"""Times that two threads should be faster, of what takes long enough."""
Calls = dict[str, Any]
"""What `threads.py` measured of a step, by name."""


def _calls_of_threads(reports: Sequence[dict[str, Any]]) -> dict[tuple[str, ...], list[Calls]]:
    """By op, sizes, dtype and step, those of each report; none where the call was too short."""
    found: dict[tuple[str, ...], list[Calls]] = {}
    for i, report in enumerate(reports):
        for case in report["cases"]:
            op = f"`{case['op']}`" if case["op"].startswith("rnnt") else case["op"]
            sizes = ", ".join(f"{name}={n}" for name, n in case["sizes"].items())
            for step, calls in case["steps"].items():
                row = found.setdefault((op, sizes, case["dtype"], step), [{} for _ in reports])
                row[i] = calls
    return found


def _gain(calls: Calls, name: str = "native") -> float | None:
    return calls[name]["gain"] if name in calls else None


def threads(reports: Sequence[dict[str, Any]]) -> str:
    """How many times faster two threads are, also at what no implementation can do without."""
    rows = []
    for case, of_reports in _calls_of_threads(reports).items():
        cells: list[str] = []
        for calls in of_reports:
            one = calls["native"]["threads"]["1"]["median"] if calls else None
            bound = MATRIX_PRODUCTS if MATRIX_PRODUCTS in calls else _fastest_floor(calls)
            gains = (_gain(calls, name) for name in ("native", IN_PLACE, bound))
            cells += [number(one), *map(ratio, gains)]
        rows.append([*case, *cells])
    names = [_short_name(report) for report in reports]
    of_each = (f"{name} ms, gain, in place, bound" for name in names)
    return table(", ".join(("op, sizes, dtype, step", *of_each)), rows)


def threads_summary(reports: Sequence[dict[str, Any]]) -> str:
    """How many calls gain what is asked for."""
    of_calls = [[_gain(x) for x in row] for row in _calls_of_threads(reports).values()]
    lines = []
    for report, gains in zip(reports, zip(*of_calls, strict=True), strict=True):
        long = [gain for gain in gains if gain is not None]
        enough = sum(gain >= ENOUGH for gain in long)
        arithmetic = statistics.median(
            _gain(calls, ARITHMETIC) or 0
            for case in report["cases"]
            for calls in case["steps"].values()
        )
        lines.append(
            f"- {_short_name(report)}: {enough} of {len(long)} gain at least {ENOUGH} times; "
            f"arithmetic {ratio(arithmetic)} (median)."
        )
    somewhere = sum(max(gain or 0 for gain in gains) >= ENOUGH for gains in of_calls)
    lines.append(f"- On one of the machines at least: {somewhere} of {len(of_calls)}.")
    return "\n".join(lines)


def _short_name(report: dict[str, Any]) -> str:
    """Of a machine: Xeon, EPYC."""
    words = report["machine"]["cpu"].replace("(R)", "").split()
    return next((x for x in words if x not in ("AMD", "Intel", "Processor")), words[0])


def _fastest_floor(calls: Calls) -> str:
    """The way to stream that two threads are faster in; no call's name where there is none."""
    medians = {
        name: call["threads"]["2"]["median"]
        for name, call in calls.items()
        if name.startswith(FLOOR)
    }
    return min(medians, key=medians.__getitem__, default="")


def threads_machine(reports: Sequence[dict[str, Any]]) -> str:
    return "\n".join(f"- {machine_and_command(x['machine'], x['command'])}" for x in reports)


THREADS_TABLES: dict[str, Callable[[Sequence[dict[str, Any]]], str]] = {
    function.__name__: function for function in (threads, threads_summary, threads_machine)
}
