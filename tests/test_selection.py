"""The plugin that chooses tests by platform: nothing is left out silently, no skip passes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
pytest_plugins = ["selection"]
def pytest_addoption(parser):
    parser.addoption("--backend", default="cpu")
"""
TESTS = """
import pytest
@pytest.fixture
def devices():
    return 8
@pytest.mark.cpu_only("about CPUs")
def test_cpu(): ...
@pytest.mark.cuda_only("about GPUs")
@pytest.mark.parametrize("i", range(3))
def test_cuda(i): ...
def test_sharded(devices): ...
def test_both(): ...
@pytest.mark.xfail(reason="known")
def test_known():
    assert False
"""
SKIPS = """
import pytest
@pytest.mark.skip(reason="no reason")
def test_marked(): ...
def test_called():
    pytest.skip("not today")
"""
MODULE_SKIP = """
import pytest
pytest.importorskip("a_package_that_does_not_exist")
def test_lost(): ...
"""


def run(directory: Path, *options: str, tests: str = TESTS) -> tuple[int, str]:
    """A pytest run of its own on a file with these tests: exit code and output."""
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_it.py").write_text(tests)
    (directory / "test_examples.py").write_text("def test_demo(): ...\n")
    (directory / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "--strict-markers", "-p", "no:cacheprovider"]
    path = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    result = subprocess.run(
        [*command, *options], cwd=directory, env=environment, text=True, stdout=subprocess.PIPE
    )
    return result.returncode, result.stdout


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_left_out(tmp_path: Path, workers: tuple[str, ...]) -> None:
    """By marks, by the fixture of eight devices and by file; reasons and counts are printed."""
    code, output = run(tmp_path, *workers)
    assert code == 0 and "4 passed" in output and "1 xfailed" in output
    assert "left out with --backend=cpu" in output and "    3 about GPUs" in output
    assert "about CPUs" not in output and "eight devices" not in output

    code, output = run(tmp_path, "--backend=cuda", "--fail-on-skip", *workers)
    assert code == 0 and "4 passed" in output and "1 xfailed" in output
    assert "left out with --backend=cuda" in output
    assert "    1 about CPUs" in output and "    1 needs eight devices" in output
    assert re.search(r"    1 test_examples.py: the demo", output) and "about GPUs" not in output


def test_skips_fail(tmp_path: Path) -> None:
    """By a mark, by a call and of a whole module, each with its reason; else they pass."""
    assert run(tmp_path, tests=SKIPS)[0] == 0
    code, output = run(tmp_path, "--fail-on-skip", tests=SKIPS)
    assert code == 1 and "not today" in output and "no reason" in output
    assert "1 passed, 1 failed, 1 error" in output or "1 failed, 1 passed, 1 error" in output
    assert run(tmp_path, tests=MODULE_SKIP)[0] == 0
    code, output = run(tmp_path, "--fail-on-skip", tests=MODULE_SKIP)
    assert code == 2 and "a_package_that_does_not_exist" in output
