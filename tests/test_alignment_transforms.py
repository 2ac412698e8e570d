"""Best alignments and best labels under every transform and on several devices.

Values are float64 and compared to 1e-12 with one plain call, which test_alignment.py holds to
oracles.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from alignment_cases import as_keywords
from assertions import close
from cases import Lengths
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from programs import custom_calls, export
from pruned_cases import PrunedBatch, random_pruned
from shardings import COLLECTIVES, shard_map, sharded

import jax_rnnt
from jax_rnnt import Posteriors

B, T, U, S, V = 16, 5, 4, 3, 4


@pytest.fixture
def batch() -> PrunedBatch:
    return random_pruned(np.random.default_rng(0), B, T, U, S, V)


@pytest.fixture
def mesh(devices: list[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), ("data",))


def everything(implementation: str, check: bool = True) -> Any:
    """`(logits, labels, ranges, lengths) -> ` what the functions return for them.

    The dense ones get the logits of the band in all positions. All but the best path itself is the
    same code in both implementations.
    """

    def function(logits: Any, labels: Any, ranges: Any, ends: Lengths) -> Any:
        windows = jnp.stack([labels % 2, labels % 2 + T - 1], axis=-1)
        options = {
            **as_keywords(ends),
            "label_windows": windows,
            "implementation": implementation,
            "check": check,
        }
        pruned = jax_rnnt.rnnt_align_pruned(logits, labels, ranges, **options)
        if implementation == "xla":
            return pruned
        dense = jnp.concatenate([logits, logits], axis=-2)[..., : U + 1, :]
        am, lm = dense[..., 0, :], dense[..., 0, :, :]
        alignment = jax_rnnt.rnnt_align(dense, labels, **options)
        return (
            pruned,
            alignment,
            jax_rnnt.rnnt_align_simple(am, lm, labels, **options),
            jax_rnnt.rnnt_best_labels(dense, **options),
            jax_rnnt.rnnt_best_labels_simple(am, lm, topology="modified", **options),
            jax_rnnt.mean_emission_delay(alignment.frames, pruned.frames),
            jax_rnnt.expected_emission_frames(Posteriors(dense[..., 0], dense[..., 1] ** 2)),
        )

    return function


@functools.cache
def _compiled(implementation: str) -> Any:
    return jax.jit(everything(implementation))


def plain(implementation: str, batch: PrunedBatch) -> Any:
    return _compiled(implementation)(*batch[:4])


def test_vmap_and_scan(implementation: str, batch: PrunedBatch) -> None:
    """Without batch dimensions, mapped over another axis, and in a scan."""
    wanted = plain(implementation, batch)
    function = everything(implementation)
    found = jax.jit(jax.vmap(function, in_axes=(-1, 0, 0, 0)))(
        np.moveaxis(batch.logits, 0, -1), *batch[1:4]
    )
    close(found, wanted)
    parts = jax.tree.map(lambda x: x.reshape(4, 4, *x.shape[1:]), tuple(batch[:4]))
    _, rows = jax.jit(lambda b: jax.lax.scan(lambda c, x: (c, function(*x)), 0, b))(parts)
    close(jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), rows), wanted)


def test_debug_nans(implementation: str, batch: PrunedBatch) -> None:
    """`jax_debug_nans` does not complain about a clean batch."""
    with jax.debug_nans(True):
        jax.block_until_ready(jax.jit(everything(implementation))(*batch[:4]))


def test_pmap(implementation: str, batch: PrunedBatch, devices: list[jax.Device]) -> None:
    split = jax.tree.map(lambda x: x.reshape(8, B // 8, *x.shape[1:]), tuple(batch[:4]))
    found = jax.pmap(everything(implementation), devices=devices)(*split)
    found = jax.tree.map(lambda x: np.asarray(x).reshape(B, *x.shape[2:]), found)
    close(found, plain(implementation, batch))


def test_sharded_jit(implementation: str, batch: PrunedBatch, mesh: Mesh) -> None:
    """Batch-sharded: right, sharded, no collective."""
    placed = sharded(tuple(batch[:4]), mesh)
    compiled = jax.jit(everything(implementation)).lower(*placed).compile()
    found = compiled(*placed)
    close(found, plain(implementation, batch))
    assert not COLLECTIVES.findall(compiled.as_text())
    assert all(not x.sharding.is_fully_replicated for x in jax.tree.leaves(found))


def test_shard_map(implementation: str, batch: PrunedBatch, mesh: Mesh) -> None:
    """All sharded, and with the logits replicated."""
    wanted = plain(implementation, batch)
    function = everything(implementation)
    data = P("data")
    found = shard_map(function, mesh, (data,) * 4, data)(*batch[:4])
    close(found, wanted)
    tiled = np.tile(batch.logits[:2], (8, 1, 1, 1))
    found = shard_map(function, mesh, (P(), data, data, data), data)(tiled[:2], *batch[1:4])
    close(found, plain(implementation, batch._replace(logits=tiled)))


def test_explicit_mesh(implementation: str, batch: PrunedBatch, devices: list[jax.Device]) -> None:
    """Sharding in types: everything keeps the batch axis of the logits."""
    wanted = plain(implementation, batch)
    mesh = jax.make_mesh(
        (8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,), devices=devices
    )
    with jax.set_mesh(mesh):
        arguments = sharded(tuple(batch[:4]), mesh)
        function = jax.jit(everything(implementation, check=False))
        found = function(*arguments)
        assert all(jax.typeof(x).sharding.spec[0] == "data" for x in jax.tree.leaves(found))
        close(found, wanted)
        assert not COLLECTIVES.findall(function.lower(*arguments).compile().as_text())


@pytest.mark.parametrize("symbolic", [False, True], ids=["fixed", "symbolic-batch"])
def test_export(implementation: str, batch: PrunedBatch, symbolic: bool) -> None:
    """Exported and read back; with a symbolic batch for two sizes."""
    from jax.export import deserialize, symbolic_shape

    def function(logits: Any, labels: Any, t: Any, u: Any) -> Any:
        options = {"implementation": implementation, "check": False}
        return tuple(jax_rnnt.rnnt_align(logits, labels, t, u, **options))

    arguments = batch.logits, batch.labels[:, : S - 1], *(x % S for x in batch.lengths[:2])
    targets = custom_calls(jax.jit(function).lower(*arguments).as_text())
    assert ("jax_rnnt_best_path" in targets) == (implementation == "native")
    spec = arguments
    if symbolic:
        (size,) = symbolic_shape("b")
        spec = tuple(jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype) for a in arguments)
    again = deserialize(export(function, *spec, targets=targets).serialize())
    for count in (B, 3) if symbolic else (B,):
        part = tuple(x[:count] for x in arguments)
        close(again.call(*part), jax.jit(function)(*part))


def test_lowering_for_tpu(batch: PrunedBatch) -> None:
    """`auto` lowers for TPU to plain XLA: no custom call of ours."""

    def function(logits: Any, labels: Any, ranges: Any) -> Any:
        return tuple(jax_rnnt.rnnt_align_pruned(logits, labels, ranges, check=False))

    here = custom_calls(jax.jit(function).lower(*batch[:3]).as_text())
    assert here == {"jax_rnnt_arcs_fwd", "jax_rnnt_best_path"}
    text = export(function, *batch[:3], targets=set(), platforms=("tpu",)).mlir_module()
    assert not (custom_calls(text) & here)


def test_memory() -> None:
    """The way back is a byte a cell; the best labels of the additive joiner store no logits."""
    planes = jax.ShapeDtypeStruct((8, 200, 51), jnp.float32)
    cells = planes.size
    align: Any = jax.jit(jax_rnnt.rnnt_align_from_arcs)
    used = align.lower(planes, planes).compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * cells / 2
    am = jax.ShapeDtypeStruct((8, 200, 300), jnp.float32)
    lm = jax.ShapeDtypeStruct((8, 51, 300), jnp.float32)
    best: Any = jax.jit(jax_rnnt.rnnt_best_labels_simple)
    used = best.lower(am, lm).compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * (5 * cells + 3 * (am.size + lm.size))
