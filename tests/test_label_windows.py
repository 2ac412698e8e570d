"""Alignment-restricted training: every loss against the paths that fit the windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import oracles_factored
import oracles_pruned
import pytest
from cases import (
    TOPOLOGIES,
    Array,
    Batch,
    Options,
    arcs_function,
    loss_function,
    random_arcs,
    random_batch,
    some_xla,
)
from factored_cases import factored_function, loss_and_grads, random_factored
from jax.experimental import checkify
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from packed_cases import pack
from pruned_cases import TOPOLOGIES as PRUNED_TOPOLOGIES
from pruned_cases import random_pruned
from shardings import COLLECTIVES, losses_and_grad, shard_map, sharded

import jax_rnnt
from jax_rnnt import label_windows_from_frames

B, T, U, V = 6, 5, 3, 4
ARGUMENTS = ("logit_lengths", "label_lengths", "logit_begins", "label_begins")


def close(found: Any, wanted: Any) -> None:
    """Equal trees up to float64 rounding; +inf where +inf is wanted."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def random_windows(
    rng: np.random.Generator, ranges: Any, paths: Callable[[int, oracles.Bounds], Any], labels: int
) -> np.ndarray:
    """Around one path of each utterance; anything in padding. No path for utterance 0."""
    windows = rng.integers(-9, 99, (len(ranges[0]), labels, 2))
    for i, (t1, u1, t0, u0) in enumerate(zip(*ranges, strict=True)):
        every = list(paths(i, oracles.Bounds(t0, t1, u0, u1)))
        for kind, t, u in every[rng.integers(len(every))]:
            if kind == "label":
                windows[i, u] = t - rng.integers(3), t + 1 + rng.integers(3)
    windows[0] = [[1, 2]] * (labels - 1) + [[0, 1]]  # the last label before the others
    return windows


def lattice_windows(rng: np.random.Generator, ranges: Any, options: Options) -> np.ndarray:
    """`random_windows` of whole lattices."""
    topology, final_blank = options["topology"], options.get("final_blank", False)
    return random_windows(rng, ranges, lambda i, w: oracles.paths(w, topology, final_blank), U)


def in_order(enumeration: Callable[..., Any], windows: Array) -> Callable[..., Any]:
    """What the oracles call for one utterance after the other, each with its own windows."""
    rows = iter(windows)
    return lambda *arguments: enumeration(*arguments, label_windows=next(rows))


def lengths_of(batch: Any) -> dict[str, Array]:
    return dict(zip(ARGUMENTS, batch.lengths, strict=True))


@pytest.mark.parametrize(**some_xla)
def test_logits(implementation: str, topology: Options) -> None:
    """`rnnt_loss` and its gradient; utterance 0 has no path."""
    rng = np.random.default_rng(TOPOLOGIES.index(topology))
    options = dict(topology, fastemit_lambda=0.2, delay_penalty=0.1)
    batch = random_batch(rng, B, T, U, V, **options)
    windows = lattice_windows(rng, batch.lengths, topology)
    wanted = oracles.logits_loss(
        *batch[:2],
        **lengths_of(batch),
        **options,
        lattice=in_order(oracles.by_enumeration, windows),
    )
    function = loss_function(implementation, label_windows=windows, **options)
    found = jax.jit(losses_and_grad(lambda x: function(x, *batch[1:])))(batch.logits)
    close(found, wanted)
    assert wanted.loss[0] == np.inf and np.isfinite(wanted.loss[1:]).all()


