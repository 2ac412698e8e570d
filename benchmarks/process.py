"""What a process that measures does to itself: its cores, its allocator, its memory.

Neither JAX nor NumPy is needed here, for the processes of other systems use it, too.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of glibc's <malloc.h>


def _glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, lambda *args: None)  # musl and macOS have neither


def keep_freed_memory() -> None:
    """From now on, memory that is freed stays in the process.

    With glibc's own settings a large gradient is mapped and unmapped anew in every call, and its
    page faults, which have nothing to do with the loss, can take longer than the rest.
    """
    mallopt = _glibc("mallopt")
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 2**28)


def page_faults() -> int:
    """Of this process so far, without those that read a file."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def use_cores(count: int) -> None:
    """This process and those that it starts run on so many cores. JAX sizes its pools by it."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if count > len(cores):
            raise ValueError(f"{count} threads were asked for; this process has {len(cores)} cores")
        os.sched_setaffinity(0, cores[:count])


def _status(field: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    (line,) = (x for x in status.read_text().splitlines() if x.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def _settled_rss() -> int | None:
    """What stays resident: results of earlier calls are freed by threads of their own."""
    gc.collect()
    least = _status("VmRSS")
    for _ in range(5):
        time.sleep(0.02)
        _glibc("malloc_trim")(0)
        now = _status("VmRSS")
        assert least is not None and now is not None
        least = min(least, now)
    return least


def peak_memory(call: Callable[[], Any]) -> dict[str, int] | None:
    """Bytes resident at most while a call runs, and how many of them were not there before.

    Linux only. The call should have run before: what it allocates once and for all is not its own.
    With freed memory kept (see above) there is nothing to see.
    """
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    before = _settled_rss()
    clear.write_text("5")  # the peak counts from here
    result = call()
    peak = _status("VmHWM")
    del result
    assert before is not None and peak is not None
    return {"peak_rss": peak, "rss_above_baseline": max(0, peak - before)}
