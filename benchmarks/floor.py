"""What nothing is faster than: moving the bytes, or as much arithmetic.

The streaming floor is how long reading, or reading and writing, so many bytes takes at least. Two
ways of each, of which the faster counts: NumPy's (`max`, `copyto`) and loops in C++ whose stores
pass the cache by. The buffers are resident: no page faults, which real results may have.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np


@cache
def loops() -> ctypes.CDLL | None:
    """The loops of `loops.cc`, compiled for this processor; None without a compiler."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / "loops.so"
        options = ["-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
        source = Path(__file__).with_name("loops.cc")
        subprocess.run([compiler, *options, str(source), "-o", str(library)], check=True)
        loaded = ctypes.CDLL(str(library))  # stays mapped without its file
    loaded.stream_read.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    loaded.stream_read.restype = ctypes.c_int64
    loaded.stream_copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    loaded.stream_copy.restype = None
    loaded.multiply_add.argtypes = [ctypes.c_size_t]
    loaded.multiply_add.restype = ctypes.c_float
    return loaded


def _address(array: np.ndarray, offset: int = 0) -> int:
    return array.ctypes.data + offset


class Team:
    """Threads that share a task."""

    def __init__(self, threads: int):
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None

    def divide(self, size: int, grain: int, work: Callable[[int, int], None]) -> None:
        """`work(begin, end)` on every thread's share, which begins at a multiple of `grain`."""
        if not size:
            return
        ends = [grain * (size * i // self.threads // grain) for i in range(self.threads)] + [size]
        own, *shares = itertools.pairwise(ends)
        others = [self.pool.submit(work, *share) for share in shares] if self.pool else []
        work(*own)
        for other in others:
            other.result()


ARITHMETIC_STEPS = 4_000_000
"""Some milliseconds of one core."""


def arithmetic_seconds(team: Team) -> float:
    """Of multiply-adds in registers, as many whatever the number of threads."""
    library = loops()
    assert library is not None
    start = time.perf_counter()
    team.divide(ARITHMETIC_STEPS, 1, lambda begin, end: library.multiply_add(end - begin))
    return time.perf_counter() - start


class Floor:
    """Timers of streaming `read` bytes and writing `written` bytes, divided among threads."""

    def __init__(self, read: int, written: int, team: Team):
        self.team = team
        self.copied = min(read, written)
        self.only_read = read - self.copied
        words = -(-max(read, written, 64) // 4)
        self.source = np.random.default_rng(0).random(words, dtype=np.float32)
        self.target = np.ones(-(-self.copied // 4), np.float32)

    def timers(self) -> dict[str, Callable[[], float]]:
        """By the name of the way."""
        ways: dict[str, Any] = {"numpy": (_numpy_read, _numpy_copy)}
        if loops() is not None:
            ways["C++"] = (_native_read, _native_copy)
        return {name: partial(self._seconds, *way) for name, way in ways.items()}

    def _seconds(self, read: Callable[..., None], copy: Callable[..., None]) -> float:
        start = time.perf_counter()
        only_read = partial(read, self.source, 4 * (self.copied // 4))
        self.team.divide(self.only_read, 64, only_read)
        self.team.divide(self.copied, 64, partial(copy, self.source, self.target))
        return time.perf_counter() - start


def _numpy_read(source: np.ndarray, offset: int, begin: int, end: int) -> None:
    if end - begin >= 4:
        source[(offset + begin) // 4 : (offset + end) // 4].max()


def _numpy_copy(source: np.ndarray, target: np.ndarray, begin: int, end: int) -> None:
    np.copyto(target[begin // 4 : end // 4], source[begin // 4 : end // 4])


def _native_read(source: np.ndarray, offset: int, begin: int, end: int) -> None:
    library = loops()
    assert library is not None
    library.stream_read(_address(source, offset + begin), end - begin)


def _native_copy(source: np.ndarray, target: np.ndarray, begin: int, end: int) -> None:
    library = loops()
    assert library is not None
    library.stream_copy(_address(source, begin), _address(target, begin), end - begin)
