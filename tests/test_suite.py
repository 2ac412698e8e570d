"""The benchmark suite runs, and its numbers mean what they are called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import report  # noqa: E402
import threads  # noqa: E402
import threads_tables  # noqa: E402
from floor import Floor, Team, arithmetic_seconds, loops  # noqa: E402
from measure import interleaved_for, settle  # noqa: E402
from peers import Peers  # noqa: E402
from problems import Problem  # noqa: E402
from results import Results  # noqa: E402
from suite_cases import Case, all_cases, case_named, scaling_problems  # noqa: E402

pytestmark = pytest.mark.cpu_only("about programs that are run by themselves")


def run(program: str, *options: str) -> str:
    """What a benchmark prints."""
    command = [sys.executable, str(BENCHMARKS / program), *options]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def test_suite(tmp_path: Path) -> None:
    """One case, from the command to the tables."""
    output = tmp_path / "cpu.json"
    options = ["--tiny", "--quick", "--only", "A", "--threads", "1", "--seconds", "0.001"]
    printed = run("suite.py", *options, "--peer-python", sys.executable, "--output", str(output))
    assert "1 cases, 0 failed" in printed
    found = json.loads(output.read_text())
    assert found["command"].startswith("python benchmarks/suite.py --tiny --quick --only A")
    assert found["machine"]["jax"] and found["machine"]["kernels"]
    (case,) = found["cases"]
    assert (case["op"], case["dtype"], case["threads"]) == ("rnnt_loss", "float32", 1)
    logits = 4 * 2 * 6 * 4 * 11
    assert case["steps"]["forward"]["bytes"] == {"read": logits, "written": 0}
    assert case["steps"]["both"]["bytes"] == {"read": 2 * logits, "written": logits}
    assert "native in place" in case["steps"]["both"]["calls"]
    for name, step in case["steps"].items():
        assert {"native", "xla", "floor: numpy"} <= set(step["calls"])
        for call in step["calls"].values():
            assert set(call["milliseconds"]) == {"fresh", "reused"}.difference(
                ["fresh"] if name == "forward" else []
            )
            assert all(0 < t["min"] <= t["median"] for t in call["milliseconds"].values())
        native = step["calls"]["native"]
        assert native["trace_seconds"] > 0 and native["compile_seconds"] > 0
        assert native["temporary_bytes"] > 0
        assert native["memory"]["peak_rss"] > native["memory"]["rss_above_baseline"] >= 0
    wanted = {"torchaudio", "fast_rnnt", "k2", "optimized_transducer", "warprnnt_pytorch"}
    assert wanted <= set(case["peers"])
    for peer in case["peers"].values():  # measured, or skipped by name
        assert "skipped" in peer or peer["relative_difference"] < 1e-4

    tables = run("report.py", str(output), "--print")
    assert "| `rnnt_loss` | B=2, T=6, U=3, V=11 | 1 |" in tables


def test_threads(tmp_path: Path) -> None:
    """From the command to the table; calls that are shorter than asked for are left out."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("THIS PROCESS HAS ONE CORE")
    output = tmp_path / "threads.json"
    options = ["--tiny", "--only", "lattice F", "rnnt_loss A", "--seconds", "0.01"]
    printed = run("threads.py", *options, "--longer-than", "0", "--output", str(output))
    assert "3 cases, written" in printed
    found = json.loads(output.read_text())
    assert found["command"].startswith("python benchmarks/threads.py --tiny --only 'lattice F'")
    steps = [(x["op"], x["dtype"], list(x["steps"])) for x in found["cases"]]
    cases = ("rnnt_loss", "float32"), ("rnnt_loss", "bfloat16"), ("lattice", "float32")
    assert steps == [(*case, ["forward", "both"]) for case in cases]
    for case in found["cases"]:
        for step, calls in case["steps"].items():
            wanted = {"native", "floor: numpy", "floor: C++", "arithmetic"}
            in_place = case["op"] == "rnnt_loss" and step == "both"
            assert set(calls) == wanted | ({"native in place"} if in_place else set())
            for call in calls.values():
                assert call["gain"] > 0
                assert set(call["threads"]) == {"1", "2"}
                for times in call["threads"].values():
                    assert 0 < times["min"] <= times["median"]
                    assert times["calls"] >= len(times["medians_of_turns"]) == 9
    tables = run("report.py", str(report.RESULTS), str(output), "--print")
    begin = "| `rnnt_loss` | B=2, T=6, U=3, V=11 | bfloat16 | both |"
    (row,) = (line for line in tables.splitlines() if line.startswith(begin))
    *_, gain, in_place, bound, _ = (x.strip() for x in row.split("|"))
    assert all(x.endswith("×") for x in (gain, in_place, bound))

    run("threads.py", "--tiny", "--only", "lattice F", "--output", str(output))
    assert json.loads(output.read_text())["cases"] == []


