"""The GPU's kernels against the CPU's: every op by itself and the losses made of them.

Both kernels keep the promises of test_values.py, so that they differ by at most twice those: what a
promise allows each of them. On the GPU the same operands give the same bits in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    ArcsBatch,
    Batch,
    Options,
    arcs_function,
    each_topology,
    loss_function,
    random_arcs,
    random_batch,
)
from factored_cases import factored_function, loss_and_grads, random_factored
from packed_cases import PackedBatch, packed_function, random_packed
from pruned_cases import TOPOLOGIES as PRUNED_TOPOLOGIES

import jax_rnnt
from jax_rnnt._native.duration_ops import (
    best_duration_path,
    duration_lattice,
    duration_lattice_score,
)
from jax_rnnt._native.row_ops import row_sums
from jax_rnnt.arcs import arcs_bwd, arcs_fwd
from jax_rnnt.lattice import (
    banded_best_path,
    banded_lattice,
    banded_lattice_score,
    best_path,
    lattice,
    lattice_score,
    packed_best_path,
)
from jax_rnnt.types import ArcsOptions, LatticeOptions

pytestmark = pytest.mark.cuda_only("compares the kernels of the GPU with those of the CPU")

DTYPES = [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16]
WIDE = [jnp.float64, jnp.float32]
NORMALIZATIONS = ["softmax", "none", "hat"]
dtype_name: dict[str, Any] = {"ids": lambda d: jnp.dtype(d).name}
# (utterances, T, U, V): rows shorter and longer than a warp, aligned and not; many tiles of cells
ARCS_SHAPES = [(6, 7, 5, 2), (6, 30, 20, 28), (5, 9, 6, 33), (4, 5, 3, 1025), (3, 4, 2, 8193)]
LATTICE_SHAPES = [(6, 1, 0), (6, 3, 1), (6, 7, 5), (5, 70, 37), (5, 40, 90), (3, 300, 150)]


@pytest.fixture(scope="module")
def places() -> tuple[jax.Device, jax.Device]:
    """A CPU and a GPU."""
    return jax.devices("cpu")[0], jax.devices("gpu")[0]


def run_on(device: jax.Device, function: Callable[..., Any], *operands: Any) -> Any:
    """Jitted where its operands are."""
    return jax.device_get(jax.jit(function)(*jax.device_put(operands, device)))


def promised(dtype: Any) -> float:
    """What two kernels that keep the promise for this dtype differ by at most."""
    return 2 * (1e-12 if dtype == jnp.float64 else 1e-5)


def assert_numbers_agree(gpu: np.ndarray, cpu: np.ndarray, tolerance: float) -> None:
    """Relative, absolute below 1; infinities and NaN in the same places."""
    assert gpu.dtype == cpu.dtype and gpu.shape == cpu.shape
    scale = np.maximum(1, np.abs(np.where(np.isfinite(cpu), cpu, 1)))
    np.testing.assert_allclose(gpu / scale, cpu / scale, rtol=0, atol=tolerance)


def assert_gradients_agree(gpu: np.ndarray, cpu: np.ndarray, tolerance: float) -> None:
    """By the norm of each utterance, or to the rounding of 16-bit elements; zeros are exact."""
    assert gpu.dtype == cpu.dtype and gpu.shape == cpu.shape
    info = jnp.finfo(gpu.dtype)
    found, wanted = (
        x.astype(np.longdouble if info.bits == 64 else np.float64).reshape(len(x), -1)
        for x in (gpu, cpu)
    )
    np.testing.assert_array_equal((found == 0).all(1), (wanted == 0).all(1))
    allowed = tolerance * np.linalg.norm(wanted.astype(np.float64), axis=-1)
    if info.bits == 16:
        # each may be off by one unit in the last place
        units = np.maximum(float(info.eps) * np.abs(wanted), float(info.smallest_subnormal))
        assert (np.abs(found - wanted) <= 2 * units + allowed[:, None]).all()
    else:
        error = np.linalg.norm((found - wanted).astype(np.float64), axis=-1)
        assert (error <= allowed).all(), (error, allowed)


def bounds_of(batch: Batch | ArcsBatch) -> np.ndarray:
    """The kernels' bounds; the last utterance is one with bad input."""
    t1, u1, t0, u0 = batch.lengths
    bounds = np.stack([t0, t1, u0, u1], axis=-1).astype(np.int32)
    bounds[-1] = -1
    return bounds


