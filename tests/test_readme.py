"""The examples of the README and of the documentation are run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

ROOT = Path(__file__).parent.parent
TESTED = ("index", "choosing", "recipes", "sharding", "sharp-bits")
PAGES = ["README.md", *(f"docs/{x}.md" for x in TESTED)]


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page: str) -> None:
    """A page's Python blocks run, in order, under the default configuration, without NaN or inf."""
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            exec(compile(block, page, "exec"), names)
    arrays = [x for x in names.values() if isinstance(x, jax.Array)]
    assert all(jnp.isfinite(x).all() for x in arrays if jnp.issubdtype(x.dtype, jnp.floating))
    assert "gradient" not in names or jnp.abs(names["gradient"]).sum() > 0
