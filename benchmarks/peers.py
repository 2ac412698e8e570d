"""The other systems, in a process of their own: torch and JAX do not get along in one."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from problems import Problem

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
        self.process = None
        if python is None:
            return
        command = [python, str(SERVER), json.dumps(asdict(problem)), str(threads)]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.found = self._answer()

    def compare(self, loss: float) -> None:
        """Says of each system how far its loss is from ours, relatively."""
        for found in self.found.values():
            if "loss" in found:
                found["relative_difference"] = abs(found["loss"] - loss) / abs(loss)

    def calls(self, step: str) -> dict[str, Any]:
        """By system, what makes a call and returns seconds and page faults."""
        return {
            name: partial(self._rested, f"{step} {name}")
            for name, found in self.found.items()
            if "loss" in found
        }

    def memory(self, step: str, name: str) -> dict[str, int] | None:
        return self._ask(f"memory {step} {name}")

    def keep_freed_memory(self) -> None:
        if self.process is not None:
            self._ask("keep")

    def close(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait()

    def _rested(self, request: str) -> dict[str, float]:
        answer = self._ask(request)
        time.sleep(REST_SECONDS)
        return answer

    def _ask(self, request: str) -> Any:
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process is not None and self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{SERVER.name} ended with {self.process.wait()}; see above")
        return json.loads(line)
