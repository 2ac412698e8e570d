"""`compat`: documented signatures; torchaudio, warprnnt and transducer against the oracle."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import oracles_multi_blank
import oracles_tdt
import pytest

import jax_rnnt
from jax_rnnt.compat import (
    fast_rnnt,
    k2,
    nemo,
    optimized_transducer,
    torchaudio,
    transducer,
    warp_rnnt,
    warprnnt,
)

B, T, U, V = 5, 6, 3, 5
LENGTHS = np.array([6, 4, 5, 1, 3]), np.array([3, 2, 0, 1, 3])
SIGNATURES = {
    torchaudio.rnnt_loss: "logits, targets, logit_lengths, target_lengths, blank=-1, clamp=-1, "
    "reduction='mean', fused_log_softmax=True",
    torchaudio.RNNTLoss: "blank=-1, clamp=-1.0, reduction='mean', fused_log_softmax=True",
    warprnnt.rnnt_loss: "acts, labels, act_lens, label_lens, blank=0, reduction='mean', "
    "fastemit_lambda=0.0",
    warprnnt.RNNTLoss: "blank=0, reduction='mean', fastemit_lambda=0.0",
    nemo.rnnt_loss: "acts, labels, act_lens, label_lens, blank=0, reduction='mean', "
    "fastemit_lambda=0.0, clamp=0.0",
    nemo.RNNTLossNumba: "blank=0, reduction='mean', fastemit_lambda=0.0, clamp=-1",
    nemo.TDTLossNumba: "blank, durations, reduction='mean', fastemit_lambda=0.0, clamp=-1, "
    "sigma=0.0, omega=0.0",
    nemo.RNNTLoss: "num_classes, reduction='mean_batch', loss_name='default', loss_kwargs=None",
    nemo.RNNTLoss.__call__: "self, log_probs, targets, input_lengths, target_lengths, key=None",
    nemo.MultiblankRNNTLossNumba: "blank, big_blank_durations, reduction='mean', "
    "fastemit_lambda=0.0, clamp=-1, sigma=0.0",
    transducer.TransducerLoss: "blank=0",
    transducer.TransducerLoss.__call__: "self, emissions, predictions, labels, input_lengths, "
    "label_lengths",
    transducer.TransducerLoss.viterbi: "self, emissions, predictions, input_lengths, label_lengths",
    fast_rnnt.mutual_information_recursion: "px, py, boundary=None, return_grad=False",
    fast_rnnt.joint_mutual_information_recursion: "px, py, boundary=None",
    fast_rnnt.get_rnnt_logprobs: "lm, am, symbols, termination_symbol, rnnt_type='regular', "
    "boundary=None",
    fast_rnnt.get_rnnt_logprobs_smoothed: "lm, am, symbols, termination_symbol, lm_only_scale=0.1, "
    "am_only_scale=0.1, boundary=None, rnnt_type='regular'",
    fast_rnnt.get_rnnt_logprobs_joint: "logits, symbols, termination_symbol, boundary=None, "
    "rnnt_type='regular'",
    k2.get_rnnt_logprobs_joint: "logits, symbols, termination_symbol, rnnt_type='regular', "
    "boundary=None",
    fast_rnnt.get_rnnt_logprobs_pruned: "logits, symbols, ranges, termination_symbol, "
    "boundary=None, rnnt_type='regular'",
    fast_rnnt.get_hat_logprobs_pruned: "logits, symbols, ranges, termination_symbol, "
    "boundary=None, rnnt_type='regular'",
    fast_rnnt.get_rnnt_prune_ranges: "px_grad, py_grad, boundary, s_range",
    k2.get_rnnt_prune_ranges_deprecated: "px_grad, py_grad, boundary, s_range",
    fast_rnnt.do_rnnt_pruning: "am, lm, ranges",
    fast_rnnt.rnnt_loss_simple: "lm, am, symbols, termination_symbol, boundary=None, "
    "rnnt_type='regular', delay_penalty=0.0, reduction='mean', return_grad=False",
    fast_rnnt.rnnt_loss_smoothed: "lm, am, symbols, termination_symbol, lm_only_scale=0.1, "
    "am_only_scale=0.1, boundary=None, rnnt_type='regular', delay_penalty=0.0, reduction='mean', "
    "return_grad=False",
    fast_rnnt.rnnt_loss: "logits, symbols, termination_symbol, boundary=None, "
    "rnnt_type='regular', delay_penalty=0.0, reduction='mean'",
    fast_rnnt.rnnt_loss_pruned: "logits, symbols, ranges, termination_symbol, boundary=None, "
    "rnnt_type='regular', delay_penalty=0.0, reduction='mean', use_hat_loss=False",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f"{f.__module__}.{f.__qualname__}")
def test_signature(function: Any) -> None:
    """Names, order and defaults."""
    parameters = inspect.signature(function).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    assert ", ".join(map(str, bare)) == SIGNATURES[function]


def test_k2_has_all_of_fast_rnnt() -> None:
    """The same functions, but for one, which has another order of arguments."""
    for name in fast_rnnt.__all__:
        same = getattr(k2, name) is getattr(fast_rnnt, name)
        assert same != (name == "get_rnnt_logprobs_joint"), name
    logits, symbols = np.random.default_rng(0).normal(size=(2, 3, 3, 4)), np.array([[1, 2], [3, 1]])
    boundary = np.array([[0, 0, 2, 3], [0, 0, 1, 2]])
    found = k2.get_rnnt_logprobs_joint(logits, symbols, 0, "regular", boundary)
    wanted = fast_rnnt.get_rnnt_logprobs_joint(logits, symbols, 0, boundary, "regular")
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert set(k2.__all__) - set(fast_rnnt.__all__) == {"get_rnnt_prune_ranges_deprecated"}


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that are neither the first nor the last class."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(B, T, U + 1, V)), rng.integers(1, V - 1, (B, U))


def assert_loss(function: Any, scores: Any, wanted: oracles.LogitsResult, weight: Any) -> None:
    """The loss of `function(scores)` and its gradient: `weight` times the summed loss, or none."""
    loss, vjp = jax.vjp(jax.jit(function), scores)
    expected = wanted.loss if weight is None else weight * wanted.loss.sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-12, atol=1e-13)
    (grad,) = vjp(jnp.ones_like(loss))
    np.testing.assert_allclose(grad, (weight or 1) * wanted.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("clamp", [-1, 0.05])
@pytest.mark.parametrize("fused", [True, False])
def test_torchaudio(batch: Any, clamp: float, fused: bool) -> None:
    """The last class is blank; log-probabilities; clamp of the gradient before the reduction's."""
    logits, labels = batch
    normalization = "softmax" if fused else "none"
    wanted = oracles.logits_loss(
        logits, labels, *LENGTHS, blank_id=V - 1, normalization=normalization, clamp=clamp
    )

    def loss(x: Any, **options: Any) -> jax.Array:
        options |= {"clamp": clamp, "fused_log_softmax": fused}
        return torchaudio.rnnt_loss(x, labels, *LENGTHS, **options)

    assert_loss(loss, logits, wanted, 1 / B)
    assert_loss(lambda x: loss(x, reduction="sum", blank=V - 1), logits, wanted, 1)
    module = torchaudio.RNNTLoss(V - 1, clamp, "none", fused)
    assert_loss(lambda x: module(x, labels, *LENGTHS), logits, wanted, None)
    np.testing.assert_array_equal(
        module.forward(logits, labels, *LENGTHS), module(logits, labels, *LENGTHS)
    )