@pytest.mark.parametrize(**some_xla)
def test_packed(implementation: str, topology: Options) -> None:
    """Packed logits, and packed arcs with garbage in forbidden ones."""
    rng = np.random.default_rng(20 + TOPOLOGIES.index(topology))
    t1, u1 = np.array([5, 4, 3, 5]), np.array([3, 2, 2, 0])
    logits = rng.normal(size=(4, T, U + 1, V))
    labels = rng.integers(1, V, size=(4, U))
    windows = lattice_windows(rng, (t1, u1, 0 * t1, 0 * u1), topology)
    enumeration = in_order(oracles.by_enumeration, windows)
    wanted = oracles.logits_loss(logits, labels, t1, u1, **topology, lattice=enumeration)
    rows = jax_rnnt.packed_size(t1, u1)
    options: Options = dict(topology, label_windows=windows, implementation=implementation)

    def loss(logits: Array) -> jax.Array:
        return jax_rnnt.rnnt_loss_packed(logits, labels, t1, u1, **options)

    found = jax.jit(losses_and_grad(loss))(pack(logits, t1, u1, rows))
    close(found, (wanted.loss, pack(wanted.grad, t1, u1, rows)))
    assert wanted.loss[0] == np.inf and np.isfinite(wanted.loss[1:]).all()

    log_probs = np.asarray(jax.nn.log_softmax(logits))
    t = np.arange(T).reshape(1, T, 1)
    label = np.take_along_axis(log_probs[:, :, :U], labels[:, None, :, None], -1)[..., 0]
    label[(t < windows[:, None, :, 0]) | (t >= windows[:, None, :, 1])] = np.nan
    label = np.pad(label, ((0, 0), (0, 0), (0, 1)))
    arcs = (pack(x, t1, u1, rows) for x in (log_probs[..., 0], label))
    found = jax_rnnt.rnnt_loss_packed_from_arcs(*arcs, t1, u1, max_labels=U, **options)
    close(found, wanted.loss)


@pytest.mark.parametrize(**some_xla)
def test_arcs(implementation: str, topology: Options) -> None:
    """From arcs: posteriors and gradients; garbage in forbidden label arcs has no effect."""
    rng = np.random.default_rng(TOPOLOGIES.index(topology))
    batch = random_arcs(rng, B, T, U, **topology)
    windows = lattice_windows(rng, batch.lengths, topology)
    wanted = oracles.arcs_loss(
        *batch[:2],
        **lengths_of(batch),
        **topology,
        lattice=in_order(oracles.by_enumeration, windows),
    )
    t = np.arange(T).reshape(1, T, 1)
    forbidden = (t < windows[:, None, :, 0]) | (t >= windows[:, None, :, 1])
    batch.label[..., :U][forbidden] = np.nan

    def run(blank: Array, label: Array) -> Any:
        options: Options = dict(topology, label_windows=windows, return_posteriors=True)
        function = arcs_function(implementation, **options)
        loss, vjp, posteriors = jax.vjp(
            lambda *x: function(*x, batch.lengths), blank, label, has_aux=True
        )
        return loss, posteriors, *vjp(jnp.ones_like(loss))

    close(jax.jit(run)(*batch[:2]), wanted)
    if topology == TOPOLOGIES[0]:
        blanks, labels = ([x - 0.5 * np.ones_like(x), 0.5 * np.ones_like(x)] for x in batch[:2])
        parts = jax_rnnt.rnnt_loss_from_arc_terms(
            blanks, labels, **lengths_of(batch), label_windows=windows
        )
        second = sum(x.sum((1, 2)) for x in wanted.posteriors) * -0.5
        close((parts.sum(0), parts[1, 1:]), (wanted.loss, second[1:]))


@pytest.mark.parametrize("scales", [{}, {"lm_only_scale": 0.2, "am_only_scale": 0.1}], ids=len)
@pytest.mark.parametrize("topology", [TOPOLOGIES[0], TOPOLOGIES[2]], ids=["regular", "modified"])
def test_factored(topology: Options, scales: Options) -> None:
    """The additive joiner, smoothed too."""
    rng = np.random.default_rng(7)
    batch = random_factored(rng, B, T, U, V, **topology)
    windows = lattice_windows(rng, batch.lengths, topology)
    oracle: Any = oracles_factored.smoothed_loss if scales else oracles_factored.simple_loss
    wanted = oracle(batch, lattice=in_order(oracles.by_enumeration, windows), **topology, **scales)
    # The others' losses depend on utterance 0, by way of the unigram; its gradient is 0 anyway.
    d_lm = np.where(np.isinf(wanted.loss)[:, None, None], 0, wanted.d_lm)
    wanted = wanted._replace(d_lm=d_lm)
    function = factored_function(label_windows=windows, **topology, **scales)
    found = jax.jit(loss_and_grads(lambda *x: function(*x, *batch[2:])))(batch.am, batch.lm)
    close(found, wanted)


