"""Lattices with many labels, whose rows do not fit into the faster memories."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cases import (
    assert_grad_close,
    assert_loss_close,
    expected_arcs,
    random_arcs,
    run_arcs,
)

_emulated = sys.modules.get("_cuda_emulated")
# Shared memory of a block: of Hopper, of Turing, and the least of any device.
SHARED_BYTES = [232448, 65536, 49152] if _emulated else [0]


@pytest.fixture(params=SHARED_BYTES)
def shared_bytes(request: pytest.FixtureRequest) -> Iterator[int]:
    """The emulated device's shared memory; without emulation, there is nothing to choose."""
    if _emulated:
        _emulated.set_device(shared_memory_per_block_optin=request.param)
    yield request.param
    if _emulated:
        _emulated.set_device()


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize(
    ("topology", "frames", "labels"),
    [
        ("regular", 4, 300),
        ("regular", 4, 600),
        ("regular", 4, 900),
        ("regular", 4, 1100),
        ("constrained", 405, 400),
    ],
)
def test_wide(shared_bytes: int, topology: str, frames: int, labels: int, dtype: Any) -> None:
    """Few frames, many labels; as many of both where a frame emits no more than one."""
    batch = random_arcs(np.random.default_rng(0), 2, frames, labels, dtype=dtype, topology=topology)
    loss, gradients, _ = run_arcs(batch, "native", topology=topology)
    wanted = expected_arcs(batch, topology=topology)
    tolerance = 1e-4 if dtype == np.float32 else 1e-10
    assert_loss_close(loss, wanted.loss, tolerance / 10)
    for found, expected in zip(gradients, (wanted.grad_blank, wanted.grad_label), strict=True):
        assert_grad_close(found, expected, tolerance)
