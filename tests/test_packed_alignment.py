"""Best alignments, best labels and emission frames of packed rows, packed here."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from alignment_cases import assert_best, normalised_arcs, normalised_best_arcs, spoiled
from cases import Options, each_topology
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from oracles_alignment import Best, by_enumeration, by_recursion
from packed_cases import pack
from programs import custom_calls, export
from shardings import shard_map

import jax_rnnt
from jax_rnnt import Posteriors


def random_lengths(rng: np.random.Generator, size: int, frames: int, labels: int) -> Any:
    """With empty utterances, and some of more labels than frames."""
    return rng.integers(0, frames + 1, size), rng.integers(0, labels + 1, size)


def bounds_of(t: np.ndarray, u: np.ndarray) -> list[oracles.Bounds]:
    return [oracles.Bounds(0, int(a), 0, int(b)) for a, b in zip(t, u, strict=True)]


def packed_arcs(arcs: np.ndarray, t: np.ndarray, u: np.ndarray, **options: Any) -> Any:
    """`rnnt_align_packed_from_arcs` of padded arcs `(2, B, T, U+1)`, with NaN in spare rows."""
    rows = jax_rnnt.packed_size(t, u) + 3
    blank, label = (pack(x, t, u, rows, fill=np.nan) for x in arcs)
    return jax.device_get(
        jax_rnnt.rnnt_align_packed_from_arcs(
            blank, label, t, u, max_labels=arcs.shape[-1] - 1, **options
        )
    )


@pytest.mark.parametrize("options", **each_topology)
def test_all_paths(implementation: str, options: Options) -> None:
    """With empty utterances, forbidden and bad arcs, and ties."""
    rng = np.random.default_rng(0)
    size = 64
    t, u = random_lengths(rng, size, 5, 3)
    t[: size // 4], u[: size // 4] = 5, 3
    arcs = spoiled(rng, size, 5, 4)
    for dtype, penalty in [(np.float64, 0.5), (np.float32, 0.0)][
        : 1 + (implementation == "native")
    ]:
        wanted = [
            by_enumeration(blank, oracles.penalised(label, w, penalty), w, 3, **options)
            for blank, label, w in zip(*arcs, bounds_of(t, u), strict=True)
        ]
        found = packed_arcs(
            arcs.astype(dtype), t, u,
            delay_penalty=penalty, implementation=implementation, **options,
        )  # fmt: skip
        assert_best(found, wanted, 1e-12 if dtype == np.float64 else 1e-6)
        assert np.isnan(found.score).sum() > 1 and np.isfinite(found.score).sum() > size / 4


# Lengths of utterances, no labels; one frame; long and narrow beside wide; rows of several rounds
# of a block, and of more than fits on a GPU's chip.
SHAPES: list[tuple[list[int], list[int]]] = [
    ([9, 0, 3], [0, 0, 0]),
    ([1, 1], [4, 0]),
    ([70, 2, 40], [0, 90, 37]),
    ([3, 2], [1100, 3]),
    ([2], [3000]),
]


@pytest.mark.parametrize(("frames", "labels"), SHAPES, ids=str)
@pytest.mark.parametrize("options", **each_topology)
def test_recursion(options: Options, frames: list[int], labels: list[int]) -> None:
    check_packed_paths(frames, labels, options)


def check_packed_paths(frames: list[int], labels: list[int], options: Options) -> None:
    """Of utterances of these lengths, against the plain recursion."""
    rng = np.random.default_rng(1)
    t, u = np.array(frames), np.array(labels)
    arcs = -rng.exponential(size=(2, len(t), t.max(), u.max() + 1))
    wanted = [
        by_recursion(blank, label, w, **options)
        if w.t1 > 0
        else Best(-np.inf if w.u1 > 0 else 0.0, np.full(u.max(), -1))
        for blank, label, w in zip(*arcs, bounds_of(t, u), strict=True)
    ]
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
        found = packed_arcs(arcs.astype(dtype), t, u, implementation="native", **options)
        if dtype == np.float64:
            assert_best(found, wanted)
        scores = [best.score for best in wanted]
        np.testing.assert_allclose(found.score, scores, rtol=tolerance, atol=tolerance)


def test_logits(implementation: str) -> None:
    """From logits, with windows and utterances left out; and the best labels."""
    rng = np.random.default_rng(2)
    size, T, U, V = 12, 6, 3, 5
    t, u = random_lengths(rng, size, T, U)
    logits = rng.normal(size=(size, T, U + 1, V))
    labels = rng.integers(0, V - 1, (size, U))
    begins = rng.integers(-1, 4, (size, U, 1))
    label_windows = np.concatenate([begins, begins + rng.integers(2, 6, begins.shape)], axis=-1)
    where = np.arange(size) != 4
    wanted, best_wanted, classes = [], [], []
    for b, w in enumerate(bounds_of(t, u)):
        rows = np.arange(T)[:, None]
        outside = (rows < label_windows[b, :, 0]) | (rows >= label_windows[b, :, 1])
        blank, label = normalised_arcs(logits[b], labels[b], w, V - 1, "softmax")
        label[:, :U][outside] = -np.inf
        best_blank, best_label, best = normalised_best_arcs(logits[b], w, V - 1, "softmax")
        best_label[:, :U][outside] = -np.inf
        wanted.append(by_enumeration(blank, label, w, U))
        best_wanted.append(by_enumeration(best_blank, best_label, w, U))
        if not where[b]:
            wanted[b] = best_wanted[b] = Best(0.0, np.full(U, -1))
        frames = best_wanted[b].frames
        classes.append(np.where(frames >= 0, best[frames, np.arange(U)], -1))
    packed = pack(logits, t, u, jax_rnnt.packed_size(t, u) + 3, fill=np.nan)
    options: Any = {
        "blank_id": -1,
        "label_windows": label_windows,
        "where": where,
        "implementation": implementation,
    }
    found = jax_rnnt.rnnt_align_packed(packed, labels, t, u, **options)
    assert_best(jax.device_get(found), wanted)
    assert np.isfinite(found.score).sum() > 5
    best_found = jax_rnnt.rnnt_best_labels_packed(packed, t, u, max_labels=U, **options)
    assert_best(jax.device_get(best_found), best_wanted)
    np.testing.assert_array_equal(best_found.labels, classes)
    if implementation == "native":  # a constant to differentiation
        align = jax.grad(
            lambda x: jax_rnnt.rnnt_align_packed(x, labels, t, u, **options).score.sum()
        )
        assert (align(packed) == 0).all()


def test_expected_frames() -> None:
    """Against the plain sum over frames, and its gradient; -1 in padding."""
    rng = np.random.default_rng(3)
    t, u = random_lengths(rng, 9, 6, 4)
    planes = rng.random((9, 6, 5))
    rows = jax_rnnt.packed_size(t, u) + 2
    packed = pack(planes, t, u, rows, fill=np.nan)
    weights = rng.normal(size=(9, 4))

    def total(label: jax.Array) -> Any:
        posteriors = Posteriors(label, label)
        found = jax_rnnt.expected_emission_frames_packed(posteriors, t, u, max_labels=4)
        return jnp.sum(found * weights), found

    (_, found), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(packed))
    wanted, by_label = np.full((9, 4), -1.0), np.zeros(planes.shape)
    for b in range(9):
        for i in range(u[b] if t[b] > 0 else 0):
            frames, p = np.arange(t[b]), planes[b, : t[b], i]
            wanted[b, i] = (frames * p).sum() / p.sum()
            by_label[b, : t[b], i] = weights[b, i] * (frames - wanted[b, i]) / p.sum()
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    np.testing.assert_allclose(gradient, pack(by_label, t, u, rows), atol=1e-12)


# ---------------------------------------------------------------------------------------- bad input


def test_unknown_values(implementation: str) -> None:
    """In jit: NaN and no frames for an utterance with bad values, or without all of its rows."""
    t, u = np.array([3, 2, 4, 1]), np.array([2, 1, 2, 0])
    labels = np.ones((4, 2), int)
    align = jax.jit(
        lambda *x: jax_rnnt.rnnt_align_packed(*x, implementation=implementation, check=False)
    )
    logits = np.random.default_rng(4).normal(size=(jax_rnnt.packed_size(t, u), 3))
    clean = jax.device_get(align(logits, labels, t, u))
    assert np.isfinite(clean.score).all()

    def check(bad: list[int], *arguments: Any) -> None:
        found = jax.device_get(align(*arguments))
        good = np.setdiff1d(np.arange(4), bad)
        assert np.isnan(found.score[bad]).all() and (found.frames[bad] == -1).all()
        np.testing.assert_array_equal(found.score[good], clean.score[good])
        np.testing.assert_array_equal(found.frames[good], clean.frames[good])

    def changed(x: np.ndarray, index: Any, value: int) -> np.ndarray:
        x = x.copy()
        x[index] = value
        return x

    check([1], logits, changed(labels, (1, 0), 3), t, u)  # padding is not looked at
    check([3], logits, labels, changed(t, 3, -1), u)
    check([2, 3], logits, labels, changed(t, 2, 99), u)
    check([2, 3], logits, labels, t, changed(u, 2, 2**31 - 1))


@pytest.mark.parametrize("count", [0, 2])
def test_nothing_to_do(implementation: str, count: int) -> None:
    """No utterances, or none with frames; no rows at all, or padding alone."""
    zeros = np.zeros(count, int)
    options: Any = {"max_labels": 2, "implementation": implementation}
    for rows in (0, 5):
        arcs = np.full((2, rows), np.nan)
        results: list[Any] = [jax_rnnt.rnnt_align_packed_from_arcs(*arcs, zeros, zeros, **options)]
        if implementation == "native":  # shapes are compiled one by one
            results.append(jax_rnnt.rnnt_best_labels_packed(arcs.T, zeros, zeros, **options))
        for found in results:
            assert (found.score == 0).all() and found.score.shape == (count,)
            assert (found.frames == -1).all() and found.frames.shape == (count, 2)
        frames = jax_rnnt.expected_emission_frames_packed(
            Posteriors(*arcs), zeros, zeros, max_labels=2
        )
        np.testing.assert_array_equal(frames, np.full((count, 2), -1.0))


def test_errors() -> None:
    logits, t, u = np.zeros((6, 2)), np.array([2]), np.array([2])
    with pytest.raises(ValueError, match="N = 5 packed rows; expected at least 6 rows"):
        jax_rnnt.rnnt_align_packed(logits[:5], np.ones((1, 2), int), t, u)
    with pytest.raises(ValueError, match=r"logits has shape \(6,\); expected \(N, V\)"):
        jax_rnnt.rnnt_best_labels_packed(logits[:, 0], t, u, max_labels=2)
    with pytest.raises(ValueError, match=r"label_lengths\[0\] is 2.*max_labels = 1"):
        jax_rnnt.rnnt_align_packed_from_arcs(*logits.T, t, u, max_labels=1)
    with pytest.raises(TypeError, match="posteriors is of type ndarray"):
        jax_rnnt.expected_emission_frames_packed(logits, t, u, max_labels=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"posteriors.label has shape \(6, 2\)"):
        jax_rnnt.expected_emission_frames_packed(Posteriors(logits, logits), t, u, max_labels=2)


# ------------------------------------------------------------------------------ transforms, devices

B, U, V, N = 3, 3, 4, 40


def everything(implementation: str) -> Any:
    """`(logits, labels, t, u) ->` what the functions return for them, inside transforms."""

    def function(logits: Any, labels: Any, t: Any, u: Any) -> Any:
        options: Any = {"implementation": implementation, "check": False}
        alignment = jax_rnnt.rnnt_align_packed(logits, labels, t, u, **options)
        if implementation == "xla":
            return tuple(alignment)
        best = jax_rnnt.rnnt_best_labels_packed(logits, t, u, max_labels=U, **options)
        expected = jax_rnnt.expected_emission_frames_packed(
            Posteriors(logits[:, 0], logits[:, 1] ** 2), t, u, max_labels=U, check=False
        )
        return tuple(alignment), tuple(best), expected

    return function


@pytest.fixture(scope="module")
def many() -> tuple[np.ndarray, ...]:
    """Eight batches of packed utterances."""
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, 4, (8, B)), rng.integers(0, U + 1, (8, B))
    return rng.normal(size=(8, N, V)), rng.integers(1, V, (8, B, U)), *lengths


def equal(found: Any, wanted: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), found, wanted)


def test_transforms(implementation: str, many: Any, devices: list[jax.Device]) -> None:
    """vmap, also of shared operands; pmap; shard_map."""
    function = everything(implementation)
    jitted = jax.jit(function)
    results = [jax.device_get(jitted(*batch)) for batch in zip(*many, strict=True)]
    wanted = jax.tree.map(lambda *x: np.stack(x), *results)
    equal(jax.jit(jax.vmap(function))(*many), wanted)
    mesh = Mesh(np.array(devices), ("data",))

    def local(*batch: Any) -> Any:
        return jax.tree.map(lambda x: x[None], function(*(x[0] for x in batch)))

    equal(shard_map(local, mesh, (P("data"),) * 4, P("data"))(*many), wanted)
    if implementation == "xla":
        return
    equal(jax.pmap(function, devices=devices)(*many), wanted)
    shared = jax.jit(jax.vmap(function, (0, None, None, None)))(many[0], *(x[0] for x in many[1:]))
    equal(jax.tree.map(lambda x: x[0], shared), results[0])


@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_sharded_rows(many: Any, devices: list[jax.Device], axis_type: str) -> None:
    """Rows divided among devices: as in one piece."""
    kind = getattr(jax.sharding.AxisType, axis_type)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,), devices=devices)
    function = jax.jit(everything("native"))
    logits, *rest = (x[0] for x in many)
    wanted = jax.device_get(function(logits, *rest))
    with jax.set_mesh(mesh):
        placed = jax.device_put(logits, NamedSharding(mesh, P("data")))
        equal(function(placed, *jax.device_put(rest, NamedSharding(mesh, P()))), wanted)


def test_lowering_for_tpu(many: Any) -> None:
    """No custom call of ours."""
    batch = tuple(x[0] for x in many)
    here = custom_calls(jax.jit(everything("auto")).lower(*batch).as_text())
    assert here == {"jax_rnnt_arcs_fwd", "jax_rnnt_packed_best_path"}
    text = export(everything("auto"), *batch, targets=set(), platforms=("tpu",)).mlir_module()
    assert not (custom_calls(text) & here)


def test_memory() -> None:
    """Beside the arcs, a byte for each row."""
    rows = 200_000
    arcs = jax.ShapeDtypeStruct((rows,), jnp.float32)
    lengths = jax.ShapeDtypeStruct((8,), jnp.int32)

    def align(blank: Any, label: Any, t: Any, u: Any) -> Any:
        options: Any = {"max_labels": 50, "implementation": "native"}
        return tuple(jax_rnnt.rnnt_align_packed_from_arcs(blank, label, t, u, **options))

    memory: Any = jax.jit(align).lower(arcs, arcs, lengths, lengths).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2 * rows
