"""What XLA makes of the losses for a GPU, with its compiler for CUDA and without a GPU.

`make test-gpu-programs` gets the compiler. Whether XLA knows our kernels, what it adds to them, how
much memory it plans, what it puts into CUDA graphs and what several cards tell each other is in the
compiled program; only values and times need a card.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jax_rnnt

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import gpu_memory
from gpu_memory import loss_and_gradient
from gpu_target import Program, compile_for_gpu, has_compiler, sharded

pytestmark = [
    pytest.mark.cpu_only("compiled without a GPU"),
    pytest.mark.skipif(not has_compiler(), reason="NEEDS XLA'S COMPILER: make test-gpu-programs"),
    pytest.mark.usefixtures("ordinary_jax"),
]

B, T, U, V, D, S = 8, 60, 20, 120, 64, 4
EVERY_DTYPE = [jnp.float32, jnp.bfloat16, jnp.float16]


def array(*shape: int, dtype: Any = jnp.int32, sharding: Any = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


LABELS = array(B, U)
LENGTHS = array(B), array(B)


def additive(loss: Any, **options: Any) -> Callable[..., jax.Array]:
    return lambda am_lm, *rest: loss(*am_lm, *rest, **options).sum()


def packed(logits: Any, labels: Any, *lengths: Any) -> jax.Array:
    return jax_rnnt.rnnt_loss_packed(logits, labels, *lengths).sum()


def pruned(variables: Any, labels: Any, *lengths: Any) -> jax.Array:
    """The simple loss, ranges, the joint network, the pruned loss."""
    (am, lm), kernel = variables
    simple, posteriors = jax_rnnt.rnnt_loss_simple(am, lm, labels, *lengths, return_posteriors=True)
    ranges = jax_rnnt.get_rnnt_prune_ranges(posteriors, *lengths, s_range=S)
    joined = sum(jax_rnnt.do_rnnt_pruning(am, lm, ranges))
    logits = jnp.tanh(joined) @ kernel
    return (simple + jax_rnnt.rnnt_loss_pruned(logits, labels, ranges, *lengths)).sum()


def joint(variables: Any, *rest: Any) -> jax.Array:
    """The exact loss of a joint network in tiles."""
    rows, kernel = variables
    return jax_rnnt.rnnt_loss_joint(
        jax_rnnt.LinearJoint(), {"kernel": kernel}, *rows, *rest, rows_per_tile=512
    ).sum()


def joint_arcs(variables: Any, labels: Any, *lengths: Any) -> jax.Array:
    rows, kernel = variables
    params = {"kernel": kernel}
    arcs = jax_rnnt.rnnt_arcs_joint(jax_rnnt.LinearJoint(), params, *rows, labels, *lengths)
    return jax_rnnt.rnnt_loss_from_arcs(*arcs, *lengths).sum()


def tdt_joint(variables: Any, *utterances: Any) -> jax.Array:
    rows, kernel = variables
    network = jax_rnnt.LinearDurationJoint(5)
    return jax_rnnt.rnnt_loss_tdt_joint(network, {"kernel": kernel}, *rows, *utterances).sum()


def multi_blank_joint(variables: Any, *utterances: Any) -> jax.Array:
    rows, kernel = variables
    return jax_rnnt.rnnt_loss_multi_blank_joint(
        jax_rnnt.LinearJoint(), {"kernel": kernel}, *rows, *utterances,
        big_blank_ids=(-1, -2), big_blank_durations=(2, 4),
    ).sum()  # fmt: skip


def pruned_joint(variables: Any, labels: Any, ranges: Any, *lengths: Any) -> jax.Array:
    rows, kernel = variables
    return jax_rnnt.rnnt_loss_pruned_joint(
        jax_rnnt.LinearJoint(), {"kernel": kernel}, *rows, labels, ranges, *lengths
    ).sum()


def from_arcs(arcs: Any, *lengths: Any) -> jax.Array:
    return jax_rnnt.rnnt_loss_from_arcs(*arcs, *lengths).sum()


def rows(dtype: Any, classes: int = V) -> tuple[Any, Any]:
    return array(B, T, classes, dtype=dtype), array(B, U + 1, classes, dtype=dtype)


def with_kernel(dtype: Any, classes: int = V) -> tuple[Any, Any]:
    return rows(dtype, D), array(D, classes, dtype=dtype)


UTTERANCES = LABELS, *LENGTHS
ARCS = "jax_rnnt_arcs_fwd", "jax_rnnt_arcs_bwd"
LATTICE = ("jax_rnnt_lattice",)
FACTORED = "jax_rnnt_factored_fwd", "jax_rnnt_factored_bwd"

LOSSES: dict[str, tuple[Callable[..., Any], Callable[[Any], tuple[Any, ...]], tuple[str, ...]]] = {
    "loss": (
        lambda x, *rest: jax_rnnt.rnnt_loss(x, *rest).sum(),
        lambda dtype: (array(B, T, U + 1, V, dtype=dtype), *UTTERANCES),
        ARCS + LATTICE,
    ),
    "simple": (
        additive(jax_rnnt.rnnt_loss_simple),
        lambda dtype: (rows(dtype), *UTTERANCES),
        FACTORED + LATTICE,
    ),
    "smoothed": (
        additive(jax_rnnt.rnnt_loss_smoothed, lm_only_scale=0.2, am_only_scale=0.1),
        lambda dtype: (rows(dtype), *UTTERANCES),
        ("jax_rnnt_smoothed_fwd", "jax_rnnt_smoothed_bwd") + LATTICE,
    ),
    "tdt": (
        lambda x, *rest: jax_rnnt.rnnt_loss_tdt(*x, *rest).sum(),
        lambda dtype: (
            (array(B, T, U + 1, V, dtype=dtype), array(B, T, U + 1, 5, dtype=dtype)),
            *UTTERANCES,
        ),
        ARCS + ("jax_rnnt_duration_lattice",),
    ),
    "multi-blank": (
        lambda x, *rest: jax_rnnt.rnnt_loss_multi_blank(
            x, *rest, big_blank_ids=(-1, -2), big_blank_durations=(2, 4)
        ).sum(),
        lambda dtype: (array(B, T, U + 1, V, dtype=dtype), *UTTERANCES),
        ARCS + ("jax_rnnt_duration_lattice",),
    ),
    "packed": (
        packed,
        lambda dtype: (array(B * T * (U + 1), V, dtype=dtype), *UTTERANCES),
        ARCS + ("jax_rnnt_packed_lattice",),
    ),
    "pruned": (
        pruned,
        lambda dtype: ((rows(dtype), array(V, V, dtype=dtype)), *UTTERANCES),
        FACTORED + LATTICE + ARCS + ("jax_rnnt_banded_lattice", "jax_rnnt_row_sums"),
    ),
    "pruned joint": (
        pruned_joint,
        lambda dtype: (with_kernel(dtype, 8000), LABELS, array(B, T, S), *LENGTHS),
        ARCS + ("jax_rnnt_banded_lattice", "jax_rnnt_row_sums"),
    ),
    "joint": (joint, lambda dtype: (with_kernel(dtype), *UTTERANCES), ARCS + LATTICE),
    "joint arcs": (joint_arcs, lambda dtype: (with_kernel(dtype), *UTTERANCES), ARCS + LATTICE),
    "tdt joint": (
        tdt_joint,
        lambda dtype: (with_kernel(dtype), *UTTERANCES),
        ARCS + ("jax_rnnt_duration_lattice",),
    ),
    "multi-blank joint": (
        multi_blank_joint,
        lambda dtype: (with_kernel(dtype), *UTTERANCES),
        ARCS + ("jax_rnnt_duration_lattice",),
    ),
    "from arcs": (
        from_arcs,
        lambda dtype: ([array(B, T, U + 1, dtype=dtype)] * 2, *LENGTHS),
        LATTICE,
    ),
}
IN_TILES = "joint", "joint arcs", "tdt joint", "multi-blank joint", "pruned joint"


def custom_calls(program: Program) -> list[str]:
    """Of this library; XLA's own are matrix products."""
    return sorted(re.findall(r'custom_call_target="(jax_rnnt\w+)"', program.text))


