"""Utterances that are spoiled, and what must come of them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

BAD = 2  # the utterance that is spoiled
SMALL, LARGE = -(2**31), 2**31 - 1
GARBAGE = [np.nan, np.inf, -np.inf, 1e30, -1e30]


def assert_only_one_bad(found: Any, clean: Any, loss: float, row: int = BAD) -> None:
    """(loss, gradients...): `row` has this loss, zero gradients; the rest is bitwise the same."""
    np.testing.assert_array_equal(found[0][row], loss)
    others = np.arange(len(found[0])) != row
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(one[others], two[others])
        assert one is jax.tree.leaves(found)[0] or (one[row] == 0).all()
