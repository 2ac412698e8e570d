"""Runs the losses of other systems, under a Python that has them, for `peers.py`.

    PYTHON peer_server.py PROBLEM THREADS

It first writes a line of JSON: each system's version and summed loss, or why it is left out. Then
it reads lines, `STEP SYSTEM`, makes that call once and writes the seconds it took; `memory STEP
SYSTEM` makes it write the memory instead, and `keep` changes the allocator for good.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from problems import S_RANGE, SCALES, Problem
from process import keep_freed_memory, page_faults, peak_memory
from worker import serve

Loss = Callable[..., Any]
"""From the tensors of `Problem.operands` to the sum of the losses."""


class Inputs:
    """What every adapter is given beside the operands."""

    def __init__(self, torch: Any, problem: Problem):
        self.torch = torch
        self.labels = torch.from_numpy(problem.labels())
        self.frames, self.label_lengths = (torch.from_numpy(x) for x in problem.lengths())
        bounds = [[0, 0, problem.U, problem.T]] * problem.B
        self.boundary = torch.tensor(bounds, dtype=torch.int64)

    @property
    def utterances(self) -> tuple[Any, Any, Any]:
        return self.labels, self.frames, self.label_lengths


# Each adapter returns a system's losses by the kind of problem.


def _rnnt_loss(system: Any, inputs: Inputs) -> dict[str, Loss]:
    def loss(logits: Any) -> Any:
        return system.rnnt_loss(logits, *inputs.utterances, blank=0, reduction="sum")

    return {"logits": loss}


def _optimized_transducer(system: Any, inputs: Inputs) -> dict[str, Loss]:
    def loss(logits: Any) -> Any:
        rows = logits.view(-1, logits.shape[-1])  # all lengths are full: they are packed
        return system.transducer_loss(
            rows, *inputs.utterances, blank=0, from_log_softmax=False, reduction="sum"
        )

    return {"logits": loss}


def _transducer(system: Any, inputs: Inputs) -> dict[str, Loss]:
    loss = system.TransducerLoss(blank=0)
    return {"additive": lambda am, lm: loss(am, lm, *inputs.utterances).sum()}


def _k2(system: Any, inputs: Inputs) -> dict[str, Loss]:
    torch, boundary, symbols = inputs.torch, inputs.boundary, inputs.labels.long()
    common = {"termination_symbol": 0, "boundary": boundary, "reduction": "sum"}

    def full(logits: Any) -> Any:
        return system.rnnt_loss(logits, symbols, **common)

    def simple(am: Any, lm: Any) -> Any:
        return system.rnnt_loss_simple(lm, am, symbols, **common)

    def smoothed(am: Any, lm: Any) -> Any:
        return system.rnnt_loss_smoothed(lm, am, symbols, **SCALES, **common)

    def pruned(am: Any, lm: Any, encoder: Any, predictor: Any, kernel: Any, bias: Any) -> Any:
        loss, gradients = system.rnnt_loss_simple(lm, am, symbols, return_grad=True, **common)
        ranges = system.get_rnnt_prune_ranges(*gradients, boundary, S_RANGE)
        rows = system.do_rnnt_pruning(encoder, predictor, ranges)
        logits = torch.tanh(rows[0] + rows[1]) @ kernel + bias
        return loss + system.rnnt_loss_pruned(logits, symbols, ranges, **common)

    def lattice(blank: Any, label: Any) -> Any:
        return -system.mutual_information_recursion(label, blank, boundary).sum()

    return {
        "logits": full,
        "additive": simple,
        "smoothed": smoothed,
        "pruned": pruned,
        "arcs": lattice,
    }


ADAPTERS: dict[str, tuple[str, Callable[[Any, Inputs], dict[str, Loss]]]] = {
    "torchaudio": ("torchaudio.functional", _rnnt_loss),
    "fast_rnnt": ("fast_rnnt", _k2),
    "k2": ("k2", _k2),
    "optimized_transducer": ("optimized_transducer", _optimized_transducer),
    "warprnnt_pytorch": ("warprnnt_pytorch", _rnnt_loss),
    "transducer": ("transducer", _transducer),
}
"""By the name of the system: the module to import, and its adapter."""


def prepared(problem: Problem, operands: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Operands in the layout of the systems: for arcs, the label axis first, and frame T."""
    if problem.kind != "arcs":
        return operands
    blank, label = (x.transpose(0, 2, 1) for x in (operands["blank"], operands["label"]))
    label = np.pad(label[:, :-1], ((0, 0), (0, 0), (0, 1)), constant_values=-np.inf)
    return {"blank": np.ascontiguousarray(blank), "label": np.ascontiguousarray(label)}


class Server:
    """The losses that there are for a problem, and calls of them."""

    def __init__(self, problem: Problem, threads: int):
        self.problem = problem
        self.losses: dict[str, Loss] = {}
        self.found: dict[str, Any] = {}
        try:
            self.torch = importlib.import_module("torch")
        except ImportError as error:
            self.found = {name: {"skipped": str(error)} for name in ADAPTERS}
            return
        self.torch.set_num_threads(threads)
        inputs = Inputs(self.torch, problem)
        operands = prepared(problem, problem.operands()).items()
        self.operands = {name: self.torch.from_numpy(array) for name, array in operands}
        for name, (module, adapter) in ADAPTERS.items():
            try:
                losses = adapter(importlib.import_module(module), inputs)
                if problem.kind in losses:
                    self.losses[name] = losses[problem.kind]
                    loss = self.call(name, "forward", self.tensors(name, "forward"))
                    self.found[name] = {"version": _version(name), "loss": loss}
            except Exception as error:  # whatever the matter is, the others can be measured
                self.losses.pop(name, None)
                self.found[name] = {"skipped": f"{type(error).__name__}: {error}"}

    def tensors(self, name: str, step: str) -> dict[str, Any]:
        """The operands of a call. One system writes its gradient over its operand."""
        copy = step == "both" and name == "optimized_transducer"
        tensors = {k: x.clone() if copy else x.detach() for k, x in self.operands.items()}
        for tensor in tensors.values():
            tensor.requires_grad_(step == "both")
        return tensors

    def call(self, name: str, step: str, tensors: dict[str, Any]) -> float:
        """The loss."""
        with self.torch.set_grad_enabled(step == "both"):
            loss = self.losses[name](**tensors)
            if step == "both":
                loss.backward()
        return float(loss)

    def answer(self, *words: str) -> Any:
        """To a request."""
        match words:
            case ("keep",):
                keep_freed_memory()
                return None
            case ("memory", step, name):
                self.call(name, step, self.tensors(name, step))  # once, see there
                tensors = self.tensors(name, step)
                return peak_memory(lambda: self.call(name, step, tensors))
            case (step, name):
                tensors = self.tensors(name, step)
                faults, start = page_faults(), time.perf_counter()
                self.call(name, step, tensors)
                seconds = time.perf_counter() - start
                return {"seconds": seconds, "page_faults": page_faults() - faults}
        raise ValueError(f"unknown request {words}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return getattr(sys.modules[name], "__version__", None)


def main() -> None:
    problem, threads = Problem(**json.loads(sys.argv[1])), int(sys.argv[2])
    warnings.simplefilter("ignore")

    def ready() -> tuple[dict[str, Any], Callable[..., Any]]:
        server = Server(problem, threads)
        return server.found, server.answer

    serve(ready)


if __name__ == "__main__":
    main()
