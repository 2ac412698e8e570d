"""The gradient of `do_rnnt_pruning`: sums of rows by their numbers, against NumPy's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from programs import our_targets
from shardings import COLLECTIVES, shard_map

import jax_rnnt
from jax_rnnt import row_sums_reference as in_jax
from jax_rnnt._native.row_ops import take_rows

B, T, U, S, C = 8, 9, 5, 3, 4


def gradient(x: Any, numbers: Any, cotangent: Any) -> jax.Array:
    return jax.jit(lambda *args: jax.vjp(lambda x: take_rows(x, args[1]), args[0])[1](args[2])[0])(
        x, numbers, cotangent
    )


def summed(numbers: np.ndarray, values: np.ndarray, num_sums: int) -> np.ndarray:
    """One row after another, in the dtype of `values`."""
    sums = np.zeros((*values.shape[:-2], num_sums, values.shape[-1]), values.dtype)
    for place in np.ndindex(values.shape[:-2]):
        np.add.at(sums[place], numbers[place], values[place])
    return sums


SIZES = {  # batch, rows, sums, columns
    "few": ((3,), 40, 7, 5),
    "one": ((), 1, 1, 1),
    "no row": ((2,), 0, 3, 4),
    "no column": ((2,), 5, 3, 0),
    "no batch": ((0,), 5, 3, 4),
    "two batch dimensions": ((2, 3), 33, 4, 16),
    "more columns than a warp": ((2,), 300, 9, 133),
    "more columns than are summed at a time": ((1,), 70, 3, 4103),
    "more sums than are summed at a time": ((2,), 900, 700, 9),
    "most in one sum": ((2,), 1000, 300, 3),
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_in_order(name: str, dtype: Any) -> None:
    """To the last bit what adding rows one after another gives. A NaN stays in its own sum."""
    batch, rows, sums, columns = SIZES[name]
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, sums, size=(*batch, rows)).astype(np.int32)
    if name == "most in one sum":
        numbers[:, 100:900] = 7
    values = rng.normal(size=(*batch, rows, columns)).astype(dtype)
    values[..., rows // 2 : rows // 2 + 1, :1] = np.nan
    found = gradient(np.zeros((*batch, sums, columns), dtype), numbers, values)
    np.testing.assert_array_equal(found, summed(numbers, values, sums))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_dtypes(dtype: Any) -> None:
    """Summed in float32 and rounded once: a sum of 2000 ones is not stuck at 256."""
    rng = np.random.default_rng(0)
    numbers = np.zeros((1, 2000), np.int32)
    values = jnp.asarray(rng.uniform(0.5, 1.5, size=(1, 2000, 37)), dtype)
    found = gradient(jnp.zeros((1, 2, 37), dtype), numbers, values)
    wanted = summed(numbers, np.asarray(values, np.float64), 2)
    half_ulp = float(jnp.finfo(dtype).eps) / 2
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=half_ulp + 1e-5)


def test_pure_jax() -> None:
    """What other platforms run is the same sum, in float32 too."""
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 5, size=(3, 400)).astype(np.int32)
    values = jnp.asarray(rng.normal(size=(3, 400, 6)), jnp.bfloat16)
    wanted = summed(numbers, np.asarray(values, np.float64), 5)
    found = jax.jit(lambda *x: in_jax.row_sums(*x, num_sums=5))(values, jnp.asarray(numbers))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=2**-8, atol=1e-4)


def test_derivatives() -> None:
    """Of any order, in both modes, alone and of a sum of squares."""
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 4, size=(2, 6)).astype(np.int32)
    x = rng.normal(size=(2, 4, 3))
    check_grads(lambda x: take_rows(x, numbers), (x,), order=2, modes=("fwd", "rev"))
    check_grads(lambda x: (take_rows(x, numbers) ** 3).sum(), (x,), order=3)


@pytest.mark.parametrize("axes", [(0, 0), (2, None), (None, 1), (-1, -1)])
def test_vmap(axes: tuple[int | None, int | None]) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, 4, 3))
    numbers = rng.integers(0, 4, size=(B, 6)).astype(np.int32)
    given = [
        y[0] if axis is None else np.moveaxis(y, 0, axis)
        for y, axis in zip((x, numbers), axes, strict=True)
    ]
    same = [
        np.broadcast_to(y[:1], y.shape) if axis is None else y
        for y, axis in zip((x, numbers), axes, strict=True)
    ]
    cotangent = rng.normal(size=(B, 6, 3))
    grad = jax.vjp(lambda x: jax.vmap(take_rows, axes)(x, given[1]), given[0])[1](cotangent)[0]
    wanted = summed(same[1], cotangent, 4)
    wanted = wanted.sum(0) if axes[0] is None else np.moveaxis(wanted, 0, axes[0])
    np.testing.assert_allclose(grad, wanted, rtol=1e-13, atol=1e-13)


def pruned(am: Any, lm: Any, ranges: Any) -> jax.Array:
    """Something of both outputs."""
    am_rows, lm_rows = jax_rnnt.do_rnnt_pruning(am, lm, ranges)
    return jnp.sin(am_rows * lm_rows).sum(axis=(1, 2, 3))


@pytest.fixture
def band() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    starts = np.sort(rng.integers(0, U + 2 - S, size=(B, T)))
    ranges = (starts[..., None] + np.arange(S)).astype(np.int32)
    return rng.normal(size=(B, T, C)), rng.normal(size=(B, U + 1, C)), ranges


def wanted_gradients(am: np.ndarray, lm: np.ndarray, ranges: np.ndarray) -> tuple[Any, ...]:
    rows = np.take_along_axis(lm, ranges.reshape(B, -1, 1), axis=1).reshape(B, T, S, C)
    slope = np.cos(am[:, :, None] * rows)
    by_rows = (slope * am[:, :, None]).reshape(B, T * S, C)
    return (slope * rows).sum(2), summed(ranges.reshape(B, -1), by_rows, U + 1)


def test_sharded(band: tuple[np.ndarray, ...], devices: list[jax.Device]) -> None:
    """Divided among devices by the compiler, without collectives, and explicitly."""
    sharding = NamedSharding(Mesh(np.array(devices), ("data",)), P("data"))
    args = [jax.device_put(x, sharding) for x in band]
    step = jax.jit(jax.grad(lambda *x: pruned(*x).sum(), (0, 1)))
    found = step(*args)
    text = step.lower(*args).compile().as_text()
    assert not COLLECTIVES.search(text)
    for x, y in zip(found, wanted_gradients(*band), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)
        assert x.sharding.is_equivalent_to(sharding, x.ndim)


def test_shard_map(band: tuple[np.ndarray, ...], devices: list[jax.Device]) -> None:
    """A replicated `lm` has the sum of all shards' gradients."""
    am, lm, ranges = band
    lm = np.broadcast_to(lm[:1], lm.shape)
    mesh = Mesh(np.array(devices), ("data",))

    def loss(am: Any, lm: Any, ranges: Any) -> Any:
        mine = jnp.broadcast_to(lm, (am.shape[0], *lm.shape[1:]))
        return jax.lax.psum(pruned(am, mine, ranges).sum(), "data")

    mapped = shard_map(loss, mesh=mesh, in_specs=(P("data"), P(), P("data")), out_specs=P())
    found = jax.jit(jax.grad(mapped, (0, 1)))(am, lm[:1], ranges)
    d_am, d_lm = wanted_gradients(am, lm, ranges)
    np.testing.assert_allclose(found[0], d_am, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found[1], d_lm.sum(0, keepdims=True), rtol=1e-12, atol=1e-12)