def arcs_operands(shape: tuple[int, ...], dtype: Any, normalization: str) -> tuple[Any, ...]:
    B, T, U, V = shape
    rng = np.random.default_rng(sum(shape))
    batch = random_batch(rng, B, T, U, V, scale=3.0, dtype=dtype, normalization=normalization)
    batch.logits[rng.random(batch.logits.shape) < 0.01] = -np.inf
    return batch.logits, batch.labels, bounds_of(batch)


def lattice_operands(shape: tuple[int, ...], dtype: Any, options: Options) -> tuple[Any, ...]:
    batch = random_arcs(np.random.default_rng(sum(shape)), *shape, dtype=dtype, **options)
    return batch.blank, batch.label, bounds_of(batch)


# -------------------------------------------------------------------------------- ops by themselves


@pytest.mark.parametrize("dtype", DTYPES, **dtype_name)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_arcs(places: tuple[jax.Device, jax.Device], normalization: Any, dtype: Any) -> None:
    """Forward; and backward from one and the same posteriors, with and without a clamp, elsewhere
    and, bit for bit the same, in place of the logits; that of float32 logits also rounded.
    """
    for shape in ARCS_SHAPES:
        operands = arcs_operands(shape, dtype, normalization)
        forward = partial(arcs_fwd, ArcsOptions(normalization=normalization))
        cpu, gpu = (run_on(place, forward, *operands) for place in places)
        for found, wanted in zip(gpu, cpu, strict=True):
            assert_numbers_agree(found, wanted, promised(dtype))

        logits, labels, bounds = operands
        blank, label, denominators = cpu
        _, posteriors = run_on(places[0], partial(lattice, LatticeOptions()), blank, label, bounds)
        cotangents = np.random.default_rng(0).normal(size=len(logits)).astype(blank.dtype)
        for clamp in (None, 0.05):
            backward = partial(arcs_bwd, ArcsOptions(normalization=normalization, clamp=clamp))
            operands = logits, labels, denominators, *posteriors, cotangents
            cpu, gpu = (run_on(place, backward, *operands) for place in places)
            assert_gradients_agree(gpu, cpu, promised(dtype))
            donating = jax.jit(backward, donate_argnums=0)
            in_place = jax.device_get(donating(*jax.device_put(operands, places[1])))
            np.testing.assert_array_equal(in_place, gpu)
            for narrow in (jnp.bfloat16, jnp.float16) if dtype == jnp.float32 else ():
                rounded = run_on(places[1], partial(backward, gradient_dtype=narrow), *operands)
                np.testing.assert_array_equal(rounded, gpu.astype(narrow))


@pytest.mark.parametrize("dtype", WIDE, **dtype_name)
@pytest.mark.parametrize("penalty", [0.0, 0.2])
@pytest.mark.parametrize("topology", **each_topology)
def test_lattices(
    places: tuple[jax.Device, jax.Device], topology: Options, penalty: float, dtype: Any
) -> None:
    """Log-likelihood and posteriors, and the log-likelihood alone."""
    options = LatticeOptions(**topology, delay_penalty=penalty)
    for shape in LATTICE_SHAPES:
        operands = lattice_operands(shape, dtype, topology)
        cpu, gpu = (run_on(place, partial(lattice, options), *operands) for place in places)
        assert_numbers_agree(gpu[0], cpu[0], promised(dtype))
        assert np.isfinite(cpu[0]).sum() > 1
        both = [np.stack(posteriors, 1) for _, posteriors in (gpu, cpu)]
        assert_gradients_agree(*both, promised(dtype))
        score = run_on(places[1], partial(lattice_score, options), *operands)
        assert_numbers_agree(score, cpu[0], promised(dtype))


