"""Bad data: what the utterance that has it gets, and that the others do not notice.

Every test compares a spoiled batch with the clean one, run by the same compiled function: the other
utterances must agree bit for bit. Error messages are the subject of test_validation.py.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from bad_input import BAD, GARBAGE, LARGE, SMALL, assert_only_one_bad
from cases import (
    ArcsBatch,
    Batch,
    Lengths,
    Options,
    assert_grad_close,
    assert_loss_close,
    dtypes,
    each_topology,
    expected,
    random_arcs,
    random_batch,
    run,
    run_arcs,
    some_xla,
    valid_cells,
)

import jax_rnnt

B, T, U, V = 5, 7, 4, 5


def legal_batch(dtype: Any = np.float64, **options: Any) -> Batch:
    """Utterance BAD has frames [1, 6) and labels [1, 3); the whole lattice is utterance 0's."""
    batch = random_batch(np.random.default_rng(0), B, T, U, V, dtype=dtype, **options)
    for array, value in zip(batch.lengths, (6, 3, 1, 1), strict=True):
        array[BAD] = value
    return batch


def legal_arcs(dtype: Any = np.float64, **options: Any) -> ArcsBatch:
    batch = random_arcs(np.random.default_rng(0), B, T, U, dtype=dtype, **options)
    return batch._replace(lengths=legal_batch(**options).lengths)


def spoil(batch: Any, field: str, value: int, dtype: str) -> Any:
    """The batch with all its integers cast to `dtype`, and `value` in utterance BAD's `field`."""
    cast = jax.tree.map(lambda x: x.astype(dtype) if x.dtype.kind in "iu" else x, batch)
    if field == "labels":
        labels = cast.labels.copy()
        labels[BAD, 2] = value
        return cast._replace(labels=labels)
    array = getattr(cast.lengths, field).copy()
    array[BAD] = value
    return cast._replace(lengths=cast.lengths._replace(**{field: array}))


LIMITS: dict[str, list[int]] = {
    "int32": [SMALL, LARGE, -1],
    "int64": [2**32 + 1, 2**32 + 3, -(2**32) + 3, 2**63 - 1, -(2**63), LARGE, SMALL],
    "uint32": [2**32 - 1, 2**31],
    "uint64": [2**64 - 1, 2**63, 2**32 + 3],
}
SPECIAL = [
    ("labels", V),
    ("labels", 0),  # the blank
    ("logit_lengths", T + 1),
    ("label_lengths", U + 1),
    ("logit_begins", 7),  # behind the end, 6, but not out of the lattice
    ("label_begins", 4),
    ("logit_begins", T + 1),
    ("label_begins", U + 1),
]
FIELDS = ["labels", *Lengths._fields]
BAD_VALUES = [(f, v, dtype) for dtype, vs in LIMITS.items() for v in vs for f in FIELDS] + [
    (field, value, "int32") for field, value in SPECIAL
]


@pytest.mark.parametrize(("field", "value", "dtype"), BAD_VALUES)
def test_values_in_jit(implementation: str, field: str, value: int, dtype: str) -> None:
    """Labels, lengths and begins that are out of range: loss NaN, zero gradient, nobody else."""
    batch = legal_batch()
    clean = run(spoil(batch, "logit_begins", 1, dtype), implementation)
    assert_only_one_bad(run(spoil(batch, field, value, dtype), implementation), clean, np.nan)
    if field == "labels":
        return
    arcs = legal_arcs()
    clean = run_arcs(spoil(arcs, "logit_begins", 1, dtype), implementation)
    assert_only_one_bad(run_arcs(spoil(arcs, field, value, dtype), implementation), clean, np.nan)


@pytest.mark.parametrize(**some_xla)
@pytest.mark.parametrize("normalization", ["none", "hat"])
def test_values_other_options(implementation: str, topology: Options, normalization: str) -> None:
    """A few bad values for every topology, the other normalizations, a negative blank id, clamp."""
    options = dict(
        topology, normalization=normalization, blank_id=-2, clamp=0.1, fastemit_lambda=0.1
    )
    batch = legal_batch(**options)
    clean = run(batch, implementation, **options)
    for field in FIELDS:
        for value in (LARGE, SMALL, *([V - 2] if field == "labels" else [])):
            found = run(spoil(batch, field, value, "int32"), implementation, **options)
            assert_only_one_bad(found, clean, np.nan)


