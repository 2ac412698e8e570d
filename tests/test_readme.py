"""The README's example is run as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

README = Path(__file__).parent.parent / "README.md"


def test_example_runs() -> None:
    """Each Python block runs under the default configuration; the loss is finite."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        names: dict[str, Any] = {}
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            exec(compile(block, str(README), "exec"), names)
        assert jnp.isfinite(names["loss"])
        assert jnp.abs(names["gradient"]).sum() > 0
