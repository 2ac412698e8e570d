"""Meshes with explicit axes beyond the batch's: tensor-parallel scores and parameters, mixed axes.

Losses and gradients are those on one device, and gradients are divided as what they are of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jax_rnnt

B, T, U, V, D, S = 8, 6, 3, 8, 6, 2
LABELS = 1 + np.arange(B * U, dtype=np.int32).reshape(B, U) % (V - 1)
RANGES = np.tile(np.minimum(np.arange(T)[:, None] // 2, U + 1 - S) + np.arange(S), (B, 1, 1))
LENGTHS = np.full(B, T), np.full(B, U)


def joint(kernel: jax.Array, encoder: jax.Array, predictor: jax.Array) -> jax.Array:
    return jnp.tanh(encoder + predictor) @ kernel


def mesh_of(*axis_types: str, devices: list[jax.Device]) -> Any:
    """Four times two devices."""
    kinds = tuple(getattr(jax.sharding.AxisType, name) for name in axis_types)
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=kinds, devices=devices)


class Case(NamedTuple):
    """A function of arrays of these shapes, divided in this way."""

    function: Callable[..., jax.Array]
    shapes: tuple[tuple[int, ...], ...]
    specs: tuple[P, ...]


ROWS, HALVES = (B, T, U + 1, V), ((B, T, V), (B, U + 1, V))
SPARED = 14  # classes, for which `LinearJoint` has more in tiles
JOINED = ((D, V), (B, T, D), (B, U + 1, D))
BY_CLASS, IN_HALVES = P("data", None, None, "model"), (P("data", None, "model"),) * 2


def score_of_best_path(logits: jax.Array, **options: Any) -> jax.Array:
    return jax_rnnt.rnnt_align(logits, LABELS, **options).score


def score_of_best_duration_path(
    logits: jax.Array, duration_logits: jax.Array, **options: Any
) -> jax.Array:
    options["durations"] = tuple(range(duration_logits.shape[-1]))
    return jax_rnnt.rnnt_align_tdt(logits, duration_logits, LABELS, **options).score


def smoothed(am: jax.Array, lm: jax.Array, **options: Any) -> jax.Array:
    scales = {"lm_only_scale": 0.2, "am_only_scale": 0.1}
    return jax_rnnt.rnnt_loss_smoothed(am, lm, LABELS, **scales, **options)


CASES = {
    "classes": Case(lambda x, **k: jax_rnnt.rnnt_loss(x, LABELS, **k), (ROWS,), (BY_CLASS,)),
    "frames": Case(
        lambda x, **k: jax_rnnt.rnnt_loss(x, LABELS, **k), (ROWS,), (P("data", "model"),)
    ),
    "classes only": Case(
        lambda x, **k: jax_rnnt.rnnt_loss(x, LABELS, **k), (ROWS,), (P(None, None, None, "model"),)
    ),
    "arcs": Case(jax_rnnt.rnnt_loss_from_arcs, (ROWS[:3],) * 2, (P("data", "model"),) * 2),
    "arcs of logits": Case(
        lambda x, **k: jax_rnnt.rnnt_loss_from_arcs(*jax_rnnt.rnnt_arcs(x, LABELS, **k), **k),
        (ROWS,),
        (BY_CLASS,),
    ),
    "align": Case(score_of_best_path, (ROWS,), (BY_CLASS,)),
    "align with durations": Case(
        score_of_best_duration_path, (ROWS, (B, T, U + 1, 4)), (BY_CLASS, BY_CLASS)
    ),
    "simple": Case(
        lambda am, lm, **k: jax_rnnt.rnnt_loss_simple(am, lm, LABELS, **k), HALVES, IN_HALVES
    ),
    "smoothed": Case(smoothed, HALVES, IN_HALVES),
    "pruned": Case(
        lambda x, **k: jax_rnnt.rnnt_loss_pruned(x, LABELS, RANGES, **k),
        ((B, T, S, V),),
        (BY_CLASS,),
    ),
    "tdt": Case(
        lambda *x, **k: jax_rnnt.rnnt_loss_tdt(*x, LABELS, durations=(0, 1, 2), **k),
        (ROWS, (B, T, U + 1, 3)),
        (BY_CLASS, P("data", "model")),
    ),
    "multi-blank": Case(
        lambda x, **k: jax_rnnt.rnnt_loss_multi_blank(
            x, np.minimum(LABELS, V - 2), big_blank_ids=(-1,), big_blank_durations=(2,), **k
        ),
        (ROWS,),
        (BY_CLASS,),
    ),
    "packed": Case(
        lambda x, **k: jax_rnnt.rnnt_loss_packed(x, LABELS, *LENGTHS, **k),
        ((B * T * (U + 1), V),),
        (P("data", "model"),),
    ),
    "joint": Case(
        lambda *x, **k: jax_rnnt.rnnt_loss_joint(joint, *x, LABELS, **k),
        JOINED,
        (P(), *IN_HALVES),
    ),
    "joint's kernel": Case(
        lambda *x, **k: jax_rnnt.rnnt_loss_joint(joint, *x, LABELS, **k),
        JOINED,
        (P(None, "model"), P("data"), P("data")),
    ),
    "linear joint": Case(
        lambda *x, **k: jax_rnnt.rnnt_loss_joint(
            jax_rnnt.LinearJoint(),
            dict(zip(("kernel", "bias"), x[:2], strict=True)),
            *x[2:],
            LABELS,
            **k,
        ),
        ((D, SPARED), (SPARED,), *JOINED[1:]),
        (P(None, "model"), P("model"), P("data"), P("data")),
    ),
    "linear duration joint": Case(
        lambda *x, **k: jax_rnnt.rnnt_loss_tdt_joint(
            jax_rnnt.LinearDurationJoint(2),
            dict(zip(("kernel", "bias"), x[:2], strict=True)),
            *x[2:],
            LABELS,
            durations=(0, 1),
            **k,
        ),
        ((D, SPARED + 2), (SPARED + 2,), *JOINED[1:]),
        (P(None, "model"), P("model"), P("data"), P("data")),
    ),
    "pruned joint": Case(
        lambda *x, **k: jax_rnnt.rnnt_loss_pruned_joint(joint, *x, LABELS, RANGES, **k),
        JOINED,
        (P(None, "model"), *IN_HALVES),
    ),
    "pruned joint without labels": Case(
        lambda *x, **k: jax_rnnt.rnnt_loss_pruned_joint(
            joint, *x, LABELS[:, :0], jnp.zeros((B, T, 1), int), **k
        ),
        (JOINED[0], JOINED[1], (B, 1, D)),
        (P(), P("data"), P("data")),
    ),
}


def gradients_of(case: Case, implementation: str) -> Callable[..., Any]:
    def total(*operands: jax.Array) -> jax.Array:
        return case.function(*operands, implementation=implementation).sum()

    return jax.value_and_grad(total, argnums=tuple(range(len(case.shapes))))


def check(case: Case, implementation: str, mesh: Any, *, jit: bool = True) -> None:
    rng = np.random.default_rng(0)
    operands = [jnp.asarray(rng.normal(size=shape)) for shape in case.shapes]
    step = gradients_of(case, implementation)
    wanted = step(*operands)
    with jax.set_mesh(mesh):
        divided = [
            jax.device_put(x, NamedSharding(mesh, spec))
            for x, spec in zip(operands, case.specs, strict=True)
        ]
        found = (jax.jit(step) if jit else step)(*divided)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-11, 1e-13), found, wanted)
    for gradient, operand in zip(found[1], divided, strict=True):
        assert jax.typeof(gradient).sharding == jax.typeof(operand).sharding


@pytest.mark.parametrize(
    ("name", "implementation"),
    [(name, implementation) for name in CASES for implementation in ("auto", "xla")],
)
def test_other_axes(name: str, implementation: str, devices: list[jax.Device]) -> None:
    """Classes, frames, features or parameters divided along an axis of their own."""
    check(CASES[name], implementation, mesh_of("Explicit", "Explicit", devices=devices))


@pytest.mark.parametrize("kinds", [("Explicit", "Auto"), ("Auto", "Explicit")], ids="-".join)
@pytest.mark.parametrize(
    ("name", "jit"), [("classes", True), ("joint", True), ("pruned joint", True), ("joint", False)]
)
def test_mixed_axes(name: str, jit: bool, kinds: Any, devices: list[jax.Device]) -> None:
    """The batch is divided along one axis, explicit or not, of a mesh that has both kinds."""
    case = CASES[name]
    batch = tuple(P() if shape == (D, V) else P("data") for shape in case.shapes)
    mesh = mesh_of(*kinds, devices=devices)
    check(case._replace(specs=batch), "auto", mesh, jit=jit)


def of_one(shapes: Iterable[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Without the batch."""
    return tuple(shape[1:] for shape in shapes)


