"""The same losses by `torchaudio.functional.rnnt_loss`, timed by CUDA events."""

from __future__ import annotations

import importlib
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

from gpu_cases import Case, random_numpy_labels
from gpu_timing import MORE_THAN_THE_CACHE

# Its closest dtypes: it has no kernels for bfloat16.
DTYPES = {"float32": "float32", "bfloat16": "float16"}


class Torchaudio:
    """The loss of torchaudio on the GPU, or on the CPU; or the reason why it cannot be had."""

    def __init__(self, platform: str):
        self.missing: str | None = None
        self.device = "cpu" if platform == "cpu" else "cuda"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that torchaudio is in maintenance
                self.torch: Any = importlib.import_module("torch")
                functional = importlib.import_module("torchaudio.functional")
                self.rnnt_loss: Any = functional.rnnt_loss
                self.version = importlib.import_module("torchaudio").__version__
        except (ImportError, AttributeError, OSError) as error:
            self.missing = f"{type(error).__name__}: {error}"
            return
        if self.device == "cuda" and not self.torch.cuda.is_available():
            self.missing = "this torch sees no GPU"

    def measure(self, case: Case) -> tuple[Callable[[], float], int | None]:
        """A timer of one call, and the bytes that the allocator had given out at most in one."""
        torch = self.torch
        B, T, W, _ = case.shape
        count = max(1, min(8, math.ceil(MORE_THAN_THE_CACHE / case.bytes_held())))
        gradient = case.op == "loss"
        dtype = getattr(torch, DTYPES[case.dtype])
        sets = [
            torch.randn(case.shape, device=self.device).to(dtype).requires_grad_(gradient)
            for _ in range(count)
        ]
        labels = torch.as_tensor(random_numpy_labels(case), device=self.device)
        frames = torch.full((B,), T, dtype=torch.int32, device=self.device)
        lengths = torch.full((B,), W - 1, dtype=torch.int32, device=self.device)

        def once() -> None:
            for logits in sets:
                loss = self.rnnt_loss(logits, labels, frames, lengths, blank=0, reduction="sum")
                if gradient:
                    loss.backward()
                    logits.grad = None

        def all_seconds() -> float:
            start = time.perf_counter()
            once()
            return time.perf_counter() - start

        def all_seconds_on_gpu() -> float:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            once()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / 1e3

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that torchaudio is in maintenance; said once
            once()  # loads the kernels
        if self.device == "cpu":
            return lambda: all_seconds() / count, None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        once()
        torch.cuda.synchronize()
        idle_sets = sum(logits.nbytes for logits in sets[1:])
        peak = torch.cuda.max_memory_allocated() - idle_sets
        return lambda: all_seconds_on_gpu() / count, peak

    def give_memory_back(self) -> None:
        """To CUDA, for JAX to take. Torch is not asked again once CUDA's errors turn up here."""
        if self.missing is None and self.device == "cuda":
            try:
                self.torch.cuda.empty_cache()
            except RuntimeError as error:
                self.missing = f"{type(error).__name__}: {error}"
