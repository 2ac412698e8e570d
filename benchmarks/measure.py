"""How `suite.py` measures a case: compile, memory, and times in rounds of everything compared."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from cases import Case
from common import wall_seconds
from floor import Floor
from peers import Peers
from process import keep_freed_memory, page_faults, peak_memory
from results import FLOOR
from workloads import Call

Timer = Callable[[], tuple[float, float]]
"""Seconds and page faults of a call."""

ROUNDS = (3, 50)
"""Fewest and most, of one timer."""
SHORTEST_SECONDS = 1e-3
"""Of what is timed at once: shorter calls are repeated."""


class Compiled:
    """A compiled call, and what compiling it took."""

    def __init__(self, function: Callable[..., Any], operands: tuple[Any, ...]):
        start = time.perf_counter()
        lowered = jax.jit(function).lower(*operands)
        traced = time.perf_counter()
        self.program = lowered.compile()
        self.operands = operands
        memory = self.program.memory_analysis()
        self.found: dict[str, Any] = {
            "trace_seconds": traced - start,
            "compile_seconds": time.perf_counter() - traced,
            "temporary_bytes": memory.temp_size_in_bytes if memory else None,
            "result_bytes": memory.output_size_in_bytes if memory else None,
        }
        expected = min(wall_seconds(self.call) for _ in range(2))
        self.found |= {"memory": peak_memory(self.call), "milliseconds": {}}
        self.repeats = min(1000, math.ceil(SHORTEST_SECONDS / max(expected, 1e-6)))

    def call(self) -> Any:
        return jax.block_until_ready(self.program(*self.operands))

    def timer(self) -> tuple[float, float]:
        faults = page_faults()
        seconds = sum(wall_seconds(self.call) for _ in range(self.repeats))
        return seconds / self.repeats, (page_faults() - faults) / self.repeats


def interleaved_for(timers: dict[str, Timer], seconds: float) -> dict[str, dict[str, float]]:
    """Rounds of all timers, for about that long; slow ones are left out of the later rounds."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in timers}
    quotas = {}
    for name, timer in timers.items():
        timer()
        start = time.perf_counter()
        timer()
        spent = time.perf_counter() - start
        wanted = seconds / len(timers) / max(spent, 1e-9)
        quotas[name] = int(min(max(wanted, ROUNDS[0]), ROUNDS[1]))
    for i in range(max(quotas.values())):
        for name, timer in timers.items():
            if i < quotas[name]:
                samples[name].append(timer())
    return {name: _summary(found) for name, found in samples.items()}


def _summary(samples: list[tuple[float, float]]) -> dict[str, float]:
    seconds, faults = zip(*samples, strict=True)
    return {
        "median": 1e3 * statistics.median(seconds),
        "min": 1e3 * min(seconds),
        "page_faults": statistics.median(faults),
        "rounds": len(seconds),
    }


def _without_faults(timer: Callable[[], float]) -> Timer:
    return lambda: (timer(), 0)


def _of_peer(call: Callable[[], dict[str, float]]) -> Timer:
    def timer() -> tuple[float, float]:
        answer = call()
        return answer["seconds"], answer["page_faults"]

    return timer


def compiled_calls(calls: dict[str, Call]) -> dict[str, Compiled]:
    return {name: Compiled(*call) for name, call in calls.items()}


def measure(
    case: Case, dtype: str, threads: int, seconds: float, peer_python: str | None
) -> dict[str, Any]:
    """Everything about a case, for `seconds` in each step and setting of the allocator.

    The result has, by step, the bytes that must be moved and, by what was called, its compilation,
    memory, and milliseconds with each allocator.
    """
    jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))  # starts the backend
    workload = case.workload(dtype)
    programs = {step: compiled_calls(calls) for step, calls in workload.calls.items()}
    peers = Peers(peer_python if case.peers else None, case.problem, threads)
    if peers.found:
        peers.compare(float(programs["forward"]["native"].call()))

    steps: dict[str, Any] = {}
    timers: dict[str, dict[str, Timer]] = {}
    for step, compiled in programs.items():
        calls = {name: program.found for name, program in compiled.items()}
        timers[step] = {name: program.timer for name, program in compiled.items()}
        for name, call in peers.calls(step).items():
            call()
            calls[name] = {"memory": peers.memory(step, name), "milliseconds": {}}
            timers[step][name] = _of_peer(call)
        read, written = workload.bytes.get(step, (0, 0))
        if read:
            for name, timer in Floor(read, written, threads).timers().items():
                calls[FLOOR + name] = {"milliseconds": {}}
                timers[step][FLOOR + name] = _without_faults(timer)
        steps[step] = {"bytes": {"read": read, "written": written}, "calls": calls}

    for allocator in ("fresh", "reused"):
        if allocator == "reused":
            keep_freed_memory()
            peers.keep_freed_memory()
        if allocator in case.allocators:
            for step, found in steps.items():
                for name, times in interleaved_for(timers[step], seconds).items():
                    found["calls"][name]["milliseconds"][allocator] = times
    peers.close()
    return {
        "op": case.op,
        "shape": case.shape,
        "sizes": case.problem.sizes,
        "dtype": dtype,
        "threads": threads,
        "load_average": os.getloadavg()[0],
        "peers": peers.found,
        "steps": steps,
    }
