"""Expected emission frames, against all paths; mean emission delays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from alignment_cases import as_keywords, bounds_of
from cases import Options, arcs_function, each_topology, random_arcs
from jax.test_util import check_grads

import jax_rnnt
from jax_rnnt import Posteriors


def expected_frames(
    blank: Any, label: Any, w: oracles.Bounds, topology: str = "regular", final_blank: bool = False
) -> np.ndarray:
    """The mean of the labels' frames over all paths, weighted with their probabilities."""
    scores, frames = [], []
    for path in oracles.paths(w, topology, final_blank):
        score, emitted = 0.0, np.full(blank.shape[1] - 1, -1)
        for kind, t, u in path:
            score += (blank if kind == "blank" else label)[t, u]
            if kind == "label":
                emitted[u] = t
                score += blank[t, u + 1] if topology == "constrained" else 0.0
        scores.append(score)
        frames.append(emitted)
    weights = np.exp(np.array(scores) - np.max(scores))
    return weights @ np.array(frames) / weights.sum()


@pytest.mark.parametrize("options", **each_topology)
def test_expected_frames(options: Options) -> None:
    rng = np.random.default_rng(0)
    batch = random_arcs(rng, 8, 5, 3, **options)
    _, posteriors = arcs_function(return_posteriors=True, **options)(*batch)
    found = jax_rnnt.expected_emission_frames(posteriors)
    wanted = [
        expected_frames(*row, **options)
        for row in zip(*batch[:2], bounds_of(batch.lengths), strict=True)
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_no_alignment() -> None:
    """-1 in padding and without finite loss; the best alignment's posteriors give its frames."""
    planes = np.zeros((2, 3, 4, 3))
    planes[:, 1] = np.nan
    lengths = {"logit_lengths": np.array([4, 4, 4]), "label_lengths": np.array([1, 2, 2])}
    _, posteriors = jax_rnnt.rnnt_loss_from_arcs(*planes, **lengths, return_posteriors=True)
    found = np.asarray(jax_rnnt.expected_emission_frames(posteriors))
    assert (found[0] >= 0).tolist() == [True, False]
    np.testing.assert_array_equal(found[1], [-1, -1])
    assert found[0, 0] == 1.5  # in each of the four frames with equal probability

    certain = random_arcs(np.random.default_rng(1), 4, 6, 3, scale=1e5)
    _, posteriors = arcs_function(return_posteriors=True)(*certain)
    alignment = jax_rnnt.rnnt_align_from_arcs(*certain[:2], **as_keywords(certain.lengths))
    found = jax_rnnt.expected_emission_frames(posteriors)
    np.testing.assert_allclose(found, alignment.frames, atol=1e-6)


def test_gradient_of_expected_frames() -> None:
    """By the label posteriors, also of labels that are not emitted."""
    label = np.random.default_rng(2).random((2, 4, 3))
    label[1, :, 1] = 0

    def function(label: Any) -> jax.Array:
        return jax_rnnt.expected_emission_frames(Posteriors(jnp.zeros_like(label), label))

    check_grads(function, (label[:1],), order=2)
    gradient = jax.grad(lambda x: function(x).sum())(jnp.asarray(label))
    np.testing.assert_array_equal(gradient[1, :, 1], 0)


def test_delay() -> None:
    """Labels without frame in either do not count; utterances without labels have delay 0."""
    frames = np.array([[2, 5, 7], [1, -1, 3], [4, -1, -1], [-1, -1, -1]])
    reference = np.array([[1, 5, 3], [3, 9, 8], [-1, -1, -1], [0, 1, 2]])
    found = jax_rnnt.mean_emission_delay(frames, reference)
    np.testing.assert_allclose(found, [5 / 3, -7 / 2, 0, 0], rtol=1e-7)
    assert found.dtype == jnp.float32
    mean = jax_rnnt.mean_emission_delay(frames, reference, reduction="mean")
    np.testing.assert_allclose(mean, (5 - 7) / 5, rtol=1e-7)
    wide = jax_rnnt.mean_emission_delay(frames, reference.astype(np.float64))
    assert wide.dtype == jnp.float64
    gradient = jax.grad(lambda x: jax_rnnt.mean_emission_delay(x, reference)[1])(
        frames.astype(np.float64)
    )
    np.testing.assert_array_equal(gradient[1], [0.5, 0, 0.5])
    empty = jax_rnnt.mean_emission_delay(frames[:, :0], reference[:, :0], reduction="mean")
    assert empty == 0


def test_bad_arguments() -> None:
    frames = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"frames has shape \(2, 3\) and reference_frames \(3,\)"):
        jax_rnnt.mean_emission_delay(frames, frames[0])
    with pytest.raises(TypeError, match="reference_frames has dtype bool; expected integers"):
        jax_rnnt.mean_emission_delay(frames, frames > 0)
    with pytest.raises(ValueError, match="reduction is 'sum'; expected one of 'none', 'mean'"):
        jax_rnnt.mean_emission_delay(frames, frames, reduction="sum")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"expected Posteriors\(blank, label\)"):
        jax_rnnt.expected_emission_frames(frames)  # type: ignore[arg-type]


def test_large_integers(ordinary_jax: None) -> None:
    """Frames that are no int32, as markers for no label, do not wrap around; nor do paddings."""
    frames = np.array([[5, np.iinfo(np.int64).min], [5, -(2**32)]])
    found = jax_rnnt.mean_emission_delay(frames, np.array([[3, 1], [3, 1]]), reduction="none")
    np.testing.assert_allclose(found, 2)
    assert jax_rnnt.lengths_from_paddings(np.array([[0, 2**32]]), check=False)[0] == -1


def test_packed_without_jit() -> None:
    plane = jnp.full(12, 0.25)
    with jax.disable_jit():
        found = jax_rnnt.expected_emission_frames_packed(
            Posteriors(plane, plane), np.array([4]), np.array([2]), max_labels=2
        )
    np.testing.assert_allclose(found, [[1.5, 1.5]])