@pytest.mark.parametrize(("field", "value"), [("labels", V), ("logit_lengths", LARGE)])
def test_values_unchecked(implementation: str, field: str, value: int) -> None:
    """Eager with `check=False` does as jit does."""
    batch = spoil(legal_batch(), field, value, "int32")
    t1, u1, t0, u0 = batch.lengths
    options = {"logit_begins": t0, "label_begins": u0, "implementation": implementation}
    loss = jax_rnnt.rnnt_loss(batch.logits, batch.labels, t1, u1, check=False, **options)
    assert_only_one_bad((np.asarray(loss),), run(legal_batch(), implementation)[:1], np.nan)


def test_where_hides_bad_values(implementation: str) -> None:
    """An utterance left out by `where` is not checked and has loss 0, whatever is in it."""
    batch = legal_batch()
    keep = np.arange(B) != BAD
    clean = run(batch._replace(where=keep), implementation)
    assert clean[0][BAD] == 0
    bad = [spoil(batch, field, LARGE, "int32") for field in FIELDS]
    for value in (np.nan, np.inf, -np.inf):
        logits = batch.logits.copy()
        logits[BAD] = value
        bad.append(batch._replace(logits=logits))
    for spoiled in bad:
        found = run(spoiled._replace(where=keep), implementation)
        assert_only_one_bad(found, clean, 0.0)
        t1, u1, t0, u0 = spoiled.lengths
        options = {"logit_begins": t0, "label_begins": u0, "implementation": implementation}
        eager = jax_rnnt.rnnt_loss(spoiled.logits, spoiled.labels, t1, u1, where=keep, **options)
        np.testing.assert_allclose(eager, clean[0], rtol=1e-12, atol=1e-15)


# ------------------------------------------------------------------------------ no valid alignment

NO_PATH = [
    ({"topology": "regular"}, (2, 3, 2, 0)),  # labels but no frames
    ({"topology": "modified"}, (3, 4, 0, 0)),
    ({"topology": "modified"}, (4, 4, 3, 1)),
    ({"topology": "modified", "final_blank": True}, (4, 4, 0, 0)),
    ({"topology": "modified", "final_blank": True}, (1, 1, 0, 0)),
    ({"topology": "constrained"}, (3, 4, 0, 0)),
    ({"topology": "constrained"}, (0, 1, 0, 0)),
]


@pytest.mark.parametrize(("options", "lengths"), NO_PATH)
def test_no_path(implementation: str, options: Options, lengths: tuple[int, ...]) -> None:
    """More labels than the topology allows in the frames: +inf, zeros, eager and jitted."""
    batch, arcs = legal_batch(**options), legal_arcs(**options)
    clean, clean_arcs = (
        run(batch, implementation, **options),
        run_arcs(arcs, implementation, **options),
    )
    for array, value in zip(batch.lengths, lengths, strict=True):
        array[BAD] = value
    found = run(batch, implementation, **options)
    assert_only_one_bad(found, clean, np.inf)
    found = run_arcs(arcs._replace(lengths=batch.lengths), implementation, **options)
    assert_only_one_bad(found, clean_arcs, np.inf)
    if implementation == "native":  # eager dispatch of the other one takes seconds
        t1, u1, t0, u0 = batch.lengths
        begins = {"logit_begins": t0, "label_begins": u0}
        eager = jax_rnnt.rnnt_loss(batch.logits, batch.labels, t1, u1, **begins, **options)
        assert eager[BAD] == np.inf


@pytest.mark.parametrize("normalization", ["softmax", "none", "hat"])
@pytest.mark.parametrize("topology", **each_topology)
def test_all_paths_forbidden(implementation: str, topology: Options, normalization: str) -> None:
    """A dead cell, or a dead arc, that every path needs: +inf, zeros."""
    options = dict(topology, normalization=normalization)
    batch = legal_batch(**options)
    clean = run(batch, implementation, **options)
    dead = batch.logits.copy()
    dead[BAD, 5] = -np.inf  # all of the last frame
    assert_only_one_bad(run(batch._replace(logits=dead), implementation, **options), clean, np.inf)
    dead = batch.logits.copy()
    dead[BAD, :, :, batch.labels[BAD, 1]] = -np.inf  # the label is forbidden everywhere
    assert_only_one_bad(run(batch._replace(logits=dead), implementation, **options), clean, np.inf)


