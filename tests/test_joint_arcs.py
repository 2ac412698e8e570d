"""`rnnt_arcs_joint` and the alignments of joint networks against the same of stored scores, and
`jax.nn.log_softmax` of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each_topology
from jax.export import deserialize, symbolic_shape
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from joint_cases import (
    BIG_BLANKS,
    DURATIONS,
    Problem,
    T,
    U,
    all_scores,
    assert_close,
    constants,
    duration_problem,
    joint,
    of_all_pairs,
    pair_of_scores,
    pulled_back,
    random_problem,
    rest_of,
    tiled,
)
from programs import compiled_memory, custom_calls, export
from shardings import COLLECTIVES

import jax_rnnt

Function = Callable[..., Any]


# --------------------------------------------------------------------------------------------- arcs


def arcs_in_tiles(**options: Any) -> Function:
    def arcs(variables: Any, encoder: Any, predictor: Any, rest: Any) -> Any:
        params = {**variables, **constants()}
        return jax_rnnt.rnnt_arcs_joint(joint, params, encoder, predictor, **rest, **options)

    return arcs


def arcs_of_stored_logits(normalization: str = "softmax") -> Function:
    """In JAX alone."""

    def arcs(variables: Any, encoder: Any, predictor: Any, rest: Any) -> Any:
        logits = of_all_pairs(joint, {**variables, **constants()}, encoder, predictor)
        log_probs = logits
        if normalization == "softmax":
            log_probs = jax.nn.log_softmax(logits)
        elif normalization == "hat":
            blank, labels = logits[..., :1], logits[..., 1:]
            of_labels = jax.nn.log_sigmoid(-blank) + jax.nn.log_softmax(labels)
            log_probs = jnp.concatenate([jax.nn.log_sigmoid(blank), of_labels], axis=-1)
        labels = jnp.pad(rest["labels"], ((0, 0), (0, 1)))[:, None, :, None]
        of_labels = jnp.take_along_axis(log_probs, labels, axis=-1)[..., 0]
        shape = 1, encoder.shape[1], predictor.shape[1]
        t, u = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (1, 2))
        t0, t1, u0, u1 = (
            rest[what][:, None, None]
            for what in ("logit_begins", "logit_lengths", "label_begins", "label_lengths")
        )
        inside = (t0 <= t) & (t < t1) & (u0 <= u) & (u <= u1)
        if "where" in rest:
            inside &= rest["where"][:, None, None]
        return (
            jnp.where(inside, log_probs[..., 0], -jnp.inf),
            jnp.where(inside & (u < u1), of_labels, -jnp.inf),
        )

    return arcs


def arcs_and_gradients(arcs: Function, problem: Problem, weights: Any, rest: Any = None) -> Any:
    rest = rest or rest_of(problem.batch)

    def total(*operands: Any) -> Any:
        planes = arcs(*operands, rest)
        finite = [jnp.where(jnp.isfinite(x), x, 0) for x in planes]
        return sum(jnp.sum(x * y) for x, y in zip(finite, weights, strict=True)), planes

    (_, planes), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(
        *problem[:3]
    )
    return planes, gradients


def random_weights(problem: Problem) -> list[np.ndarray]:
    shape = (*problem.encoder.shape[:2], problem.predictor.shape[1])
    return list(np.random.default_rng(1).normal(size=(2, *shape)))


@pytest.mark.parametrize("implementation", ["native", "xla"])
@pytest.mark.parametrize("normalization", ["softmax", "none", "hat"])
def test_arcs(normalization: Any, implementation: Any) -> None:
    """Values and all gradients, lengths and begins random, one utterance left out."""
    problem = random_problem(0)
    batch = problem.batch._replace(where=np.array([True, True, True, False, True]))
    problem = problem._replace(batch=batch)
    found, wanted = (
        arcs_and_gradients(arcs, problem, random_weights(problem))
        for arcs in (
            arcs_in_tiles(normalization=normalization, implementation=implementation),
            arcs_of_stored_logits(normalization),
        )
    )
    assert np.isfinite(wanted[0][1]).sum() > T * U
    assert_close(found, wanted)


@pytest.mark.parametrize("rows_per_tile", [1, 7, 50, 10000])
def test_any_tile(rows_per_tile: int) -> None:
    problem = random_problem(2)
    found, wanted = (
        arcs_and_gradients(arcs, problem, random_weights(problem))
        for arcs in (
            arcs_in_tiles(rows_per_tile=rows_per_tile),
            arcs_of_stored_logits(),
        )
    )
    assert_close(found, wanted)


@pytest.mark.parametrize("weights", [(1, -1), (-1, 0), (0, -1e-40), (0, 0)], ids=str)
def test_weights_of_any_sign_and_size(weights: tuple[float, float]) -> None:
    """No cell is left out because its weights are negative, cancel or are tiny."""
    problem = random_problem(3)
    planes = [np.full_like(x, y) for x, y in zip(random_weights(problem), weights, strict=True)]
    (_, found), (_, wanted) = (
        arcs_and_gradients(arcs, problem, planes)
        for arcs in (arcs_in_tiles(rows_per_tile=100), arcs_of_stored_logits())
    )
    scale = max(max(map(abs, weights)), 1e-300)
    found, wanted = (jax.tree.map(lambda x: x / scale, y) for y in (found, wanted))
    assert_close(found, wanted)
    assert any(np.any(x != 0) for x in jax.tree.leaves(found)) == any(weights)


def test_losses_of_arcs() -> None:
    """A loss of the arcs has the value and the gradients of the loss of the network."""
    problem = random_problem(4)
    options: dict[str, Any] = {"fastemit_lambda": 0.3, "delay_penalty": 0.1}

    def of_arcs(*operands: Any) -> jax.Array:
        arcs = arcs_in_tiles(rows_per_tile=100)(*operands)
        lengths = {name: x for name, x in operands[-1].items() if name != "labels"}
        return jax_rnnt.rnnt_loss_from_arcs(*arcs, **lengths, **options)

    assert_close(pulled_back(of_arcs, problem), pulled_back(tiled(**options), problem))


def test_padding_and_bad_utterances() -> None:
    """NaN in padding has no effect; lengths out of range make arcs NaN, and no gradient."""
    problem = random_problem(5)
    rest = rest_of(problem.batch)
    bad = 1
    rest["logit_lengths"] = rest["logit_lengths"].at[bad].set(T + 1)
    t = np.arange(T, dtype=np.int32)[None]
    outside = (t < rest["logit_begins"][:, None]) | (t >= rest["logit_lengths"][:, None])
    padded = jnp.where(outside[..., None], jnp.nan, problem.encoder)

    def total(encoder: Any) -> Any:
        arcs = arcs_in_tiles(check=False)(problem.variables, encoder, problem.predictor, rest)
        return sum(jnp.sum(jnp.where(jnp.isfinite(x), x, 0)) for x in arcs), arcs

    step = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, arcs), gradient = step(padded)
    (_, wanted), wanted_gradient = step(problem.encoder)
    assert all(np.isnan(x[bad]).all() for x in arcs)
    assert (gradient[bad] == 0).all() and np.isfinite(gradient).all()
    assert not np.isnan(np.delete(np.stack(arcs), bad, 1)).any()
    jax.tree.map(np.testing.assert_array_equal, (arcs, gradient), (wanted, wanted_gradient))


def test_dropout() -> None:
    """The keys of the loss's rows."""
    problem = random_problem(6, size=(2, 7, 4))
    rest = rest_of(problem.batch)

    def with_dropout(params: Any, encoder: Any, predictor: Any, keys: Any) -> jax.Array:
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.6, predictor.shape[1:]))(keys)
        return joint({**params, **constants()}, encoder, jnp.where(kept, predictor, 0))

    def of_arcs(*operands: Any) -> jax.Array:
        arcs = jax_rnnt.rnnt_arcs_joint(
            with_dropout, *operands, **rest, rng=jax.random.key(3), rows_per_tile=11
        )
        lengths = {name: x for name, x in rest.items() if name != "labels"}
        return jax_rnnt.rnnt_loss_from_arcs(*arcs, **lengths, reduction="sum")

    def of_network(*operands: Any) -> jax.Array:
        return jax_rnnt.rnnt_loss_joint(
            with_dropout, *operands, **rest, rng=jax.random.key(3), reduction="sum"
        )

    found, wanted = (
        jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(*problem[:3])
        for f in (of_arcs, of_network)
    )
    assert_close(found, wanted)


