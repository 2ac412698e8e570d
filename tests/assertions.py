"""Assertions that several test files make."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ERRORS = (ValueError, TypeError)


def close(found: Any, wanted: Any, tolerance: float = 1e-12) -> None:
    """Equal trees, by default up to float64 rounding."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float64), b, rtol=tolerance, atol=tolerance
        ),
        found,
        wanted,
    )


def assert_names(message: str, *words: str) -> None:
    """Every word stands in the message, numbers not merely as a part of longer numbers."""
    for word in words:
        assert re.search(rf"(?<![\w-]){re.escape(word)}(?!\w)", message), (
            f"{word!r} not in: {message}"
        )


def assert_rounded(found: np.ndarray, wanted: np.ndarray) -> None:
    """Element by element, twice the rounding of the dtype, plus float32's promised error.

    Half a unit in the last place of a normal number is eps/2 of its value, that of a subnormal one
    half the smallest. The float32 arithmetic before rounding may be off by 1e-5 of the norm.
    """
    info = jnp.finfo(found.dtype)
    norm = np.linalg.norm(wanted.reshape(len(wanted), -1), axis=-1)[:, None, None, None]
    half = np.maximum(float(info.eps) * np.abs(wanted), float(info.smallest_subnormal)) / 2
    error = np.abs(found.astype(np.float64) - wanted)
    assert (error <= 2 * half + 1e-5 * norm).all(), np.max(error / half)
