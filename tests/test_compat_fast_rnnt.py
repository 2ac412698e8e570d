"""`compat.fast_rnnt` against the recursion as its documentation has it."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import oracles_fast_rnnt
import oracles_pruned
import pytest

from jax_rnnt.compat import fast_rnnt, k2

B, T, S, C = 4, 6, 3, 5
TYPES = ["regular", "modified", "constrained"]
SCALES = {"lm_only_scale": 0.2, "am_only_scale": 0.15}
#: s_begin, t_begin, s_end, t_end; all with room for the labels.
BOUNDARY = np.array([[0, 0, S, T], [0, 0, 2, 4], [1, 2, 3, 5], [0, 1, 0, 3]])


def close(found: Any, wanted: Any) -> None:
    """Equal up to float64 rounding; the same elements -inf."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


class Case(NamedTuple):
    """Scores of a loss and what goes with them."""

    kind: str
    scores: tuple[np.ndarray, ...]
    symbols: np.ndarray
    blank: int
    ranges: tuple[np.ndarray, ...]  # of one array for losses of a band, or none
    options: dict[str, float]

    def oracle(self, rnnt_type: str, boundary: Any, **more: Any) -> Any:
        return oracles_fast_rnnt.loss_and_grads(
            *self[:4], rnnt_type, boundary, *self.ranges, **self.options, **more
        )

    def arguments(self, scores: Any) -> dict[str, Any]:
        """All but `boundary` and `rnnt_type`, by name."""
        names = ("am", "lm") if len(scores) == 2 else ("logits",)
        ranges = {"ranges": self.ranges[0]} if self.ranges else {}
        rest = {"symbols": self.symbols, "termination_symbol": self.blank}
        return {**dict(zip(names, scores, strict=True)), **rest, **ranges, **self.options}


def case(kind: str, rnnt_type: str = "regular", blank: int = 0) -> Case:
    rng = np.random.default_rng([ord(x) for x in kind])
    symbols = rng.choice(np.delete(np.arange(C), blank), (B, S))
    ranges: tuple[np.ndarray, ...] = ()
    if kind in ("pruned", "hat"):
        starts = np.array([[0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]])
        starts = starts[[0, 1, 0, 1]] if rnnt_type == "regular" else starts[[1, 0, 1, 0]]
        ranges = (starts[..., None] + np.arange(3),)
        scores = (rng.normal(size=(B, T, 3, C)),)
    elif kind == "joint":
        scores = (rng.normal(size=(B, T, S + 1, C)),)
    else:
        scores = rng.normal(size=(B, T, C)), rng.normal(size=(B, S + 1, C))
    return Case(kind, scores, symbols, blank, ranges, SCALES if kind == "smoothed" else {})


LOSSES = {
    "simple": fast_rnnt.rnnt_loss_simple,
    "smoothed": fast_rnnt.rnnt_loss_smoothed,
    "joint": fast_rnnt.rnnt_loss,
    "pruned": fast_rnnt.rnnt_loss_pruned,
    "hat": lambda **arguments: fast_rnnt.rnnt_loss_pruned(use_hat_loss=True, **arguments),
}
LOGPROBS = {
    "simple": fast_rnnt.get_rnnt_logprobs,
    "smoothed": fast_rnnt.get_rnnt_logprobs_smoothed,
    "joint": fast_rnnt.get_rnnt_logprobs_joint,
    "pruned": fast_rnnt.get_rnnt_logprobs_pruned,
    "hat": fast_rnnt.get_hat_logprobs_pruned,
}


