"""Random batches for the losses of the additive joiner, and the library run on them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import WHOLE, Array, Lengths, random_lengths
from oracles_factored import FactoredBatch, FactoredResult

import jax_rnnt

each_implementation = pytest.mark.parametrize("implementation", ["native", "xla"])


def random_factored(
    rng: np.random.Generator,
    batch: int,
    frames: int,
    labels: int,
    classes: int,
    *,
    dtype: Any = np.float64,
    scale: float = 1.0,
    **options: Any,
) -> FactoredBatch:
    """Normal halves, legal labels, random bounds."""
    am = scale * rng.normal(size=(batch, frames, classes))
    lm = scale * rng.normal(size=(batch, labels + 1, classes))
    allowed = np.delete(np.arange(classes), options.get("blank_id", 0) % classes)
    ids = rng.choice(allowed, (batch, labels)) if labels else np.zeros((batch, 0), int)
    lengths = random_lengths(rng, batch, frames, labels, options)
    return FactoredBatch(am.astype(dtype), lm.astype(dtype), ids.astype(np.int32), lengths)


def factored_function(implementation: str = "auto", **options: Any) -> Callable[..., Any]:
    """`(am, lm, labels, lengths, where) -> losses`: smoothed if the options have scales."""
    smoothed = "lm_only_scale" in options or "am_only_scale" in options
    function: Any = jax_rnnt.rnnt_loss_smoothed if smoothed else jax_rnnt.rnnt_loss_simple

    def loss(
        am: Array, lm: Array, labels: Array, lengths: Lengths = WHOLE, where: Array | None = None
    ) -> Any:
        return function(
            am,
            lm,
            labels,
            lengths.logit_lengths,
            lengths.label_lengths,
            logit_begins=lengths.logit_begins,
            label_begins=lengths.label_begins,
            where=where,
            implementation=implementation,
            **options,
        )

    return loss


def loss_and_grads(function: Callable[..., Any]) -> Callable[..., FactoredResult]:
    """`(am, lm, ...) -> (losses, gradients of their sum)`."""

    def both(am: Array, lm: Array, *rest: Any) -> FactoredResult:
        loss, vjp = jax.vjp(lambda *x: function(*x, *rest), am, lm)
        return FactoredResult(loss, *vjp(jnp.ones_like(loss)))

    return both


@functools.cache
def _compiled(implementation: str, items: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    function = factored_function(implementation, **dict(items))

    def run(batch: FactoredBatch, cotangent: Array | None) -> FactoredResult:
        loss, vjp = jax.vjp(lambda *x: function(*x, *batch[2:]), batch.am, batch.lm)
        return FactoredResult(loss, *vjp(jnp.ones_like(loss) if cotangent is None else cotangent))

    return jax.jit(run)


def run_factored(
    batch: FactoredBatch, implementation: str, cotangent: Array | None = None, **options: Any
) -> FactoredResult:
    """Jitted loss and its gradients by both halves."""
    return jax.device_get(_compiled(implementation, tuple(options.items()))(batch, cotangent))
