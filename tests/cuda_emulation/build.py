"""Builds device code for the CPU, and lets jax run it in place of the CPU kernels.

`python tests/cuda_emulation/build.py [--kind KIND]` builds and prints the directory.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args

import jax

HERE = Path(__file__).parent.resolve()
ROOT = HERE.parent.parent
CACHE = ROOT / "build" / "cuda_emulation"
Kind = Literal["plain", "sanitized", "races"]
"""`"sanitized"`: with AddressSanitizer and UBSan; `"races"`: every access is looked at."""
KINDS: tuple[Kind, ...] = get_args(Kind)

SUFFIXES = {".cc", ".h", ".cu", ".cuh", ".txt"}


def _tool(name: str) -> str:
    """A program of this Python environment, or else of the PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if found is None:
        raise FileNotFoundError(f"the CUDA emulation is built with {name}, which is not installed")
    return found


def _fingerprint(kind: Kind) -> str:
    """Changes with whatever the build depends on."""
    digest = hashlib.sha256()
    for name in (sys.executable, jax.__version__, os.environ.get("CXX", ""), kind):
        digest.update(name.encode() + b"\0")
    for folder in (HERE, ROOT / "cuda", ROOT / "cpp"):
        for path in sorted(p for p in folder.rglob("*") if p.suffix in SUFFIXES):
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def build(kind: Kind = "plain") -> Path:
    """The directory with the programs and the module, built unless an equal build is there.

    Processes that ask at the same time wait for the one that builds.
    """
    directory = CACHE / f"{_fingerprint(kind)}-{kind}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "finished").exists():
            cmake = _tool("cmake")
            configure = [cmake, "-S", str(HERE), "-B", str(directory), "-G", "Ninja"]
            configure += [
                f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-DEMULATION_SANITIZE={'ON' if kind == 'sanitized' else 'OFF'}",
                f"-DEMULATION_RACES={'ON' if kind == 'races' else 'OFF'}",
            ]
            for command in (configure, [cmake, "--build", str(directory)]):
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode != 0:
                    raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
            (directory / "finished").touch()
    return directory


def load(kind: Kind = "plain") -> ModuleType:
    """The module `_cuda_emulated`."""
    name = "_cuda_emulated"
    if name in sys.modules:
        return sys.modules[name]
    (path,) = build(kind).glob(name + ".*.so")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module


def install() -> ModuleType:
    """Makes jax_rnnt, which must not have been imported yet, run the emulated kernels on CPU.

    JAX_RNNT_EMULATION_KIND chooses the build; the README says what sanitizers need.
    """
    if "jax_rnnt" in sys.modules:
        raise RuntimeError("jax_rnnt has already registered its CPU kernels")
    kind = os.environ.get("JAX_RNNT_EMULATION_KIND", "plain")
    if kind not in KINDS:
        raise ValueError(f"JAX_RNNT_EMULATION_KIND is {kind!r}, must be one of {KINDS}")
    module = load(kind)
    sys.modules["jax_rnnt._native._cpu"] = module
    return module


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, default="plain")
    print(build(parser.parse_args().kind))
