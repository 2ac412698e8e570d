"""The benchmarks run, and write what they measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from gpu_cases import ARCS, LOSSES, PLANES, ROW_SUMS, Case, all_cases  # noqa: E402
from gpu_timing import by_kernel, many_ops  # noqa: E402

pytestmark = pytest.mark.cpu_only("about programs that are run by themselves")


def run(program: str, *options: str) -> str:
    """What a benchmark prints."""
    command = [sys.executable, str(BENCHMARKS / program), *options]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


TINY = ("--platform", "cpu", "--tiny", "--case-seconds", "0.01", "--date", "today")


def test_gpu(tmp_path: Path) -> None:
    """Every op on the CPU: times, and shares of a copy's bandwidth that follow from them."""
    output = tmp_path / "report.json"
    printed = run("gpu.py", *TINY, "--output", str(output))
    report = json.loads(output.read_text())
    machine = report["machine"]
    assert machine["date"] == "today" and machine["card"] == "cpu" and machine["jax"]
    bandwidth = machine["copy_gigabytes_per_second"] * 1e9
    assert {case["op"] for case in report["cases"]} == {*ARCS, *PLANES, *LOSSES, *ROW_SUMS}
    assert report["left_out"] == 0
    for case in report["cases"]:
        times = {name: t["median"] for name, t in case["milliseconds"].items()}
        assert {"cold", "calls" if case["op"] in LOSSES else "warm"} <= set(times)
        assert min(times.values()) > 0
        share = case["bytes"] / (times["cold"] / 1e3) / bandwidth
        assert case["of_copy_bandwidth"] == pytest.approx(share)
        assert f"{case['op']:20} ({','.join(str(n) for n in case['shape'] if n)})" in printed


def test_gpu_without_time(tmp_path: Path) -> None:
    """A run that is cut short says what it has not measured."""
    output = tmp_path / "report.json"
    printed = run("gpu.py", *TINY, "--only", "lattice", "--seconds", "0", "--output", str(output))
    assert "NO TIME FOR THE LAST 2 CASES" in printed
    assert json.loads(output.read_text())["left_out"] == 2


NATIVE_CASES = [case for case in all_cases(tiny=True) if "xla" not in case.op]


@pytest.mark.parametrize("case", NATIVE_CASES, ids=lambda c: f"{c.op}-{c.dtype}")
def test_ops_stay_in_the_loop(ordinary_jax: None, case: Case) -> None:
    """Neither warm nor cold ops are merged or hoisted: the program calls all that it is to time."""
    operands, small = [case.operands(seed) for seed in range(3)], case.small_operands()
    copies = [jax.tree.map(jnp.copy, small) for _ in range(3)]
    alone = jax.jit(case).lower(operands[0], small).as_text()
    calls = len(re.findall(r"custom_call @jax_rnnt", alone))
    assert calls >= 1
    for sets in ((operands, [small]), (operands[:1], copies)):
        program = jax.jit(many_ops(case, 5)).lower(*sets).compile().as_text()
        (body,) = set(re.findall(r"\bbody=(%\S+?),? ", program))
        text = program.split(f"\n{body} ", maxsplit=1)[1].split("\n}")[0]
        assert text.count('target="jax_rnnt') == 3 * calls


def test_bytes(ordinary_jax: None) -> None:
    """By hand: B = 2, T = 3, U + 1 = 4, V = 5."""
    cells, logits, labels, am, lm = 24, 120, 6, 30, 40
    wanted = {
        ("arcs forward", "float32"): 4 * (logits + 3 * cells),
        ("arcs forward", "bfloat16"): 2 * logits + 4 * 3 * cells,
        ("arcs backward", "bfloat16"): 2 * 2 * logits + 4 * 3 * cells,
        ("lattice", "float32"): 4 * (4 * cells + 2),
        ("lattice score", "float32"): 4 * (2 * cells + 2),
        ("loss forward", "float32"): 4 * (logits + labels + 2),
        ("loss", "bfloat16"): 3 * 2 * logits + 4 * labels + 4,
        ("simple", "bfloat16"): 2 * (3 * am + 2 * lm) + 4 * labels + 4,
        ("row sums", "float32"): 4 * (logits + 2 * 7 * 5),
    }
    for (op, dtype), count in wanted.items():
        shape = (2, 3, 4, 0 if op in PLANES else 5)
        assert Case(op, shape, dtype).bytes_moved() == count


def test_fitted(ordinary_jax: None) -> None:
    """Fewer utterances, and never none."""
    case = Case("arcs forward", (16, 10, 4, 5), "float32")
    assert case.fitted(case.bytes_held()) == case
    assert case.fitted(case.bytes_held() // 3).shape == (4, 10, 4, 5)
    assert case.fitted(1).shape == (1, 10, 4, 5)


TRACE = """
planes {
  name: "/device:GPU:0"
  lines {
    name: "Stream #7(Compute)"
    events { metadata_id: 1 duration_ps: 6000000 }
    events { metadata_id: 2 duration_ps: 1000000 }
    events { metadata_id: 1 duration_ps: 2000000 }
  }
  lines { name: "XLA Ops" events { metadata_id: 1 duration_ps: 9000000 } }
  event_metadata { key: 1 value { id: 1 name: "kernel<float>" } }
  event_metadata { key: 2 value { id: 2 name: "fusion" } }
}
planes { name: "/host:CPU" lines { name: "Stream" events { metadata_id: 1 duration_ps: 5 } } }
"""


def test_kernel_durations() -> None:
    """Of the GPU's streams alone, for one of two ops."""
    profiles: Any = getattr(jax.profiler, "ProfileData", None)
    if profiles is None:
        pytest.skip(f"JAX {jax.__version__} HAS NO jax.profiler.ProfileData")
    profile = profiles.from_serialized_xspace(profiles.text_proto_to_serialized_xspace(TRACE))
    assert by_kernel(profile, 2) == {
        "kernel<float>": {"milliseconds": 0.004, "launches": 1},
        "fusion": {"milliseconds": 0.0005, "launches": 0.5},
    }


def test_pruned(tmp_path: Path) -> None:
    """Few utterances: less memory the less is stored; a time for what was run."""
    output = tmp_path / "report.json"
    options = "--utterances 2 --width 16 --classes 50 --rounds 1 --skip-dense-run"
    run("pruned.py", *options.split(), "--output", str(output))
    report = json.loads(output.read_text())
    assert report["machine"]["jax"] and report["shape"]["B"] == 2
    losses = report["losses"]
    assert list(losses) == ["exact", "pruned", "pruned joint"]
    assert losses["exact"]["milliseconds"] is None and losses["exact"]["ratio"] == 1
    assert min(losses[name]["milliseconds"] for name in ("pruned", "pruned joint")) > 0
    assert losses["pruned"]["ratio"] > 2


def test_joint(tmp_path: Path) -> None:
    """Memory for each number of classes, times for each set of lengths."""
    output = tmp_path / "report.json"
    options = "--utterances 2 --width 16 --classes 50 --lengths 40 8 --rounds 1 --time-utterances"
    run("joint.py", *options.split(), "--output", str(output))
    report = json.loads(output.read_text())
    assert report["command"].endswith(f"{options} --output {output}") and report["machine"]["jax"]
    sizes = report["memory"]["50"]
    assert 0 < 5 * sizes["joint"] < sizes["dense"]
    names = "all cells valid", "half of them", "half, peaked", "utterances"
    cases = [report["times"][name] for name in names]
    assert min(case[loss]["min"] for case in cases for loss in ("dense", "joint")) > 0
