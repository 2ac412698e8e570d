"""How `gpu.py` times: many ops in one program, operands that are not in the cache.

A program applies an op to several sets of operands, one set after another, and that several times
over. Wall time over the number of ops is then free of the time that starting a program takes, and
the operands of an op were last touched so long ago that they have left the cache. The warm variant
gives all ops the same large operands.
"""

from __future__ import annotations

import glob
import math
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache, cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from common import interleaved, milliseconds, wall_seconds
from gpu_cases import LOSSES, Case

Call = Callable[[Any, Any], Any]

# Fewest and most sets of operands. A loss is many ops, and many of it take long to compile.
SETS, SETS_OF_LOSSES = (4, 64), (2, 6)
MOST_ROUNDS = 1000
MORE_THAN_THE_CACHE = 128 << 20  # twice the cache of the cards of 2024
# Launches one after another: in a CUDA graph, ops that do not depend on each other could overlap.
WITHOUT_GRAPHS: dict[str, str | bool] = {"xla_gpu_enable_command_buffer": ""}


def many_ops(op: Call, rounds: int) -> Callable[..., Any]:
    """`(operand sets, small operand sets) -> results of all sets`, `rounds` times over.

    Large and small sets are paired, the shorter list repeated. No two pairs may be the same, or the
    compiler would compute one; and it must not see that every round computes the same, hence the
    zero which only arithmetic on the loop's counter tells it.
    """

    op = jax.jit(op)  # traced once

    def program(operands: list[Any], small: list[Any]) -> list[Any]:
        pairs = max(len(operands), len(small))

        def once(zero: jax.Array) -> list[Any]:
            present = [jax.tree.map(lambda x: x + zero.astype(x.dtype), s) for s in small]
            return [
                op(operands[i % len(operands)], present[i % len(present)]) for i in range(pairs)
            ]

        def again(i: jax.Array, results: list[Any]) -> list[Any]:
            del results
            return once(jnp.minimum(i, 0))

        return jax.lax.fori_loop(1, rounds, again, once(jnp.int32(0)))

    return program


