"""Held-out prompts that share no text, nor nearly the same text, with training prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rapidfuzz import fuzz, process
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

NEAR_DUPLICATE = 0.85
"""Texts at least this similar (difflib's ratio, 0 to 1) must not be on both sides."""


def near_duplicate_groups(texts: Sequence[str], threshold: float = NEAR_DUPLICATE) -> np.ndarray:
    """Group number (n,) of each text; similar texts share one, chains of them too.

    The similarity is twice the longest common subsequence over both lengths. difflib's ratio
    counts matching blocks, which are a common subsequence, so it is never above this one.
    """
    similarity = process.cdist(texts, texts, scorer=fuzz.ratio) / 100
    return connected_components(csr_array(similarity >= threshold), directed=False)[1]


def split(texts: Sequence[str], fraction: float = 0.1, seed: int = 0) -> tuple[list, list]:
    """Indices of training and held-out texts; whole groups of near-duplicates are held out.

    Groups come in random order until `fraction` of the texts is held out; a group that would
    hold out more than half as many again is passed over.
    """
    groups = near_duplicate_groups(texts)
    wanted = fraction * len(texts)
    held_out: list[int] = []
    for group in np.random.default_rng(seed).permutation(groups.max() + 1):
        members = np.flatnonzero(groups == group).tolist()
        if len(held_out) + len(members) <= 1.5 * wanted:
            held_out += members
        if len(held_out) >= wanted:
            break
    training = sorted(set(range(len(texts))) - set(held_out))
    return training, sorted(held_out)