@pytest.mark.parametrize(
    ("kind", "rnnt_type"),
    [
        *[(kind, x) for kind in ("simple", "joint", "pruned") for x in TYPES],
        *[(kind, x) for kind in ("smoothed", "hat") for x in ("regular", "constrained")],
    ],
)
def test_losses(kind: str, rnnt_type: str) -> None:
    """Losses and gradients by the scores; begins and ends, delay penalty, another blank."""
    this = case(kind, rnnt_type, blank=0 if kind == "hat" else 2)
    cotangent = np.random.default_rng(0).normal(size=B)
    options: Any = {"boundary": BOUNDARY, "rnnt_type": rnnt_type, "delay_penalty": 0.3}

    @jax.jit
    def run(*scores: Any) -> Any:
        loss, vjp = jax.vjp(
            lambda *x: LOSSES[kind](**this.arguments(x), reduction="none", **options), *scores
        )
        return loss, vjp(cotangent)

    wanted = this.oracle(rnnt_type, BOUNDARY, delay_penalty=0.3, cotangent=cotangent)
    close(run(*this.scores), (wanted[0], wanted[2]))


def test_messages() -> None:
    """In the words of the caller: `boundary`, `symbols`, and T as it was given."""
    px, py = jnp.zeros((1, 4, 7)), jnp.zeros((1, 5, 6))
    with pytest.raises(ValueError, match=r"t_end of boundary\[0\] is 9; .*<= T = 6"):
        fast_rnnt.mutual_information_recursion(px, py, jnp.array([[0, 0, 4, 9]]))
    with pytest.raises(ValueError, match=r"symbols\[0, 1\] is 9"):
        fast_rnnt.rnnt_loss_simple(
            jnp.zeros((1, 3, 5)), jnp.zeros((1, 4, 5)), jnp.array([[1, 9]]), 0
        )


def test_stacked_summands() -> None:
    """As good as a list of them."""
    rng = np.random.default_rng(5)
    px, py = jnp.asarray(rng.normal(size=(2, 1, 4, 7))), jnp.asarray(rng.normal(size=(2, 1, 5, 6)))
    found = fast_rnnt.joint_mutual_information_recursion(px, py)
    close(found, fast_rnnt.joint_mutual_information_recursion(list(px), list(py)))
    close(found.sum(0), fast_rnnt.mutual_information_recursion(px.sum(0), py.sum(0)))


@pytest.mark.parametrize("kind", LOSSES)
def test_options(kind: str) -> None:
    """No boundary, no effect of a negative penalty, each reduction, the mean by default."""
    this = case(kind)
    loss, function = this.oracle("regular", None)[0], LOSSES[kind]
    arguments = this.arguments(this.scores)
    close(function(**arguments, delay_penalty=-1.0), loss.mean())
    close(function(**arguments, reduction="sum"), loss.sum())
    with pytest.raises(ValueError, match="reduction is 'max'"):
        function(**arguments, reduction="max")
    with pytest.raises(ValueError, match=r"boundary has shape \(4,\); expected \(B, 4\)"):
        function(**arguments, boundary=BOUNDARY[0])


@pytest.mark.parametrize(
    ("kind", "rnnt_type"), [*[("simple", x) for x in TYPES], ("smoothed", "constrained")]
)
def test_return_grad(kind: str, rnnt_type: str) -> None:
    """Derivatives by `px` and `py` in their own shapes, whatever the reduction."""
    this = case(kind, rnnt_type)
    options: Any = {"boundary": BOUNDARY, "rnnt_type": rnnt_type, "delay_penalty": 0.2}
    found = LOSSES[kind](**this.arguments(this.scores), return_grad=True, **options)
    loss, grads, _ = this.oracle(rnnt_type, BOUNDARY, delay_penalty=0.2)
    close(found, (loss.mean(), grads))


