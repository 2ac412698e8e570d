"""A pytest plugin: which tests a platform runs, and no skips where they would hide a failure.

On a GPU the tests marked `cpu_only(reason)`, those that use the fixture `devices` and the files of
`CPU_ONLY_FILES` are left out; elsewhere those marked `cuda_only(reason)`. They are deselected, not
skipped, and counted by reason at the end of the run: with `--fail-on-skip` a skip is a failure, so
that a run which was meant to test something cannot pass without.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

# These cannot even be imported without packages of the demo, so that a mark in them would be late.
CPU_ONLY_FILES = {
    "test_examples.py": "the demo, to the rounding of matrix products that are no business of ours",
}
EIGHT_DEVICES = "needs eight devices"

_left_out = pytest.StashKey[Counter[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fail-on-skip", action="store_true", help="a skipped test is a failed one")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cpu_only(reason): not for --backend=cuda")
    config.addinivalue_line("markers", "cuda_only(reason): for --backend=cuda alone")
    config.stash[_left_out] = Counter()


def _on_gpu(config: pytest.Config) -> bool:
    return config.getoption("--backend") == "cuda"


def _reason_to_leave_out(item: pytest.Item) -> str | None:
    on_gpu = _on_gpu(item.config)
    mark = item.get_closest_marker("cpu_only" if on_gpu else "cuda_only")
    if mark is not None:
        (reason,) = mark.args
        return reason
    if on_gpu and "devices" in getattr(item, "fixturenames", ()):
        return EIGHT_DEVICES
    return None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    reason = CPU_ONLY_FILES.get(collection_path.name)
    if reason is None or not _on_gpu(config):
        return None
    config.stash[_left_out][f"{collection_path.name}: {reason}"] += 1
    return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {item: _reason_to_leave_out(item) for item in items}
    left_out = {item: reason for item, reason in reasons.items() if reason is not None}
    if left_out:
        config.stash[_left_out].update(left_out.values())
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


# ------------------------------------------------------ workers of pytest-xdist tell the controller


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = dict(session.config.stash[_left_out])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    # All workers collect all tests: one of them speaks for all.
    output = getattr(node, "workeroutput", {})
    node.config.stash[_left_out] = Counter(output.get("left_out") or node.config.stash[_left_out])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    left_out = config.stash[_left_out]
    if left_out:
        backend = config.getoption("--backend")
        terminalreporter.section(f"left out with --backend={backend}")
    for reason, count in left_out.most_common():
        terminalreporter.line(f"{count:5} {reason}")


# ------------------------------------------------------------------------------- skips are failures


def _without_skip(report: Any, config: pytest.Config) -> Any:
    """The report, failed where it was skipped. An expected failure also counts as skipped here."""
    expected_failure = hasattr(report, "wasxfail")
    if report.skipped and not expected_failure and config.getoption("--fail-on-skip"):
        path, line, reason = report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{path}:{line}: with --fail-on-skip a failure: {reason}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    return _without_skip((yield), item.config)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    return _without_skip((yield), collector.config)
