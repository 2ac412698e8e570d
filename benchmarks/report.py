"""Turns what `suite.py` and `threads.py` measured into tables and pictures, in the documentation
and the README.

    python benchmarks/report.py [RESULTS [THREADS ...]] [--print]

By default of `benchmarks/results/cpu.json` and `threads-*.json`, one for each machine.

Tables stand between `<!-- benchmark NAME -->` and `<!-- end -->`; their text is replaced. With
`--print`, all tables are printed and no file is touched.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

from results import IN_PLACE, MATRIX_PRODUCTS, Results
from tables import (
    machine_and_command,
    megabytes,
    number,
    over,
    percent,
    picture,
    ratio,
    table,
)
from threads_tables import THREADS_TABLES

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "cpu.json"
THREADS_RESULTS = sorted(RESULTS.parent.glob("threads-*.json"))
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
IMAGES = ROOT / "docs" / "images"

NAMES = {
    "fast_rnnt": "fast_rnnt",
    "k2": "k2",
    "optimized_transducer": "optimized_transducer",
    "torchaudio": "torchaudio",
    "transducer": "awni's transducer",
    "warprnnt_pytorch": "warp-transducer",
}
"""Of the other systems, by that of their module."""
PEERS_PICTURE = "Time of the loss with its gradient by all systems, on one thread"


def losses(results: Results) -> str:
    """Every loss against pure JAX and the fastest other system."""
    return picture(PEERS_PICTURE, "images/benchmark-peers.png") + _losses(results, "float32")


def bfloat16(results: Results) -> str:
    return _losses(results, "bfloat16")


def _losses(results: Results, dtype: str) -> str:
    rows = []
    for found in results.select(dtype=dtype):
        if not found.op.startswith("rnnt_loss") or found.shape == "LibriSpeech":
            continue
        native = found.median("both", "native")
        peer = found.fastest_peer("both")
        rows.append(
            [
                f"`{found.op}`",
                found.sizes,
                str(found.threads),
                number(found.median("forward", "native")),
                number(native),
                number(found.median("both", "native", "fresh")),
                number(found.median("both", IN_PLACE)),
                ratio(over(found.median("both", "xla"), native)),
                ratio(over(found.median("both", peer), native) if peer else None),
                NAMES[peer] if peer else "",
            ]
        )
    head = (
        "loss, sizes, threads, forward ms, both ms, both with a fresh buffer, both in place, "
        "pure JAX, fastest other, which"
    )
    return table(head, rows)


def peers(results: Results) -> str:
    """All systems, with what each takes of our time."""
    rows = []
    ours = {"native": "jax_rnnt", IN_PLACE: "jax_rnnt, logits donated"}
    for found in results.select(dtype="float32"):
        for name in (*ours, *found.peers) if found.peers else ():
            if not found.call("both", name):
                continue
            first = name == "native"
            both, fresh = (found.median("both", name, how) for how in ("reused", "fresh"))
            fresh_over_ours = over(fresh, found.median("both", "native", "fresh"))
            rows.append(
                [
                    f"`{found.op}` {found.sizes}" if first else "",
                    str(found.threads) if first else "",
                    ours.get(name) or NAMES[name],
                    number(found.median("forward", name)),
                    number(both),
                    "" if name in ours else ratio(over(both, found.median("both", "native"))),
                    number(fresh),
                    "" if name in ours else ratio(fresh_over_ours),
                    megabytes(found.memory("both", name)),
                ]
            )
    head = (
        "loss, threads, system, forward ms, both ms, times ours, "
        "both with fresh buffers, times ours, memory MB"
    )
    return table(head, rows)


def kernels(results: Results) -> str:
    """The arcs' share of what streaming their bytes takes."""
    rows = []
    for found in results.select(op="arcs"):
        for step in found.steps:
            native, floor = found.median(step, "native"), found.floor(step)
            rows.append(
                [
                    step,
                    found.shape,
                    found.dtype,
                    str(found.threads),
                    number(native),
                    number(floor),
                    percent(over(floor, native)),
                    percent(over(floor, found.median(step, "native", "fresh"))),
                ]
            )
    head = "arcs, classes, dtype, threads, ms, streaming ms, share, share with a fresh buffer"
    return table(head, rows)


def lattice(results: Results) -> str:
    """Nanoseconds a cell."""
    rows = []
    for op in ("lattice", "rnnt_loss_from_arcs"):
        for found in results.select(op=op):
            for name in ("native", "xla", *found.peers):
                rows.append(
                    [
                        f"`{op}`" if op.startswith("rnnt") else op,
                        {"native": "jax_rnnt", "xla": "pure JAX"}.get(name) or NAMES[name],
                        str(found.threads),
                        *(
                            number(over(found.median(step, name), found.cells / 1e6))
                            for step in ("forward", "both")
                        ),
                    ]
                )
    return table("op, by, threads, forward ns a cell, both ns a cell", rows)


