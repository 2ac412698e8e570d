"""C++ programs that tests build, with a sanitizer, and run."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
CPP = HERE.parent / "cpp"
FLAGS = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Wno-psabi", f"-I{CPP}"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-fwrapv", "-fno-strict-aliasing"]

WORKSPACES = str(CPP / "workspaces.cc")
"""To be compiled into programs that ask the library for the sizes of workspaces."""

run_program = partial(subprocess.run, capture_output=True, text=True, timeout=300)


def build_program(source: str, directory: Path, *flags: str) -> str:
    """The path of a program in `directory`, built from a file beside this one."""
    program = str(directory / Path(source).stem)
    compiler = os.environ.get("CXX", "g++")
    done = run_program([compiler, *FLAGS, *flags, str(HERE / source), "-o", program])
    assert done.returncode == 0, done.stderr
    return program
