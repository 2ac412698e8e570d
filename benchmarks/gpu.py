"""Times the CUDA kernels and the losses made of them, against the card's copy bandwidth and against
torchaudio.

    python benchmarks/gpu.py [--output FILE] [--only arcs lattice band loss simple] [--seconds 200]

For each case: milliseconds with operands that are not in the cache, by wall time of programs of
many ops and by the profiler's kernel durations; the bytes that any implementation must move, as a
share of what a large copy moves in that time, in the same process; memory. For whole losses also
calls one by one, those of logits in rounds interleaved with torchaudio's `rnnt_loss`, if it is
there. The simple loss is also measured in pure JAX.

`--platform cpu --tiny` runs the same program on small shapes, without a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
from common import cpu_name, milliseconds, write_report
from gpu_cases import LOSS, LOSSES, Case, all_cases
from gpu_timing import Card, measured, peak_of_single_call, separate_calls, time_case
from gpu_torchaudio import DTYPES as TORCHAUDIO_DTYPES
from gpu_torchaudio import Torchaudio

import jax_rnnt

SETTINGS = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "XLA_CLIENT_MEM_FRACTION": "0.6",  # the rest is for torch
}


def machine(card: Card, torchaudio: Torchaudio, date: str) -> dict[str, Any]:
    """What the numbers depend on."""
    driver = None
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv"]
        answer = subprocess.run(command, capture_output=True, text=True)
        driver = answer.stdout.strip().splitlines()[1:] or answer.stderr.strip()
    return {
        "date": date,
        "card": card.device.device_kind,
        "platform": getattr(card.device.client, "platform_version", None),
        "driver": driver,
        "cpu": cpu_name(),
        "python": sys.version.split()[0],
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "jax_rnnt": jax_rnnt.__version__,
        "torch": torchaudio.missing or f"{torchaudio.torch.__version__}, {torchaudio.version}",
        "copy_gigabytes_per_second": card.copy_bytes_per_second / 1e9,
        "graphs_in_programs_of_many_ops": not card.compiler_options,
    }


def compare(
    case: Case, card: Card, torchaudio: Torchaudio, seconds: float, found: dict[str, Any]
) -> None:
    """Adds calls one by one of a loss, ours and, of logits, torchaudio's, to what was found."""
    timers = {"calls": separate_calls(case, card)}
    if torchaudio.missing is None and case.op in LOSS:
        try:
            timers["torchaudio"], found["torchaudio_peak"] = torchaudio.measure(case)
            found["torchaudio_dtype"] = TORCHAUDIO_DTYPES[case.dtype]
        except Exception as error:  # CUDA's, of a full memory, of a torchaudio without its operator
            found["torchaudio_error"] = f"{type(error).__name__}: {error}"
    times = {name: milliseconds(t) for name, t in measured(timers, seconds).items()}
    found["milliseconds"] |= times
    if "torchaudio" in times:
        found["torchaudio_ratio"] = times["torchaudio"]["median"] / times["calls"]["median"]


# ---------------------------------------------------------------------------------------- the table

SHORT = {"float32": "f32", "bfloat16": "bf16"}
HEAD = (
    f"{'op':20} {'(B, T, U+1, V)':20} {'type':4} {'ms':>8} {'kernels':>8} {'warm':>8} "
    f"{'calls':>8} {'copy':>5} {'k.copy':>6} {'temp MB':>8} {'peak MB':>8} {'torch ms':>8} "
    f"{'MB':>6} {'ratio':>5}"
)
LEGEND = """\
ms: one op of a program of many, operands not in the cache; kernels: the same by the profiler; warm:
operands in the cache; calls: one program a call. copy, k.copy: bytes that must be moved, over ms
and over kernels, as a share of the copy bandwidth. temp: XLA's temporaries; peak: of JAX's
allocator. torch ms, MB: torchaudio's calls (float16 for bf16) and torch's peak; ratio: torch ms /
calls."""


def row(case: Case, found: dict[str, Any]) -> str:
    times = {name: t["median"] for name, t in found["milliseconds"].items()}

    def number(value: float | None, form: str, width: int) -> str:
        return f"{'-':>{width}}" if value is None else f"{value:{width}{form}}"

    def megabytes(value: int | None, width: int) -> str:
        return number(None if value is None else value / 1e6, ".1f" if width > 6 else ".0f", width)

    shape = str(tuple(n for n in case.shape if n)).replace(" ", "")
    cells = [
        f"{case.op:20} {shape:20} {SHORT[case.dtype]:4}",
        number(times["cold"], ".4f", 8),
        number(found.get("kernel_milliseconds"), ".4f", 8),
        number(times.get("warm"), ".4f", 8),
        number(times.get("calls"), ".4f", 8),
        number(found["of_copy_bandwidth"], ".2f", 5),
        number(found.get("kernels_of_copy_bandwidth"), ".2f", 6),
        megabytes(found["memory"]["temporaries"], 8),
        megabytes(found.get("peak"), 8),
        number(times.get("torchaudio"), ".3f", 8),
        megabytes(found.get("torchaudio_peak"), 6),
        number(found.get("torchaudio_ratio"), ".2f", 5),
    ]
    return " ".join(cells)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/CARD.json")
    parser.add_argument("--platform", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small shapes, short times")
    parser.add_argument(
        "--only", nargs="+", choices=["arcs", "lattice", "packed", "best", "band", "loss", "simple"]
    )
    parser.add_argument("--seconds", type=float, default=200, help="start no case after so long")
    parser.add_argument("--case-seconds", type=float, default=0.5, help="for one case's rounds")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    parser.add_argument("--date", default=now, help="to put into the report")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    begin = time.monotonic()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", args.platform)
    card, torchaudio = Card(tiny=args.tiny), Torchaudio(args.platform)
    if args.output is None:
        folder = Path(__file__).parent / "results"
        args.output = folder / (re.sub(r"\W+", "-", card.device.device_kind).lower() + ".json")

    cases = [c for c in all_cases(tiny=args.tiny) if c.op.split()[0] in (args.only or c.op)]
    fitted = [case.fitted(card.most_bytes) for case in cases]
    for case, smaller in zip(cases, fitted, strict=True):
        if case != smaller:
            print(f"{case.op} {case.shape} {case.dtype} does not fit: {smaller.shape} instead")
    losses = sorted((c for c in fitted if c.op in LOSSES), key=Case.bytes_held)
    peaks = {case: peak_of_single_call(case, card) for case in losses}
    report: dict[str, Any] = {"machine": machine(card, torchaudio, args.date), "cases": []}

    rows, left_out = [], 0
    for case in fitted:
        if time.monotonic() - begin > args.seconds:
            left_out += 1
            continue
        found = time_case(case, card, args.case_seconds)
        if case.op in LOSSES:
            found["peak"] = peaks[case]
            compare(case, card, torchaudio, args.case_seconds, found)
            torchaudio.give_memory_back()
        report["cases"].append({"op": case.op, "shape": case.shape, "dtype": case.dtype, **found})
        rows.append(row(case, found))
        print(f"{time.monotonic() - begin:6.1f} s {case.op} {case.shape} {case.dtype}", flush=True)
        write_report(args.output, report)  # what there is, should the run be ended

    report |= {"seconds": time.monotonic() - begin, "left_out": left_out}
    write_report(args.output, report)
    print("\n".join(f"{name}: {value}" for name, value in report["machine"].items()))
    print("\n".join([LEGEND, HEAD, *rows]))
    if left_out:
        print(f"NO TIME FOR THE LAST {left_out} CASES: see --seconds and --only")
    print(f"written to {args.output} after {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
