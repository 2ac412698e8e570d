"""The oracles against each other, against finite differences and against published numbers. No
library code.
"""

from __future__ import annotations

import numpy as np
import oracles
import pytest
from oracles import Bounds

TOPOLOGIES = [("regular", False), ("modified", False), ("modified", True), ("constrained", False)]


def test_published_example() -> None:
    """Cost and gradient that warp-transducer's own tests record for this 2 x 3 lattice."""
    logits = np.array(
        [
            [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1, 0.1], [0.1, 0.1, 0.2, 0.8, 0.1]],
            [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.2, 0.1, 0.1], [0.7, 0.1, 0.2, 0.1, 0.1]],
        ]
    )
    grad = [
        [
            [-0.13116688, -0.3999269, 0.17703125, 0.17703125, 0.17703125],
            [-0.18572757, 0.12247056, -0.18168412, 0.12247056, 0.12247056],
            [-0.32091254, 0.06269141, 0.06928472, 0.12624499, 0.06269141],
        ],
        [
            [0.05456069, -0.21824276, 0.05456069, 0.05456069, 0.05456069],
            [0.12073959, 0.12073959, -0.48295835, 0.12073959, 0.12073959],
            [-0.6925882, 0.16871116, 0.18645467, 0.16871116, 0.16871116],
        ],
    ]
    result = oracles.logits_loss(logits, np.array([1, 2]))
    np.testing.assert_allclose(result.loss, 4.495666, atol=1e-6)
    np.testing.assert_allclose(result.grad, grad, atol=1e-6)


@pytest.mark.parametrize(("topology", "final_blank"), TOPOLOGIES)
def test_number_of_paths(topology: str, final_blank: bool) -> None:
    """With arcs of probability one the likelihood counts the paths: a binomial coefficient."""
    from math import comb

    for frames in range(5):
        for labels in range(4):
            if frames == 0:
                expected = int(labels == 0)
            elif topology == "regular":
                expected = comb(frames - 1 + labels, labels)
            else:
                expected = comb(frames - final_blank, labels)
            arcs = np.zeros((6, 5))
            bounds = Bounds(1, 1 + frames, 1, 1 + labels)
            for lattice in (oracles.by_enumeration, oracles.by_recursion):
                found = lattice(arcs, arcs, bounds, topology, final_blank).log_likelihood
                assert round(np.exp(found)) == expected, (frames, labels, lattice)


@pytest.mark.parametrize(("topology", "final_blank"), TOPOLOGIES)
def test_recursion_is_enumeration(topology: str, final_blank: bool) -> None:
    """Recursion against enumeration: every part of a 4 x 3 lattice, some arcs -inf, everything
    else NaN.
    """
    rng = np.random.default_rng(0)
    for t0, u0 in [(0, 0), (1, 0), (0, 2), (2, 1)]:
        for frames in range(5):
            for labels in range(4):
                bounds = Bounds(t0, t0 + frames, u0, u0 + labels)
                blank, label = rng.normal(size=(2, 7, 7))
                blank[rng.random(blank.shape) < 0.1] = -np.inf
                label[rng.random(label.shape) < 0.1] = -np.inf
                used = oracles.used_arcs(bounds, (7, 7), topology, final_blank)
                blank, label = (
                    np.where(use, x, np.nan) for use, x in zip(used, (blank, label), strict=True)
                )
                slow = oracles.by_enumeration(blank, label, bounds, topology, final_blank)
                fast = oracles.by_recursion(blank, label, bounds, topology, final_blank)
                np.testing.assert_allclose(
                    fast.log_likelihood, slow.log_likelihood, rtol=1e-13, atol=1e-13
                )
                np.testing.assert_allclose(fast.blank, slow.blank, atol=1e-13)
                np.testing.assert_allclose(fast.label, slow.label, atol=1e-13)


def central_difference(f, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """d f / d x for scalar f; truncation about step**2, rounding about 1e-16 / step."""
    grad = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[index] += step
        behind[index] -= step
        grad[index] = (f(ahead) - f(behind)) / (2 * step)
    return grad


BEGINS = {"logit_begins": np.array([0, 1]), "label_begins": np.array([0, 1])}
LENGTHS = np.array([4, 5]), np.array([2, 3])


@pytest.mark.parametrize("normalization", ["softmax", "none", "hat"])
@pytest.mark.parametrize(("topology", "final_blank"), TOPOLOGIES)
def test_logits_gradient(topology: str, final_blank: bool, normalization: str) -> None:
    """Hand-derived gradient by the logits against central differences of the loss, delay penalty
    included.
    """
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 5, 4, 4))
    labels = np.array([[0, 1, 3], [3, 0, 1]])
    options = dict(
        BEGINS, blank_id=2, topology=topology, final_blank=final_blank, delay_penalty=0.3
    )

    def total(x: np.ndarray) -> float:
        return oracles.logits_loss(
            x, labels, *LENGTHS, normalization=normalization, **options
        ).loss.sum()

    grad = oracles.logits_loss(
        logits, labels, *LENGTHS, normalization=normalization, **options
    ).grad
    np.testing.assert_allclose(grad, central_difference(total, logits), atol=1e-8)
    enumerated = oracles.logits_loss(
        logits,
        labels,
        *LENGTHS,
        normalization=normalization,
        lattice=oracles.by_enumeration,
        **options,
    )
    np.testing.assert_allclose(grad, enumerated.grad, atol=1e-13)


