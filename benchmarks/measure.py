"""How `suite.py` measures a case: compile, memory, and times in rounds of everything compared."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from common import wall_seconds
from floor import Floor, Team
from peers import Peers
from process import keep_freed_memory, page_faults, peak_memory
from results import FLOOR, IN_PLACE
from suite_cases import Case
from workloads import Call

Timer = Callable[[], tuple[float, float]]
"""Seconds and page faults of a call."""

ROUNDS = (5, 50)
"""Fewest and most, of one timer."""
FEW_FAULTS = 20
"""In a call whose memory is all there."""
MANY_FAULTS, PAUSE = 1000, 0.05
"""In a call, and seconds for the kernel to give the memory back, which it does on the same core."""
LONG_SECONDS = 1.0
"""Calls that take so long are made two times only, and need no warm-up."""
SHORTEST_SECONDS = 1e-3
"""Of what is timed at once: shorter calls are repeated."""


class Compiled:
    """A compiled call, and what compiling it took."""

    donated: tuple[int, ...] = ()

    def __init__(self, function: Callable[..., Any], operands: tuple[Any, ...]):
        start = time.perf_counter()
        lowered = jax.jit(function, donate_argnums=self.donated).lower(*operands)
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
        self.repeats = 1
        expected, _ = self.timer()
        self.prepare()
        self.found |= {"memory": peak_memory(self.call), "milliseconds": {}}
        if expected < LONG_SECONDS:
            expected, _ = self.timer()
        self.repeats = min(1000, math.ceil(SHORTEST_SECONDS / max(expected, 1e-6)))

    def prepare(self) -> None:
        """Before each call, and not part of it."""

    def call(self) -> Any:
        return jax.block_until_ready(self.program(*self.operands))

    def timer(self) -> tuple[float, float]:
        seconds, faults = 0.0, 0
        for _ in range(self.repeats):
            self.prepare()
            before = page_faults()
            seconds += wall_seconds(self.call)
            faults += page_faults() - before
        return seconds / self.repeats, faults / self.repeats


class CompiledInPlace(Compiled):
    """One whose only operand is donated, and gets its values back from a copy before each call."""

    donated = (0,)

    def __init__(self, function: Callable[..., Any], operands: tuple[Any, ...]):
        (self.values,) = operands
        self.buffers = jax.block_until_ready(jax.tree.map(jnp.copy, self.values))
        self.refilled = jax.jit(
            lambda buffers, values: jax.tree.map(jnp.copy, values),
            donate_argnums=0,
            keep_unused=True,
        )
        super().__init__(function, operands)

    def prepare(self) -> None:
        self.buffers = jax.block_until_ready(self.refilled(self.buffers, self.values))

    def call(self) -> Any:
        loss, self.buffers = jax.block_until_ready(self.program(self.buffers))
        return loss


def interleaved_for(timers: dict[str, Timer], seconds: float) -> dict[str, dict[str, float]]:
    """Rounds of all timers, for about that long; slow ones are left out of the later rounds."""
    samples: dict[str, list[tuple[float, float]]] = {}
    rounds = {}
    for name, timer in timers.items():
        start = time.perf_counter()
        sample = timer()
        spent = time.perf_counter() - start
        if spent > LONG_SECONDS:
            samples[name], rounds[name] = [sample], 1
        else:
            wanted = int(seconds / len(timers) / spent)
            samples[name], rounds[name] = [], min(max(wanted, ROUNDS[0]), ROUNDS[1])
    for i in range(max(rounds.values())):
        for name, timer in timers.items():
            if i < rounds[name]:
                samples[name].append(timer())
                if samples[name][-1][1] > MANY_FAULTS:
                    time.sleep(PAUSE)
    return {name: _summary(found) for name, found in samples.items()}


def repeated(timer: Timer) -> Timer:
    """The second of two calls: its new memory is what the first has just given back, as in a loop.
    After a second or so, a virtual machine's host may have taken it.
    """

    def second() -> tuple[float, float]:
        first = timer()
        return first if first[0] > LONG_SECONDS else timer()

    return second


def settle(timers: dict[str, Timer], rounds: int = 8) -> None:
    """Calls until freed memory suffices: at first, that of every thread grows."""
    for timer in timers.values():
        for _ in range(rounds):
            seconds, faults = timer()
            if faults < FEW_FAULTS or seconds > LONG_SECONDS:
                break


def _summary(samples: list[tuple[float, float]]) -> dict[str, float]:
    seconds, faults = zip(*samples, strict=True)
    return {
        "median": 1e3 * statistics.median(seconds),
        "min": 1e3 * min(seconds),
        "page_faults": statistics.median(faults),
        "rounds": len(seconds),
    }


def without_faults(timer: Callable[[], float]) -> Timer:
    return lambda: (timer(), 0)


def _of_peer(call: Callable[[], dict[str, float]]) -> Timer:
    def timer() -> tuple[float, float]:
        answer = call()
        return answer["seconds"], answer["page_faults"]

    return timer


def compiled_calls(calls: dict[str, Call]) -> dict[str, Compiled]:
    return {
        name: CompiledInPlace(*call) if name == IN_PLACE else Compiled(*call)
        for name, call in calls.items()
    }


def measure(
    case: Case, dtype: str, threads: int, seconds: float, peer_python: str | None
) -> dict[str, Any]:
    """Everything about a case, for `seconds` in each step and setting of the allocator.

    The result has, by step, the bytes that must be moved and, by what was called, its compilation,
    memory, and milliseconds with each allocator.
    """
    jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))  # starts the backend
    workload = case.workload(dtype)
    programs = {  # gradients first: what they take to compile is that of a fresh process
        step: compiled_calls(calls) for step, calls in reversed(workload.calls.items())
    }
    programs = dict(reversed(programs.items()))
    peers = Peers(peer_python if case.peers else None, case.problem, threads)
    if peers.found:
        peers.compare(float(programs["forward"]["native"].call()))

    steps: dict[str, Any] = {}
    timers: dict[str, dict[str, Timer]] = {}
    for step, compiled in programs.items():
        calls = {name: program.found for name, program in compiled.items()}
        timers[step] = {name: program.timer for name, program in compiled.items()}
        for name, call in peers.calls(step).items():
            calls[name] = {"memory": peers.memory(step, name), "milliseconds": {}}
            timers[step][name] = _of_peer(call)
        read, written = workload.bytes.get(step, (0, 0))
        if read:
            for name, timer in Floor(read, written, Team(threads)).timers().items():
                calls[FLOOR + name] = {"milliseconds": {}}
                timers[step][FLOOR + name] = without_faults(timer)
        steps[step] = {"bytes": {"read": read, "written": written}, "calls": calls}

    for allocator in ("fresh", "reused"):
        if allocator == "reused":
            keep_freed_memory()
            peers.keep_freed_memory()
        if allocator in case.allocators:
            for step, found in steps.items():
                if allocator == "fresh" and step == "forward":
                    continue  # its results are small
                if allocator == "reused":
                    settle(timers[step])
                    timed = timers[step]
                else:
                    timed = {name: repeated(timer) for name, timer in timers[step].items()}
                for name, times in interleaved_for(timed, seconds).items():
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
