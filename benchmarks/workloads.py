"""The functions that `suite.py` measures, and their operands: losses, and kernels alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from joint import joint as librispeech_joint
from problems import DURATIONS, S_RANGE, SCALES, Problem
from pruned import UTTERANCES, make_problem
from pruned import pruned as librispeech_pruned
from results import IN_PLACE, MATRIX_PRODUCTS

import jax_rnnt
from jax_rnnt.arcs import arcs_bwd, arcs_fwd
from jax_rnnt.bounds import Sizes, Utterances, labels_and_bounds
from jax_rnnt.lattice import lattice, lattice_score
from jax_rnnt.types import ArcsOptions, Implementation, LatticeOptions

Operands = dict[str, Any]
Loss = Callable[[Problem, Operands, jax.Array, Implementation], jax.Array]
"""The summed loss of a problem, from its operands, labels and an implementation."""
Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its operands."""


@dataclass(frozen=True)
class Workload:
    """What to measure: steps, such as `"forward"`, of implementations and of comparisons.

    Attributes:
      calls: by step and name. That of `IN_PLACE` may write over its operands.
      bytes: by step, those that any implementation must read and must write; left out where the
        arithmetic of a joint network outweighs them.
    """

    calls: dict[str, dict[str, Call]]
    bytes: dict[str, tuple[int, int]] = field(default_factory=dict)


Make = Callable[[Problem, Any, tuple[Implementation, ...]], Workload]
"""The workload of a problem, with scores of a dtype, in some implementations."""


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _gradient_workload(
    losses: dict[str, Callable[[Any], jax.Array]],
    operands: Any,
    *,
    reads_twice: bool = False,
    in_place: bool = False,
) -> Workload:
    """Forward, and both: with the gradient by the operands, which is as large as they are."""
    forward = {name: (loss, (operands,)) for name, loss in losses.items()}
    both = {name: (jax.value_and_grad(loss), (operands,)) for name, loss in losses.items()}
    if in_place:
        both[IN_PLACE] = both["native"]
    size = _bytes(operands)
    return Workload(
        {"forward": forward, "both": both},
        {"forward": (size, 0), "both": (size * (2 if reads_twice else 1), size)},
    )


def of_loss(
    problem: Problem,
    dtype: Any,
    implementations: tuple[Implementation, ...],
    *,
    loss: Loss,
    reads_twice: bool = False,
    in_place: bool = False,
) -> Workload:
    """A loss, forward and both.

    That of logits must read them twice: the gradient of the first cell depends on all of them, and
    they do not fit in a cache. It may be computed in place, too.
    """
    operands = {name: jnp.asarray(x, dtype) for name, x in problem.operands().items()}
    labels = jnp.asarray(problem.labels())

    def summed(operands: Operands, implementation: Implementation) -> jax.Array:
        return loss(problem, operands, labels, implementation)

    losses = {name: partial(summed, implementation=name) for name in implementations}
    return _gradient_workload(losses, operands, reads_twice=reads_twice, in_place=in_place)


# ------------------------------------------------------------------------------------ public losses


def full(problem: Problem, x: Operands, labels: jax.Array, impl: Implementation) -> jax.Array:
    return jax_rnnt.rnnt_loss(x["logits"], labels, implementation=impl, reduction="sum")


def tdt(problem: Problem, x: Operands, labels: jax.Array, impl: Implementation) -> jax.Array:
    return jax_rnnt.rnnt_loss_tdt(
        x["logits"],
        x["duration_logits"],
        labels,
        durations=DURATIONS,
        implementation=impl,
        reduction="sum",
    )


def multi_blank(
    problem: Problem, x: Operands, labels: jax.Array, impl: Implementation
) -> jax.Array:
    return jax_rnnt.rnnt_loss_multi_blank(
        x["logits"],
        jnp.minimum(labels, problem.V - 4),  # the last three classes are the big blanks
        big_blank_ids=(-1, -2, -3),
        big_blank_durations=(2, 4, 8),
        implementation=impl,
        reduction="sum",
    )


def simple(problem: Problem, x: Operands, labels: jax.Array, impl: Implementation) -> jax.Array:
    return jax_rnnt.rnnt_loss_simple(x["am"], x["lm"], labels, implementation=impl, reduction="sum")