class Card:
    """The device that is measured: its memory, its bandwidth, what it can do without graphs."""

    def __init__(self, *, tiny: bool):
        self.device = jax.devices()[0]
        self.tiny = tiny
        memory = (self.device.memory_stats() or {}).get("bytes_limit", 4 << 30)
        self.most_bytes = (64 << 20) if tiny else int(0.6 * memory)

    @cached_property
    def compiler_options(self) -> dict[str, str | bool]:
        """That keep CUDA graphs out of programs of many ops, if this JAX takes them."""
        if self.device.platform == "cpu":
            return {}
        try:
            jax.jit(lambda x: x + 1).lower(1.0).compile(compiler_options=WITHOUT_GRAPHS)
        except Exception as error:
            print(f"CUDA graphs stay on, ops may overlap: {error}")
            return {}
        return WITHOUT_GRAPHS

    @cached_property
    def copy_bytes_per_second(self) -> float:
        """Bytes read plus bytes written a second, of the better of a copy and a negation."""
        size = min(1 << 30, self.most_bytes // 32)
        arrays = [jnp.full(size // 4, i, jnp.float32) for i in range(8)]
        timers = {}
        for name, function in (("copy", jnp.copy), ("negation", jnp.negative)):
            program = jax.jit(lambda xs, f=function: [f(x) for x in xs])
            timers[name] = partial(wall_seconds, partial(program, arrays))
        fastest = min(min(times) for times in interleaved(timers, 10).values())
        return 2 * sum(x.nbytes for x in arrays) / fastest

    def many_ops(self, case: Case, rounds: int, operands: list[Any], small: list[Any]) -> Any:
        """A call of the compiled program."""
        lowered = jax.jit(many_ops(case, rounds)).lower(operands, small)
        compiled = lowered.compile(compiler_options=self.compiler_options)
        return partial(compiled, operands, small)

    @cache  # noqa: B019 (there is one card, as long as the process)
    def single(self, case: Case) -> Any:
        """The op alone, compiled with JAX's own settings."""
        operands = jax.eval_shape(case.operands, 0)
        return jax.jit(case).lower(operands, jax.eval_shape(case.small_operands)).compile()

    def peak_bytes(self) -> int:
        """The most that the allocator had given out since the start of the process."""
        return (self.device.memory_stats() or {}).get("peak_bytes_in_use", 0)


def plan(case: Case, card: Card) -> tuple[int, int]:
    """Sets of operands that flush the cache, and rounds over them that take long enough."""
    fewest, most = SETS_OF_LOSSES if case.op in LOSSES else SETS
    held = case.bytes_held()
    flushing = 1 if card.tiny else math.ceil(MORE_THAN_THE_CACHE / held)
    sets = max(1, min(max(fewest, flushing), most, card.most_bytes // held))
    expected = sets * case.expected_seconds(card.copy_bytes_per_second)
    target = 1e-3 if card.tiny else 20e-3
    return sets, max(2, min(MOST_ROUNDS, math.ceil(target / expected)))


def time_case(case: Case, card: Card, seconds: float) -> dict[str, Any]:
    """Milliseconds of an op with operands in memory (cold) and in the cache, and its bandwidth."""
    sets, rounds = plan(case, card)
    operands = [case.operands(seed) for seed in range(sets)]
    small = case.small_operands()
    cold = card.many_ops(case, rounds, operands, [small])
    ops = {"cold": sets * rounds}
    timers = {"cold": partial(wall_seconds, cold)}
    if case.op not in LOSSES:
        copies = [jax.tree.map(jnp.copy, small) for _ in range(min(sets, 8))]
        warm_rounds = math.ceil(ops["cold"] / len(copies))
        ops["warm"] = warm_rounds * len(copies)
        warm = card.many_ops(case, warm_rounds, operands[:1], copies)
        timers["warm"] = partial(wall_seconds, warm)
    times = measured(timers, seconds)

    moved, peak = case.bytes_moved(), card.copy_bytes_per_second
    found: dict[str, Any] = {
        "sets": sets,
        "rounds": rounds,
        "cold_is_cold": sets * case.bytes_held() >= MORE_THAN_THE_CACHE,
        "bytes": moved,
        "milliseconds": {name: milliseconds(t, ops[name]) for name, t in times.items()},
        "kernels": kernels_of(cold, ops["cold"]),
    }
    found["of_copy_bandwidth"] = moved / peak / (found["milliseconds"]["cold"]["median"] / 1e3)
    if isinstance(found["kernels"], dict) and found["kernels"]:
        found["kernel_milliseconds"] = sum(k["milliseconds"] for k in found["kernels"].values())
        found["kernels_of_copy_bandwidth"] = moved / peak / (found["kernel_milliseconds"] / 1e3)
    memory = card.single(case).memory_analysis()
    found["memory"] = {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    return found


def measured(timers: dict[str, Callable[[], float]], seconds: float) -> dict[str, list[float]]:
    """Interleaved rounds, as many as take about that long."""
    first = interleaved(timers, 1, warm_up=1)
    spent = sum(sum(times) for times in first.values())
    return interleaved(timers, max(3, min(15, int(seconds / max(spent, 1e-6)))), warm_up=0)


def peak_of_single_call(case: Case, card: Card) -> int | None:
    """What the allocator had given out at most in a single call; None if more was before.

    The allocator's peak cannot be reset: small cases must be measured before large ones, and all
    of them before anything else.
    """
    operands, small = jax.block_until_ready((case.operands(0), case.small_operands()))
    call = card.single(case)
    before = card.peak_bytes()
    jax.block_until_ready(call(operands, small))
    return card.peak_bytes() if card.peak_bytes() > before else None


def kernels_of(call: Callable[[], Any], ops: int) -> dict[str, dict[str, float]] | str:
    """What JAX's profiler sees on the device, for one op of the call; or why it sees nothing."""
    try:
        with tempfile.TemporaryDirectory() as directory:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0
            options.host_tracer_level = 0
            with jax.profiler.trace(directory, profiler_options=options):
                jax.block_until_ready(call())
            (path,) = glob.glob(f"{directory}/**/*.xplane.pb", recursive=True)
            profile = jax.profiler.ProfileData.from_file(path)
    except Exception as error:  # nothing else depends on this
        return f"{type(error).__name__}: {error}"
    return by_kernel(profile, ops)


def by_kernel(profile: Any, ops: int) -> dict[str, dict[str, float]]:
    """Milliseconds and launches an op on the streams of the first GPU, the longest first."""
    nanoseconds: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    for plane in profile.planes:
        if plane.name == "/device:GPU:0":
            for line in plane.lines:
                if line.name.startswith("Stream"):
                    for event in line.events:
                        nanoseconds[event.name[:100]] += event.duration_ns
                        launches[event.name[:100]] += 1
    return {
        name: {"milliseconds": total / 1e6 / ops, "launches": launches[name] / ops}
        for name, total in nanoseconds.most_common()
    }


def separate_calls(case: Case, card: Card) -> Callable[[], float]:
    """A timer of calls one by one, as a training step makes them, with JAX's own settings."""
    held = case.bytes_held()
    count = max(1, min(8, math.ceil(MORE_THAN_THE_CACHE / held), card.most_bytes // (2 * held)))
    operands, small = [case.operands(seed) for seed in range(count)], case.small_operands()
    call = card.single(case)

    def losses() -> list[Any]:
        return [jax.tree.leaves(call(o, small))[0] for o in operands]  # gradients are dropped

    return lambda: wall_seconds(losses) / count