def pruned(results: Results) -> str:
    """The pruned losses beside the matrix products of their joint network."""
    rows = []
    for op in ("rnnt_loss_pruned", "rnnt_loss_pruned_joint"):
        for found in results.select(op=op, shape="E"):
            native, products = (found.median("both", x) for x in ("native", MATRIX_PRODUCTS))
            rows.append(
                [
                    f"`{op}`",
                    found.dtype,
                    str(found.threads),
                    number(native),
                    number(products),
                    ratio(over(native, products)),
                ]
            )
    return table("loss, dtype, threads, both ms, matrix products ms, ratio", rows)


def librispeech(results: Results) -> str:
    rows = [
        [
            f"`{found.op}`",
            str(found.threads),
            number(found.median("both", "native")),
            megabytes(found.call("both", "native")["temporary_bytes"]),
            megabytes(found.memory("both", "native")),
        ]
        for found in results.select(shape="LibriSpeech")
    ]
    return table("loss, threads, both ms, temporaries MB, memory MB", rows)


def overhead(results: Results) -> str:
    """Of a call, and of the first call of a gradient."""
    rows = []
    for found in results.select(op="overhead"):
        for step in found.steps:
            native, empty = (found.median(step, x) for x in ("native", "one FFI call"))
            microseconds = (number(None if x is None else 1e3 * x) for x in (native, empty))
            rows.append([step, str(found.threads), *microseconds, ratio(over(native, empty))])
    calls = table("tiny loss, threads, µs, one FFI call µs, ratio", rows)
    rows = []
    for found in results.select(op="rnnt_loss", dtype="float32", threads=1):
        native = found.call("both", "native")
        seconds = native["trace_seconds"], native["compile_seconds"]
        rows.append([found.sizes, *(number(x) for x in (*seconds, sum(seconds)))])
    compiling = table("gradient of, tracing s, compiling s, both s", rows)
    return f"{calls}\n\n{compiling}"


def scaling(results: Results) -> str:
    """The exponent of time by each axis: 1 is linear."""
    rows = []
    for threads in results.threads:
        slopes = results.scaling_exponents(threads)
        rows.append([str(threads), *(number(slopes.get(axis)) for axis in "BTUV")])
    shown = picture(
        "Time over the number of utterances, frames, labels and classes",
        "images/benchmark-scaling.png",
    )
    return shown + table("threads, B, T, U, V", rows)


def summary(results: Results) -> str:
    """The README's: forward and gradient on one thread, and what two make of it."""
    two = {(x.op, x.shape): x for x in results.select(dtype="float32", threads=2)}
    rows = []
    for found in results.select(dtype="float32", threads=1):
        peer = found.fastest_peer("both")
        if peer is None or found.shape == "single":
            continue
        native = found.median("both", "native")
        other = two.get((found.op, found.shape))
        rows.append(
            [
                f"`{found.op}`",
                found.sizes,
                number(native),
                number(other.median("both", "native") if other else None),
                ratio(over(found.median("both", "xla"), native)),
                f"{ratio(over(found.median('both', peer), native))} ({NAMES[peer]})",
            ]
        )
    head = "loss, sizes, 1 thread ms, 2 threads ms, pure JAX, fastest other system"
    shown = picture(PEERS_PICTURE, "docs/images/benchmark-peers.png")
    return f"{table(head, rows)}\n\n{shown.strip()}"


def machine(results: Results) -> str:
    """What the numbers depend on."""
    versions = [
        f"{NAMES[name]} {peer['version'] or ''}".strip() for name, peer in results.peers.items()
    ]
    return machine_and_command(
        results.machine, results.command, ", ".join(versions) or "no other system"
    )


TABLES: dict[str, Callable[[Results], str]] = {
    function.__name__: function
    for function in (
        losses, bfloat16, peers, kernels, lattice, pruned, librispeech, overhead, scaling,
        summary, machine,
    )
}  # fmt: skip
MARKED = re.compile(r"(<!-- benchmark (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, tables: dict[str, str]) -> str:
    """A page with its tables replaced."""
    return MARKED.sub(lambda found: f"{found[1]}\n{tables[found[2]]}\n\n{found[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS)
    parser.add_argument("threads", nargs="*", type=Path, default=THREADS_RESULTS)
    parser.add_argument("--print", action="store_true", help="print the tables, write nothing")
    args = parser.parse_args()
    results = Results.read(args.results)
    tables = {name: function(results) for name, function in TABLES.items()}
    threads_reports = [json.loads(path.read_text()) for path in args.threads]
    tables |= {name: function(threads_reports) for name, function in THREADS_TABLES.items()}
    if args.print:
        print("\n\n".join(f"{name}\n\n{text}" for name, text in tables.items()))
        return
    for page in PAGES:
        page.write_text(filled(page.read_text(), tables))
    from plots import draw_peers, draw_scaling  # which take Matplotlib

    draw_scaling(results, IMAGES / "benchmark-scaling.png")
    draw_peers(results, IMAGES / "benchmark-peers.png", NAMES)


if __name__ == "__main__":
    main()