def smoothed(problem: Problem, x: Operands, labels: jax.Array, impl: Implementation) -> jax.Array:
    return jax_rnnt.rnnt_loss_smoothed(
        x["am"], x["lm"], labels, **SCALES, implementation=impl, reduction="sum"
    )


def _simple_and_ranges(
    x: Operands, labels: jax.Array, impl: Implementation
) -> tuple[jax.Array, jax.Array]:
    loss, posteriors = jax_rnnt.rnnt_loss_simple(
        x["am"], x["lm"], labels, return_posteriors=True, implementation=impl, reduction="sum"
    )
    return loss, jax_rnnt.get_rnnt_prune_ranges(posteriors, s_range=S_RANGE)


def pruned(problem: Problem, x: Operands, labels: jax.Array, impl: Implementation) -> jax.Array:
    """Simple loss, ranges, joint network, pruned loss."""
    loss, ranges = _simple_and_ranges(x, labels, impl)
    encoder, predictor = jax_rnnt.do_rnnt_pruning(x["encoder"], x["predictor"], ranges)
    logits = jnp.tanh(encoder + predictor) @ x["kernel"] + x["bias"]
    return loss + jax_rnnt.rnnt_loss_pruned(
        logits, labels, ranges, implementation=impl, reduction="sum"
    )


def pruned_joint(
    problem: Problem, x: Operands, labels: jax.Array, impl: Implementation
) -> jax.Array:
    loss, ranges = _simple_and_ranges(x, labels, impl)
    return loss + jax_rnnt.rnnt_loss_pruned_joint(
        jax_rnnt.LinearJoint(),
        {"kernel": x["kernel"], "bias": x["bias"]},
        x["encoder"],
        x["predictor"],
        labels,
        ranges,
        implementation=impl,
        reduction="sum",
    )


def from_arcs(problem: Problem, x: Operands, labels: jax.Array, impl: Implementation) -> jax.Array:
    return jax_rnnt.rnnt_loss_from_arcs(
        x["blank"], x["label"], implementation=impl, reduction="sum"
    )


def from_arc_terms(
    problem: Problem, x: Operands, labels: jax.Array, impl: Implementation
) -> jax.Array:
    blank, label = ([0.25 * x[name], 0.75 * x[name]] for name in ("blank", "label"))
    losses = jax_rnnt.rnnt_loss_from_arc_terms(blank, label, implementation=impl, reduction="sum")
    return losses.sum()


def packed_from_arcs(
    problem: Problem, x: Operands, labels: jax.Array, impl: Implementation
) -> jax.Array:
    return jax_rnnt.rnnt_loss_packed_from_arcs(
        x["blank"].reshape(-1),
        x["label"].reshape(-1),
        *problem.lengths(),
        max_labels=problem.U,
        implementation=impl,
        reduction="sum",
    )


# ------------------------------------------------------------------------------------ with a joint


