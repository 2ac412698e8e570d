"""The choice between an op in pure JAX and the same by a native kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .types import Implementation


def chosen(
    implementation: Implementation, in_jax: Callable[..., Any], native: Callable[..., Any]
) -> Callable[..., Any]:
    """One of both functions. The native op decides about `"auto"` when lowering, by platform."""
    if implementation == "xla":
        return in_jax
    return partial(native, native=implementation == "native")
