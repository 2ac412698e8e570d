"""How many times faster two threads are: of every loss and kernel that takes long enough.

    python benchmarks/threads.py [--only NAME ...] [--output PATH]

Two processes, one with one core and one with two, have the same case and take turns, so that
whatever else happens on the machine happens to both. In a turn the same call is made again and
again, as in a loop. The gain is the median over pairs of turns, one of each process right after the
other. Beside the native implementation they stream the bytes that it must move, and do arithmetic
that needs no memory (see `floor.py`). It writes JSON, from which `report.py` makes a table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import command_line, machine, milliseconds, write_report
from suite_cases import Case, all_cases
from worker import Worker

SERVER = Path(__file__).with_name("threads_server.py")
THREADS = (1, 2)
LONG_MILLISECONDS = 5.0
"""Of a call on one thread that a second one is to make faster."""
PAIRS = 9
"""Of turns."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases whose names contain one")
    parser.add_argument("--seconds", type=float, default=0.4, help="that a turn takes")
    parser.add_argument("--longer-than", type=float, default=LONG_MILLISECONDS, metavar="MS")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the program")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/threads.json"))
    return parser.parse_args()


def chosen(args: argparse.Namespace) -> Iterator[tuple[Case, str]]:
    """Cases and dtypes."""
    for case in all_cases():
        if case.op in ("overhead", "scaling"):
            continue  # what is as short as a call, and the losses again
        if not args.only or any(word in case.name for word in args.only):
            for dtype in case.dtypes:
                yield case, dtype


def measured(case: Case, dtype: str, args: argparse.Namespace) -> dict[str, Any]:
    """Times by step, call and number of threads; calls that are too short are left out."""
    request = json.dumps({"case": case.name, "dtype": dtype, "tiny": args.tiny})
    workers = {n: Worker(sys.executable, SERVER, [request, str(n)]) for n in THREADS}
    steps: dict[str, Any] = {}
    for step, names in workers[1].found["calls"].items():
        first = workers[1].ask(step, "native", str(args.seconds))
        if 1e3 * statistics.median(first) < args.longer_than:
            continue
        steps[step] = {}
        for name in names:
            turns: dict[int, list[list[float]]] = {n: [] for n in THREADS}
            for i in range(PAIRS):
                # Either is first in every other pair, against what gets faster or slower meanwhile.
                for n in THREADS if i % 2 == 0 else reversed(THREADS):
                    turns[n].append(workers[n].ask(step, name, str(args.seconds)))
            steps[step][name] = summary(turns)
    for worker in workers.values():
        worker.close()
    sizes = workers[1].found["sizes"]
    return {"op": case.op, "shape": case.shape, "sizes": sizes, "dtype": dtype, "steps": steps}


def summary(turns: dict[int, list[list[float]]]) -> dict[str, Any]:
    """Of the seconds of calls in each turn, by the number of threads."""
    pairs = zip(*(map(statistics.median, turns[n]) for n in THREADS), strict=True)
    by_threads = {
        str(n): {
            **milliseconds([seconds for turn in found for seconds in turn]),
            "medians_of_turns": [milliseconds(turn)["median"] for turn in found],
            "calls": sum(map(len, found)),
        }
        for n, found in turns.items()
    }
    return {"gain": statistics.median(one / two for one, two in pairs), "threads": by_threads}


def lines(found: dict[str, Any]) -> Iterator[str]:
    """What is printed of a case: medians on one thread and on two, and the gain."""
    for step, calls in found["steps"].items():
        yield f"{found['op']} {found['shape']}, {found['dtype']}, {step}"
        for name, call in calls.items():
            one, two = (call["threads"][str(n)]["median"] for n in THREADS)
            yield f"  {name:16} {one:9.3f} {two:9.3f}  {call['gain']:.2f}x"


def main() -> None:
    args = arguments()
    if len(os.sched_getaffinity(0)) < max(THREADS):
        sys.exit(f"this process has too few cores for {max(THREADS)} threads")
    start = time.monotonic()
    report: dict[str, Any] = {"command": command_line(), "machine": machine(), "cases": []}
    for case, dtype in chosen(args):
        found = measured(case, dtype, args)
        if found["steps"]:
            report["cases"].append(found)
            print("\n".join(lines(found)), flush=True)
        report["seconds"] = time.monotonic() - start
        write_report(args.output, report)  # what there is, should the run be ended
    print(f"{len(report['cases'])} cases, written to {args.output}")


if __name__ == "__main__":
    main()