def with_matrix_products(
    problem: Problem, dtype: Any, implementations: tuple[Implementation, ...], *, loss: Loss
) -> Workload:
    """A pruned loss beside the matrix products of its joint network: one forward, three in all."""
    workload = of_loss(problem, dtype, implementations, loss=loss)
    rows = jnp.ones((problem.B * problem.T * S_RANGE, problem.D), dtype)
    kernel = jnp.ones((problem.D, problem.V), dtype)
    gradient = jnp.ones((len(rows), problem.V), dtype)

    def products(rows: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Any:
        return rows @ kernel, gradient @ kernel.T, rows.T @ gradient

    workload.calls["forward"][MATRIX_PRODUCTS] = jnp.matmul, (rows, kernel)
    workload.calls["both"][MATRIX_PRODUCTS] = products, (rows, kernel, gradient)
    return Workload(workload.calls)


def librispeech_packed(params: Operands, constants: Operands) -> jax.Array:
    """The exact loss from the logits of all valid cells."""
    lengths = constants["logit_lengths"], constants["label_lengths"]
    rows = jax_rnnt.pack_joint_inputs(
        params["encoder"], params["predictor"], *lengths, jax_rnnt.packed_size(*lengths)
    )
    logits = jnp.tanh(rows) @ params["joiner"]["kernel"] + params["joiner"]["bias"]
    return jax_rnnt.rnnt_loss_packed(logits, constants["labels"], *lengths, reduction="sum")


def librispeech_tdt_joint(params: Operands, constants: Operands) -> jax.Array:
    """The last classes of the joint network stand for durations."""
    num_durations = len(DURATIONS)
    num_tokens = params["joiner"]["kernel"].shape[-1] - num_durations
    labels = jnp.minimum(constants["labels"], num_tokens - 1)
    return jax_rnnt.rnnt_loss_tdt_joint(
        jax_rnnt.LinearDurationJoint(num_durations),
        params["joiner"],
        params["encoder"],
        params["predictor"],
        **{**constants, "labels": labels},
        durations=DURATIONS,
        reduction="sum",
    )


LIBRISPEECH_LOSSES = {
    "rnnt_loss_packed": librispeech_packed,
    "rnnt_loss_joint": librispeech_joint,
    "rnnt_loss_tdt_joint": librispeech_tdt_joint,
    "rnnt_loss_pruned": partial(librispeech_pruned, s_range=S_RANGE),
}


def librispeech(
    problem: Problem, dtype: Any, implementations: tuple[Implementation, ...], *, op: str
) -> Workload:
    """A loss of utterances with lengths of their own."""
    del dtype, implementations
    utterances = [(min(t, problem.T), min(u, problem.U)) for t, u in UTTERANCES[: problem.B]]
    made = make_problem(utterances, problem.D, problem.V)
    loss = partial(LIBRISPEECH_LOSSES[op], constants=made.constants)
    return Workload(_gradient_workload({"native": loss}, made.params).calls)


# ------------------------------------------------------------------------------------ kernels alone


def _labels_and_bounds(
    problem: Problem, labels: jax.Array | None
) -> tuple[jax.Array | None, jax.Array]:
    """As kernels take them."""
    return labels_and_bounds(
        jnp.zeros(problem.B),
        Sizes((problem.B,), problem.T, problem.U, problem.V),
        Utterances(labels, None, None, None, None, None),
        blank_id=0,
    )


def arcs(problem: Problem, dtype: Any, implementations: tuple[Implementation, ...]) -> Workload:
    """The kernels from logits to arcs and back, each by itself."""
    labels, bounds = _labels_and_bounds(problem, jnp.asarray(problem.labels()))
    logits = jnp.asarray(problem.operands()["logits"], dtype)
    plane = jnp.full(logits.shape[:-1], math.log(problem.V), jnp.float32)
    weight = jnp.full_like(plane, 0.5)
    forward = logits, labels, bounds
    backward = logits, labels, plane, weight, weight, jnp.ones(problem.B)
    calls: dict[str, dict[str, Call]] = {"forward": {}, "backward": {}}
    for name in implementations:
        options = ArcsOptions(implementation=name)
        calls["forward"][name] = partial(arcs_fwd, options), forward
        calls["backward"][name] = partial(arcs_bwd, options), backward
    size, planes = _bytes(logits), 3 * _bytes(plane)
    return Workload(calls, {"forward": (size, planes), "backward": (size + planes, size)})


def lattice_alone(
    problem: Problem, dtype: Any, implementations: tuple[Implementation, ...]
) -> Workload:
    """The recursion: log-likelihood, and both passes with posteriors."""
    _, bounds = _labels_and_bounds(problem, None)
    planes = tuple(jnp.asarray(x, dtype) for x in problem.operands().values())
    calls: dict[str, dict[str, Call]] = {"forward": {}, "both": {}}
    for name in implementations:
        options = LatticeOptions(implementation=name)
        calls["forward"][name] = partial(lattice_score, options), (*planes, bounds)
        calls["both"][name] = partial(lattice, options), (*planes, bounds)
    size = _bytes(planes)
    return Workload(calls, {"forward": (size, 0), "both": (size, size)})


def overhead(problem: Problem, dtype: Any, implementations: tuple[Implementation, ...]) -> Workload:
    """A loss so small that calling it is all, beside one call of the smallest native op."""
    workload = of_loss(problem, dtype, implementations, loss=full)
    cell = Problem("arcs", 1, 1, 0)
    smallest = lattice_alone(cell, jnp.float32, ("native",)).calls["forward"]["native"]
    for calls in workload.calls.values():
        calls["one FFI call"] = smallest
    return Workload(workload.calls)