@pytest.mark.parametrize("dtype", DTYPES, **dtype_name)
@pytest.mark.parametrize("topology", **each_topology)
def test_packed_rows(places: tuple[jax.Device, jax.Device], topology: Options, dtype: Any) -> None:
    """Loss and gradient of packed logits, and the same bits again."""
    for shape in ((5, 30, 12, 40), (40, 90, 37, 257), (3, 20, 150, 5)):
        options = dict(topology)
        batch, _ = random_packed(np.random.default_rng(sum(shape)), *shape, dtype=dtype, **options)

        def both(batch: PackedBatch, options: Options = options) -> Any:
            loss, vjp = jax.vjp(lambda x: packed_function(**options)(x, *batch[1:]), batch.logits)
            return loss, vjp(jnp.ones_like(loss))[0]

        cpu, gpu = (run_on(place, both, batch) for place in places)
        assert np.isfinite(cpu[0]).any()
        assert_numbers_agree(gpu[0], cpu[0], promised(dtype))
        assert_gradients_agree(gpu[1][None], cpu[1][None], promised(dtype))
        assert_same_bits(both, jax.device_put(batch, places[1]))


@pytest.mark.parametrize("dtype", WIDE, **dtype_name)
@pytest.mark.parametrize("topology", **each_topology)
def test_best_paths(places: tuple[jax.Device, jax.Device], topology: Options, dtype: Any) -> None:
    """Whole lattices, also with rows that do not fit on chip; bands; equally good paths."""
    options = LatticeOptions(**topology)
    rng = np.random.default_rng(0)
    for shape in (*LATTICE_SHAPES, (200, 90, 37), (2, 5, 12000)):
        *planes, bounds = lattice_operands(shape, dtype, topology)
        ties = [np.round(x * 4) / 4 for x in planes]
        for blank, label in (planes, ties):
            cpu, gpu = (
                run_on(place, partial(best_path, options), blank, label, bounds) for place in places
            )
            assert_numbers_agree(gpu.score, cpu.score, promised(dtype))
            if dtype == jnp.float64 or blank is ties[0]:
                np.testing.assert_array_equal(gpu.frames, cpu.frames)
        assert np.isfinite(cpu.score).any()

        width = min(shape[2] + 1, 5)
        band = partial(banded_best_path, options, shape[2])
        highest = np.full(shape[:2], shape[2] + 1 - width)
        starts = np.minimum(rng.integers(0, 2, shape[:2]).cumsum(1), highest).astype(np.int32)
        operands = *(x[..., :width] for x in ties), starts, bounds
        cpu, gpu = (run_on(place, band, *operands) for place in places)
        jax.tree.map(np.testing.assert_array_equal, gpu, cpu)


@pytest.mark.parametrize("dtype", WIDE, **dtype_name)
@pytest.mark.parametrize("topology", **each_topology)
def test_packed_best_paths(
    places: tuple[jax.Device, jax.Device], topology: Options, dtype: Any
) -> None:
    """Scores without rounding, so that equally good paths are that everywhere."""
    rng = np.random.default_rng(1)
    for shape in ((5, 30, 12), (200, 90, 37), (2, 12000, 5), (2, 5, 12000)):
        frames, labels = (rng.integers(1, n + 1, shape[0], np.int32) for n in shape[1:])
        counts = frames * (labels + 1)
        zeros = np.zeros_like(frames)
        bounds = np.stack([zeros, frames, zeros, labels], axis=-1)
        planes = (-rng.integers(0, 9, (2, counts.sum())) / 4).astype(dtype)
        operands = *planes, np.cumsum(counts, dtype=np.int32) - counts, bounds
        op = partial(packed_best_path, LatticeOptions(**topology), shape[2])
        cpu, gpu = (run_on(place, op, *operands) for place in places)
        jax.tree.map(np.testing.assert_array_equal, gpu, cpu)
        assert topology["topology"] != "regular" or np.isfinite(cpu.score).all()


def banded_operands(
    shape: tuple[int, int, int], width: int, dtype: Any, options: Options
) -> tuple[Any, ...]:
    """Bands of `width` positions that rise evenly over the whole lattice."""
    B, T, U = shape
    *planes, bounds = lattice_operands(shape, dtype, options)
    rise = np.linspace(0, U + 1 - width, T).round().astype(np.int32)
    starts = np.broadcast_to(rise, (B, T))
    positions = starts[..., None] + np.arange(width)
    return *(np.take_along_axis(x, positions, -1) for x in planes), starts, bounds