# -------------------------------------------------------------------------------- numbers in cells


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("normalization", ["softmax", "none", "hat"])
@pytest.mark.parametrize("topology", **each_topology)
def test_nan_and_inf(
    implementation: str, topology: Options, normalization: str, value: float
) -> None:
    """NaN or +inf in a cell that paths visit: NaN, zeros, nobody else."""
    options = dict(topology, normalization=normalization)
    for dtype in dtypes(implementation, np.float32, jnp.bfloat16):
        batch = legal_batch(dtype, **options)
        clean = run(batch, implementation, **options)
        # frames [1, 6), labels [1, 3): blank and label of cell (2, 1) are used in every topology
        classes = [0, batch.labels[BAD, 1]]
        if normalization != "none":  # where every class is read
            classes = list(range(V))
        for k in classes:
            logits = batch.logits.copy()
            logits[BAD, 2, 1, k] = value
            found = run(batch._replace(logits=logits), implementation, **options)
            assert_only_one_bad(found, clean, np.nan)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("topology", **each_topology)
def test_nan_and_inf_arcs(implementation: str, topology: Options, value: float) -> None:
    """The same in every single arc that is on a path."""
    batch = legal_arcs(**topology)
    clean = run_arcs(batch, implementation, **topology)
    bounds = oracles.Bounds(1, 6, 1, 3)
    used = oracles.used_arcs(
        bounds, (T, U + 1), topology["topology"], topology.get("final_blank", False)
    )
    for field, mask in zip(("blank", "label"), used, strict=True):
        for t, u in np.argwhere(mask):
            arcs = getattr(batch, field).copy()
            arcs[BAD, t, u] = value
            found = run_arcs(batch._replace(**{field: arcs}), implementation, **topology)
            assert_only_one_bad(found, clean, np.nan)


