"""What `suite.py` measures: every public loss and the kernels alone, at the field's shapes.

A to F are the shapes of warp-rnnt's, awni's and k2's benchmarks, TDT one of other kernels of its
loss. LibriSpeech is a batch of 30 of
its utterances, in no order, with a joint network of width 512.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import workloads
from problems import Problem
from workloads import (
    LIBRISPEECH_LOSSES,
    Loss,
    Make,
    Workload,
    librispeech,
    of_loss,
    with_matrix_products,
)

from jax_rnnt.types import Implementation

BOTH = ("float32", "bfloat16")


@dataclass(frozen=True)
class Case:
    """One loss, or kernel, at one shape.

    Attributes:
      op, shape: its name.
      make: see `workloads`.
      xla: whether to compare with pure JAX.
      peers: whether other systems have this loss.
      quick: whether a quick run measures it, too.
      steps: those of the workload that are measured.
      allocators: `"fresh"`, glibc's own, where large results are mapped anew, and `"reused"`, where
        freed memory stays in the process.
    """

    op: str
    shape: str
    problem: Problem
    make: Make
    dtypes: tuple[str, ...] = ("float32",)
    xla: bool = True
    peers: bool = False
    quick: bool = False
    steps: tuple[str, ...] = ("forward", "both", "backward")
    allocators: tuple[str, ...] = ("fresh", "reused")

    @property
    def name(self) -> str:
        return f"{self.op} {self.shape}"

    def tiny(self) -> Case:
        """The same with a problem that takes no time."""
        most = {"B": 2, "T": 6, "U": 3, "V": 11, "D": 8}
        sizes = {name: min(n, most[name]) for name, n in self.problem.sizes.items()}
        return replace(self, problem=replace(self.problem, **sizes))

    def workload(self, dtype: str) -> Workload:
        implementations: tuple[Implementation, ...] = ("native", "xla") if self.xla else ("native",)
        made = self.make(self.problem, jnp.dtype(dtype), implementations)
        return replace(
            made, calls={step: made.calls[step] for step in made.calls if step in self.steps}
        )


FULL = partial(of_loss, loss=workloads.full, reads_twice=True)

LOGITS = {
    "A": Problem("logits", 16, 150, 40, 28),
    "B1": Problem("logits", 1, 150, 20, 5000),
    "B4": Problem("logits", 4, 150, 20, 5000),
    "C": Problem("logits", 1, 1500, 300, 50),
    "single": Problem("logits", 1, 150, 40, 28),
}
D = {f"D{V}": Problem("additive", 8, 2000, 100, V) for V in (100, 1000)}
E = Problem("pruned", 4, 500, 100, 500, 512)
F = Problem("arcs", 16, 1000, 100)
TDT = Problem("durations", 8, 100, 20, 1025)
LIBRISPEECH = Problem("librispeech", 30, 437, 101, 500, 512)
TINY = Problem("logits", 1, 2, 1, 4)

# For the kernels alone; the logits are 50 to 250 MB, more than a cache holds.
ARCS = {
    "V=28": Problem("logits", 64, 150, 40, 28),
    "V=50": Problem("logits", 2, 1500, 300, 50),
    "V=500": Problem("logits", 8, 150, 40, 500),
    "V=5000": LOGITS["B4"],
}

SCALING_BASE = Problem("logits", 4, 200, 40, 128)
FACTORS = (1, 2, 5, 10)


def scaling_problems() -> dict[str, list[Problem]]:
    """By axis: a decade of its size."""
    return {
        axis: [replace(SCALING_BASE, **{axis: n * SCALING_BASE.sizes[axis]}) for n in FACTORS]
        for axis in "BTUV"
    }


ONLY_OURS: dict[str, Any] = {"xla": False, "steps": ("both",), "allocators": ("reused",)}


def _losses() -> list[Case]:
    def case(op: str, shape: str, problem: Problem, loss: Loss, **more: Any) -> Case:
        make = partial(of_loss, loss=loss)
        return Case(op, shape, problem, make, **more)

    def with_products(op: str, loss: Loss, **more: Any) -> Case:
        return Case(op, "E", E, partial(with_matrix_products, loss=loss), BOTH, **more)

    full = [
        Case(
            "rnnt_loss",
            name,
            problem,
            partial(FULL, in_place=True),
            BOTH,
            peers=True,
            quick=name in ("A", "B1", "single"),
        )
        for name, problem in LOGITS.items()
    ]
    simple = [
        case(
            "rnnt_loss_simple",
            name,
            problem,
            workloads.simple,
            dtypes=BOTH,
            peers=True,
            quick=name == "D100",
        )
        for name, problem in D.items()
    ]
    return [
        *full,
        Case(
            "rnnt_loss_tdt",
            "TDT",
            TDT,
            partial(of_loss, loss=workloads.tdt, reads_twice=True),
            BOTH,
        ),
        Case(
            "rnnt_loss_multi_blank",
            "TDT",
            replace(TDT, kind="logits"),
            partial(of_loss, loss=workloads.multi_blank, reads_twice=True),
            BOTH,
        ),
        *simple,
        case(
            "rnnt_loss_smoothed",
            "D100",
            replace(D["D100"], kind="smoothed"),
            workloads.smoothed,
            peers=True,
        ),
        with_products("rnnt_loss_pruned", workloads.pruned, peers=True, quick=True),
        with_products("rnnt_loss_pruned_joint", workloads.pruned_joint),
        case("rnnt_loss_from_arcs", "F", F, workloads.from_arcs, peers=True),
        case("rnnt_loss_from_arc_terms", "F", F, workloads.from_arc_terms, xla=False),
        case("rnnt_loss_packed_from_arcs", "F", F, workloads.packed_from_arcs, xla=False),
    ]


def _librispeech() -> list[Case]:
    return [
        Case(op, "LibriSpeech", LIBRISPEECH, partial(librispeech, op=op), **ONLY_OURS)
        for op in LIBRISPEECH_LOSSES
    ]


def _kernels() -> list[Case]:
    arcs = [
        Case("arcs", name, problem, workloads.arcs, BOTH, quick=name in ("V=28", "V=500"))
        for name, problem in ARCS.items()
    ]
    return [
        *arcs,
        Case("lattice", "F", F, workloads.lattice_alone, quick=True),
        Case("overhead", "tiny", TINY, workloads.overhead, xla=False, quick=True),
    ]


def _scaling() -> list[Case]:
    distinct = dict.fromkeys(p for problems in scaling_problems().values() for p in problems)
    return [Case("scaling", str(tuple(p.sizes.values())), p, FULL, **ONLY_OURS) for p in distinct]


def all_cases() -> list[Case]:
    """In the order in which they are measured."""
    return [*_losses(), *_librispeech(), *_kernels(), *_scaling()]


def case_named(name: str) -> Case:
    (case,) = (case for case in all_cases() if case.name == name)
    return case