@pytest.mark.parametrize("dtype", WIDE, **dtype_name)
@pytest.mark.parametrize("topology", PRUNED_TOPOLOGIES)
def test_bands(places: tuple[jax.Device, jax.Device], topology: Any, dtype: Any) -> None:
    """Log-likelihood and posteriors of bands, the former alone, and the same bits again."""
    options = LatticeOptions(topology, delay_penalty=0.1)
    for shape, width in (((6, 7, 5), 3), ((40, 90, 37), 5), ((3, 300, 150), 12), ((5, 20, 0), 1)):
        operands = banded_operands(shape, width, dtype, {"topology": topology})
        op = partial(banded_lattice, options, shape[2])
        cpu, gpu = (run_on(place, op, *operands) for place in places)
        assert np.isfinite(cpu[0]).any()
        assert_numbers_agree(gpu[0], cpu[0], promised(dtype))
        both = [np.stack(posteriors, 1) for _, posteriors in (gpu, cpu)]
        assert_gradients_agree(*both, promised(dtype))
        score = run_on(places[1], partial(banded_lattice_score, options, shape[2]), *operands)
        assert_numbers_agree(score, cpu[0], promised(dtype))
        assert_same_bits(op, *jax.device_put(operands, places[1]))


each_duration: dict[str, Any] = {
    "argnames": ("durations", "labels_stay"),
    "argvalues": [((0, 1, 2, 3, 4), False), ((1, 3), False), ((0, 1, 2, 4, 8), True)],
    "ids": str,
}


@pytest.mark.parametrize("dtype", WIDE, **dtype_name)
@pytest.mark.parametrize(**each_duration)
def test_durations(
    places: tuple[jax.Device, jax.Device],
    durations: tuple[int, ...],
    labels_stay: bool,
    dtype: Any,
) -> None:
    """Log-likelihood and posteriors of arcs with durations, the former alone, the same bits
    again.
    """
    for B, T, U in ((6, 7, 5), (40, 90, 37), (3, 300, 400), (5, 20, 0)):
        *planes, bounds = lattice_operands((B, T, U), dtype, {})
        shape = B, len(durations), T, U + 1
        duration = -np.random.default_rng(T).exponential(size=shape).astype(dtype)
        operands = (*planes, duration, bounds)
        params = {"durations": durations, "labels_stay": labels_stay, "native": True}
        op = partial(duration_lattice, **params)
        cpu, gpu = (run_on(place, op, *operands) for place in places)
        assert np.isfinite(cpu[0]).sum() > 1
        assert_numbers_agree(gpu[0], cpu[0], promised(dtype))
        for found, wanted in zip(gpu[1:], cpu[1:], strict=True):
            assert_gradients_agree(found, wanted, promised(dtype))
        score = partial(duration_lattice_score, **params)
        assert_numbers_agree(run_on(places[1], score, *operands), cpu[0], promised(dtype))
        assert_same_bits(op, *jax.device_put(operands, places[1]))


@pytest.mark.parametrize("dtype", WIDE, **dtype_name)
@pytest.mark.parametrize(**each_duration)
def test_best_paths_with_durations(
    places: tuple[jax.Device, jax.Device],
    durations: tuple[int, ...],
    labels_stay: bool,
    dtype: Any,
) -> None:
    """Scores without rounding, so that equally good paths are that everywhere."""
    rng = np.random.default_rng(2)
    op = partial(best_duration_path, durations=durations, labels_stay=labels_stay, native=True)
    for B, T, U in ((6, 7, 5), (40, 90, 37), (3, 300, 400), (5, 20, 0), (2, 5, 1200)):
        *_, bounds = lattice_operands((B, T, U), dtype, {})
        planes = -rng.integers(0, 9, (2 + len(durations), B, T, U + 1)) / 4
        operands = *planes[:2], np.moveaxis(planes[2:], 0, 1)
        operands = *(x.astype(dtype) for x in operands), bounds
        cpu, gpu = (run_on(place, op, *operands) for place in places)
        jax.tree.map(np.testing.assert_array_equal, gpu, cpu)
        assert np.isfinite(cpu[0]).any()


@pytest.mark.parametrize("topology", **each_topology)
def test_wide_lattice(places: tuple[jax.Device, jax.Device], topology: Options) -> None:
    """So many labels that the recursion's tiles do not fit into a multiprocessor's memory."""
    operands = lattice_operands((2, 5, 12000), np.float64, {"topology": "modified"})
    operands = operands[0], operands[1], np.array([[0, 5, 0, 3], [0, 5, 11990, 11993]], np.int32)
    options = LatticeOptions(**topology)
    cpu, gpu = (run_on(place, partial(lattice, options), *operands) for place in places)
    assert_numbers_agree(gpu[0], cpu[0], promised(np.float64))
    for found, wanted in zip(gpu[1], cpu[1], strict=True):
        assert_gradients_agree(found, wanted, promised(np.float64))