@pytest.mark.parametrize(
    ("implementation", "topology"),
    [*[("native", topology) for topology in PRUNED_TOPOLOGIES], ("xla", "regular")],
)
def test_pruned(implementation: str, topology: str) -> None:
    """In a band, from logits and from a joint network."""
    rng = np.random.default_rng(PRUNED_TOPOLOGIES.index(topology))
    size = 2
    batch = random_pruned(rng, B, T, U, size, V, topology=topology)
    starts = np.asarray(batch.ranges)[..., 0]
    windows = random_windows(
        rng, batch.lengths, lambda i, w: oracles_pruned.paths(starts[i], size, w, topology), U
    )
    wanted = oracles_pruned.pruned_loss(
        batch.logits,
        batch.labels,
        batch.ranges,
        tuple(batch.lengths),
        topology=topology,
        band=in_order(oracles_pruned.by_enumeration, windows),
    )
    options: Any = {
        **dict(zip(ARGUMENTS, batch.lengths, strict=True)),
        "topology": topology,
        "label_windows": windows,
        "implementation": implementation,
    }

    def pruned(logits: Array) -> jax.Array:
        return jax_rnnt.rnnt_loss_pruned(logits, batch.labels, batch.ranges, **options)

    def from_joint(logits: Array) -> jax.Array:
        """A joint network whose encoder knows all logits of its frame."""
        rows = logits.reshape(B, T, size * V)
        return jax_rnnt.rnnt_loss_pruned_joint(
            lambda _, am, lm: am[:, :, 0].reshape(*am.shape[:2], size, V),
            (),
            rows,
            np.zeros((B, U + 1, 1)),
            batch.labels,
            batch.ranges,
            frames_per_tile=2,
            **options,
        )

    close(jax.jit(losses_and_grad(pruned))(batch.logits), wanted)
    close(jax.jit(losses_and_grad(from_joint))(batch.logits)[:1], wanted[:1])


@pytest.fixture
def windowed() -> tuple[Batch, np.ndarray, Any]:
    """Sixteen utterances, their windows, and losses with gradients computed at once."""
    rng = np.random.default_rng(3)
    batch = random_batch(rng, 16, T, U, V)
    windows = lattice_windows(rng, batch.lengths, TOPOLOGIES[0])
    return batch, windows, jax.jit(losses_and_grad(function_of_windows()))(*batch[:3], windows)


def function_of_windows(implementation: str = "native") -> Callable[..., jax.Array]:
    """`(logits, labels, ranges, label_windows) -> losses`."""

    def loss(logits: Array, labels: Array, ranges: Any, windows: Array) -> jax.Array:
        function = loss_function(implementation, label_windows=windows)
        return function(logits, labels, ranges)

    return loss


def test_vmap(implementation: str, windowed: Any) -> None:
    """Over utterances, and over windows alone, mapped on another axis."""
    batch, windows, wanted = windowed
    function = function_of_windows(implementation)
    close(jax.jit(jax.vmap(jax.value_and_grad(function)))(*batch[:3], windows), wanted)
    one = jax.tree.map(lambda x: x[0], batch[:3])
    mapped = jax.vmap(function, in_axes=(None, None, None, 2))(*one, windows[:4].transpose(1, 2, 0))
    alone = [jax.jit(function)(*one, x) for x in windows[:4]]
    close(mapped, np.array(alone))


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_sharded(implementation: str, windowed: Any, devices: Any, explicit: bool) -> None:
    """Eight devices, the windows sharded or not: no communication."""
    batch, windows, wanted = windowed
    kind = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,), devices=devices)
    operands = sharded((*batch[:3], windows), mesh)
    function = losses_and_grad(function_of_windows(implementation))
    with jax.set_mesh(mesh):
        compiled = jax.jit(function).lower(*operands).compile()
        close(compiled(*operands), wanted)
        close(jax.jit(function)(*operands[:3], sharded(windows, mesh, P())), wanted)
    assert not COLLECTIVES.findall(compiled.as_text())


