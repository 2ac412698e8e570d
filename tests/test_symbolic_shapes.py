"""Programs exported for symbolic sizes: which sizes may be symbolic, and what is said of others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.export import deserialize, export, symbolic_shape

import jax_rnnt

B, T, U, V, S, D = 2, 6, 4, 5, 3, 5


def scores(*shape: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def integers(*shape: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def sum_of_rows(params: Any, encoder_rows: jax.Array, predictor_rows: jax.Array) -> jax.Array:
    del params
    return encoder_rows + predictor_rows


def pair_of_rows(*args: Any) -> tuple[jax.Array, jax.Array]:
    logits = sum_of_rows(*args)
    return logits, logits[..., :2]


class Function(NamedTuple):
    """A public function, and its operands for a batch of B utterances, T frames and U labels."""

    call: Callable[..., Any]
    operands: Callable[..., tuple[jax.ShapeDtypeStruct, ...]]


def halves(b: Any, t: Any, u: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Encoder's and predictor's output, and labels."""
    return scores(b, t, D), scores(b, u + 1, D), integers(b, u)


def logits_and_labels(b: Any, t: Any, u: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    return scores(b, t, u + 1, V), integers(b, u)


def logits_and_durations(b: Any, t: Any, u: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    return scores(b, t, u + 1, V), scores(b, t, u + 1, 2), integers(b, u)


IN_ONE_PIECE = {
    "logits": Function(jax_rnnt.rnnt_loss, logits_and_labels),
    "arcs": Function(
        jax_rnnt.rnnt_loss_from_arcs, lambda b, t, u: (scores(b, t, u + 1), scores(b, t, u + 1))
    ),
    "align": Function(
        lambda *x, **options: jax_rnnt.rnnt_align(*x, **options).frames, logits_and_labels
    ),
    "tdt": Function(
        lambda *x, **options: jax_rnnt.rnnt_loss_tdt(*x, durations=(0, 1), **options),
        logits_and_durations,
    ),
    "align tdt": Function(
        lambda *x, **options: jax_rnnt.rnnt_align_tdt(*x, durations=(0, 1), **options).score,
        logits_and_durations,
    ),
    "pruned": Function(
        jax_rnnt.rnnt_loss_pruned,
        lambda b, t, u: (scores(b, t, S, V), integers(b, u), integers(b, t, S)),
    ),
}
"""Of which, in pure JAX, T and U may be symbolic, too."""

IN_TILES = {
    "simple": Function(jax_rnnt.rnnt_loss_simple, halves),
    "joint": Function(
        lambda *x, **options: jax_rnnt.rnnt_loss_joint(sum_of_rows, {}, *x, **options), halves
    ),
    "arcs of joint": Function(
        lambda *x, **options: jax_rnnt.rnnt_arcs_joint(sum_of_rows, {}, *x, **options), halves
    ),
    "align joint": Function(
        lambda *x, **options: tuple(jax_rnnt.rnnt_align_joint(sum_of_rows, {}, *x, **options)),
        halves,
    ),
    "tdt joint": Function(
        lambda *x, **options: jax_rnnt.rnnt_loss_tdt_joint(
            pair_of_rows, {}, *x, durations=(0, 1), **options
        ),
        halves,
    ),
    "pruned joint": Function(
        lambda *x, **options: jax_rnnt.rnnt_loss_pruned_joint(sum_of_rows, {}, *x, **options),
        lambda b, t, u: (*halves(b, t, u), integers(b, t, S)),
    ),
}


def some_values(operands: tuple[jax.ShapeDtypeStruct, ...]) -> list[np.ndarray]:
    """Scores at random, and what can be labels as well as ranges."""
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=x.shape).astype(x.dtype)
        if jnp.issubdtype(x.dtype, jnp.floating)
        else np.broadcast_to(np.arange(1, x.shape[-1] + 1, dtype=x.dtype), x.shape)
        for x in operands
    ]


@pytest.mark.parametrize("name", IN_ONE_PIECE)
def test_symbolic_lengths_in_pure_jax(name: str) -> None:
    """One program for all sizes gives what a program for each of them gives."""
    function = IN_ONE_PIECE[name]

    def loss(*operands: Any) -> Any:
        return function.call(*operands, implementation="xla", check=False)

    exported = export(jax.jit(loss))(*function.operands(*symbolic_shape("b, t, u")))
    program = deserialize(exported.serialize())
    for sizes in ((B, T, U), (1, 9, 3)):
        operands = some_values(function.operands(*sizes))
        np.testing.assert_allclose(program.call(*operands), loss(*operands), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        *((name, "b, t, 4") for name in IN_ONE_PIECE),
        *((name, "b, 6, u") for name in IN_ONE_PIECE if name != "pruned"),  # whose planes have S
    ],
)
def test_native_kernels_know_their_sizes(name: str, sizes: str) -> None:
    function = IN_ONE_PIECE[name]

    def loss(*operands: Any) -> Any:
        return function.call(*operands, implementation="native", check=False)

    with pytest.raises(NotImplementedError, match="native kernels need T, U and V to be known"):
        export(jax.jit(loss))(*function.operands(*symbolic_shape(sizes)))


@pytest.mark.parametrize("implementation", ["native", "xla"])
@pytest.mark.parametrize("name", IN_TILES)
def test_symbolic_lengths_in_tiles(name: str, implementation: str) -> None:
    """An error that names the argument, whatever the implementation."""
    function = IN_TILES[name]

    def loss(*operands: Any) -> Any:
        return function.call(*operands, implementation=implementation)

    with pytest.raises(NotImplementedError, match=r"(am|encoder_out) has a .* symbolic T = t; "):
        export(jax.jit(loss))(*function.operands(*symbolic_shape("b, t, 4")))
    if name == "pruned joint":
        return
    with pytest.raises(NotImplementedError, match=r"(lm|predictor_out) has a .* symbolic U = u; "):
        export(jax.jit(loss))(*function.operands(*symbolic_shape("b, 6, u")))


def test_ranges_and_decoding() -> None:
    """Of what is chosen by the number of labels or of frames."""
    (n,) = symbolic_shape("n")

    def ranges(*arcs: jax.Array) -> jax.Array:
        return jax_rnnt.get_rnnt_prune_ranges(jax_rnnt.Posteriors(*arcs), s_range=S)

    with pytest.raises(NotImplementedError, match=r"posteriors\.blank .* symbolic U = n - 1"):
        export(jax.jit(ranges))(scores(B, T, n), scores(B, T, n))

    def decoded(encoder_out: jax.Array, decode: Any = jax_rnnt.greedy_decode) -> Any:
        return decode(
            lambda state, symbols: (jnp.zeros((*symbols.shape, D), jnp.float32), state),
            lambda encoder, predictor: encoder + predictor,
            encoder_out,
            initial_state=(),
        )

    for decode in (jax_rnnt.greedy_decode, jax_rnnt.beam_decode):
        with pytest.raises(NotImplementedError, match=r"encoder_out .* symbolic T = n"):
            export(jax.jit(partial(decoded, decode=decode)))(scores(B, n, D))