def test_gain() -> None:
    """Of neighbouring turns: neither a slow minute nor slow calls in one of the turns change it."""
    slow = [1, 1, 3, 3, 3]
    one, two = ([[x * seconds] * 4 for x in slow] for seconds in (0.02, 0.01))
    two[3] = [0.5, 0.03, 0.03]
    one[0] = [0.5] * 4
    found = threads.summary({1: one, 2: two})
    assert found["gain"] == pytest.approx(2)
    assert found["threads"]["1"]["medians_of_turns"] == pytest.approx([500, 20, 60, 60, 60])
    assert found["threads"]["2"]["calls"] == 19


CASES = [case.tiny() for case in all_cases() if case.op != "scaling"]


@pytest.mark.usefixtures("ordinary_jax")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_workloads(case: Case) -> None:
    """All implementations of a step give the same shapes; gradients are written, losses not."""
    assert case_named(case.name).op == case.op
    for dtype in case.dtypes:
        workload = case.workload(dtype)
        for step, calls in workload.calls.items():
            assert ("xla" in calls) == case.xla
            shapes = [
                jax.tree.map(lambda x: (x.shape, x.dtype), jax.eval_shape(*flat(calls[name])))
                for name in ("native", "xla" if case.xla else "native")
            ]
            assert shapes[0] == shapes[1]
            if step in workload.bytes:
                read, written = workload.bytes[step]
                assert read > 0 and (written > 0) == (step != "forward" or case.op == "arcs")


def flat(call: Any) -> tuple[Any, ...]:
    function, operands = call
    return function, *operands


def test_scaling() -> None:
    """A decade of each axis, the others as they are."""
    for axis, problems in scaling_problems().items():
        sizes = [problem.sizes for problem in problems]
        assert sizes[-1][axis] == 10 * sizes[0][axis]
        assert all(len({size[other] for size in sizes}) == 1 for other in "BTUV" if other != axis)