@pytest.mark.parametrize(
    ("kind", "rnnt_type"),
    [("joint", "modified"), *[(kind, "regular") for kind in LOGPROBS]]
    + [(kind, "constrained") for kind in ("smoothed", "pruned")],
)
def test_logprobs(kind: str, rnnt_type: str) -> None:
    """All of `px` and `py`, padding included, and how cotangents of them come back."""
    this = case(kind, rnnt_type)
    rng = np.random.default_rng(1)
    for boundary in (BOUNDARY, None) if rnnt_type == "regular" else (BOUNDARY,):

        def plain(*scores: Any, boundary: Any = boundary) -> Any:
            return oracles_fast_rnnt.logprobs(
                kind, scores, *this[2:4], rnnt_type, boundary, *this.ranges, **this.options
            )

        def ours(*scores: Any, boundary: Any = boundary) -> Any:
            arguments = this.arguments(scores)
            return LOGPROBS[kind](**arguments, boundary=boundary, rnnt_type=rnnt_type)

        wanted = jax.jit(plain)(*this.scores)
        cotangents = tuple(np.where(np.isfinite(x), rng.normal(size=x.shape), 0) for x in wanted)

        def both(function: Any, cotangents: Any = cotangents) -> Any:
            def values_and_gradients(*scores: Any) -> Any:
                values, vjp = jax.vjp(function, *scores)
                return values, vjp(cotangents)

            return jax.jit(values_and_gradients)(*this.scores)

        close(both(ours), both(plain))


@pytest.mark.parametrize("boundary", [None, BOUNDARY], ids=["whole", "boundary"])
@pytest.mark.parametrize("regular", [True, False])
def test_recursion(regular: bool, boundary: Any) -> None:
    """Any `px`, also in the last column; scores, their gradients, and those of `return_grad`."""
    rng = np.random.default_rng(2)
    px, py = rng.normal(size=(B, S, T + regular)), rng.normal(size=(B, S + 1, T))
    scores, grads = oracles_fast_rnnt.batch_recursion(px, py, boundary)
    close(fast_rnnt.mutual_information_recursion(px, py, boundary, True), (scores, grads))
    found, vjp = jax.vjp(
        lambda *x: fast_rnnt.mutual_information_recursion(*x, boundary=boundary), px, py
    )
    close(found, scores)
    cotangent = rng.normal(size=B)
    close(vjp(jnp.asarray(cotangent)), [cotangent[:, None, None] * x for x in grads])

    pxs = [rng.normal(size=px.shape), rng.normal(size=px.shape)]
    pys = [rng.normal(size=py.shape), rng.normal(size=py.shape)]
    pxs, pys = [px - sum(pxs), *pxs], [py - sum(pys), *pys]
    if regular and boundary is None:
        pxs[0][:, :, -1] = -np.inf
        px[:, :, -1] = -np.inf
        scores, grads = oracles_fast_rnnt.batch_recursion(px, py, boundary)
    parts, vjp = jax.vjp(
        lambda *x: fast_rnnt.joint_mutual_information_recursion(*x, boundary=boundary), pxs, pys
    )
    close(parts.sum(0), scores)
    for i in (1, 2):
        close(parts[i], sum((g * x[i]).sum((1, 2)) for g, x in zip(grads, (pxs, pys), strict=True)))
    weights = rng.normal(size=(3, B))
    for found, grad in zip(vjp(jnp.asarray(weights)), grads, strict=True):
        close(found, [w[:, None, None] * grad for w in weights])


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_pruning(rnnt_type: str) -> None:
    """Lengths from gradients; am and lm of their cells; a loss of all cells is the whole loss."""
    this = case("simple", rnnt_type)
    loss, grads, _ = this.oracle(rnnt_type, BOUNDARY)
    for s_range in (2, 9):
        ranges = np.asarray(fast_rnnt.get_rnnt_prune_ranges(*grads, BOUNDARY, s_range))
        assert ranges.shape == (B, T, min(s_range, S + 1))
        for i in range(B):
            bounds = oracles.Bounds(0, BOUNDARY[i, 3], 0, BOUNDARY[i, 2])
            py, px = grads[1][i].T, np.pad(grads[0][i].T[:T], ((0, 0), (0, 1)))
            starts = oracles_pruned.prune_starts(py, px, bounds, s_range, rnnt_type)
            assert ranges[i].tolist() == [[s + k for k in range(ranges.shape[2])] for s in starts]
    if rnnt_type == "regular":  # the others have no px of the last frame
        # As if this frame had three labels one after another: both functions keep other cells.
        grads[0][0, :3, 2] += 0.9
    for s_range in (2, 3, 9):
        ranges = np.asarray(k2.get_rnnt_prune_ranges_deprecated(*grads, BOUNDARY, s_range))
        for i in range(B):
            bounds = oracles.Bounds(0, BOUNDARY[i, 3], 0, BOUNDARY[i, 2])
            py, px = grads[1][i].T, np.pad(grads[0][i].T[:T], ((0, 0), (0, 1)))
            starts = oracles_pruned.prune_starts(py, px, bounds, s_range, rnnt_type, by_arcs=True)
            assert ranges[i].tolist() == [[s + k for k in range(ranges.shape[2])] for s in starts]
    am, lm = fast_rnnt.do_rnnt_pruning(*this.scores, ranges)
    found = fast_rnnt.rnnt_loss_pruned(
        am + lm, this.symbols, ranges, this.blank, BOUNDARY, rnnt_type, reduction="none"
    )
    close(found, loss)