def used_cells(batch: Any, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Blank and label arcs of all utterances that are on some path."""
    shape = batch[0].shape[1:3]
    rows = [
        oracles.used_arcs(
            oracles.Bounds(*(int(r[i]) for r in (t0, t1, u0, u1))),
            shape,
            options["topology"],
            options.get("final_blank", False),
        )
        for t1, u1, t0, u0 in [batch.lengths]
        for i in range(len(batch[0]))
    ]
    return np.array([r[0] for r in rows]), np.array([r[1] for r in rows])


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("topology", **each_topology)
def test_padding(implementation: str, topology: Options, garbage: float) -> None:
    """Garbage in all cells that no path visits, and in unused labels: same bits, exact zeros."""
    for dtype in dtypes(implementation, np.float32, jnp.bfloat16):
        batch = legal_batch(dtype, **topology)
        clean = run(batch, implementation, **topology)
        blank, label = used_cells(batch, topology)
        unused = ~(blank | label)
        assert (unused | valid_cells(batch)).all() and unused.any()
        logits, labels = batch.logits.copy(), batch.labels.copy()
        logits[unused] = garbage
        for i, (_, u1, _, u0) in enumerate(zip(*batch.lengths, strict=True)):
            labels[i, :u0] = LARGE
            labels[i, u1:] = SMALL
        found = run(batch._replace(logits=logits, labels=labels), implementation, **topology)
        jax.tree.map(np.testing.assert_array_equal, found, clean)
        assert (found[1][unused] == 0).all()


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("topology", **each_topology)
def test_padding_arcs(implementation: str, topology: Options, garbage: float) -> None:
    """Garbage in every arc that is on no path: same bits, exact zeros."""
    for dtype in dtypes(implementation, np.float32):
        batch = legal_arcs(dtype, **topology)
        clean = run_arcs(batch, implementation, **topology)
        used = used_cells(batch, topology)
        blank, label = (
            np.where(u, x, dtype(garbage)) for u, x in zip(used, batch[:2], strict=True)
        )
        found = run_arcs(batch._replace(blank=blank, label=label), implementation, **topology)
        jax.tree.map(np.testing.assert_array_equal, found, clean)
        for planes in (found[1], found[2]):
            for plane, mask in zip(planes, used, strict=True):
                assert (plane[~mask] == 0).all()


@pytest.mark.parametrize("normalization", ["softmax", "none", "hat"])
@pytest.mark.parametrize("topology", **each_topology)
def test_forbidden_logits(implementation: str, topology: Options, normalization: str) -> None:
    """-inf logits are legal, whole rows of them too: values and gradients of the oracle."""
    rng = np.random.default_rng(1)
    options = dict(topology, normalization=normalization, fastemit_lambda=0.2)
    for dtype in dtypes(implementation, np.float32):
        tolerance = 1e-12 if dtype == np.float64 else 1e-5
        batch = random_batch(rng, 40, 5, 3, 4, dtype=dtype, **options)
        batch.logits[rng.random(batch.logits.shape) < 0.1] = -np.inf
        batch.logits[rng.random(batch.logits.shape[:3]) < 0.05] = -np.inf
        wanted = expected(batch, **options)
        loss, grad = run(batch, implementation, **options)
        assert np.isinf(wanted.loss).any() and np.isfinite(wanted.loss).sum() > 5
        np.testing.assert_allclose(loss, wanted.loss, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(grad, wanted.grad, atol=tolerance)
        assert (
            grad[np.isinf(batch.logits) | np.isinf(wanted.loss)[:, None, None, None]] == 0
        ).all()


@pytest.mark.parametrize("normalization", ["softmax", "hat"])
def test_large_logits(implementation: str, normalization: str) -> None:
    """+-1e4 and more neither overflow nor lose digits of the loss, not in float32 either.

    The logits are exact and so are differences of close ones, so that a log-softmax that subtracts
    the maximum first keeps 1e-5 for the loss. Gradients weigh paths whose arcs, numbers of size
    2 scale, are rounded to eps / 2 of that; a path has at most T + U of them.
    """
    frames, labels = 5, 3
    rng = np.random.default_rng(2)
    for dtype, tolerance in ((np.float64, 1e-10), (np.float32, 1e-5)):
        for scale in (1e2, 1e4, 1e6):
            batch = random_batch(
                rng, 6, frames, labels, 5, dtype=dtype, normalization=normalization
            )
            signs = rng.choice(np.array([-scale, scale], dtype), batch.logits.shape)
            batch = batch._replace(logits=signs + batch.logits)
            wanted = expected(batch, normalization=normalization)
            loss, grad = run(batch, implementation, normalization=normalization)
            assert np.isfinite(grad).all()
            assert_loss_close(loss, wanted.loss, tolerance)
            rounding = (frames + labels) * scale * float(np.finfo(dtype).eps)
            assert_grad_close(grad, wanted.grad, max(tolerance, rounding))


# ---------------------------------------------------------------------------------- empty things


def test_empty_batch(implementation: str) -> None:
    """B = 0: an empty loss; sum and mean are 0."""
    batch = random_batch(np.random.default_rng(3), 0, 4, 2, 5)
    loss, grad = run(batch, implementation)
    assert loss.shape == (0,) and grad.shape == (0, 4, 3, 5)
    for reduction in ("sum", "mean"):
        assert run(batch, implementation, reduction=reduction)[0] == 0
    loss, _, posteriors = run_arcs(random_arcs(np.random.default_rng(3), 0, 4, 2), implementation)
    assert loss.shape == (0,) and posteriors.blank.shape == (0, 4, 3)


@pytest.mark.parametrize("topology", **each_topology)
def test_no_frames(implementation: str, topology: Options) -> None:
    """T = 0: loss 0 without labels and +inf with; the gradient is empty."""
    batch = Batch(np.zeros((2, 0, 3, 5)), np.ones((2, 2), np.int32))
    batch = batch._replace(lengths=Lengths(None, np.array([0, 1])))
    loss, grad = run(batch, implementation, **topology)
    np.testing.assert_array_equal(loss, [0, np.inf])
    assert grad.shape == (2, 0, 3, 5)


@pytest.mark.parametrize("shape", [(1, 0), (4, 0), (1, 1), (1, 3)], ids=str)
@pytest.mark.parametrize(**some_xla)
def test_small_lattices(implementation: str, topology: Options, shape: tuple[int, int]) -> None:
    """U = 0 and T = 1, against the oracle (+inf where one frame is too few)."""
    frames, labels = shape
    rng = np.random.default_rng(4)
    batch = random_batch(rng, 2, frames, labels, 4, **topology)._replace(lengths=Lengths())
    wanted = expected(batch, **topology)
    loss, grad = run(batch, implementation, **topology)
    np.testing.assert_allclose(loss, wanted.loss, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(grad, wanted.grad, atol=1e-13)


def test_dummy_rows(implementation: str) -> None:
    """Utterances without frames and labels: exactly 0, zero gradient, even with NaN everywhere."""
    batch = legal_batch()
    clean = run(batch, implementation)
    for lengths in ((0, 0, 0, 0), (3, 2, 3, 2), (T, U, T, U)):
        for array, value in zip(batch.lengths, lengths, strict=True):
            array[BAD] = value
        logits = batch.logits.copy()
        logits[BAD] = np.nan
        assert_only_one_bad(run(batch._replace(logits=logits), implementation), clean, 0.0)
