"""The speech demo: its rules by hand-worked cases, and a small run from end to end."""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

for needed in ("flax", "optax", "orbax.checkpoint", "matplotlib", "rapidfuzz", "scipy", "tqdm"):
    pytest.importorskip(needed, reason=f"NEEDS {needed}: pip install 'jax-rnnt[examples]'")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402
from speech import corpus, transcripts  # noqa: E402
from speech.alignment import best_path, emission_frames, posterior_lattice  # noqa: E402
from speech.batching import Bucket, assemble  # noqa: E402
from speech.decode import MAX_LABELS_PER_FRAME, greedy  # noqa: E402
from speech.gru import gru_scan, plain_scan  # noqa: E402
from speech.losses import PrunedLoss, exact_loss, joint_loss  # noqa: E402
from speech.metrics import edit_counts, error_rate  # noqa: E402
from speech.model import CONTEXT, ModelConfig, Transducer, label_contexts  # noqa: E402
from speech.split import NEAR_DUPLICATE, near_duplicate_groups, split  # noqa: E402
from speech.task import BUCKETS, SpeechTask, prepare  # noqa: E402
from speech.training import Checkpoints, History, Recipe, initial_state, train  # noqa: E402


@pytest.fixture(autouse=True)
def ordinary_jax() -> Iterator[None]:
    """The demo is a program of its own: it runs with JAX's defaults, not the suite's."""
    ordinary = {
        "jax_enable_x64": False,
        "jax_numpy_dtype_promotion": "standard",
        "jax_numpy_rank_promotion": "allow",
    }
    suite = {name: getattr(jax.config, name) for name in ordinary}
    for name, value in ordinary.items():
        jax.config.update(name, value)
    yield
    for name, value in suite.items():
        jax.config.update(name, value)


@pytest.mark.parametrize(
    ("raw", "spoken"),
    [
        (
            "Press 1 to mute or umute yourself, 2 to lock.",
            "press one to mute or unmute yourself two to lock",
        ),
        (
            "press * to toggle pause, press # to exit",
            "press star to toggle pause press pound to exit",
        ),
        ("A.M.", "a m"),
        ('IAX (note: does not say "2")', "i a x"),
        ("at [@]", "at"),
        ("[this is a simple beep tone]", ""),
        ("<beep decending>", ""),
        ("...to lock, or unlock the conference.", "to lock or unlock the conference"),
        ("You're at Waldo's 'place', o'clock", "you're at waldo's place o'clock"),
        ("come straight thru; press 10", "come straight through press one zero"),
        ("Call-Forward on No Answer.", "call forward on no answer"),
    ],
)
def test_transcripts_as_spoken(raw: str, spoken: str) -> None:
    assert transcripts.normalise(raw) == spoken
    assert transcripts.decode(transcripts.encode(spoken)) == spoken


def test_classes_leave_blank_out() -> None:
    assert transcripts.encode("a '") == [1, 27, 28]
    assert transcripts.CLASSES == 29


def test_near_duplicates_share_a_group_through_chains() -> None:
    texts = ["abcdefghij", "abcdefghiX", "abcdefghYX", "something else", "abcdefghij"]
    groups = near_duplicate_groups(texts)
    assert groups[0] == groups[1] == groups[2] == groups[4] != groups[3]


def test_split_keeps_near_duplicates_together() -> None:
    rng = np.random.default_rng(0)
    words = ["press", "one", "two", "pound", "the", "conference", "is", "locked", "please", "hold"]
    texts = [" ".join(rng.choice(words, rng.integers(1, 7))) for _ in range(300)]
    training, held_out = split(texts, 0.1, seed=3)
    assert sorted(training + held_out) == list(range(300))
    assert 30 <= len(held_out) <= 45
    for one in held_out:
        for other in training:
            for pair in ((texts[one], texts[other]), (texts[other], texts[one])):
                assert difflib.SequenceMatcher(None, *pair).ratio() < NEAR_DUPLICATE, pair
    assert split(texts, 0.1, seed=3) == (training, held_out)
    assert split(texts, 0.1, seed=4) != (training, held_out)


def test_error_rates_by_hand() -> None:
    references = ["the cat sat", "go", "a b"]
    hypotheses = ["the bat sat", "", "a b c"]
    np.testing.assert_array_equal(edit_counts(references, hypotheses), [(1, 11), (2, 2), (2, 3)])
    np.testing.assert_array_equal(
        edit_counts(references, hypotheses, words=True), [(1, 3), (1, 1), (1, 2)]
    )
    rate = error_rate(edit_counts(references, hypotheses))
    assert rate.rate == pytest.approx(5 / 16)
    assert rate.low < rate.rate < rate.high
    assert rate.low >= 1 / 11 and rate.high <= 1
    exact = error_rate(edit_counts(references, references))
    assert (exact.rate, exact.low, exact.high) == (0, 0, 0)


