"""A process that makes calls when it is told to, one at a time."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


class Worker:
    """A program that writes a line of JSON when it is ready, and one as the answer to each request.

    Attributes:
      found: what it wrote first.
    """

    def __init__(
        self,
        python: str,
        program: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
    ):
        self.name = program.name
        self.process = subprocess.Popen(
            [python, str(program), *arguments],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.found = self._answer()

    def ask(self, *words: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}; see above")
        return json.loads(line)


def serve(ready: Callable[[], tuple[Any, Callable[..., Any]]]) -> None:
    """A worker's side: what it found first, and the answer to the words of each request.

    Whatever else is printed, also while getting ready, goes to stderr.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    found, answer = ready()
    print(json.dumps(found), file=answers, flush=True)
    with open(0) as requests:
        for line in requests:
            print(json.dumps(answer(*json.loads(line))), file=answers, flush=True)
