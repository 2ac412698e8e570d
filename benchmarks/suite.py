"""Times the losses and the CPU kernels, against everything they can be compared with.

    python benchmarks/suite.py [--quick] [--only NAME ...] [--peer-python PATH]

Every case runs in a process of its own, on one core and on two: the native implementation, pure
JAX, the losses of other systems that the other Python has (see benchmarks/README.md), and the
streaming floor, which is how long this machine takes to read, or read and write, the bytes that
any implementation must move. They take turns, after a warm-up. It writes JSON, from which
`report.py` makes tables and plots.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import command_line, machine, write_report
from suite_cases import Case, all_cases

RUN_CASE = Path(__file__).with_name("run_case.py")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few cases and rounds, under 2 min")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases whose names contain one")
    parser.add_argument("--list", action="store_true", help="the names of the cases, and no more")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, help="for each step and allocator of a case")
    parser.add_argument("--peer-python", help="a Python that has other systems' losses")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the program")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/cpu.json"))
    return parser.parse_args()


def chosen(args: argparse.Namespace) -> Iterator[tuple[Case, str, int]]:
    """Cases, dtypes and threads."""
    for case in all_cases():
        if args.quick and not case.quick:
            continue
        if args.only and not any(word in case.name for word in args.only):
            continue
        for dtype in case.dtypes[: 1 if args.quick else None]:
            for threads in args.threads:
                yield case, dtype, threads


def run(case: Case, dtype: str, threads: int, args: argparse.Namespace) -> dict[str, Any]:
    """What a process of its own finds; `"error"` if it failed."""
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "case.json"
        request = {
            "case": case.name,
            "dtype": dtype,
            "threads": threads,
            "seconds": args.seconds,
            "peer_python": args.peer_python if dtype == "float32" else None,
            "tiny": args.tiny,
            "output": str(output),
        }
        process = subprocess.run([sys.executable, str(RUN_CASE), json.dumps(request)])
        if process.returncode:
            what = {"op": case.op, "shape": case.shape, "dtype": dtype, "threads": threads}
            return {**what, "error": f"exit status {process.returncode}", "steps": {}}
        return json.loads(output.read_text())


def lines(found: dict[str, Any]) -> Iterator[str]:
    """What is printed of a case: medians, with the buffers reused where both were measured."""
    name = f"{found['op']} {found['shape']}"
    yield f"{name}, {found['dtype']}, {found['threads']} threads {found.get('error', '')}"
    for step, measured in found["steps"].items():
        times = {
            call: list(values["milliseconds"].values())[-1]["median"]
            for call, values in measured["calls"].items()
        }
        yield f"  {step:9}" + "  ".join(f"{call} {ms:.3f}" for call, ms in times.items())
    for name, peer in found.get("peers", {}).items():
        if "skipped" in peer:
            yield f"  without {name}: {peer['skipped']}"
        elif not peer["relative_difference"] < 1e-4:
            yield f"  {name} HAS ANOTHER LOSS: {peer}"


def main() -> None:
    args = arguments()
    if args.list:
        print("\n".join(case.name for case in all_cases()))
        return
    if args.seconds is None:
        args.seconds = 0.2 if args.quick else 1.2
    threads = [n for n in args.threads if n <= len(os.sched_getaffinity(0))]
    if threads != args.threads:
        print(f"this process has too few cores for {set(args.threads) - set(threads)} threads")
        args.threads = threads
    start = time.monotonic()
    command = command_line(private=args.peer_python)
    report: dict[str, Any] = {"command": command, "machine": machine(), "cases": []}
    for case, dtype, count in chosen(args):
        found = run(case, dtype, count, args)
        found.pop("machine", None)
        report["cases"].append(found)
        print("\n".join(lines(found)), flush=True)
        report["seconds"] = time.monotonic() - start
        write_report(args.output, report)  # what there is, should the run be ended
    failed = [x for x in report["cases"] if "error" in x]
    print(f"{len(report['cases'])} cases, {len(failed)} failed, written to {args.output}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