def test_features_divided(band: tuple[np.ndarray, ...], devices: list[jax.Device]) -> None:
    """Along an explicit axis: rows come divided as they were, and so do gradients."""
    am, lm, ranges = band
    kind = jax.sharding.AxisType.Explicit
    mesh = jax.make_mesh((2,), ("model",), axis_types=(kind,), devices=devices[:2])
    wanted = wanted_gradients(am, lm, ranges)
    with jax.set_mesh(mesh):
        spec = P(None, None, "model")
        rows = jax.device_put((am, lm), NamedSharding(mesh, spec))
        for step in (gradients := jax.grad(lambda *x: pruned(*x, ranges).sum(), (0, 1)),
                     jax.jit(gradients)):  # fmt: skip
            found = step(*rows)
            assert [jax.typeof(x).sharding.spec for x in found] == [spec, spec]
            for x, y in zip(found, wanted, strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)


def test_kernel_is_used(band: tuple[np.ndarray, ...]) -> None:
    step = jax.jit(jax.grad(lambda *x: pruned(*x).sum(), (0, 1)))
    assert our_targets(step, *band) == {"jax_rnnt_row_sums"}


def test_pure_jax_is_pure(band: tuple[np.ndarray, ...]) -> None:
    """The pruned joint loss takes rows by the implementation that it was asked for."""
    am, lm, ranges = band

    def loss(implementation: Any) -> Any:
        return lambda *rows: jax_rnnt.rnnt_loss_pruned_joint(
            lambda params, x, y: x + y, (), *rows, np.ones((B, U), int), ranges,
            implementation=implementation, check=False,
        ).sum()  # fmt: skip

    pure, native = (jax.value_and_grad(loss(name), (0, 1)) for name in ("xla", "native"))
    assert our_targets(pure, am, lm) == set() < our_targets(native, am, lm)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-12),
        *(jax.jit(step)(am, lm) for step in (pure, native)),
    )
