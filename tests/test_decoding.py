"""`greedy_decode` against a Python loop over one utterance; `lengths_from_paddings`."""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_cases import B, D, Model, T, V
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from shardings import shard_map, sharded

import jax_rnnt
from jax_rnnt import Decoded, greedy_decode, lengths_from_paddings


def by_loop(
    model: Model, encoded: Any, *, bound: int, blank_id: int = 0, start: int | None = None
) -> tuple[list[int], list[int]]:
    """Labels and frames of one utterance, one arc after the other."""
    hidden, labels, frames = np.zeros(D), [], []

    def step(label: int) -> Any:
        return np.tanh(hidden @ model.recurrent + model.embedding[label])

    hidden = step(blank_id if start is None else start)
    for t, row in enumerate(encoded):
        for _ in range(bound):
            best = int(np.argmax(np.tanh(row + hidden) @ model.out + model.bias))
            if best == blank_id:
                break
            labels.append(best)
            frames.append(t)
            hidden = step(best)
    return labels, frames


def check(found: Decoded, model: Model, lengths: Any, blank_id: int = 0, **options: Any) -> None:
    """All that was found, padding included; the first labels where there was no room for more."""
    for i, length in enumerate(lengths):
        labels, frames = by_loop(model, model.encoded[i, :length], blank_id=blank_id, **options)
        room = found.labels.shape[1]
        count = min(len(labels), room)
        padding = room - count
        assert found.label_lengths[i] == count
        assert found.labels[i].tolist() == labels[:count] + [blank_id] * padding
        assert found.frames[i].tolist() == frames[:count] + [-1] * padding


@pytest.mark.parametrize("bound", [1, 3])
@pytest.mark.parametrize("blank_bias", [-9.0, 0.0, 3.0])
def test_against_loop(bound: int, blank_bias: float) -> None:
    """With hardly a blank, some, and many; lengths from 0 to T."""
    model = Model(bound, blank_bias)
    lengths = np.array([T, 0, 1, 2, 3, 4, 5, 6])
    found = jax.jit(lambda x, y: model.decode(x, y, max_labels_per_frame=bound))(
        model.encoded, lengths
    )
    assert found.labels.shape == found.frames.shape == (B, T * bound)
    assert all(x.dtype == jnp.int32 for x in found)
    check(found, model, lengths, bound=bound)
    assert found.label_lengths.sum() > 0 and (found.label_lengths[1] == 0)


def hop(
    model: Model,
    encoded: Any,
    durations: tuple[int, ...],
    duration_out: Any,
    big_blanks: dict[int, int],
    bound: int,
) -> tuple[list[int], list[int]]:
    """Labels and frames of one utterance whose arcs have durations."""
    hidden, labels, frames, t, emitted = np.zeros(D), [], [], 0, 0
    hidden = np.tanh(hidden @ model.recurrent + model.embedding[0])
    while t < len(encoded):
        features = np.tanh(encoded[t] + hidden)
        best = int(np.argmax(features @ model.out + model.bias))
        step = durations[int(np.argmax(features @ duration_out))] if durations else 0
        if best == 0 or best in big_blanks:
            step = max(step, big_blanks.get(best, 1))
        else:
            labels.append(best)
            frames.append(t)
            hidden = np.tanh(hidden @ model.recurrent + model.embedding[best])
            emitted += 1
            if emitted == bound:
                step = max(step, 1)
        t, emitted = t + step, 0 if step > 0 else emitted
    return labels, frames


@pytest.mark.parametrize("bound", [1, 3])
@pytest.mark.parametrize("durations", [(), (0, 1, 2), (1, 3), (0, 2)], ids=str)
@pytest.mark.parametrize("big_blanks", [{}, {3: 4, 1: 2}], ids=str)
def test_durations(durations: tuple[int, ...], big_blanks: dict[int, int], bound: int) -> None:
    """Arcs that take several frames, of durations or big blanks, jitted, with lengths."""
    lengths, total = np.array([T, 0, 1, 2, 3, 4, 5, 6]), 0
    for seed in range(3):
        model = Model(10 + seed, 0.5)
        duration_out = np.random.default_rng(seed).normal(size=(D, max(len(durations), 1)))

        def joint_step(am: Any, lm: Any, model: Model = model, out: Any = duration_out) -> Any:
            scores = model.joint(am, lm)
            return (scores, jnp.tanh(am + lm) @ out) if durations else scores

        found = jax.jit(
            lambda x, y, model=model, joint_step=joint_step: greedy_decode(
                model.predictor_step,
                joint_step,
                x,
                y,
                initial_state=model.state(B),
                durations=durations or None,
                big_blank_ids=tuple(big_blanks),
                big_blank_durations=tuple(big_blanks.values()),
                max_labels_per_frame=bound,
            )
        )(model.encoded, lengths)
        for i, length in enumerate(lengths):
            wanted = hop(
                model, model.encoded[i, :length], durations, duration_out, big_blanks, bound
            )
            n = int(found.label_lengths[i])
            assert (found.labels[i, :n].tolist(), found.frames[i, :n].tolist()) == wanted
            total += n
    assert total > 0