def test_feasible_ranges() -> None:
    """Too few positions are made enough with a warning, where the boundary is known."""
    px_grad, py_grad = np.zeros((2, 5, 4)), np.zeros((2, 6, 3))
    boundary = np.array([[0, 0, 5, 3], [0, 0, 5, 2]])
    with pytest.warns(UserWarning, match="s_range is 2, which lets too few labels through; 4 is"):
        ranges = fast_rnnt.get_rnnt_prune_ranges(px_grad, py_grad, boundary, 2)
    assert ranges.shape == (2, 3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fast_rnnt.get_rnnt_prune_ranges(px_grad, py_grad, boundary, 4).shape == (2, 3, 4)
        traced = jax.jit(lambda x: fast_rnnt.get_rnnt_prune_ranges(px_grad, py_grad, x, 3))
        assert traced(boundary).shape == (2, 3, 3)
    with pytest.raises(ValueError, match=r"px_grad has shape \(2, 5, 4\) and py_grad \(2, 6, 2\)"):
        fast_rnnt.get_rnnt_prune_ranges(px_grad, py_grad[..., :2], boundary, 4)


def test_padding_counts_in_the_unigram() -> None:
    """As in k2: more padding, another loss and a gradient of the padding. NaN in it: no effect."""
    this = case("smoothed")
    am, lm = this.scores

    def loss(lm: Any) -> jax.Array:
        return fast_rnnt.rnnt_loss_smoothed(
            lm, am, this.symbols, 0, boundary=BOUNDARY, reduction="none", **SCALES
        )

    grad = jax.grad(lambda x: loss(x).sum())(lm)
    assert np.abs(grad[1, 3]).max() > 1e-4  # label positions up to 2 are its own
    other = lm.copy()
    other[1, 3] += 1 * np.arange(C)
    assert np.abs(loss(other) - loss(lm)).min() > 1e-4
    other[1, 3] = np.nan
    assert np.isfinite(loss(other)).all()


def test_nan_in_smoothed_arcs() -> None:
    """An utterance with NaN: zero gradient whatever the arcs' cotangents, nobody else notices."""
    this = case("smoothed")
    am, lm = this.scores

    def total(am: Any, lm: Any, symbols: Any) -> jax.Array:
        px, py = fast_rnnt.get_rnnt_logprobs_smoothed(lm, am, symbols, 0, **SCALES)
        return jnp.sum(jnp.where(jnp.isfinite(px), px, 0)) + jnp.sum(py)

    gradient = jax.jit(jax.grad(total, (0, 1)))
    others = np.arange(len(am)) != 2
    wanted = gradient(am[others], lm[others], this.symbols[others])
    am = am.copy()
    am[2, 1, 3] = np.nan
    for found, clean in zip(gradient(am, lm, this.symbols), wanted, strict=True):
        assert (np.asarray(found)[2] == 0).all()
        close(np.asarray(found)[others], clean)


def test_impossible_and_vmap() -> None:
    """More symbols than frames: +inf and gradient zero, under vmap of grad as well."""
    this = case("joint")
    (logits,) = this.scores
    boundary = BOUNDARY.copy()
    boundary[1] = 0, 0, 3, 2

    def loss(logits: Any, boundary: Any) -> jax.Array:
        return fast_rnnt.rnnt_loss(logits, this.symbols, 0, boundary, "modified", reduction="none")

    one, grad = jax.vmap(jax.value_and_grad(lambda *x: loss(*x)[1]), in_axes=(0, None))(
        np.stack([logits, logits]), boundary
    )
    assert np.isinf(one).all() and not np.any(grad)
    wanted = np.delete(this.oracle("modified", boundary)[0], 1)
    close(jax.jit(loss)(logits, boundary)[np.array([0, 2, 3])], wanted)


def test_out_of_range() -> None:
    """Symbols and ranges that are out of range are NaN in `(px, py)`, and nowhere else."""
    rng = np.random.default_rng(8)
    am, lm = jnp.asarray(rng.normal(size=(2, 4, 5))), jnp.asarray(rng.normal(size=(2, 3, 5)))
    symbols = np.array([[1, 99], [-3, 4]])
    for found, wanted in (
        (fast_rnnt.get_rnnt_logprobs(lm, am, symbols, 0)[0], [[False, True], [True, False]]),
        (fast_rnnt.get_rnnt_logprobs(lm, am, symbols, 0)[1], [[False] * 3] * 2),
    ):
        nan = np.isnan(found[..., :4])  # px has a frame more
        assert (nan.all(-1) == np.array(wanted)).all() and (nan.any(-1) == np.array(wanted)).all()
    logits, symbols = jnp.asarray(rng.normal(size=(2, 4, 2, 5))), np.array([[1, 2], [3, 4]])
    ranges = np.tile(np.arange(2), (2, 4, 1))
    ranges[1, 2] += 97
    px, py = fast_rnnt.get_rnnt_logprobs_pruned(logits, symbols, ranges, 0)
    bad = np.zeros((2, 4), bool)
    bad[1, 2] = True
    assert (np.isnan(py).all(1) == bad).all() and (np.isnan(py).any(1) == bad).all()
    assert (np.isnan(px[..., :4]).all(1) == bad).all()
    for change in (symbols[:1], symbols.astype(float), np.ones((3, 2), int)):
        with pytest.raises((TypeError, ValueError), match=r"^symbols has"):
            fast_rnnt.get_rnnt_logprobs_pruned(logits, change, ranges, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: fast_rnnt.rnnt_loss_simple(z[0, 0], z[0, 0], [1], 0), r"am has .* \(B, T, C\)"),
        (lambda z: fast_rnnt.get_rnnt_logprobs(z[0, 0], z[0, 0], [1], 0), r"am has .* \(B, T, C\)"),
        (lambda z: fast_rnnt.rnnt_loss(z[0], [1], 0), r"logits has .* \(B, T, S\+1, C\)"),
        (lambda z: fast_rnnt.get_rnnt_logprobs_joint(z[0], [1], 0), r"logits has .*S\+1, C\)"),
        (lambda z: fast_rnnt.rnnt_loss_pruned(z[0], [1], [1], 0), r"logits has .*s_range, C\)"),
        (
            lambda z: fast_rnnt.get_rnnt_logprobs_pruned(z[0], [1], [1], 0),
            r"logits has .*s_range, C\)",
        ),
    ],
)
def test_dimensions(call: Any, message: str) -> None:
    """One batch dimension, neither less nor more."""
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((2, 3, 3, 5)))