@pytest.mark.parametrize("dtype", DTYPES, **dtype_name)
def test_row_sums(places: tuple[jax.Device, jax.Device], dtype: Any) -> None:
    """Both add in the same order, and give the same bits."""
    rng = np.random.default_rng(7)
    for rows, sums, columns in ((40, 7, 5), (2500, 101, 512), (0, 3, 4)):
        numbers = np.sort(rng.integers(0, sums, (4, rows), np.int32))
        values = rng.normal(size=(4, rows, columns)).astype(dtype)
        op = partial(row_sums, num_sums=sums)
        cpu, gpu = (run_on(place, op, values, numbers) for place in places)
        np.testing.assert_array_equal(gpu, cpu)


# ------------------------------------------------------------------------------------------- losses


def loss_and_grad(**options: Any) -> Callable[..., Any]:
    function = loss_function("native", **options)

    def both(batch: Batch) -> tuple[jax.Array, jax.Array]:
        loss, vjp = jax.vjp(lambda x: function(x, *batch[1:]), batch.logits)
        return loss, vjp(jnp.ones_like(loss))[0]

    return both


@pytest.mark.parametrize("dtype", DTYPES, **dtype_name)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("topology", **each_topology)
def test_loss(
    places: tuple[jax.Device, jax.Device], topology: Options, normalization: str, dtype: Any
) -> None:
    """All options at once; one utterance with a bad label, one with NaN, one left out."""
    options = dict(topology, normalization=normalization, blank_id=-1)
    batch = random_batch(np.random.default_rng(0), 8, 40, 20, 30, scale=2.0, dtype=dtype, **options)
    batch.labels[2] = 29
    batch.logits[3] = np.nan
    batch = batch._replace(where=np.arange(8) != 4)
    options |= {"fastemit_lambda": 0.1, "delay_penalty": 0.1, "clamp": 0.5}
    cpu, gpu = (run_on(place, loss_and_grad(**options), batch) for place in places)
    assert np.isfinite(cpu[0]).sum() >= 6 and cpu[0][4] == 0
    assert_numbers_agree(gpu[0], cpu[0], promised(dtype))
    assert_gradients_agree(gpu[1], cpu[1], promised(dtype))


@pytest.mark.parametrize("dtype", DTYPES, **dtype_name)
@pytest.mark.parametrize("topology", **each_topology)
def test_loss_from_arcs(
    places: tuple[jax.Device, jax.Device], topology: Options, dtype: Any
) -> None:
    """Losses, gradients and posteriors."""
    batch = random_arcs(np.random.default_rng(1), 6, 40, 20, dtype=dtype, **topology)
    function = arcs_function("native", return_posteriors=True, fastemit_lambda=0.1, **topology)

    def everything(batch: ArcsBatch) -> Any:
        loss, vjp, posteriors = jax.vjp(
            lambda *arcs: function(*arcs, batch.lengths), *batch[:2], has_aux=True
        )
        return loss, vjp(jnp.ones_like(loss)), tuple(posteriors)

    cpu, gpu = (run_on(place, everything, batch) for place in places)
    assert_numbers_agree(gpu[0], cpu[0], promised(dtype))
    for found, wanted in zip(gpu[1:], cpu[1:], strict=True):
        assert_gradients_agree(np.stack(found, 1), np.stack(wanted, 1), promised(dtype))


ADDITIVE: list[Options] = [
    {},
    {"normalization": "none"},
    {"normalization": "hat"},
    {"lm_only_scale": 0.2, "am_only_scale": 0.1},
]