def test_options() -> None:
    """A blank counted from the end, another start, room for four labels, NumPy arguments."""
    model = Model(5, -1.0, blank_id=-1)
    found = model.decode(blank_id=-1, start_label=2, max_labels=4, max_labels_per_frame=2)
    check(found, model, [T] * B, blank_id=V - 1, start=2, bound=2)
    assert (found.label_lengths == 4).any()
    none = model.decode(max_labels=0)
    assert none.labels.shape == (B, 0) and not none.label_lengths.any()
    empty = model.decode(model.encoded[:, :0], np.zeros(B, np.int32))
    assert empty.labels.shape == (B, 0) and not empty.label_lengths.any()
    one = model.decode(model.encoded[3], max_labels_per_frame=2)
    several = model.decode(model.encoded.reshape(2, 4, T, D), max_labels_per_frame=2)
    whole = model.decode(max_labels_per_frame=2)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[3]), one, whole)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.reshape(b.shape), b), several, whole)


def test_vmap_and_devices(devices: list[jax.Device]) -> None:
    """vmap, sharded jit with automatic and explicit axes, shard_map, pmap."""
    model = Model(6)
    lengths = np.arange(B) % T + 1

    def decode(encoded: Any, lengths: Any) -> Decoded:
        return model.decode(encoded, lengths, max_labels_per_frame=3)

    wanted = decode(model.encoded, lengths)

    def same(found: Decoded) -> None:
        jax.tree.map(np.testing.assert_array_equal, found, wanted)

    same(jax.jit(jax.vmap(decode))(model.encoded, lengths))
    mesh = Mesh(np.array(devices), ("data",))
    same(jax.jit(decode)(*sharded((model.encoded, lengths), mesh)))
    mapped = shard_map(decode, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P("data"))
    same(jax.jit(mapped)(model.encoded, lengths))
    split = (model.encoded[:, None], lengths[:, None])
    same(jax.tree.map(lambda x: x[:, 0], jax.pmap(decode, devices=devices)(*split)))
    explicit = jax.make_mesh(
        (8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,), devices=devices
    )
    with jax.set_mesh(explicit):
        same(jax.jit(decode)(*sharded((model.encoded, lengths), explicit)))


def test_unchecked_values() -> None:
    """Bad lengths inside jit decode to nothing; whatever the scores, it ends."""
    model = Model(7)
    lengths = np.array([-1, T + 1, T, 3, 2**40, 1, 1, 1])
    found = jax.jit(model.decode)(model.encoded, lengths)
    check(found, model, [0, 0, T, 3, 0, 1, 1, 1], bound=10)
    encoded = np.where(np.arange(B).reshape(B, 1, 1) == 2, np.nan, model.encoded)
    spoiled = jax.jit(model.decode)(encoded, lengths)
    rest = np.arange(B) != 2
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[rest], b[rest]), spoiled, found)