@pytest.mark.parametrize(("topology", "final_blank"), TOPOLOGIES)
def test_arcs_gradient_and_posteriors(topology: str, final_blank: bool) -> None:
    """Arc gradients against central differences; without FastEmit they are minus the posteriors."""
    blank, label = np.random.default_rng(2).normal(size=(2, 2, 5, 4))
    options = dict(BEGINS, topology=topology, final_blank=final_blank, delay_penalty=0.3)

    def total(x: np.ndarray) -> float:
        return oracles.arcs_loss(x[0], x[1], *LENGTHS, **options).loss.sum()

    result = oracles.arcs_loss(blank, label, *LENGTHS, **options)
    difference = central_difference(total, np.stack([blank, label]))
    np.testing.assert_allclose(result.grad_blank, difference[0], atol=1e-8)
    np.testing.assert_allclose(result.grad_label, difference[1], atol=1e-8)
    np.testing.assert_array_equal(result.grad_blank, -result.posteriors.blank)
    np.testing.assert_array_equal(result.grad_label, -result.posteriors.label)


@pytest.mark.parametrize("normalization", ["softmax", "hat"])
@pytest.mark.parametrize(("topology", "final_blank"), TOPOLOGIES)
def test_fastemit_gradient(topology: str, final_blank: bool, normalization: str) -> None:
    """FastEmit is the gradient of sum(frozen posteriors x arcs), label steps weighted 1 + lambda.

    The sum is differentiated numerically, with posteriors from enumeration: a derivation that
    shares with the oracle only the arcs' values. The loss and the posteriors themselves do not
    change.
    """
    emit = 0.7
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=(5, 4, 4)), np.array([3, 0, 1])
    options = {
        "blank_id": 2,
        "normalization": normalization,
        "topology": topology,
        "final_blank": final_blank,
    }
    wanted = np.array([3, 0, 1, 0])
    bounds = Bounds(0, 5, 0, 3)

    def arcs(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return oracles.arcs_and_jacobians(x, wanted, 2, normalization)[:2]

    frozen = oracles.by_enumeration(*arcs(logits), bounds, topology, final_blank)

    def surrogate(x: np.ndarray) -> float:
        blank, label = arcs(x)
        if topology == "constrained":
            label = label + np.append(blank[:, 1:], np.zeros((5, 1)), 1)
        return -(frozen.blank * blank).sum() - (1 + emit) * (frozen.label * label).sum()

    result = oracles.logits_loss(logits, labels, fastemit_lambda=emit, **options)
    np.testing.assert_allclose(result.grad, central_difference(surrogate, logits), atol=1e-8)
    plain = oracles.logits_loss(logits, labels, **options)
    assert result.loss == plain.loss
    clamped = oracles.logits_loss(logits, labels, fastemit_lambda=emit, clamp=0.05, **options)
    np.testing.assert_array_equal(clamped.grad, np.clip(result.grad, -0.05, 0.05))
    assert (clamped.grad != result.grad).any()


def test_forbidden_arcs() -> None:
    """-inf logits against the same with a very negative number; dead cells get a zero gradient."""
    rng = np.random.default_rng(4)
    logits, labels = rng.normal(size=(4, 3, 4)), np.array([1, 2])
    for normalization in ("softmax", "hat", "none"):
        forbidden = logits.copy()
        forbidden[1, 0, 1] = forbidden[2, 1, 0] = forbidden[0, 2, 3] = -np.inf
        forbidden[3, 0, :] = -np.inf
        nearly = np.where(np.isinf(forbidden), -800.0, forbidden)
        nearly[3, 0, 3] = -100.0 if normalization != "none" else -800.0
        found = oracles.logits_loss(forbidden, labels, normalization=normalization)
        wanted = oracles.logits_loss(nearly, labels, normalization=normalization)
        np.testing.assert_allclose(found.loss, wanted.loss, rtol=1e-13)
        np.testing.assert_allclose(found.grad, wanted.grad, atol=1e-13)
        assert (found.grad[3, 0] == 0).all()


def test_bad_numbers() -> None:
    """All paths -inf is a loss of +inf, NaN or +inf on a path a loss of NaN; gradients are zero."""
    logits, labels = np.zeros((3, 3, 4)), np.array([1, 2])
    for value, loss in [(-np.inf, np.inf), (np.nan, np.nan), (np.inf, np.nan)]:
        bad = logits.copy()
        bad[2, 2, 0] = value
        for normalization in ("softmax", "hat", "none"):
            result = oracles.logits_loss(bad, labels, normalization=normalization)
            np.testing.assert_array_equal(result.loss, loss)
            assert (result.grad == 0).all()