@pytest.mark.parametrize(
    ("count", "frames", "labels"), [(2, 5, 0), (2, 1, 2), (2, 0, 2), (0, 3, 2)]
)
def test_few_frames_or_labels(count: int, frames: int, labels: int) -> None:
    problem = random_problem(7, size=(2, 5, labels))
    encoder, predictor = problem.encoder[:count, :frames], problem.predictor[:count]
    targets = jnp.ones((count, labels), jnp.int32)
    operands = problem.variables, encoder, predictor, {"labels": targets}
    arcs = jax.jit(arcs_in_tiles())(*operands)
    assert all(x.shape == (count, frames, labels + 1) for x in arcs)
    assert np.isfinite(arcs[0]).all() and np.isneginf(arcs[1][..., -1]).all()
    alignment = jax.jit(ALIGNED["regular"].in_tiles())(*operands)
    assert alignment.frames.shape == (count, labels)


@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_arcs_sharded(axis_type: str, devices: list[jax.Device]) -> None:
    """A batch divided among devices, and mapped by `vmap`, has the gradients of one device."""
    problem = random_problem(8, size=(8, T, U))
    weights = random_weights(problem)
    wanted = arcs_and_gradients(arcs_of_stored_logits(), problem, weights)
    in_tiles = arcs_in_tiles(rows_per_tile=100, check=False)
    types = (getattr(jax.sharding.AxisType, axis_type),)
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=types, devices=devices)
    data, whole = (NamedSharding(mesh, PartitionSpec(*x)) for x in (["data"], []))
    with jax.set_mesh(mesh):
        divided = Problem(
            jax.device_put(problem.variables, whole),
            *jax.device_put(problem[1:3], data),
            problem.batch,
        )
        rest, weights = jax.device_put((rest_of(problem.batch), weights), data)
        for arcs in (in_tiles, jax.vmap(in_tiles, in_axes=(None, 0, 0, 0))):
            found = arcs_and_gradients(arcs, divided, weights, rest)
            assert found[1][1].sharding.spec[0] == "data"
            assert_close(found, wanted)


