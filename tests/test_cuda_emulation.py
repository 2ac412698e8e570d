"""The emulation of CUDA that device code is tested with: right results; mistakes are found."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from cuda_emulation import build

pytestmark = pytest.mark.cpu_only("a tool of the tests without a GPU")


@pytest.fixture(scope="module", params=build.KINDS)
def programs(request: pytest.FixtureRequest) -> Path:
    return build.build(request.param)


def run(program: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program; one that hangs is an error."""
    environment = {**os.environ, "ASAN_OPTIONS": "detect_stack_use_after_return=1", **environment}
    command = [str(program), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kernels(programs: Path, seed: int) -> None:
    """Small kernels give the right results in any order of blocks and threads."""
    shuffle = {"JAX_RNNT_EMULATION_SHUFFLE": str(seed)}
    done = run(programs / "selftest", **shuffle)
    assert done.stdout.endswith("all passed\n"), done.stdout + done.stderr
    assert f"threads run {'out of' if seed else 'in'} order" in done.stdout


@pytest.mark.parametrize("flush", [False, True])
def test_numbers(programs: Path, flush: bool) -> None:
    """16-bit formats over all their values, and the approximate functions' documented bounds."""
    done = run(programs / "numbers", JAX_RNNT_EMULATION_FLUSH_SUBNORMALS=str(int(flush)))
    assert done.stdout.endswith("all passed\n"), done.stdout + done.stderr
    assert f"subnormals are {'flushed' if flush else 'kept'}" in done.stdout


def test_small_device(programs: Path) -> None:
    """The shared memory of another device; launches that ask for more are refused."""
    done = run(programs / "selftest", JAX_RNNT_EMULATION_SHARED_MEMORY="65536")
    assert "65536 bytes of shared memory" in done.stdout
    assert done.stdout.endswith("all passed\n"), done.stdout + done.stderr


# What the emulation says, and a line of its report on the threads.
MISTAKES = {
    "end before barrier": ("a thread ended while others wait", "thread 40: ended"),
    "barrier before end": ("a thread ended while others wait", "thread 40: ended"),
    "different barriers": ("in different calls of __syncthreads", "block (0, 0, 0) of (2, 3, 1)"),
    "lanes miss shuffle": ("wait for others that never come", "threads 32 to 39: in __shfl_sync"),
    "different collectives": ("threads 1 and 0 of a warp wait for each other", "in __all_sync"),
    "mask without own lane": ("leaves out its own lane", "thread 0: ended"),
    "shuffle from absent lane": ("reads lane 20, which does not take part", "0 to 15: in __shfl"),
    "shuffle with bad width": ("width 12", "thread 0: running"),
    "collective on the host": ("outside of a kernel", ""),
    "misaligned load": ("misaligned address", "misaligned_load"),
    "misaligned copy": ("misaligned", "misaligned_copy"),
    "false assumption": ("__builtin_assume(n % 4 == 0) is false", "false_assumption"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(programs: Path, mistake: str) -> None:
    """Each ends the program with a message, neither passing nor hanging."""
    done = run(programs / "misuse", mistake)
    assert done.returncode != 0 and "no mistake was found" not in done.stdout
    for text in MISTAKES[mistake]:
        assert text in done.stderr


@pytest.mark.parametrize("where", ["behind shared", "before shared"])
def test_shared_memory_bounds(programs: Path, where: str) -> None:
    """Found with AddressSanitizer when it happens, otherwise when the block ends."""
    done = run(programs / "misuse", f"write {where}")
    sanitized = programs.name.endswith("sanitized")
    expected = "heap-buffer-overflow" if sanitized else "outside of its dynamic shared memory"
    assert done.returncode != 0 and expected in done.stderr and "write_shared" in done.stderr


@pytest.mark.parametrize("mistake", ["write behind global", "read before global"])
def test_global_memory_bounds(mistake: str) -> None:
    """Only AddressSanitizer finds these."""
    done = run(build.build("sanitized") / "misuse", mistake)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr


# In any order of threads, parts of what is said of the two accesses.
RACES = {
    "race in block": ("shared memory", "pass_on_in_block"),
    "race in warp": ("shared memory", "pass_on_in_warp"),
    "race with reader": ("thread 0 of block 0", "global memory", "write_what_others_read"),
    "race with block": ("thread 0 of block 1", "of block 0", "global memory"),
    "race with copy": ("shared memory", "write_behind_copy"),
    "race of counts": ("global memory", "misuse.cu", "count_without_atomics"),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("mistake", RACES)
def test_races(mistake: str, seed: int) -> None:
    done = run(build.build("races") / "misuse", mistake, JAX_RNNT_EMULATION_SHUFFLE=str(seed))
    assert done.returncode != 0 and "cuda emulation: race" in done.stderr
    for text in RACES[mistake]:
        assert text in done.stderr


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "kernel", ["barrier in block", "barrier in warp", "barrier for reader", "atomic counts"]
)
def test_no_races(kernel: str, seed: int) -> None:
    """Barriers and atomic operations are respected."""
    done = run(build.build("races") / "misuse", kernel, JAX_RNNT_EMULATION_SHUFFLE=str(seed))
    assert done.returncode == 0 and "no mistake was found" in done.stdout, done.stderr
