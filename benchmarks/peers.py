"""The other systems, in a process of their own: torch and JAX do not get along in one."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from problems import Problem
from worker import Worker

SERVER = Path(__file__).with_name("peer_server.py")
REST_SECONDS = 0.005
"""After a call: the threads of OpenMP wait actively for more work, for a while."""


class Peers:
    """Calls of `peer_server.py`, which inherits the cores of this process.

    Attributes:
      found: by system, its version and loss, or why it was skipped.
    """

    def __init__(self, python: str | None, problem: Problem, threads: int):
        self.found: dict[str, dict[str, Any]] = {}
        self.worker = None
        if python is not None:
            arguments = json.dumps(asdict(problem)), str(threads)
            environment = {"OMP_NUM_THREADS": str(threads)}
            self.worker = Worker(python, SERVER, arguments, environment)
            self.found = self.worker.found

    def compare(self, loss: float) -> None:
        """Says of each system how far its loss is from ours, relatively."""
        for found in self.found.values():
            if "loss" in found:
                found["relative_difference"] = abs(found["loss"] - loss) / abs(loss)

    def calls(self, step: str) -> dict[str, Any]:
        """By system, what makes a call and returns seconds and page faults."""
        return {
            name: partial(self._rested, step, name)
            for name, found in self.found.items()
            if "loss" in found
        }

    def memory(self, step: str, name: str) -> dict[str, int] | None:
        return self._ask("memory", step, name)

    def keep_freed_memory(self) -> None:
        if self.worker is not None:
            self.worker.ask("keep")

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()

    def _rested(self, *words: str) -> dict[str, float]:
        answer = self._ask(*words)
        time.sleep(REST_SECONDS)
        return answer

    def _ask(self, *words: str) -> Any:
        assert self.worker is not None, "no system was found"
        return self.worker.ask(*words)
