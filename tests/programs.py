"""What a function is lowered, exported and compiled to."""

from __future__ import annotations

import re
from typing import Any

import jax
from jax.export import DisabledSafetyCheck
from jax.export import export as export_


def custom_calls(text: str) -> set[str]:
    """Names of the custom calls in a StableHLO module."""
    return set(re.findall(r"custom_call @([\w.$]+)", text))


def our_targets(function: Any, *arguments: Any) -> set[str]:
    """The custom calls that lowering for the present platform makes."""
    return custom_calls(jax.jit(function).lower(*arguments).as_text())


def export(function: Any, *arguments: Any, targets: set[str], **options: Any) -> Any:
    """With the named custom calls allowed in it."""
    checks = [DisabledSafetyCheck.custom_call(target) for target in sorted(targets)]
    return export_(jax.jit(function), disabled_checks=checks, **options)(*arguments)


def compiled_memory(function: Any, *arguments: Any) -> Any:
    """`memory_analysis()` of the compiled function; a backend without it is an error."""
    memory = jax.jit(function).lower(*arguments).compile().memory_analysis()
    assert memory is not None, f"no memory analysis on {jax.default_backend()}"
    return memory
