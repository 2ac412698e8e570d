"""`rnnt_align_tdt` and `rnnt_align_multi_blank` against the best of all paths and a recursion in
float64, and one implementation against the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles_multi_blank
import pytest
from cases import Array, Batch, random_batch
from jax.export import deserialize, symbolic_shape
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from oracles import Bounds, bounds_of_batch, log_sum_exp, penalised
from oracles_duration_alignment import (
    Arcs,
    Best,
    by_enumeration,
    by_recursion,
    multi_blank_arcs,
    tdt_arcs,
)
from programs import custom_calls, export
from shardings import shard_map

import jax_rnnt

DURATIONS = [(0, 1, 2, 3, 4), (1,), (0, 1), (0, 2, 5), (1, 3), (0, 62), (0, 1, 2, 3, 4, 5, 7)]
BIG_BLANKS = [((-1,), (2,)), ((-1, -2), (4, 2)), ((-2,), (62,)), ((), ())]
CLASSES = 7
"""The last two, and 0, are no labels."""


def lengths_of(batch: Batch) -> dict[str, Array]:
    given = batch.lengths._asdict()
    return {"labels": batch.labels, **{name: x for name, x in given.items() if x is not None}}


def problem_of(seed: int, *size: int, dtype: Any = np.float64) -> Batch:
    """Utterance 0 is the whole lattice, 1 is empty, the others are anywhere in it."""
    batch = random_batch(np.random.default_rng(seed), *size, CLASSES - 2, dtype=dtype)
    more = np.random.default_rng(seed + 1).normal(size=(*batch.logits.shape[:-1], 2))
    return batch._replace(logits=np.concatenate([batch.logits, more.astype(dtype)], -1))


def duration_logits_of(batch: Batch, durations: tuple[int, ...]) -> Array:
    rng = np.random.default_rng(len(durations))
    shape = (*batch.logits.shape[:-1], len(durations))
    return rng.normal(size=shape).astype(batch.logits.dtype)


def bounds_of(batch: Batch) -> list[Bounds]:
    B, T, W, _ = batch.logits.shape
    return bounds_of_batch(B, T, W - 1, *batch.lengths)


def tdt_oracle(
    batch: Batch, durations: tuple[int, ...], sigma: float = 0.0, delay_penalty: float = 0.0
) -> list[Arcs]:
    scores = (x.astype(np.float64) for x in (batch.logits, duration_logits_of(batch, durations)))
    log_probs, of_durations = (x - log_sum_exp(x) for x in scores)
    found = []
    for b, w in enumerate(bounds_of(batch)):
        wanted = np.append(batch.labels[b], 0)
        blank = log_probs[b, ..., 0] - sigma
        label = log_probs[b][:, np.arange(len(wanted)), wanted] - sigma
        duration = np.moveaxis(of_durations[b], -1, 0)
        label = penalised(label, w, delay_penalty)
        found.append(tdt_arcs(blank, label, duration, w, durations))
    return found


def multi_blank_oracle(
    batch: Batch, big_blanks: Any, sigma: float = 0.0, delay_penalty: float = 0.0
) -> list[Arcs]:
    scores = batch.logits.astype(np.float64)
    log_probs = scores - log_sum_exp(scores)
    blanks = {0: 1, **{i % CLASSES: d for i, d in zip(*big_blanks, strict=True)}}
    return [
        multi_blank_arcs(
            oracles_multi_blank.Lattice(w, labels, blanks, x - sigma, delay_penalty, None)
        )
        for w, labels, x in zip(bounds_of(batch), batch.labels, log_probs, strict=True)
    ]


def align_tdt(batch: Batch, durations: tuple[int, ...], **options: Any) -> Any:
    scores = batch.logits, duration_logits_of(batch, durations)
    function = partial(jax_rnnt.rnnt_align_tdt, durations=durations, **options)
    return jax.device_get(function(*scores, **lengths_of(batch)))


def align_multi_blank(batch: Batch, big_blanks: Any, **options: Any) -> Any:
    ids, durations = big_blanks
    return jax.device_get(
        jax_rnnt.rnnt_align_multi_blank(
            batch.logits, **lengths_of(batch), big_blank_ids=ids, big_blank_durations=durations,
            **options,
        )
    )  # fmt: skip


def assert_best(found: Any, wanted: list[Best], tolerance: float = 1e-12) -> None:
    """Where scores are random, no two paths are equally good."""
    score, *of_labels = (np.stack(x) for x in zip(*wanted, strict=True))
    np.testing.assert_allclose(found.score, score, rtol=tolerance, atol=tolerance)
    assert np.isfinite(score).sum() >= len(score) // 3
    for x, y in zip(found[1:], of_labels, strict=False):  # of multi-blanks there are frames alone
        np.testing.assert_array_equal(x, y)


Oracle = Callable[[Arcs, Bounds, int], Best]


def best_of(oracle: Oracle, arcs: list[Arcs], batch: Batch) -> list[Best]:
    num_labels = batch.labels.shape[1]
    return [oracle(x, w, num_labels) for x, w in zip(arcs, bounds_of(batch), strict=True)]


@pytest.mark.parametrize("durations", DURATIONS, ids=str)
def test_all_paths_of_tdt(implementation: str, durations: tuple[int, ...]) -> None:
    batch = problem_of(0, 12, 4, 3)
    wanted = best_of(by_enumeration, tdt_oracle(batch, durations), batch)
    if durations == (0, 62):
        assert {x.score for x in wanted[2:]} <= {-np.inf, 0.0}
        wanted_scores = [x.score for x in wanted]
        np.testing.assert_array_equal(
            align_tdt(batch, durations, implementation=implementation).score, wanted_scores
        )
        return
    assert_best(align_tdt(batch, durations, implementation=implementation), wanted)


@pytest.mark.parametrize("big_blanks", BIG_BLANKS, ids=str)
def test_all_paths_of_multi_blank(implementation: str, big_blanks: Any) -> None:
    batch = problem_of(1, 12, 4, 3)
    wanted = best_of(by_enumeration, multi_blank_oracle(batch, big_blanks), batch)
    assert_best(align_multi_blank(batch, big_blanks, implementation=implementation), wanted)


@pytest.mark.parametrize("labels", [0, 1, 9, 33])
def test_recursion(implementation: str, labels: int) -> None:
    """With options, and as many labels as to fill vectors and warps, or not."""
    options = {"sigma": 0.05, "delay_penalty": 0.2}
    batch = problem_of(2, 6, 40, labels)
    for align, oracle, kinds in (
        (align_tdt, tdt_oracle, DURATIONS[:5:2]),
        (align_multi_blank, multi_blank_oracle, BIG_BLANKS[:2]),
    ):
        for kind in kinds:
            wanted = best_of(by_recursion, oracle(batch, kind, **options), batch)  # type: ignore[operator]
            found = align(batch, kind, implementation=implementation, **options)  # type: ignore[arg-type]
            assert_best(found, wanted)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
def test_reduced_precision(dtype: Any) -> None:
    """The score, and the same path by both implementations."""
    batch = problem_of(3, 5, 60, 20, dtype=dtype)
    durations = DURATIONS[0]
    wanted = best_of(by_recursion, tdt_oracle(batch, durations), batch)
    found = align_tdt(batch, durations, implementation="native")
    assert found.score.dtype == np.float32
    np.testing.assert_allclose(found.score, [x.score for x in wanted], rtol=1e-5)
    again = align_tdt(batch, durations, implementation="xla")
    np.testing.assert_allclose(found.score, again.score, rtol=1e-6)
    frames = np.stack([x.frames for x in wanted])
    assert (found.frames == frames).mean() > 0.9 and (again.frames == frames).mean() > 0.9


def test_ties(implementation: str) -> None:
    """Equally good paths: both implementations have the one that its documentation says."""
    zeros = jnp.zeros((1, 6, 4, 5)), jnp.zeros((1, 6, 4, 3))
    labels = np.ones((1, 3), int)
    found = jax_rnnt.rnnt_align_tdt(
        *zeros, labels, durations=(0, 1, 2), implementation=implementation
    )
    # Three labels and the blanks of six frames, at least as many arcs as possible: of these the
    # last arcs are as long as they can be.
    arcs = 4
    np.testing.assert_allclose(found.score, -arcs * np.log(15.0), rtol=1e-12)
    assert sum(found.durations[0]) + 2 >= 6 - 2
    np.testing.assert_array_equal(found.frames, [[0, 0, 2]])
    np.testing.assert_array_equal(found.durations, [[0, 2, 2]])


def test_one_frame_each(implementation: str) -> None:
    """As `rnnt_align` of the modified topology, with a final blank; the durations are certain."""
    batch = problem_of(4, 6, 12, 5)
    found = align_tdt(batch, (1,), implementation=implementation)
    wanted = jax_rnnt.rnnt_align(
        batch.logits, **lengths_of(batch), topology="modified", final_blank=True
    )
    np.testing.assert_allclose(found.score, wanted.score, rtol=1e-12)
    np.testing.assert_array_equal(found.frames, wanted.frames)
    np.testing.assert_array_equal(found.durations, np.where(wanted.frames < 0, -1, 1))
    usual = jax_rnnt.rnnt_align(batch.logits, **lengths_of(batch))
    found = align_multi_blank(batch, ((), ()), implementation=implementation)
    np.testing.assert_allclose(found.score, usual.score, rtol=1e-12)
    np.testing.assert_array_equal(found.frames, usual.frames)


def test_bad_utterances(implementation: str) -> None:
    """Each for itself: NaN, lengths out of range, no path, left out. Padding is not read."""
    size = 6
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(size, 5, 4, CLASSES))
    duration_logits = rng.normal(size=(size, 5, 4, 2))
    labels = rng.integers(1, 5, size=(size, 3))
    lengths = np.array([4, 4, 9, 3, 4, 4])
    where = np.array([True, True, True, True, False, True])
    align = partial(
        jax_rnnt.rnnt_align_tdt, durations=(0, 2), implementation=implementation, check=False
    )
    clean = jax.device_get(align(logits, duration_logits, labels, lengths, where=where))
    assert np.isfinite(clean.score[[0, 1, 5]]).all()
    logits[0, 1:3], duration_logits[1, 0, 0] = np.nan, np.inf
    logits[5, 4], duration_logits[5, 4] = np.nan, np.nan
    found = jax.device_get(align(logits, duration_logits, labels, lengths, where=where))
    np.testing.assert_array_equal(found.score[:5], [np.nan, np.nan, np.nan, -np.inf, 0])
    np.testing.assert_array_equal(found.frames[:5], -1)
    np.testing.assert_array_equal(found.durations[:5], -1)
    for x, y in zip(found, clean, strict=True):
        np.testing.assert_array_equal(x[5], y[5])


def test_forbidden_arcs(implementation: str) -> None:
    """-inf, and below -1e7; label 1 has to be emitted in frame 3 then."""
    logits = np.random.default_rng(6).normal(size=(2, 6, 3, 5))
    labels = np.array([[1, 2], [1, 2]])
    logits[0, :3, :, 1], logits[1, :3, :, 1] = -np.inf, -3e7
    logits[:, 4:, :, 1] = -np.inf
    found = jax_rnnt.rnnt_align_tdt(
        logits, np.zeros((2, 6, 3, 2)), labels, durations=(0, 1), implementation=implementation
    )
    assert np.isfinite(found.score).all()
    np.testing.assert_array_equal(found.frames[:, 0], 3)


def test_label_windows(implementation: str) -> None:
    batch = problem_of(7, 3, 12, 3)
    windows = np.tile(np.int32([[2, 4], [4, 6], [8, 9]]), (3, 1, 1))
    found = jax.device_get(
        jax_rnnt.rnnt_align_multi_blank(
            batch.logits, batch.labels, big_blank_ids=(-1,), big_blank_durations=(2,),
            label_windows=windows, implementation=implementation,
        )
    )  # fmt: skip
    assert np.isfinite(found.score).all()
    assert (found.frames >= windows[..., 0]).all() and (found.frames < windows[..., 1]).all()


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 0), (2, 0, 2), (2, 1, 0)])
def test_empty_shapes(implementation: str, shape: tuple[int, int, int]) -> None:
    B, T, U = shape
    scores = jnp.zeros((B, T, U + 1, 3)), jnp.zeros((B, T, U + 1, 2))
    found = jax_rnnt.rnnt_align_tdt(
        *scores, np.ones((B, U), int), durations=(0, 1), implementation=implementation
    )
    score = -np.log(6) if T else 0.0 if U == 0 else -np.inf
    np.testing.assert_allclose(found.score, np.full(B, score), rtol=1e-6)
    assert found.frames.shape == found.durations.shape == (B, U)
    assert (found.frames == -1).all()


def test_more_labels_than_threads() -> None:
    """A row of nodes is longer than a block of threads."""
    batch = problem_of(8, 3, 6, 1200)
    found, again = (
        align_tdt(batch, DURATIONS[0], implementation=name) for name in ("native", "xla")
    )
    assert np.isfinite(found.score).all()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), found, again)


def test_transforms(implementation: str, devices: list[jax.Device]) -> None:
    """vmap, shard_map, an explicit mesh, and no derivative."""
    batch = problem_of(9, 8, 10, 4)
    durations = (0, 1, 3)
    operands = batch.logits, duration_logits_of(batch, durations), batch.labels, *batch.lengths[:2]

    def align(*args: Any) -> Any:
        return jax_rnnt.rnnt_align_tdt(
            *args, durations=durations, implementation=implementation, check=False
        )

    wanted = align(*operands)
    mesh = Mesh(np.array(devices), ("data",))
    explicit = jax.make_mesh(
        (8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,), devices=devices
    )
    divided = jax.device_put(operands, jax.sharding.NamedSharding(explicit, P("data")))
    with jax.set_mesh(explicit):
        found = [jax.jit(align)(*divided), jax.jit(jax.vmap(align))(*divided)]
    found += [
        jax.jit(jax.vmap(align))(*operands),
        shard_map(align, mesh, P("data"), P("data"))(*operands),
    ]
    for result in found:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), result, wanted)
    gradient = jax.grad(lambda x: align(x, *operands[1:]).score.sum())(operands[0])
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.cpu_only("exported for a CPU and a TPU")
def test_export() -> None:
    """Serialised with a symbolic batch; for TPU there is no custom call of ours."""
    batch = problem_of(10, 3, 7, 4)
    durations = (0, 1, 3)
    given = batch.logits, duration_logits_of(batch, durations), batch.labels

    def align(*args: Any) -> Any:
        return tuple(jax_rnnt.rnnt_align_tdt(*args, durations=durations, check=False))

    targets = custom_calls(jax.jit(align).lower(*given).as_text())
    assert "jax_rnnt_best_duration_path" in targets
    (size,) = symbolic_shape("b")
    spec = [jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for x in given]
    exported = deserialize(export(align, *spec, targets=targets).serialize())
    found, wanted = exported.call(*given), align(*given)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    text = export(align, *given, targets=set(), platforms=("tpu",)).mlir_module()
    assert not custom_calls(text) & targets


def test_bad_arguments() -> None:
    """The checks of the losses."""
    logits, labels = np.zeros((1, 4, 3, 5)), np.ones((1, 2), int)
    with pytest.raises(ValueError, match="duration_logits has shape"):
        jax_rnnt.rnnt_align_tdt(logits, logits, labels, durations=(0, 1))
    with pytest.raises(ValueError, match=r"labels\[0, 0\] is 1; .* big blanks \(class 1"):
        jax_rnnt.rnnt_align_multi_blank(
            logits, labels, big_blank_ids=(1,), big_blank_durations=(2,)
        )
    with pytest.raises(ValueError, match="sigma is -1"):
        jax_rnnt.rnnt_align_tdt(logits, logits[..., :2], labels, durations=(0, 1), sigma=-1)
