"""One case on so many cores, turn by turn, for `threads.py`.

    python benchmarks/threads_server.py REQUEST THREADS

It writes the sizes and, by step, the calls that there are. Asked for a turn, `STEP CALL SECONDS`,
it makes that call for so long, and answers with the seconds of each but the first ones.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from process import keep_freed_memory, use_cores
from results import ARITHMETIC, FLOOR, IN_PLACE, MATRIX_PRODUCTS
from worker import serve

WARM_UP = 1 / 2
"""Of a turn, which begins on idle cores: Linux may wake a pool's threads on the core of the thread
that wakes them, and at first move them to the other one late.
"""

MEASURED = "native", IN_PLACE, MATRIX_PRODUCTS


def ready() -> tuple[dict[str, Any], Callable[..., list[float]]]:
    request, threads = json.loads(sys.argv[1]), int(sys.argv[2])
    use_cores(threads)  # before JAX starts, whose pools are as large
    keep_freed_memory()
    from floor import Floor, Team, arithmetic_seconds, loops
    from measure import Timer, compiled_calls, settle, without_faults
    from suite_cases import case_named

    case = case_named(request["case"])
    if request["tiny"]:
        case = case.tiny()
    workload = case.workload(request["dtype"])
    team = Team(threads)
    timers: dict[str, dict[str, Timer]] = {}
    for step, calls in workload.calls.items():
        wanted = {name: calls[name] for name in MEASURED if name in calls}
        timers[step] = {name: program.timer for name, program in compiled_calls(wanted).items()}
        settle(timers[step])
        read, written = workload.bytes.get(step, (0, 0))
        if read:
            for name, timer in Floor(read, written, team).timers().items():
                timers[step][FLOOR + name] = without_faults(timer)
        if loops() is not None:
            timers[step][ARITHMETIC] = without_faults(partial(arithmetic_seconds, team))

    def turn(step: str, call: str, seconds: str) -> list[float]:
        end, found = time.perf_counter() + float(seconds), []
        while not found or time.perf_counter() < end:
            found.append(timers[step][call]()[0])
        return found[int(WARM_UP * len(found)) :]

    calls = {step: list(names) for step, names in timers.items()}
    return {"sizes": case.problem.sizes, "calls": calls}, turn


if __name__ == "__main__":
    serve(ready)