KERNEL = np.linspace(-1, 1, D * V).reshape(D, V)
MAPPED: dict[str, tuple[Callable[..., jax.Array], tuple[tuple[int, ...], ...]]] = {
    "dense": (lambda *x, labels, **k: jax_rnnt.rnnt_loss(*x, labels, **k), of_one([ROWS])),
    "arcs": (
        lambda *x, labels, **k: jax_rnnt.rnnt_loss_from_arcs(*x, **k),
        of_one([ROWS[:3], ROWS[:3]]),
    ),
    "align": (
        lambda *x, labels, **k: jax_rnnt.rnnt_align(*x, labels, **k).score,
        of_one([ROWS]),
    ),
    "simple": (lambda *x, labels, **k: jax_rnnt.rnnt_loss_simple(*x, labels, **k), of_one(HALVES)),
    "smoothed": (
        lambda *x, labels, **k: jax_rnnt.rnnt_loss_smoothed(
            *x, labels, lm_only_scale=0.2, am_only_scale=0.1, **k
        ),
        of_one(HALVES),
    ),
    "pruned": (
        lambda *x, labels, **k: jax_rnnt.rnnt_loss_pruned(*x, labels, RANGES[0], **k),
        ((T, S, V),),
    ),
    "tdt": (
        lambda *x, labels, **k: jax_rnnt.rnnt_loss_tdt(*x, labels, durations=(0, 1, 2), **k),
        of_one([ROWS, (*ROWS[:3], 3)]),
    ),
    "multi-blank": (
        lambda *x, labels, **k: jax_rnnt.rnnt_loss_multi_blank(
            *x, labels, big_blank_ids=(0,), big_blank_durations=(2,), blank_id=-1, **k
        ),
        of_one([(*ROWS[:3], V + 1)]),
    ),
    "packed": (
        lambda *x, labels, logit_lengths, **k: jax_rnnt.rnnt_loss_packed(
            *x, labels[None], logit_lengths[None], np.full(1, U), **k
        ),
        ((T * (U + 1), V),),
    ),
    "joint": (
        lambda *x, labels, **k: jax_rnnt.rnnt_loss_joint(joint, KERNEL, *x, labels, **k),
        of_one(JOINED[1:]),
    ),
    "pruned joint": (
        lambda *x, labels, **k: jax_rnnt.rnnt_loss_pruned_joint(
            joint, KERNEL, *x, labels, RANGES[0], **k
        ),
        of_one(JOINED[1:]),
    ),
}