@pytest.mark.parametrize("fastemit_lambda", [0.0, 0.3])
def test_warprnnt(batch: Any, fastemit_lambda: float) -> None:
    """Each reduction; FastEmit in the gradient alone."""
    logits, labels = batch
    options = {"fastemit_lambda": fastemit_lambda}
    wanted = oracles.logits_loss(logits, labels, *LENGTHS, **options)
    rest = labels, *LENGTHS
    assert_loss(lambda x: warprnnt.rnnt_loss(x, *rest, **options), logits, wanted, 1 / B)
    summed = warprnnt.RNNTLoss(reduction="sum", **options)
    assert_loss(lambda x: summed(x, *rest), logits, wanted, 1)
    each = warprnnt.RNNTLoss(0, "none", fastemit_lambda)
    assert_loss(lambda x: each.forward(x, *rest), logits, wanted, None)


@pytest.mark.parametrize("fastemit_lambda", [0.0, 0.3])
@pytest.mark.parametrize("clamp", [-1, 0.05])
def test_nemo(batch: Any, clamp: float, fastemit_lambda: float) -> None:
    """The value is scaled for FastEmit, the gradient is not; blank is the last class of a model."""
    logits, labels = batch
    options = {"fastemit_lambda": fastemit_lambda, "clamp": clamp}
    rest = labels, *LENGTHS
    for blank in (0, V - 1):
        found = oracles.logits_loss(logits, labels, *LENGTHS, blank_id=blank, **options)
        wanted = found._replace(loss=(1 + fastemit_lambda) * found.loss)

        def mean(x: Any, blank: int = blank) -> jax.Array:
            return nemo.rnnt_loss(x, *rest, blank=blank, **options)

        assert_loss(mean, logits, wanted, 1 / B)
        summed = nemo.RNNTLossNumba(blank, "sum", fastemit_lambda, clamp)
        assert_loss(lambda x, summed=summed: summed.forward(x, *rest), logits, wanted, 1)
    each = nemo.RNNTLoss(V - 1, reduction=None, loss_kwargs=options)
    assert_loss(lambda x: each(x, *rest), logits, wanted, None)
    for reduction, weights in (
        ("sum", np.ones(B)),
        ("mean_batch", np.full(B, 1 / B)),
        ("mean_volume", np.full(B, 1 / LENGTHS[1].sum())),
        ("mean", 1 / B / np.maximum(LENGTHS[1], 1)),
    ):
        model: Any = nemo.RNNTLoss(V - 1, reduction, "warprnnt_numba", options)
        loss, grad = jax.value_and_grad(lambda x, model=model: model.forward(x, *rest))(logits)
        np.testing.assert_allclose(loss, weights @ wanted.loss, rtol=1e-12)
        expected = weights[:, None, None, None] * wanted.grad
        np.testing.assert_allclose(grad, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("fastemit_lambda", [0.0, 0.3])
def test_nemo_durations(batch: Any, fastemit_lambda: float) -> None:
    """Scores of tokens and durations in one array; the value is scaled for FastEmit."""
    logits, labels = batch
    duration_logits = np.random.default_rng(2).normal(size=(*logits.shape[:-1], 3))
    options = {"fastemit_lambda": fastemit_lambda, "sigma": 0.05}
    found = oracles_tdt.tdt_loss(
        logits, duration_logits, labels, *LENGTHS, durations=(0, 1, 2), **options
    )
    acts = np.concatenate([logits, duration_logits], -1)
    grad = np.concatenate([found.grad, found.duration_grad], -1)
    wanted = oracles.LogitsResult((1 + fastemit_lambda) * found.loss, grad)
    for reduction, share in (("mean", 1 / B), ("sum", 1), ("none", None)):
        module = nemo.TDTLossNumba(0, [0, 1, 2], reduction, **options)
        assert_loss(lambda x, f=module: f(x, labels, *LENGTHS), acts, wanted, share)


def test_nemo_omega(batch: Any) -> None:
    """A batch gets the usual loss of the tokens, without sigma, as often as omega says."""
    logits, labels = batch
    duration_logits = np.random.default_rng(3).normal(size=(*logits.shape[:-1], 2))
    acts, rest = np.concatenate([logits, duration_logits], -1), (labels, *LENGTHS)
    module = nemo.TDTLossNumba(0, (1, 2), sigma=0.05, omega=0.3, clamp=0.1)
    step = jax.jit(jax.value_and_grad(lambda x, key: module(x, *rest, key=key)))
    usual = oracles.logits_loss(logits, *rest, clamp=0.1)
    sampled = []
    for key in jax.random.split(jax.random.key(0), 60):
        loss, grad = step(acts, key)
        sampled.append(bool(np.isclose(loss, usual.loss.mean())))
        assert sampled[-1] == bool((grad[..., -2:] == 0).all())
        if sampled[-1]:
            np.testing.assert_allclose(grad[..., :-2], usual.grad / B, rtol=1e-10, atol=1e-13)
    assert 8 <= sum(sampled) <= 30  # four standard deviations
    with pytest.raises(ValueError, match=r"omega is 0.3, but key is None; expected a jax.random"):
        module(acts, *rest)
    with pytest.raises(ValueError, match=r"omega is 1.5; expected a probability"):
        nemo.TDTLossNumba(0, (1, 2), omega=1.5)
    with pytest.raises(ValueError, match=r"acts has shape .* those of the D = 2 durations"):
        module(acts[..., :2], *rest)


@pytest.mark.parametrize("fastemit_lambda", [0.0, 0.3])
def test_nemo_multi_blank(batch: Any, fastemit_lambda: float) -> None:
    """Big blanks are the classes before the usual one, in the order of the durations."""
    logits = np.random.default_rng(4).normal(size=(B, T, U + 1, V + 3))
    labels = batch[1] - 1
    options = {"fastemit_lambda": fastemit_lambda, "clamp": 0.1, "sigma": 0.05}
    found = oracles_multi_blank.multi_blank_loss(
        logits, labels, *LENGTHS, durations={V + 2: 1, V + 1: 4, V: 2}, **options
    )
    wanted = oracles.LogitsResult((1 + fastemit_lambda) * found.loss, found.grad)
    for reduction, share in (("mean", 1 / B), ("sum", 1), ("none", None)):
        module = nemo.MultiblankRNNTLossNumba(V + 2, [4, 2], reduction, **options)
        assert_loss(lambda x, f=module: f(x, labels, *LENGTHS), logits, wanted, share)
    with pytest.raises(ValueError, match="blank is 1; expected at least 2"):
        nemo.MultiblankRNNTLossNumba(1, [2, 4])
    with pytest.raises(TypeError, match="big_blank_durations is None; expected a sequence"):
        nemo.MultiblankRNNTLossNumba(3, None)  # type: ignore[arg-type]


def test_nemo_losses_by_name(batch: Any) -> None:
    """All reductions, longer labels, and modules that can be static arguments."""
    labels = batch[1]
    wide = np.random.default_rng(5).normal(size=(B, T, U + 1, V + 2))
    padded = np.pad(labels - 1, ((0, 0), (0, 2)))
    by_durations = {"durations": [0, 1], "sigma": 0.05, "clamp": 0.1}
    by_big_blanks = {"big_blank_durations": [2], "sigma": 0.05, "clamp": 0.1}
    tdt = nemo.TDTLossNumba(V - 1, (0, 1), "none", sigma=0.05, clamp=0.1)
    multi_blank = nemo.MultiblankRNNTLossNumba(V + 1, (2,), "none", sigma=0.05, clamp=0.1)
    assert hash(tdt) == hash(nemo.TDTLossNumba(V - 1, [0, 1], "none", sigma=0.05, clamp=0.1))
    for name, options, blank, each in (
        ("tdt", by_durations, V - 1, tdt),
        ("multiblank_rnnt", by_big_blanks, V + 1, multi_blank),
    ):
        losses = np.asarray(each(wide, labels - 1, *LENGTHS))
        for reduction, wanted in (
            (None, losses),
            ("sum", losses.sum()),
            ("mean_volume", losses.sum() / LENGTHS[1].sum()),
        ):
            loss: Any = nemo.RNNTLoss(blank, reduction, name, options)  # type: ignore[arg-type]
            found = jax.jit(lambda f, *x: f(*x), static_argnums=0)(loss, wide, padded, *LENGTHS)
            np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_nemo_options() -> None:
    """What is not there is an error; so is what would be ignored. No loss is NaN."""
    kinds: Any = nemo.RNNTLoss
    for arguments, message in (
        ({"reduction": "none"}, "reduction is 'none'"),
        ({"loss_name": "graph_rnnt"}, "loss_name is 'graph_rnnt'"),
        ({"loss_name": "tdt"}, "loss_kwargs has no 'durations'"),
        ({"loss_name": "pytorch", "loss_kwargs": {"clamp": 1.0}}, "'clamp'; expected none for"),
        ({"loss_kwargs": {"sigma": 0.05}}, "'sigma'; expected only fastemit_lambda, clamp for"),
    ):
        with pytest.raises(ValueError, match=message):
            kinds(4, **arguments)
    with pytest.raises(TypeError, match="loss_kwargs is \\['clamp'\\]"):
        kinds(4, loss_kwargs=["clamp"])
    logits, labels = jnp.zeros((2, 4, 3, 5)), jnp.ones((2, 2), jnp.int32)
    no_frames = jnp.array([0, 4]), jnp.array([2, 0])
    loss = jax.jit(nemo.RNNTLoss(4, None, loss_kwargs={"fastemit_lambda": 0.5}))
    losses = loss(logits, labels, *no_frames)
    assert losses[0] == jnp.inf and jnp.isfinite(losses[1])
    assert jnp.isfinite(
        nemo.RNNTLoss(4, "mean_volume")(logits[1:], labels[1:], *(x[1:] for x in no_frames))
    )
    with pytest.raises(ValueError, match=r"^targets has shape \(2, 1\)"):
        nemo.RNNTLoss(4)(logits, labels[:, :1], *no_frames)


@pytest.mark.parametrize("blank", [0, V - 1])
def test_transducer(batch: Any, blank: int) -> None:
    """The additive joiner's losses, one for each utterance, and gradients by both halves."""
    rng = np.random.default_rng(1)
    am, lm, labels = rng.normal(size=(B, T, V)), rng.normal(size=(B, U + 1, V)), batch[1]
    wanted = oracles.logits_loss(am[:, :, None] + lm[:, None], labels, *LENGTHS, blank_id=blank)
    module = transducer.TransducerLoss(blank=blank)
    loss, vjp = jax.vjp(jax.jit(lambda *x: module(*x, labels, *LENGTHS)), am, lm)
    np.testing.assert_allclose(loss, wanted.loss, rtol=1e-12)
    for found, axis in zip(vjp(jnp.ones_like(loss)), (2, 1), strict=True):
        np.testing.assert_allclose(found, wanted.grad.sum(axis), rtol=1e-10, atol=1e-13)
    np.testing.assert_array_equal(module.forward(am, lm, labels, *LENGTHS), loss)


@pytest.mark.parametrize("blank", [0, V - 1])
def test_viterbi(blank: int) -> None:
    """Against all paths, each of whose emitting arcs has its best label."""
    rng = np.random.default_rng(2)
    am, lm = rng.normal(size=(B, T, V)), rng.normal(size=(B, U + 1, V))
    found = transducer.TransducerLoss(blank).viterbi(am, lm, *LENGTHS)
    log_probs = np.asarray(jax.nn.log_softmax(am[:, :, None] + lm[:, None]))
    others = np.delete(log_probs, blank, axis=-1)
    classes = np.delete(np.arange(V), blank)
    for b, (frames, count) in enumerate(zip(*LENGTHS, strict=True)):
        bounds = oracles.Bounds(0, frames, 0, count)

        def score(path: Any, b: int = b) -> float:
            return sum(
                log_probs[b, t, u, blank] if kind == "blank" else others[b, t, u].max()
                for kind, t, u in path
            )

        best = max(oracles.paths(bounds, "regular", False), key=score)
        labels = [classes[others[b, t, u].argmax()] for kind, t, u in best if kind == "label"]
        assert found[b, :count].tolist() == labels


def test_messages_in_words_of_the_caller() -> None:
    """Arguments have the names that were written in the call; flags are not guessed at."""
    logits, labels = jnp.zeros((2, 4, 3, 5)), jnp.ones((2, 2), jnp.int32)
    four, two = jnp.full(2, 4), jnp.full(2, 2)
    with pytest.raises(ValueError, match=r"^targets has shape \(2, 1\)"):
        torchaudio.rnnt_loss(logits, labels[:, :1], four, two)
    with pytest.raises(TypeError, match="fused_log_softmax is 'no'"):
        torchaudio.rnnt_loss(logits, labels, four, two, fused_log_softmax="no")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^frames_lengths\[0\] is 9"):
        warp_rnnt.rnnt_loss(logits, labels, jnp.full(2, 9), two)
    with pytest.raises(ValueError, match=r"^act_lens\[0\] is 9"):
        warprnnt.rnnt_loss(logits, labels, jnp.full(2, 9), two)
    with pytest.raises(ValueError, match=r"^input_lengths\[0\] is 9"):
        transducer.TransducerLoss()(logits[:, :, 0], logits[:, 0], labels, jnp.full(2, 9), two)
    with pytest.raises(TypeError, match="one_sym_per_frame is 'mean'"):
        optimized_transducer.transducer_loss(
            logits.reshape(24, 5),
            labels,
            four,
            two,
            0,
            False,
            "mean",  # type: ignore[arg-type]
        )


def test_names() -> None:
    """Modules are attributes of the package, whose listing has what is public alone."""
    assert jax_rnnt.compat.torchaudio is torchaudio
    assert set(dir(jax_rnnt)) == {*jax_rnnt.__all__, "__version__"}
    for name in jax_rnnt.compat.__all__:
        module = getattr(jax_rnnt.compat, name)
        assert all(callable(getattr(module, function)) for function in module.__all__)