class Scripted(nnx.Module):
    """Emits, in frame t, the labels listed for t, one after another; the last label counts."""

    def __init__(self, script: list[dict[int, int]]):
        table = np.zeros((len(script), 5), np.int32)
        for frame, follows in enumerate(script):
            for last, label in follows.items():
                table[frame, last] = label
        self.table = nnx.Variable(jnp.asarray(table))

    def encode(self, features: jax.Array, lengths: jax.Array) -> jax.Array:
        table = self.table[...].astype(jnp.float32)
        return jnp.broadcast_to(table, (len(features), *table.shape))

    def predict(self, context: jax.Array) -> jax.Array:
        return context[:, -1:]

    def join(self, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
        best = jnp.take_along_axis(encoded, predicted, axis=1)[:, 0]
        return jax.nn.one_hot(best.astype(jnp.int32), 5)


def test_greedy_decoding_by_hand() -> None:
    # Frame 0: nothing -> 1 -> 2. Frame 1: blank. Frame 2: 2 -> 3, then 3 for ever.
    model = Scripted([{0: 1, 1: 2}, {}, {2: 3, 3: 3}])
    labels, counts = greedy(*nnx.split(model), jnp.zeros((3, 1)), jnp.array([3, 2, 0]))
    rows = [row[:count].tolist() for row, count in zip(labels, counts, strict=True)]
    assert rows == [[1, 2] + [3] * MAX_LABELS_PER_FRAME, [1, 2], []]


def test_best_path_by_hand() -> None:
    # Two frames, one label: emitting it in the second frame is twice as probable.
    blank = np.log([[0.6, 0.5], [0.3, 0.5]])
    label = np.log([[0.2, 1.0], [0.5, 1.0]])
    path = best_path(blank, label)
    assert path.tolist() == [[0, 0], [1, 0], [1, 1]]
    assert emission_frames(path).tolist() == [1]


def test_label_contexts() -> None:
    contexts = label_contexts(jnp.array([[3, 4, 5]]))
    assert contexts.shape == (1, 4, CONTEXT)
    assert contexts[0].tolist() == [[0, 0], [0, 3], [3, 4], [4, 5]]


def test_gru_gradient_is_that_of_the_plain_scan() -> None:
    frames, batch, hidden = 7, 3, 5
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    arguments = (
        normal(2, hidden, 3 * hidden),
        normal(2, 1, hidden),
        normal(frames, 2, batch, 3 * hidden),
    )
    keep = jnp.asarray(rng.random((frames, 2, batch, 1)) > 0.3, jnp.float32)
    weight = normal(frames, 2, batch, hidden)
    found, expected = (
        jax.grad(lambda *args, scan=scan: (scan(*args, keep) * weight).sum(), argnums=(0, 1, 2))(
            *arguments
        )
        for scan in (gru_scan, plain_scan)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


SMALL = ModelConfig(hidden=8, embedding=4, joint=8)


@pytest.fixture(scope="module")
def task() -> SpeechTask:
    return prepare("synthetic", Path(), subsampling=SMALL.subsampling, seed=0)


def test_padding_does_not_change_logits(task: SpeechTask) -> None:
    model = Transducer(SMALL, rngs=nnx.Rngs(0))
    utterance = task.normaliser.utterance(task.training[0])
    frames, labels = utterance.encoder_frames(SMALL.subsampling), len(utterance.labels)
    tight, loose = (
        model(batch.features, batch.lengths, batch.labels)
        for batch in (
            assemble([utterance], Bucket(frames + more, labels + more, 1 + more), 4)
            for more in (0, 5)
        )
    )
    np.testing.assert_allclose(tight[0], loose[0, :frames, : labels + 1], atol=1e-5)


def test_posterior_lattice_conserves_mass(task: SpeechTask) -> None:
    graph, params = nnx.split(Transducer(SMALL, rngs=nnx.Rngs(0)))
    utterance = task.normaliser.utterance(task.training[0])
    frames, labels = utterance.encoder_frames(SMALL.subsampling), len(utterance.labels)
    batch = assemble([utterance], Bucket(frames, labels, 1), SMALL.subsampling)
    posterior, path = posterior_lattice(graph, params, batch)
    diagonals = [np.trace(posterior[:, ::-1], k) for k in range(-frames + 1, labels + 1)]
    np.testing.assert_allclose(diagonals, 1, atol=1e-4)
    assert path[0].tolist() == [0, 0] and path[-1].tolist() == [frames - 1, labels]
    assert len(path) == frames + labels


def test_resumed_training_is_the_same_to_the_bit(task: SpeechTask, tmp_path: Path) -> None:
    recipe = Recipe()

    def run(directory: Path, stop_at: int, *, resume: bool):
        graph, state = initial_state(Transducer(SMALL, rngs=nnx.Rngs(0)), recipe)
        checkpoints = Checkpoints(directory, fresh=not resume)
        history = History()
        if resume:
            state, history = checkpoints.restore(state)
        state = train(
            graph,
            state,
            recipe,
            6,
            task,
            history,
            checkpoints=checkpoints,
            evaluate_every=3,
            stop_at=stop_at,
        )
        return state, history

    straight, history = run(tmp_path / "straight", 6, resume=False)
    run(tmp_path / "halves", 3, resume=False)
    resumed, joined = run(tmp_path / "halves", 6, resume=True)
    assert int(resumed.step) == 6
    assert joined.losses == history.losses and joined.evaluations == history.evaluations
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)


def test_joint_loss_is_the_exact_loss(task: SpeechTask) -> None:
    """To the rounding of float32, dropout included."""
    model = Transducer(SMALL, rngs=nnx.Rngs(0))
    batch = task.data.fullest(BUCKETS[0])
    found, wanted = (
        loss(model, batch, nnx.Rngs(dropout=1), jnp.int32(0)) for loss in (joint_loss, exact_loss)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_corpus_falls_back_loudly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # No apt-get here.
    kind, prompts = corpus.load("auto", tmp_path / "cache")
    assert kind == "synthetic" and len(prompts) > 100
    assert "apt-get was not found" in capsys.readouterr().err
    with pytest.raises(corpus.CorpusUnavailable):
        corpus.load("asterisk", tmp_path / "cache")


def demo(script: str, out: Path, *options: str) -> str:
    """What a script prints, run with JAX's defaults and its output directory at `out`."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_ENABLE_X64")}
    command = [sys.executable, str(EXAMPLES / script), "--out", str(out), *options]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_demo_runs_from_end_to_end(tmp_path: Path) -> None:
    stopped = demo(
        "train_speech.py",
        tmp_path,
        *("--corpus", "synthetic", "--loss", "joint", "--steps", "30", "--stop-at", "15"),
    )
    assert "Stopped after step 15" in stopped and not (tmp_path / "metrics.json").exists()
    finished = demo("train_speech.py", tmp_path, "--resume")
    assert "Resuming after step 15 of 30" in finished and "CER" in finished
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["steps"], metrics["corpus"]) == (30, "synthetic")
    points = metrics["evaluations"]
    assert points[-1]["step"] == 30
    assert points[-1]["loss"] < 0.7 * points[0]["loss"]
    assert metrics["cer"]["low"] <= metrics["cer"]["rate"] <= metrics["cer"]["high"]
    costs = json.loads((tmp_path / "costs.json").read_text())
    assert 0 < 2 * costs["joint"]["temporary_bytes"] < costs["exact"]["temporary_bytes"]
    for name in ("training.png", "lattice.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_scales_of_the_pruned_loss() -> None:
    """As in the icefall recipes: linear over the warm-up, constant afterwards."""
    loss = PrunedLoss(warmup_steps=100)
    found = [[float(x) for x in loss.scales(jnp.int32(step))] for step in (0, 50, 100, 1000)]
    np.testing.assert_allclose(found, [[1, 0.1], [0.75, 0.55], [0.5, 1], [0.5, 1]], rtol=1e-6)


def test_pruned_demo_runs_from_end_to_end(tmp_path: Path) -> None:
    """The loss falls; the step has a cost with either loss, and less memory with the pruned one."""
    printed = demo("train_pruned.py", tmp_path, "--corpus", "synthetic", "--steps", "30")
    assert "CER" in printed and "peak MB" in printed
    points = json.loads((tmp_path / "metrics.json").read_text())["evaluations"]
    assert points[-1]["loss"] < 0.8 * points[0]["loss"]
    costs = json.loads((tmp_path / "costs.json").read_text())
    assert 0 < costs["pruned"]["temporary_bytes"] < costs["exact"]["temporary_bytes"]
    for name in ("training.png", "lattice.png", "band.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