@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        *((name, "native") for name in MAPPED),
        *((name, "xla") for name in MAPPED if name != "packed"),  # see docs/sharding.md
    ],
)
def test_vmap_with_lengths(name: str, implementation: str, devices: list[jax.Device]) -> None:
    """Lengths that are given are mapped and divided, and begins that are left out are not."""
    function, shapes = MAPPED[name]
    rng = np.random.default_rng(1)
    scores = [jnp.asarray(rng.normal(size=(B, *shape))) for shape in shapes]
    frames = jnp.asarray([T, T - 1] * (B // 2))

    def total(labels: jax.Array, frames: jax.Array, *scores: jax.Array) -> jax.Array:
        def loss(labels: jax.Array, frames: jax.Array, *scores: jax.Array) -> jax.Array:
            given = {"labels": labels, "logit_lengths": frames, "implementation": implementation}
            return function(*scores, **given)

        return jax.vmap(loss)(labels, frames, *scores).sum()

    step = jax.value_and_grad(total, argnums=tuple(range(2, 2 + len(scores))))
    wanted = step(jnp.asarray(LABELS), frames, *scores)
    mesh = mesh_of("Explicit", "Explicit", devices=devices)
    with jax.set_mesh(mesh):
        operands = (jnp.asarray(LABELS), frames, *scores)
        found = jax.jit(step)(*jax.device_put(operands, NamedSharding(mesh, P("data"))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-11, 1e-13), found, wanted)