def launches(program: Program, kind: str) -> list[list[str]]:
    """Of each launch of a kind, the kinds of what it is part of."""
    assert program.thunks
    found: list[list[str]] = []
    above: list[tuple[int, str]] = []  # indentations and kinds
    for entry in re.finditer(r"^( *)\d+: (k\w+)", program.thunks, flags=re.MULTILINE):
        above = [x for x in above if x[0] < len(entry[1])]
        if entry[2] == kind:
            found.append([parent for _, parent in above])
        above.append((len(entry[1]), entry[2]))
    return found


@pytest.mark.parametrize("dtype", EVERY_DTYPE, ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss(name: str, dtype: Any) -> None:
    """XLA finds all kernels, puts them into CUDA graphs, and has no operation whose order is open.

    A loop, which the host steers, is in the losses that compute tiles alone.
    """
    loss, operands, kernels = LOSSES[name]
    program = compile_for_gpu(
        jax.value_and_grad(loss),
        *operands(dtype),
        thunks=True,
        xla_gpu_exclude_nondeterministic_ops=True,
        xla_gpu_graph_min_graph_size=1,
    )
    assert custom_calls(program) == sorted(kernels)
    calls = launches(program, "kCustomCall")
    assert len(calls) == len(kernels)
    assert all("kCommandBuffer" in parents for parents in calls)
    assert (launches(program, "kWhile") != []) == (name in IN_TILES)


def test_alignments() -> None:
    """As the losses."""
    logits = (array(B, T, U + 1, V, dtype=jnp.bfloat16),)
    rows = (array(B * T * (U + 1), V, dtype=jnp.bfloat16),)
    pair = *logits, array(B, T, U + 1, 5, dtype=jnp.bfloat16)
    for align, scores, kernel in (
        (jax_rnnt.rnnt_align, logits, "jax_rnnt_best_path"),
        (jax_rnnt.rnnt_align_packed, rows, "jax_rnnt_packed_best_path"),
        (jax_rnnt.rnnt_align_tdt, pair, "jax_rnnt_best_duration_path"),
    ):
        program = compile_for_gpu(
            lambda *x, align=align: tuple(align(*x)),
            *(*scores, *UTTERANCES),
            thunks=True,
            xla_gpu_graph_min_graph_size=1,
        )
        assert custom_calls(program) == ["jax_rnnt_arcs_fwd", kernel]
        assert all("kCommandBuffer" in parents for parents in launches(program, "kCustomCall"))
        assert launches(program, "kWhile") == []


def of_logits(*shape: int, dtype: Any, sharding: Any = None) -> tuple[Any, ...]:
    """Operands of the loss at `(B, T, U+1, V)`."""
    batch, _, positions, _ = shape
    integers = [(batch, positions - 1), (batch,), (batch,)]
    operands = array(*shape, dtype=dtype), *(array(*x) for x in integers)
    return jax.tree.map(lambda x: array(*x.shape, dtype=x.dtype, sharding=sharding), operands)


@pytest.mark.parametrize("dtype", gpu_memory.DTYPES)
@pytest.mark.parametrize("shape", gpu_memory.LOGITS_SHAPES, ids=str)
def test_memory_of_the_loss(shape: tuple[int, int, int, int], dtype: str) -> None:
    """Beside logits and gradient no more than six float32 planes `(B, T, U+1)`, beside donated
    logits, whose gradient has no memory to lend to the recursion, eight.
    """
    found, plane = gpu_memory.of_logits(shape, dtype), 4 * math.prod(shape[:3])
    both = found["logits_and_gradient"]
    assert both < found["peak"] < both + 6 * plane
    assert both / 2 < found["peak_donated"] < both / 2 + 8 * plane


@pytest.mark.parametrize("donate", [(), 0], ids=["kept", "donated"])
def test_nothing_copies_the_logits(donate: Any) -> None:
    program = compile_for_gpu(
        loss_and_gradient, *of_logits(B, T, U + 1, V, dtype=jnp.float32), donate=donate
    )
    moved = re.findall(rf"\[{B},{T},{U + 1},{V}\]\S* ([\w-]+)\(", program.text)
    assert set(moved) == {"parameter", "custom-call", "tuple"}


def test_memory_of_joint_losses() -> None:
    """The exact one takes a twentieth of the dense loss at most."""
    for dtype in gpu_memory.DTYPES:
        found = {name: gpu_memory.of_librispeech(name, dtype) for name in gpu_memory.LOSSES}
        assert found["rnnt_loss_joint"] < found["rnnt_loss"] / 20
        assert found["rnnt_loss_pruned_joint"] < found["rnnt_loss_pruned"]


def joint_loss_and_gradient(variables: Any, *rest: Any) -> Any:
    def loss(variables: Any) -> jax.Array:
        return jax_rnnt.rnnt_loss_joint(jax_rnnt.LinearJoint(), *variables, *rest).sum()

    return jax.value_and_grad(loss)(variables)


def of_librispeech(
    classes: int, sharding: Any = None, replicated: Any = None, *, size: int = 32
) -> tuple[Any, ...]:
    """Operands of a joint network, as large as a batch of utterances of LibriSpeech."""
    frames, labels, width = 437, 101, 512
    kernel = array(width, classes, dtype=jnp.bfloat16, sharding=replicated)
    encoder, predictor = (
        array(size, n, width, dtype=jnp.bfloat16, sharding=sharding) for n in (frames, labels + 1)
    )
    integers = ((size, labels), (size,), (size,))
    return ({"kernel": kernel}, encoder, predictor), *(
        array(*x, sharding=sharding) for x in integers
    )


def pruned_joint_loss_and_gradient(variables: Any, labels: Any, *lengths: Any) -> Any:
    """Five label positions a frame."""
    frames, size = variables[1].shape[1], len(labels)
    ranges = jnp.broadcast_to(jnp.arange(5), (size, frames, 5))

    def loss(variables: Any) -> jax.Array:
        return jax_rnnt.rnnt_loss_pruned_joint(
            jax_rnnt.LinearJoint(), *variables, labels, ranges, *lengths
        ).sum()

    return jax.value_and_grad(loss)(variables)


def tdt_joint_loss_and_gradient(variables: Any, *rest: Any) -> Any:
    """With as many classes as the others have, and five durations."""

    def loss(variables: Any) -> jax.Array:
        params, *rows = variables
        params = {"kernel": jnp.pad(params["kernel"], ((0, 0), (0, 5)))}
        network = jax_rnnt.LinearDurationJoint(5)
        return jax_rnnt.rnnt_loss_tdt_joint(network, params, *rows, *rest).sum()

    return jax.value_and_grad(loss)(variables)


@pytest.mark.parametrize(
    "step",
    [joint_loss_and_gradient, tdt_joint_loss_and_gradient, pruned_joint_loss_and_gradient],
)
def test_nothing_copies_the_logits_of_tiles(step: Any) -> None:
    """Arrays of the size of a tile's logits come from matrix products and from kernels alone, the
    gradient in bfloat16. XLA would have each dimension a multiple of eight: of 1001 classes, which
    are 1008 here, it would copy the logits.
    """
    program = compile_for_gpu(step, *of_librispeech(1001, size=31))
    arrays = re.findall(r"(\w+)\[([\d,]+),1008\]\S* ([\w-]+)\(", program.text)
    large = {
        (dtype, by)
        for dtype, dimensions, by in arrays
        if math.prod(map(int, dimensions.split(","))) > 10_000
    }
    assert {by for _, by in large} == {"get-tuple-element", "bitcast", "custom-call"}
    assert {dtype for dtype, by in large if by == "custom-call"} == {"bf16"}


ONE_GRAPH = """
import sys
sys.path.insert(0, {folder!r})
from test_gpu_programs import compile_for_gpu, joint_loss_and_gradient, launches, of_librispeech

operands = of_librispeech(500)
program = compile_for_gpu(joint_loss_and_gradient, *operands, thunks=True)
(forward, backward) = launches(program, "kWhile")
assert "kCommandBuffer" in forward and "kCommandBuffer" in backward
"""


def test_joint_loss_in_one_graph() -> None:
    """With a flag of XLA's also the loops, which no host has to steer then."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_enable_command_buffer=+WHILE"
    script = ONE_GRAPH.format(folder=str(Path(__file__).parent))
    environment = os.environ | {"XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


def collectives(program: Program) -> list[str]:
    pattern = r" (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\("
    return [x for x in re.findall(pattern, program.text) if not x.endswith("-done")]


def test_sharded_loss() -> None:
    """Four cards, each with a quarter of the utterances: they exchange a number, the loss."""
    shape = 32, 150, 20, 5000
    whole = compile_for_gpu(loss_and_gradient, *of_logits(*shape, dtype=jnp.float32))
    operands = of_logits(*shape, dtype=jnp.float32, sharding=sharded(4, "batch"))
    program = compile_for_gpu(loss_and_gradient, *operands)
    assert collectives(program) == ["all-reduce"]
    assert "f32[] all-reduce" in program.text
    assert custom_calls(program) == sorted(ARCS + LATTICE)
    assert program.peak < 0.26 * whole.peak


def test_sharded_joint_loss() -> None:
    """All that four cards exchange is the loss and the gradient by the kernel, at once."""
    operands = of_librispeech(500, sharded(4, "batch"), sharded(4))
    program = compile_for_gpu(joint_loss_and_gradient, *operands)
    assert set(collectives(program)) == {"all-reduce"}
    assert custom_calls(program) == sorted(ARCS + LATTICE)