def test_shard_map_and_pmap(windowed: Any, devices: Any) -> None:
    """Windows that all shards share; and one shard of utterances a device under pmap."""
    batch, windows, wanted = windowed
    function = losses_and_grad(function_of_windows())
    mesh = Mesh(np.array(devices), ("data",))
    two = jax.tree.map(lambda x: x[:2], (*batch[1:3], windows))
    every = jax.tree.map(lambda x: np.concatenate([x] * 8), two)
    specs = (P("data"), P(), P(), P())
    mapped = shard_map(function, mesh=mesh, in_specs=specs, out_specs=P("data"))
    close(jax.jit(mapped)(batch.logits, *two), jax.jit(function)(batch.logits, *every))
    split = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), (*batch[:3], windows))
    found = jax.pmap(function, devices=devices)(*split)
    close([x.reshape(16, *x.shape[2:]) for x in found], wanted)


def test_bad_input() -> None:
    """Errors that say what is wrong; windows of padding and of left-out utterances may be that."""
    batch = random_batch(np.random.default_rng(0), 3, T, U, V)
    windows = np.tile(np.array([0, T]), (3, U, 1))

    def loss(windows: Any, **more: Any) -> jax.Array:
        return jax_rnnt.rnnt_loss(batch.logits, batch.labels, label_windows=windows, **more)

    with pytest.raises(ValueError, match=r"label_windows has shape \(3, 3\); expected .*U, 2\)"):
        loss(windows[..., 0])
    with pytest.raises(TypeError, match=r"label_windows has dtype float64; expected an integer"):
        loss(windows.astype(np.float64))
    windows[1, 2] = 3, 2
    with pytest.raises(ValueError, match=r"label_windows\[1, 2, 0\] is 3; expected a first frame"):
        loss(windows)
    with pytest.raises(ValueError, match=r"label_windows\[1, 2, 0\] is 3"):
        jax_rnnt.check_inputs(batch.logits, batch.labels, label_windows=windows)
    checked = checkify.checkify(
        jax.jit(lambda x: jax_rnnt.check_inputs(batch.logits, batch.labels, label_windows=x))
    )
    assert "label_windows[5] is 3" in str(checked(windows)[0].get())
    assert np.isfinite(loss(windows, label_lengths=np.array([3, 2, 3]))).all()
    assert np.isfinite(loss(windows, where=np.array([True, False, True]))).all()
    losses, grads = jax.jit(losses_and_grad(lambda x: loss(windows, check=False)))(batch.logits)
    assert (np.isinf(losses) == [False, True, False]).all() and not np.any(grads[1])
    wide = np.array([-(2**40), 2**40])
    np.testing.assert_array_equal(loss(np.tile(wide, (3, U, 1))), loss(None))
    empty = jax_rnnt.rnnt_loss_from_arcs(
        *np.zeros((2, 3, T, 1)), label_windows=np.zeros((3, 0, 2), np.int32)
    )
    assert empty.shape == (3,)


@pytest.mark.parametrize(("left", "right"), [(0, 0), (2, 1), (None, 3), (1, None), (2**40, 2**40)])
def test_from_frames(left: int | None, right: int | None) -> None:
    """First frame and end of each label; no limits for unknown ones; nothing wraps around."""
    last = 2**31 - 1
    frames = np.array([[0, 1, 7], [3, -1, -5], [last - 1, last - 2, 5]])
    found = np.asarray(jax.jit(lambda x: label_windows_from_frames(x, left, right))(frames))
    assert found.dtype == np.int32 and found.shape == (3, 3, 2)
    for frame, (first, end) in zip(frames.flat, found.reshape(-1, 2).tolist(), strict=True):
        assert first == (0 if frame < 0 or left is None else max(frame - left, 0))
        assert end == (last if frame < 0 or right is None else min(frame + right + 1, last))


def test_from_frames_bad_input() -> None:
    with pytest.raises(TypeError, match="frames has dtype float64; expected an integer dtype"):
        label_windows_from_frames(np.zeros(3), 1, 1)
    with pytest.raises(ValueError, match="left is -1; expected left >= 0"):
        label_windows_from_frames(np.zeros(3, np.int32), -1, 1)
    with pytest.raises(TypeError, match=r"right is 1\.5; expected a Python integer"):
        label_windows_from_frames(np.zeros(3, np.int32), 1, 1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"frames has shape \(\)"):
        label_windows_from_frames(np.int32(3), 1, 1)  # type: ignore[arg-type]