def test_bad_input() -> None:
    """Errors that name the argument, or the function."""
    model = Model(8)

    def fails(kind: type, message: str, **replaced: Any) -> None:
        arguments: Any = {
            "predictor_step": model.predictor_step,
            "joint_step": model.joint,
            "encoder_out": model.encoded,
            "initial_state": model.state(B),
            **replaced,
        }
        with pytest.raises(kind, match=message):
            greedy_decode(**arguments)

    fails(TypeError, "encoder_out has dtype int", encoder_out=np.zeros((B, T, D), np.int32))
    fails(ValueError, r"encoder_out has shape \(4,\); expected", encoder_out=np.zeros(D))
    fails(ValueError, r"logit_lengths\[0\] is 7; expected 0 <=", logit_lengths=np.full(B, 7))
    fails(ValueError, "max_labels_per_frame is 0; expected", max_labels_per_frame=0)
    fails(ValueError, "max_labels is -1; expected", max_labels=-1)
    fails(ValueError, "max_labels is 2147483648; expected max_labels <= 2147", max_labels=2**31)
    fails(ValueError, "start_label is 2147483648; expected start_label <=", start_label=2**31)
    unbounded = model.decode(max_labels=T, max_labels_per_frame=sys.maxsize)
    bounded = model.decode(max_labels=T, max_labels_per_frame=T)
    jax.tree.map(np.testing.assert_array_equal, unbounded, bounded)
    fails(TypeError, "start_label is 1.5; expected", start_label=1.5)
    fails(ValueError, "blank_id is 5; expected", blank_id=5)
    fails(ValueError, r"initial_state has an array of shape \(3,\)", initial_state=model.state(3))
    fails(
        TypeError,
        r"predictor_step returns one array; expected \(pred",
        predictor_step=lambda state, label: state["hidden"],
    )
    fails(
        ValueError,
        r"predictor_step returns rows of shape \(4,\)",
        predictor_step=lambda state, label: (jnp.zeros(D), state),
    )
    fails(
        TypeError,
        r"predictor_step returns a state of .*; expected",
        predictor_step=lambda state, label: (state["hidden"], {"count": state["count"]}),
    )
    for message, returned in (
        (r"joint_step returns scores of shape \(8,\)", lambda am: am[:, 0]),
        (r"joint_step returns scores of shape \(\)", lambda am: {"scores": am}),
    ):
        fails(ValueError, message, joint_step=lambda am, lm, f=returned: f(am))
    fails(
        TypeError,
        "joint_step returns scores of dtype int",
        joint_step=lambda am, lm: am.astype(jnp.int32),
    )
    fails(TypeError, r"joint_step returns one array.*duration_scores\), as", durations=(0, 1))
    fails(
        ValueError,
        r"returns duration_scores of shape \(8, 4\); expected \(\*batch, 2\), a score for",
        durations=(0, 1),
        joint_step=lambda am, lm: (model.joint(am, lm), am),
    )
    fails(ValueError, r"durations is \(1, 0\)", durations=(1, 0))
    fails(ValueError, "big_blank_ids is 5; ", big_blank_ids=(5,), big_blank_durations=(2,))


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.bool_, jnp.bfloat16])
def test_lengths_from_paddings(dtype: Any) -> None:
    """All lengths from 0 to N, with any number of batch dimensions, in and outside of jit."""
    lengths = np.array([[0, 1, 2], [3, 4, 4]])
    paddings = (np.arange(4) >= lengths[..., None]).astype(dtype)
    for function in (lengths_from_paddings, jax.jit(lengths_from_paddings)):
        found = function(paddings)
        np.testing.assert_array_equal(found, lengths)
        assert found.dtype == jnp.int32
    assert lengths_from_paddings(paddings[0, 1]) == 1
    assert lengths_from_paddings(np.zeros((3, 0))).tolist() == [0, 0, 0]


def test_bad_paddings() -> None:
    """Errors where values are known, and the NaN loss of bad lengths elsewhere."""
    paddings = np.zeros((3, 4))
    paddings[1, 2] = 1
    with pytest.raises(ValueError, match=r"paddings\[1, 3\] is 0.0; expected 1 as before it"):
        lengths_from_paddings(paddings)
    paddings[1, 2:] = 1, 0.5
    with pytest.raises(ValueError, match=r"paddings\[1, 3\] is 0.5; expected 1 where padded"):
        lengths_from_paddings(paddings)
    paddings[2, 3] = np.nan
    with pytest.raises(TypeError, match="paddings has dtype <U1; expected numbers or bool"):
        lengths_from_paddings(np.array(["a"]))
    with pytest.raises(ValueError, match=r"paddings has shape \(\)"):
        lengths_from_paddings(np.float32(0))
    for lengths in (
        jax.jit(lengths_from_paddings)(paddings),
        lengths_from_paddings(paddings, check=False),
    ):
        np.testing.assert_array_equal(lengths, [4, -1, -1])
    arcs = np.zeros((2, 3, 4, 1))
    loss = jax.jit(lambda x: jax_rnnt.rnnt_loss_from_arcs(*arcs, lengths_from_paddings(x)))
    np.testing.assert_array_equal(loss(paddings), [0, np.nan, np.nan])
