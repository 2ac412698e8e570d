"""Checks of the arguments of the additive joiner's losses and of arc terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from . import validation
from .bounds import Sizes
from .types import Normalization, Smoothing


def arc_terms(
    blank_terms: Any, label_terms: Any
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Equally many blank and label terms, all of one shape and dtype."""
    named = {"blank_terms": blank_terms, "label_terms": label_terms}
    for name, terms in named.items():
        if not isinstance(terms, Sequence):
            raise TypeError(
                f"{name} is a {type(terms).__name__}; expected a list or tuple of arrays. Pass "
                f"[{name}] if there is one term."
            )
    if len(label_terms) != len(blank_terms) or not label_terms:
        raise ValueError(
            f"label_terms has {len(label_terms)} terms and blank_terms {len(blank_terms)}; "
            "expected as many of one as of the other, at least 1. Pass zeros for a missing one."
        )
    first = validation.float_scores("blank_terms[0]", blank_terms[0])
    blanks, labels = (
        tuple(
            validation.like(f"{name}[{i}]", x, "blank_terms[0]", first) for i, x in enumerate(terms)
        )
        for name, terms in named.items()
    )
    return blanks, labels


def factored_sizes(am: tuple[int, ...], lm: tuple[int, ...]) -> Sizes:
    """Sizes from the shapes of the additive joiner's halves."""
    expected = "expected am (*batch, T, V) and lm (*batch, U+1, V)"
    for name, shape in (("am", am), ("lm", lm)):
        if len(shape) < 2:
            raise ValueError(f"{name} has shape {shape}; {expected}, at least 2 dimensions.")
    if am[:-2] != lm[:-2]:
        raise ValueError(
            f"lm has shape {lm} and am {am}; {expected}, with the same batch dimensions. If they "
            "share one half, broadcast it with jnp.broadcast_to."
        )
    if am[-1] != lm[-1]:
        raise ValueError(
            f"lm has {lm[-1]} classes and am {am[-1]}, shapes {lm} and {am}; {expected}, with the "
            "same V. Project both to the classes, blank included, first."
        )
    if isinstance(lm[-2], int) and lm[-2] < 1:
        raise ValueError(
            f"lm has shape {lm}, which is (*batch, U+1, V) with U+1 = 0; there is one label "
            "position more than there are labels, so U+1 >= 1. Did you leave out the start symbol?"
        )
    if isinstance(am[-1], int) and am[-1] < 1:
        raise ValueError(f"am has shape {am}, without classes; {expected}, V >= 1.")
    sizes = Sizes(am[:-2], am[-2], lm[-2] - 1, am[-1], ("am", "lm"))
    return validation.with_known_lengths(sizes)


def factored_scores(am: Any, lm: Any) -> tuple[jax.Array, jax.Array, Sizes]:
    """The additive joiner's halves, of one dtype and of shapes that fit together."""
    am, lm = validation.float_scores("am", am), validation.float_scores("lm", lm)
    if lm.dtype != am.dtype:
        raise TypeError(
            f"lm has dtype {lm.dtype}; expected {am.dtype}, the dtype of am. Convert with "
            "lm.astype(am.dtype)."
        )
    return am, lm, factored_sizes(am.shape, lm.shape)


def smoothing(lm_only_scale: Any, am_only_scale: Any, normalization: Any) -> Smoothing:
    """Checks the shares of the three log-probabilities that a smoothed arc mixes."""
    if validation.one_of("normalization", normalization, Normalization) != "softmax":
        raise ValueError(
            f"normalization is {normalization!r}; the smoothed loss is defined for 'softmax' only. "
            "Use rnnt_loss_simple, which does not smooth."
        )
    shares = Smoothing(
        validation.finite_number("lm_only_scale", lm_only_scale, minimum=0.0),
        validation.finite_number("am_only_scale", am_only_scale, minimum=0.0),
    )
    if not shares.joint_scale > 0:
        raise ValueError(
            f"lm_only_scale is {lm_only_scale} and am_only_scale {am_only_scale}; expected a sum "
            "below 1, as the rest is the share of am + lm."
        )
    return shares
