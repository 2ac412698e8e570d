"""`make sanitize-gpu` passes only if compute-sanitizer says that it has found nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import sanitize_gpu

pytestmark = pytest.mark.cpu_only("about the program that starts compute-sanitizer")

# Runs its command on the CPU, then says what it is told to say.
FAKE_TOOL = """#!/bin/sh
while [ "${1#*python}" = "$1" ]; do shift; done
JAX_PLATFORMS=cpu "$@" --every 40
echo "========= $FAKE_VERDICT"
"""
RAN = f"7 {sanitize_gpu.ALL_RAN} on a GPU\n========= "
CLEAN = "ERROR SUMMARY: 0 errors"
NO_RACES = "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"


@pytest.mark.parametrize(
    ("tool", "code", "output", "clean"),
    [
        ("memcheck", 0, RAN + CLEAN, True),
        ("racecheck", 0, RAN + NO_RACES, True),
        ("memcheck", 9, RAN + CLEAN, False),
        ("memcheck", 0, CLEAN, False),
        ("memcheck", 0, RAN + "ERROR SUMMARY: 12 errors", False),
        ("memcheck", 0, RAN + "Device not supported", False),
        ("racecheck", 0, RAN + CLEAN, False),
        ("racecheck", 0, RAN + NO_RACES.replace("0 w", "1 w").replace(": 0", ": 1"), False),
    ],
)
def test_verdict(tool: str, code: int, output: str, clean: bool) -> None:
    """Exit code, the cases' own last line and the tool's words must all be good."""
    assert sanitize_gpu.is_clean(tool, code, output) == clean


def run_main(monkeypatch: pytest.MonkeyPatch, path: str, *options: str) -> int:
    monkeypatch.setenv("PATH", path)
    monkeypatch.setattr(sys, "argv", ["sanitize_gpu.py", *options])
    return sanitize_gpu.main()


def test_runs_under_a_tool(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From end to end with a stand-in: one tool is content, the other is not."""
    fake = tmp_path / "compute-sanitizer"
    fake.write_text(FAKE_TOOL)
    fake.chmod(0o755)
    monkeypatch.setenv("FAKE_VERDICT", CLEAN)
    options = ["--tools", "memcheck", "racecheck", "--output", str(tmp_path)]
    code = run_main(monkeypatch, f"{tmp_path}:/bin:/usr/bin", *options)
    output = capsys.readouterr().out
    assert code == 1
    assert (
        "memcheck: clean" in output
        and "racecheck: FAILED" in output
        and sanitize_gpu.ALL_RAN in output
    )
    written = (tmp_path / "memcheck.txt").read_text()
    assert " are done\n" in written and written.count(sanitize_gpu.ALL_RAN) == 1


def test_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loud, and a failure."""
    assert run_main(monkeypatch, str(tmp_path)) != 0
    assert "compute-sanitizer IS NOT INSTALLED" in capsys.readouterr().out