def test_memory() -> None:
    """Temporaries of a gradient are ten times smaller than those of stored logits."""
    size, V, D = (4, 200, 40), 500, 64

    def float32(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    network = jax_rnnt.LinearJoint()
    params = {"kernel": float32(D, V), "bias": float32(V)}
    rows = float32(*size[:2], D), float32(size[0], size[2] + 1, D)
    labels = jax.ShapeDtypeStruct((size[0], size[2]), jnp.int32)

    def of(arcs: Function) -> int:
        def total(*operands: Any) -> Any:
            return sum(jnp.sum(jnp.where(jnp.isfinite(x), x, 0)) for x in arcs(*operands))

        step = jax.grad(total, argnums=(0, 1, 2))
        return compiled_memory(step, params, *rows, labels).temp_size_in_bytes

    def stored(params: Any, encoder: Any, predictor: Any, labels: Any) -> Any:
        logits = network(params, encoder[:, :, None], predictor[:, None])
        return jax_rnnt.rnnt_arcs(logits, labels)

    in_tiles = partial(jax_rnnt.rnnt_arcs_joint, network, rows_per_tile=128)
    assert 10 * of(in_tiles) < of(stored)


# --------------------------------------------------------------------------------------- alignments


class Aligned(NamedTuple):
    """In tiles, and of stored scores; both of (variables, encoder, predictor, rest)."""

    in_tiles: Callable[..., Function]
    stored: Callable[..., Function]


def aligned(name: str, network: Function, **kind: Any) -> Aligned:
    of_network = getattr(jax_rnnt, f"{name}_joint")
    of_scores = getattr(jax_rnnt, name)

    def in_tiles(**options: Any) -> Function:
        return lambda *x: of_network(network, *x[:-1], **x[-1], **kind, **options)

    def stored(**options: Any) -> Function:
        def align(*x: Any) -> Any:
            scores = of_all_pairs(network, *x[:-1])
            scores = scores if isinstance(scores, tuple) else (scores,)
            return of_scores(*scores, **x[-1], **kind, **options)

        return align

    return Aligned(in_tiles, stored)


ALIGNED = {
    "regular": aligned("rnnt_align", all_scores),
    "tdt": aligned("rnnt_align_tdt", pair_of_scores, durations=DURATIONS),
    "multi-blank": aligned("rnnt_align_multi_blank", all_scores, **BIG_BLANKS),
}
each_kind = pytest.mark.parametrize("kind", ALIGNED.values(), ids=ALIGNED.keys())


def assert_same_alignment(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    np.testing.assert_allclose(found.score, wanted.score, rtol=1e-12)
    jax.tree.map(np.testing.assert_array_equal, found[1:], wanted[1:])


@each_kind
@pytest.mark.parametrize("implementation", ["native", "xla"])
@pytest.mark.parametrize("rows_per_tile", [None, 40])
def test_alignments(kind: Aligned, rows_per_tile: int | None, implementation: str) -> None:
    """Lengths and begins random, one utterance left out, labels in windows."""
    problem = duration_problem(10)
    rest = rest_of(problem.batch)
    rest["where"] = jnp.arange(len(problem.encoder)) != 3
    u = np.arange(U)
    rest["label_windows"] = jnp.asarray(np.stack([u - 4, u + 13], -1) + np.zeros((5, 1, 1), int))
    options = {"delay_penalty": 0.2, "implementation": implementation}
    found = jax.jit(kind.in_tiles(rows_per_tile=rows_per_tile, **options))(*problem[:3], rest)
    wanted = jax.jit(kind.stored(**options))(*problem[:3], rest)
    assert np.isfinite(wanted.score).sum() >= 3
    assert_same_alignment(found, wanted)


@pytest.mark.parametrize("topology", **each_topology)
def test_topologies(topology: dict[str, Any]) -> None:
    problem = duration_problem(11, **topology)
    kind, options = ALIGNED["regular"], {**topology, "normalization": "hat", "blank_id": -1}
    found, wanted = (
        jax.jit(f(**options))(*problem[:3], rest_of(problem.batch))
        for f in (kind.in_tiles, kind.stored)
    )
    assert np.isfinite(wanted.score).all()
    assert_same_alignment(found, wanted)


@each_kind
def test_no_derivative(kind: Aligned) -> None:
    """Alignments are constants."""
    problem = duration_problem(12)
    rest = rest_of(problem.batch)
    gradients = jax.jit(
        jax.grad(lambda *x: jnp.sum(kind.in_tiles()(*x, rest).score), argnums=(0, 1, 2))
    )(*problem[:3])
    assert all((x == 0).all() for x in jax.tree.leaves(gradients))


@each_kind
@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_sharded(kind: Aligned, axis_type: str, devices: list[jax.Device]) -> None:
    """Devices that share a batch do not communicate; `vmap` and `shard_map` change nothing."""
    problem = duration_problem(13, size=(8, T, U))
    rest = rest_of(problem.batch)
    align = kind.in_tiles(rows_per_tile=100, check=False)
    wanted = jax.jit(kind.stored())(*problem[:3], rest)
    types = (getattr(jax.sharding.AxisType, axis_type),)
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=types, devices=devices)
    data, whole = PartitionSpec("data"), PartitionSpec()
    with jax.set_mesh(mesh):
        variables = jax.device_put(problem.variables, NamedSharding(mesh, whole))
        rows = jax.device_put((*problem[1:3], rest), NamedSharding(mesh, data))
        assert_same_alignment(jax.jit(align)(variables, *rows), wanted)
        mapped = jax.jit(jax.vmap(align, in_axes=(None, 0, 0, 0)))
        assert_same_alignment(mapped(variables, *rows), wanted)
        program = jax.jit(align).lower(variables, *rows).compile().as_text()
        assert not COLLECTIVES.search(program)


@each_kind
def test_in_shard_map(kind: Aligned, devices: list[jax.Device]) -> None:
    problem = duration_problem(14, size=(8, T, U))
    rest = rest_of(problem.batch)
    data, whole = PartitionSpec("data"), PartitionSpec()
    align = jax.shard_map(
        kind.in_tiles(rows_per_tile=100),
        mesh=Mesh(np.array(devices), ("data",)),
        in_specs=(whole, data, data, data),
        out_specs=data,
    )
    wanted = jax.jit(kind.stored())(*problem[:3], rest)
    assert_same_alignment(jax.jit(align)(*problem[:3], rest), wanted)


@each_kind
@pytest.mark.cpu_only("exported for a CPU and a TPU")
def test_export(kind: Aligned) -> None:
    """Serialised with a symbolic batch; for TPU there is no custom call of ours."""
    problem = duration_problem(15, size=(4, T, U))
    given = problem.encoder, problem.predictor, jnp.asarray(problem.batch.labels)

    def align(variables: Any, *arrays: Any) -> Any:
        rest = {"labels": arrays[-1], "check": False}
        return tuple(kind.in_tiles(rows_per_tile=100)(variables, *arrays[:-1], rest))

    wanted = jax.jit(align)(problem.variables, *given)
    targets = custom_calls(jax.jit(align).lower(problem.variables, *given).as_text())
    assert any("path" in x for x in targets)
    (size,) = symbolic_shape("b")
    spec = [jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for x in given]
    exported = export(align, problem.variables, *spec, targets=targets)
    assert_close(deserialize(exported.serialize()).call(problem.variables, *given), wanted)
    for_tpu = export(align, problem.variables, *given, targets=set(), platforms=("tpu",))
    assert not custom_calls(for_tpu.mlir_module()) & targets


def test_bad_arguments() -> None:
    """The checks of the losses."""
    problem = duration_problem(16)
    operands = *problem[:3], problem.batch.labels
    with pytest.raises(ValueError, match="rows_per_tile is 0"):
        jax_rnnt.rnnt_align_joint(all_scores, *operands, rows_per_tile=0)
    with pytest.raises(ValueError, match="predictor_out has shape"):
        jax_rnnt.rnnt_arcs_joint(all_scores, *operands[:2], problem.predictor[:2], operands[3])
    with pytest.raises(TypeError, match="expected a pair"):
        jax_rnnt.rnnt_align_tdt_joint(all_scores, *operands, durations=DURATIONS)
    with pytest.raises(ValueError, match="big blanks"):
        jax_rnnt.rnnt_align_multi_blank_joint(
            all_scores, *operands, big_blank_ids=(1,), big_blank_durations=(2,)
        )