@pytest.mark.parametrize("dtype", DTYPES, **dtype_name)
@pytest.mark.parametrize("options", ADDITIVE, ids=str)
def test_additive_joiner(
    places: tuple[jax.Device, jax.Device], options: Options, dtype: Any
) -> None:
    """The simple and the smoothed loss, and the gradients by both halves, of several tiles."""
    batch = random_factored(np.random.default_rng(5), 6, 150, 70, 140, dtype=dtype, **options)
    batch.am[0, 20:25, 3] += 120  # where `lm` does not peak
    batch.lm[0, 30:33, 4] += 120
    both = loss_and_grads(factored_function("native", **options))
    cpu, gpu = (run_on(place, lambda *x: tuple(both(*x)), *batch) for place in places)
    assert np.isfinite(cpu[0]).all()
    assert_numbers_agree(gpu[0], cpu[0], promised(dtype))
    for found, wanted in zip(gpu[1:], cpu[1:], strict=True):
        assert_gradients_agree(found, wanted, promised(dtype))


@pytest.mark.parametrize(
    ("frames", "labels", "tolerance"), [(150, 40, 1e-5), (480, 120, 1e-5), (1500, 300, 1e-4)]
)
@pytest.mark.parametrize("topology", **each_topology)
def test_long_loss(
    places: tuple[jax.Device, jax.Device],
    topology: Options,
    frames: int,
    labels: int,
    tolerance: float,
) -> None:
    """The lengths and promises of test_values.py's `test_long_float32`."""
    rng = np.random.default_rng(2)
    batch = random_batch(rng, 3, frames, labels, 4, scale=2.0, dtype=np.float32, **topology)
    cpu, gpu = (run_on(place, loss_and_grad(**topology), batch) for place in places)
    assert_numbers_agree(gpu[0], cpu[0], 2e-5)
    assert_gradients_agree(gpu[1], cpu[1], 2 * tolerance)


# --------------------------------------------------------------------------- the GPU against itself


def assert_same_bits(function: Callable[..., Any], *operands: Any) -> None:
    compiled = jax.jit(function)
    first, *others = (jax.device_get(compiled(*operands)) for _ in range(4))
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, other, first)


@pytest.mark.parametrize("dtype", DTYPES, **dtype_name)
def test_determinism_of_arcs(places: tuple[jax.Device, jax.Device], dtype: Any) -> None:
    """Bit for bit, at a size that fills the GPU."""
    operands = jax.device_put(arcs_operands((16, 150, 40, 257), dtype, "hat"), places[1])
    logits, labels, bounds = operands
    for normalization in NORMALIZATIONS:
        options = ArcsOptions(normalization=normalization)  # type: ignore[arg-type]
        assert_same_bits(partial(arcs_fwd, options), *operands)
        blank, label, denominators = arcs_fwd(options, *operands)
        _, posteriors = lattice(LatticeOptions(), blank, label, bounds)
        ones = jnp.ones_like(blank[:, 0, 0])
        backward = partial(arcs_bwd, options)
        assert_same_bits(backward, logits, labels, denominators, *posteriors, ones)


@pytest.mark.parametrize("dtype", WIDE, **dtype_name)
@pytest.mark.parametrize("topology", **each_topology)
def test_determinism_of_lattices(
    places: tuple[jax.Device, jax.Device], topology: Options, dtype: Any
) -> None:
    """Bit for bit, with more utterances than multiprocessors and with tall and flat ones."""
    for shape in ((200, 90, 37), (3, 600, 20), (3, 60, 500)):
        operands = jax.device_put(lattice_operands(shape, dtype, topology), places[1])
        options = LatticeOptions(**topology)
        assert_same_bits(partial(lattice, options), *operands)
        assert_same_bits(partial(lattice_score, options), *operands)


@pytest.mark.parametrize("options", ADDITIVE[::3], ids=str)
def test_determinism_of_the_additive_joiner(
    places: tuple[jax.Device, jax.Device], options: Options
) -> None:
    """Bit for bit, also where labels repeat."""
    batch = random_factored(np.random.default_rng(6), 16, 700, 90, 60, dtype=np.float32)
    both = loss_and_grads(factored_function("native", **options))
    assert_same_bits(lambda *x: tuple(both(*x)), *jax.device_put(tuple(batch[:4]), places[1]))


