"""`beam_decode`: wide beams against the recursion over all alignments of all labels, narrow ones
against a Python loop over hypotheses."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_cases import Model, T, V
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from oracles import Bounds, by_recursion, log_sigmoid, log_sum_exp
from shardings import shard_map, sharded

from jax_rnnt import Hypotheses, beam_decode

Labels = tuple[int, ...]
TOPOLOGIES: list[dict[str, Any]] = [
    {"topology": "regular"},
    {"topology": "modified"},
    {"topology": "modified", "final_blank": True},
]
each_topology = pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)


def decode(model: Model, encoded: Any, lengths: Any = None, **options: Any) -> Hypotheses:
    state = model.state(*encoded.shape[:-2])
    steps = model.predictor_step, model.joint
    return beam_decode(*steps, encoded, lengths, initial_state=state, **options)


def log_probs_of(scores: np.ndarray, normalization: str) -> np.ndarray:
    """Of classes; the blank is the first one."""
    if normalization == "none":
        return scores
    if normalization == "softmax":
        return scores - log_sum_exp(scores)
    blank, labels = scores[..., :1], scores[..., 1:]
    of_labels = log_sigmoid(-blank) + labels - log_sum_exp(labels)
    return np.concatenate([log_sigmoid(blank), of_labels], axis=-1)


def predictor_rows(model: Model, labels: Labels) -> np.ndarray:
    """After each number of labels, (U+1, D)."""
    hidden, rows = np.zeros(model.recurrent.shape[0]), []
    for label in (0, *labels):
        hidden = np.tanh(hidden @ model.recurrent + model.embedding[label])
        rows.append(hidden)
    return np.stack(rows)


def scored(model: Model, rows: np.ndarray, predictor: np.ndarray, normalization: str) -> np.ndarray:
    return log_probs_of(np.tanh(rows + predictor) @ model.out + model.bias, normalization)


def all_labels(
    model: Model, rows: np.ndarray, most: int, normalization: str, topology: dict[str, Any]
) -> dict[Labels, float]:
    """The log-probability of each sequence of labels."""
    found = {}
    for count in range(most + 1):
        for labels in itertools.product(range(1, V), repeat=count):
            predictor = predictor_rows(model, labels)
            arcs = scored(model, rows[:, None], predictor[None], normalization)
            label = arcs[:, np.arange(count + 1), [*labels, 0]]
            bounds = Bounds(0, len(rows), 0, count)
            kind = topology["topology"], topology.get("final_blank", False)
            found[labels] = by_recursion(arcs[..., 0], label, bounds, *kind).log_likelihood
    return {labels: x for labels, x in found.items() if x > -np.inf}


def as_dict(found: Hypotheses, b: int) -> dict[Labels, float]:
    """What was found for an utterance, which has no labels twice."""
    entries = {}
    for x, labels, count in zip(*(np.asarray(x)[b] for x in found[:3]), strict=True):
        if x > -np.inf:
            key = tuple(labels[:count].tolist())
            assert key not in entries
            entries[key] = float(x)
    return entries


def assert_same(found: dict[Labels, float], wanted: dict[Labels, float]) -> None:
    assert set(found) == set(wanted)
    for labels, x in wanted.items():
        np.testing.assert_allclose(found[labels], x, rtol=1e-10, atol=1e-10)


@each_topology
@pytest.mark.parametrize("normalization", ["softmax", "hat", "none"])
def test_wide_beam(topology: dict[str, Any], normalization: Any) -> None:
    """All labels with their exact log-probabilities, best first; frames in order."""
    model = Model(0, 0.5)
    frames, most = 4, 3
    lengths = np.array([4, 2, 0])
    encoded = model.encoded[:3, :frames]
    options = {"beam_size": 90, "max_labels": most, "normalization": normalization, **topology}
    found = jax.jit(lambda *x: decode(model, *x, **options))(encoded, lengths)
    for b, length in enumerate(lengths):
        wanted = all_labels(model, encoded[b, :length], most, normalization, topology)
        assert_same(as_dict(found, b), wanted)
        assert (np.diff(found.log_probs[b, : len(wanted)]) <= 0).all()
    used = np.arange(most) < np.asarray(found.label_lengths)[..., None]
    emitted = np.asarray(found.frames)
    assert (emitted[used] >= 0).all() and (emitted[~used] == -1).all()
    assert (np.asarray(found.labels)[~used] == 0).all()
    least = 0 if topology["topology"] == "regular" else 1
    steps = np.diff(emitted, axis=-1)[used[..., 1:]]
    assert (steps >= least).all()


def by_loop(
    model: Model, rows: np.ndarray, beam: int, most: int, topology: dict[str, Any]
) -> dict[Labels, tuple[float, list[int]]]:
    """Log-probabilities and frames. Hypotheses by their labels; of the same number of arcs."""
    regular = topology["topology"] == "regular"
    active: dict[Labels, tuple[float, list[int]]] = {(): (0.0, [])}
    finished: dict[Labels, tuple[float, list[int]]] = {}
    for arcs in range(len(rows) + most):
        after: dict[bool, dict[Labels, list[tuple[float, list[int]]]]] = {False: {}, True: {}}
        for labels, (score, frames) in active.items():
            t = arcs - len(labels) if regular else arcs
            log_probs = scored(model, rows[t], predictor_rows(model, labels)[-1], "softmax")
            for label, x in enumerate(log_probs):
                if label and len(labels) == most:
                    continue
                if label and t == len(rows) - 1 and topology.get("final_blank"):
                    continue
                ends = t == len(rows) - 1 and (label == 0 or not regular)
                new = (labels + (label,), [*frames, t]) if label else (labels, frames)
                after[ends].setdefault(new[0], []).append((score + x, new[1]))

        def best(of: dict[Labels, list[tuple[float, list[int]]]]) -> Any:
            merged = {
                labels: (float(np.logaddexp.reduce([x for x, _ in ways])), max(ways)[1])
                for labels, ways in of.items()
            }
            return sorted(merged.items(), key=lambda item: -item[1][0])[:beam]

        active = dict(best(after[False]))
        ended = {**{k: [v] for k, v in finished.items()}, **after[True]}
        finished = dict(best(ended))
    return finished


@each_topology
@pytest.mark.parametrize("beam", [1, 2, 5])
def test_narrow_beam(topology: dict[str, Any], beam: int) -> None:
    model = Model(1, 0.7)
    lengths = np.array([T, 1, 2, 3, 4, 5, 6, T])
    options = {"beam_size": beam, "max_labels": 5, **topology}
    found = jax.jit(lambda *x: decode(model, *x, **options))(model.encoded, lengths)
    for b, length in enumerate(lengths):
        wanted = by_loop(model, model.encoded[b, :length], beam, 5, topology)
        assert_same(as_dict(found, b), {labels: x for labels, (x, _) in wanted.items()})
        for k, (labels, (_, frames)) in enumerate(wanted.items()):
            count = int(found.label_lengths[b, k])
            assert found.labels[b, k, :count].tolist() == list(labels)
            assert found.frames[b, k, :count].tolist() == frames


@pytest.mark.parametrize("batch", [(), (2, 4), (0,)], ids=str)
def test_batch_dimensions(batch: tuple[int, ...]) -> None:
    model = Model(2)
    count = int(np.prod(batch))
    encoded = model.encoded[:count].reshape(*batch, *model.encoded.shape[1:])
    wanted = decode(model, model.encoded)
    found = decode(model, encoded)
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y[:count].reshape(x.shape), rtol=1e-12)


def test_without_frames_or_room() -> None:
    """The hypothesis without labels; its log-probability is that of blanks alone."""
    model = Model(3)
    nothing = decode(model, model.encoded[:, :0], beam_size=2)
    assert nothing.labels.shape == (8, 2, 0)
    np.testing.assert_array_equal(nothing.log_probs, np.tile([0, -np.inf], (8, 1)))
    found = decode(model, model.encoded, beam_size=2, max_labels=0)
    blanks = scored(model, model.encoded, predictor_rows(model, ())[0], "softmax")[..., 0].sum(1)
    np.testing.assert_allclose(found.log_probs[:, 0], blanks, rtol=1e-10)
    assert np.isneginf(found.log_probs[:, 1]).all() and (found.label_lengths == 0).all()


def test_unchecked_values() -> None:
    """Lengths out of range and NaN in one utterance; the others as without, padding unread."""
    model = Model(4)
    lengths = np.array([T, -1, T + 1, 2**40, 3, T, T, T])
    encoded = model.encoded.copy()
    encoded[4, 3:] = np.nan
    encoded[5] = np.nan
    found = jax.jit(lambda *x: decode(model, *x))(encoded, lengths)
    wanted = jax.jit(lambda *x: decode(model, *x))(model.encoded, np.full(8, T).clip(0, lengths))
    assert np.isnan(found.log_probs[1:4]).all() and np.isneginf(found.log_probs[5]).all()
    assert (found.label_lengths[jnp.array([1, 2, 3, 5])] == 0).all()
    for x, y in zip(found, wanted, strict=True):
        for b in (0, 4, 6, 7):
            np.testing.assert_array_equal(x[b], y[b])
    with pytest.raises(ValueError, match="logit_lengths"):
        decode(model, encoded, lengths)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtypes(dtype: Any) -> None:
    """Log-probabilities are float32."""
    model = Model(5)
    found = beam_decode(
        model.predictor_step, lambda *x: model.joint(*x).astype(dtype), model.encoded,
        initial_state=model.state(8),
    )  # fmt: skip
    wanted = decode(model, model.encoded)
    assert found.log_probs.dtype == jnp.float32
    tolerance = 1e-5 if dtype == jnp.float32 else 0.05
    np.testing.assert_allclose(found.log_probs[:, 0], wanted.log_probs[:, 0], rtol=tolerance)


def test_other_classes() -> None:
    """The last class is the blank; another one starts."""
    model = Model(6, blank_id=V - 1)
    found = decode(model, model.encoded, blank_id=-1, start_label=2)
    assert (found.labels[found.frames < 0] == V - 1).all()
    assert (found.labels[found.frames >= 0] < V - 1).all()

    class Turned(Model):
        """Class i is class i + 1."""

        def predictor_step(self, state: Any, labels: Any) -> Any:
            start = state["count"] == 0
            return model.predictor_step(state, jnp.where(start, 2, (labels - 1) % V))

        def joint(self, encoder: Any, predictor: Any) -> Any:
            return jnp.roll(model.joint(encoder, predictor), 1, axis=-1)

    again = decode(Turned(6), model.encoded)
    np.testing.assert_allclose(again.log_probs, found.log_probs, rtol=1e-12)
    np.testing.assert_array_equal((again.labels - 1) % V, found.labels)


def test_transforms(devices: list[jax.Device]) -> None:
    """vmap, sharded jit, explicit axes, shard_map and pmap."""
    model = Model(7)
    lengths = np.array([6, 5, 4, 3, 2, 1, 0, 6])
    operands = model.encoded, lengths

    def run(encoded: Any, lengths: Any) -> Any:
        return tuple(decode(model, encoded, lengths, check=False))

    wanted = jax.jit(run)(*operands)

    def same(found: Any) -> None:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), found, wanted)

    same(jax.jit(jax.vmap(run))(*operands))
    mesh = Mesh(np.array(devices), ("data",))
    same(jax.jit(run)(*sharded(operands, mesh)))
    same(shard_map(run, mesh=mesh, in_specs=P("data"), out_specs=P("data"))(*operands))
    split = jax.tree.map(lambda x: x[:, None], operands)
    same(jax.tree.map(lambda x: x[:, 0], jax.pmap(run, devices=devices)(*split)))
    explicit = jax.make_mesh(
        (8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,), devices=devices
    )
    with jax.set_mesh(explicit):
        same(jax.jit(run)(*sharded(operands, explicit)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"beam_size": 0}, ValueError, "beam_size is 0"),
        ({"topology": "constrained"}, ValueError, "topology is 'constrained'"),
        ({"final_blank": True}, ValueError, "final_blank is True with topology 'regular'"),
        ({"normalization": "sum"}, ValueError, "normalization is 'sum'"),
        ({"max_labels": -1}, ValueError, "max_labels is -1"),
        ({"blank_id": V}, ValueError, f"blank_id is {V}"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    model = Model(8)
    with pytest.raises(error, match=message):
        decode(model, model.encoded, **change)