def test_time_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast calls get more rounds than slow ones, and these at least five."""
    slow, fast = ({"calls": 0, "seconds": s} for s in (0.02, 1e-4))
    clock = {"now": 0.0}
    monkeypatch.setattr("measure.time", SimpleNamespace(perf_counter=lambda: clock["now"]))

    def timer(which: dict[str, Any]) -> tuple[float, float]:
        which["calls"] += 1
        clock["now"] += which["seconds"]
        return which["seconds"], 7.0

    timers = {"slow": lambda: timer(slow), "fast": lambda: timer(fast)}
    found = interleaved_for(timers, 0.0041)
    assert found["slow"] == {"median": 20.0, "min": 20.0, "page_faults": 7.0, "rounds": 5}
    assert found["fast"]["rounds"] == 20
    assert (slow["calls"], fast["calls"]) == (6, 21)


def test_settling() -> None:
    """Calls until there are few page faults, if that ever is so."""
    faults = {"less and less": [900.0, 30.0, 2.0, 0.0], "always": [500.0] * 20}
    made = dict.fromkeys(faults, 0)

    def timer(name: str) -> tuple[float, float]:
        made[name] += 1
        return 1e-3, faults[name][made[name] - 1]

    settle({name: partial(timer, name) for name in faults}, rounds=5)
    assert made == {"less and less": 3, "always": 5}


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("read", "written"), [(1000, 0), (1000, 1000), (2005, 999), (3, 1)])
def test_floor(threads: int, read: int, written: int) -> None:
    """Copies all that is to be written, whatever the sizes."""
    floor = Floor(read, written, Team(threads))
    for timer in floor.timers().values():
        floor.target[:] = 0
        assert timer() > 0
        words = floor.copied // 4  # NumPy's way leaves out the last bytes
        copied = floor.target[:words].view(np.uint8), floor.source[:words].view(np.uint8)
        np.testing.assert_array_equal(*copied)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("size", "grain"), [(0, 1), (2, 1), (1000, 64), (1001, 64)])
def test_shares(threads: int, size: int, grain: int) -> None:
    """Together they are the whole, and begin at multiples of the grain."""
    shares: list[tuple[int, int]] = []
    Team(threads).divide(size, grain, lambda begin, end: shares.append((begin, end)))
    assert sorted(i for share in shares for i in range(*share)) == list(range(size))
    assert all(begin % grain == 0 for begin, _ in shares)


def test_arithmetic() -> None:
    """A step is x / 2 + 1 on eight vectors, which begin with 0 to 7 and go to 2."""
    library = loops()
    assert library is not None, "the tests are run where the kernels were compiled"
    for steps in (0, 1, 2, 100):
        wanted = 16 * sum(2 + (first - 2) * 0.5**steps for first in range(8))
        assert library.multiply_add(steps) == pytest.approx(wanted, rel=1e-6)
    assert all(arithmetic_seconds(Team(threads)) > 0 for threads in (1, 3))


def test_streams() -> None:
    """Loops that are not at the boundaries of vectors read and copy every byte, and no more."""
    library = loops()
    assert library is not None, "the tests are run where the kernels were compiled"
    source = np.random.default_rng(0).integers(0, 256, 2000, dtype=np.uint8)
    for begin, size in ((0, 2000), (1, 1501), (3, 60), (64, 0)):
        part = source[begin : begin + size]
        target = np.zeros(2100, np.uint8)
        library.stream_copy(part.ctypes.data, target.ctypes.data + 5, size)
        np.testing.assert_array_equal(target[5 : 5 + size], part)
        assert not target[:5].any() and not target[5 + size :].any()
        tail = part[size - size % 512 :].view(np.int8)
        words = part[: size - size % 512].view(np.int64)
        wanted = np.bitwise_xor.reduce(words) ^ np.bitwise_xor.reduce(tail.astype(np.int64))
        assert library.stream_read(part.ctypes.data, size) == wanted


def test_memory_and_page_faults() -> None:
    """A peak is seen, also of what was freed; kept memory has no page faults."""
    program = """
        import numpy as np
        from process import keep_freed_memory, page_faults, peak_memory
        size = 100_000_000
        call = lambda: float(np.ones(size, np.uint8)[-1])
        found = peak_memory(call)
        assert 0.95 * size < found["rss_above_baseline"] < 1.2 * size, found
        assert found["peak_rss"] > found["rss_above_baseline"]
        keep_freed_memory()
        call()
        before = page_faults()
        call()
        assert page_faults() - before < 100
    """
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    subprocess.run(command, check=True, env=environment)


def test_a_python_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every system is skipped by name."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    peers = Peers(sys.executable, Problem("arcs", 1, 2, 1), 1)
    assert peers.found["fast_rnnt"] == peers.found["torchaudio"] == {"skipped": "no torch here"}
    peers.compare(1.0)
    assert peers.calls("both") == {}
    peers.close()


def case(op: str, sizes: dict[str, int], milliseconds: dict[str, float], **more: Any) -> Any:
    calls = {name: {"milliseconds": {"reused": {"median": t}}} for name, t in milliseconds.items()}
    return {
        "op": op,
        "shape": str(tuple(sizes.values())),
        "sizes": sizes,
        "dtype": "float32",
        "threads": 1,
        "peers": {},
        "steps": {"both": {"bytes": {}, "calls": calls}},
        **more,
    }


def test_results() -> None:
    """The fastest way to stream and the fastest system count; exponents are of powers."""
    base = dict(zip("BTUV", (4, 200, 40, 128), strict=True))
    cases = [
        case("scaling", {**base, axis: n * size}, {"native": float(n**power)})
        for axis, size, power in zip("BTUV", base.values(), (1, 1, 2, 0), strict=True)
        for n in (1, 2, 10)
    ]
    times = {"native": 4.0, "torchaudio": 90.0, "fast_rnnt": 20.0, "floor: C++": 3.0}
    times["native in place"] = 3.5
    peers = {"torchaudio": {"loss": 1.0}, "fast_rnnt": {"loss": 1.0}, "k2": {"skipped": "absent"}}
    cases.append(case("rnnt_loss", base, {**times, "floor: numpy": 5.0}, peers=peers))
    cases.append({"op": "rnnt_loss", "error": "exit status 1"})
    results = Results({"machine": {}, "command": "", "cases": cases})
    exponents = results.scaling_exponents(1)
    assert exponents == pytest.approx({"B": 1, "T": 1, "U": 2, "V": 0}, abs=1e-9)
    (found,) = results.select(op="rnnt_loss")
    assert found.floor("both") == 3 and found.fastest_peer("both") == "fast_rnnt"
    assert results.peers.keys() == {"torchaudio", "fast_rnnt"}
    assert "5.00× (fast_rnnt)" in report.summary(results)
    assert "| jax_rnnt, logits donated |  | 3.50 |" in report.peers(results)


def of_threads(cpu: str, gains: dict[str, float], **bounds: float) -> Any:
    """What `threads.py` writes, of one case whose steps have these gains."""
    times = {"threads": {n: {"median": 6.0} for n in "12"}}
    more = {"arithmetic": 1.9, **bounds}
    steps = {
        step: {name: {"gain": x, **times} for name, x in {"native": gain, **more}.items()}
        for step, gain in gains.items()
    }
    it = {"op": "rnnt_loss", "sizes": {"B": 2}, "dtype": "float32", "steps": steps}
    return {"machine": {"cpu": cpu}, "cases": [it]}


def test_threads_of_two_machines() -> None:
    """Side by side; a call that is too short on one machine has no numbers there."""
    reports = [
        of_threads("Intel(R) Xeon(R) Processor", {"forward": 1.5, "both": 1.8}),
        of_threads("AMD EPYC", {"both": 1.6}, **{"floor: numpy": 1.25}),
    ]
    rows = threads_tables.threads(reports).splitlines()
    assert "Xeon ms | gain | in place | bound | EPYC ms | gain" in rows[0]
    assert rows[2].endswith("| forward | 6.00 | 1.50× |  |  |  |  |  |  |")
    assert rows[3].endswith("| both | 6.00 | 1.80× |  |  | 6.00 | 1.60× |  | 1.25× |")
    xeon, epyc, either = threads_tables.threads_summary(reports).splitlines()
    assert "Xeon: 1 of 2" in xeon and "EPYC: 0 of 1" in epyc and either.endswith("1 of 2.")


def test_pages() -> None:
    """Text between marks is replaced, all of it and no other; every mark has its table."""
    page = "a\n<!-- benchmark losses -->\nold\n\nold\n<!-- end -->\nb <!-- end -->\n"
    filled = report.filled(page, {"losses": "new"})
    assert filled == "a\n<!-- benchmark losses -->\n\nnew\n\n<!-- end -->\nb <!-- end -->\n"
    assert report.filled(filled, {"losses": "new"}) == filled
    marks = [
        name for page in report.PAGES for _, name, _ in report.MARKED.findall(page.read_text())
    ]
    tables = {*report.TABLES, *threads_tables.THREADS_TABLES}
    assert {"summary", "losses", "kernels", "scaling", "threads"} <= set(marks) <= tables