def test_determinism_of_joint_networks(places: tuple[jax.Device, jax.Device]) -> None:
    """Bit for bit, also where boxes, or cells of a band, have the same row of an operand."""
    rng = np.random.default_rng(8)
    B, T, U, D, V = 8, 200, 40, 64, 30
    kernel, encoder, predictor = (
        rng.normal(size=shape).astype(np.float32) for shape in ((D, V), (B, T, D), (B, U + 1, D))
    )
    labels = rng.integers(1, V - 3, (B, U), np.int32)
    starts = np.linspace(0, U - 4, T).astype(np.int32)
    ranges = np.broadcast_to(starts[None, :, None] + np.arange(5, dtype=np.int32), (B, T, 5))

    def network(kernel: Any, encoder: Any, predictor: Any) -> jax.Array:
        return jnp.tanh(encoder + predictor) @ kernel

    def pair(*operands: Any) -> tuple[jax.Array, jax.Array]:
        scores = network(*operands)
        return scores[..., :-3], scores[..., -3:]

    def losses(*operands: Any) -> jax.Array:
        rows = jax_rnnt.do_rnnt_pruning(*operands[1:], ranges)
        return (
            jax_rnnt.rnnt_loss_joint(network, *operands, labels, rows_per_tile=1000)
            + jax_rnnt.rnnt_loss_tdt_joint(pair, *operands, labels, durations=(0, 1, 2))
            + jax_rnnt.rnnt_loss_multi_blank_joint(
                network, *operands, labels, big_blank_ids=(-1,), big_blank_durations=(2,)
            )
            + jax_rnnt.rnnt_loss_pruned_joint(network, *operands, labels, ranges)
            + jax_rnnt.rnnt_loss_pruned(network(operands[0], *rows), labels, ranges)
        ).sum()

    operands = jax.device_put((kernel, encoder, predictor), places[1])
    assert_same_bits(jax.value_and_grad(losses, (0, 1, 2)), *operands)


def test_one_program_for_many_batches(places: tuple[jax.Device, jax.Device]) -> None:
    """Run again with other buffers and contents: XLA may have recorded the launches as a graph."""
    rng = np.random.default_rng(3)
    compiled = jax.jit(loss_and_grad())
    batches = [random_batch(rng, 5, 30, 12, 40, dtype=np.float32) for _ in range(6)]
    placed = jax.device_put(batches, places[1])
    found = [compiled(batch) for batch in (*placed, *placed)]  # all in flight at once
    for batch, gpu in zip((*batches, *batches), jax.device_get(found), strict=True):
        cpu = run_on(places[0], loss_and_grad(), batch)
        assert_numbers_agree(gpu[0], cpu[0], promised(np.float32))
        assert_gradients_agree(gpu[1], cpu[1], promised(np.float32))


def test_mesh_of_one(places: tuple[jax.Device, jax.Device]) -> None:
    """The partitioners take the GPU's custom calls; eight devices would be better."""
    mesh = jax.sharding.Mesh(np.array(places[1:]), ("data",))
    spec = jax.sharding.PartitionSpec("data")
    batch = random_batch(np.random.default_rng(4), 4, 9, 5, 8, dtype=np.float32)
    plain = run_on(places[1], loss_and_grad(), batch)
    sharded = jax.device_put(batch, jax.sharding.NamedSharding(mesh, spec))
    mapped = jax.shard_map(loss_and_grad(), mesh=mesh, in_specs=spec, out_specs=spec)
    for function in (loss_and_grad(), mapped):
        found = jax.device_get(jax.jit(function)(sharded))
        jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_more_logits_than_int32_counts(places: tuple[jax.Device, jax.Device]) -> None:
    """Three equal utterances, of which the last lies beyond 2**31 logits: equal to the bit."""
    shape = (3, 1000, 101, 8192)
    assert 2 * np.prod(shape[1:]) < 2**31 < np.prod(shape)

    def make_logits() -> jax.Array:
        t, u, v = (
            jax.lax.broadcasted_iota(jnp.float32, shape[1:], axis) * step
            for axis, step in enumerate((0.37, 1.3, 2.1))
        )
        return jnp.broadcast_to(3 * jnp.sin(t + u + v), shape).astype(jnp.bfloat16)

    with jax.default_device(places[1]):
        logits = jax.jit(make_logits)()
        labels = jnp.full((3, shape[2] - 1), 5, jnp.int32)
        loss, grad = jax.jit(loss_and_grad())(Batch(logits, labels))
        assert jnp.isfinite(loss).all() and (loss == loss[0]).all()
        assert (grad[0] != 0).any()
        for other in (1, 2):
            assert jax.jit(lambda x, i=other: (x[i] == x[0]).all())(grad)
