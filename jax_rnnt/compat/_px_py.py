"""fast_rnnt's and k2's arcs, with the label axis first, and this library's.

`px` holds label arcs, `(B, S, T+1)` for regular transducers and `(B, S, T)` for others, `py` blank
arcs, `(B, S+1, T)`. Here they are planes `(B, T, S+1)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from .. import validation
from .._native.jax_versions import align_varying_axes, with_whole_rows
from ..bounds import Sizes, Utterances, clip_to_int32
from ..types import Array, Posteriors

PxPy: TypeAlias = tuple[jax.Array, jax.Array]


class Boundary(NamedTuple):
    """The columns of `boundary`, or None for all of them."""

    s_begin: Array | None
    t_begin: Array | None
    s_end: Array | None
    t_end: Array | None

    def arguments(self) -> dict[str, Any]:
        """For this library's losses."""
        return {
            "label_begins": self.s_begin,
            "logit_begins": self.t_begin,
            "label_lengths": self.s_end,
            "logit_lengths": self.t_end,
        }


def columns(boundary: Any, batch: int) -> Boundary:
    """`boundary` `(B, 4)`, rows `[s_begin, t_begin, s_end, t_end]`, checked."""
    if boundary is None:
        return Boundary(None, None, None, None)
    array = validation.integer_argument("boundary", boundary, (batch, 4), "(B, 4)")
    array = clip_to_int32(array)
    return Boundary(*(array[:, i] for i in range(4)))


def px_py(blank: jax.Array, label: jax.Array, rnnt_type: str, t_end: Array | None) -> PxPy:
    """`(px, py)` from planes. In column `t_end`, a regular `px` is -inf, as it is beyond T."""
    py, px = jnp.swapaxes(blank, 1, 2), jnp.swapaxes(label, 1, 2)[:, :-1]
    if rnnt_type == "constrained":
        return px + py[:, 1:], py
    if rnnt_type == "modified":
        return px, py
    px = jnp.pad(px, [(0, 0), (0, 0), (0, 1)], constant_values=-jnp.inf)
    if t_end is not None:
        t = jnp.arange(px.shape[2], dtype=jnp.int32)
        px = jnp.where(t[None, None] == t_end[:, None, None], -jnp.inf, px)
    return px, py


def px_py_gradients(posteriors: Posteriors, rnnt_type: str) -> PxPy:
    """How often paths take each element of `(px, py)`, in their shapes.

    The `px` of a constrained transducer contains a `py`, whose own count is without it.
    """
    blank, label = (jnp.swapaxes(x, 1, 2) for x in posteriors)
    px = label[:, :-1]
    if rnnt_type == "constrained":
        above = jnp.pad(px, [(0, 0), (1, 0), (0, 0)])
        return px, jnp.maximum(blank - above, 0)
    if rnnt_type == "regular":
        px = jnp.pad(px, [(0, 0), (0, 0), (0, 1)])
    return px, blank


def planes_of_gradients(px_grad: jax.Array, py_grad: jax.Array) -> tuple[Posteriors, bool]:
    """The planes that `px_py_gradients` made these of, and whether they are of a regular `px`."""
    check_shapes("px_grad", px_grad, "py_grad", py_grad)
    blank = jnp.swapaxes(py_grad, 1, 2)
    label = jnp.swapaxes(px_grad, 1, 2)[:, : blank.shape[1]]
    label = jnp.pad(label, [(0, 0), (0, 0), (0, 1)])
    return Posteriors(blank, label), px_grad.shape[2] > py_grad.shape[2]


def one_batch_dimension(name: str, shape: tuple[int, ...], expected: str) -> None:
    """Raises ValueError for scores of another number of dimensions than `expected` shows."""
    if len(shape) != expected.count(",") + 1:
        raise ValueError(f"{name} has shape {shape}; expected {expected}.")


def check_shapes(px_name: str, px: jax.Array, py_name: str, py: jax.Array) -> None:
    """Raises ValueError unless the shapes fit together."""
    fits = px.ndim == py.ndim == 3 and px.shape[2] - py.shape[2] in (0, 1)
    if not fits or py.shape[:2] != (px.shape[0], px.shape[1] + 1):
        raise ValueError(
            f"{px_name} has shape {px.shape} and {py_name} {py.shape}; expected (B, S, T+1), or "
            "(B, S, T) if modified, and (B, S+1, T)."
        )


class Lattice(NamedTuple):
    """A recursion over `(px, py)` as one over planes."""

    blanks: list[jax.Array]
    labels: list[jax.Array]
    boundary: Boundary
    last: jax.Array | None  # (B, 1, 1): the frame that is there for regular `px` alone

    def gradients(self, posteriors: Posteriors) -> PxPy:
        """`px_py_gradients`, of the posteriors of this lattice."""
        px, py = px_py_gradients(posteriors, "modified")
        if self.last is None:
            return px, py
        t = jnp.arange(py.shape[2], dtype=jnp.int32)[None, None]
        return px, jnp.where(t == self.last, 0, py)[..., :-1]


def lattice_of(pxs: Sequence[jax.Array], pys: Sequence[jax.Array], boundary: Any) -> Lattice:
    """Planes whose recursion is that of the sums of `pxs` and of `pys`.

    A regular recursion ends in `p[s_end, t_end]`, to which also elements of `px` in column `t_end`
    lead. The planes have a frame more, in which blank has probability one.
    """
    for px, py in zip(pxs, pys, strict=True):
        check_shapes("px", px, "py", py)
    B, T = pys[0].shape[::2]
    ends = columns(boundary, B)
    sizes = Sizes((B,), T, pxs[0].shape[1], sources=("py", "px"))
    # Before they are changed to those of the planes.
    validation.checked_utterances(sizes, Utterances(**ends.arguments()), None, True)
    labels = [jnp.swapaxes(jnp.pad(x, [(0, 0), (0, 1), (0, 0)]), 1, 2) for x in pxs]
    if pxs[0].shape[2] == T:
        return Lattice([jnp.swapaxes(x, 1, 2) for x in pys], labels, ends, None)
    t_end = jnp.full(B, T, jnp.int32) if ends.t_end is None else jnp.asarray(ends.t_end)
    last = t_end[:, None, None]
    t = jnp.arange(T + 1, dtype=jnp.int32)[None, :, None]
    pad = [(0, 0), (0, 1), (0, 0)]
    blanks = [jnp.where(t == last, 0, jnp.pad(jnp.swapaxes(x, 1, 2), pad)) for x in pys]
    lengths = jnp.where(t_end < 0, -1, t_end + 1)
    return Lattice(blanks, labels, ends._replace(t_end=lengths), last)


class Arcs(NamedTuple):
    """The step from scores to arcs, forward and backward.

    Attributes:
      forward: `(*scores, labels, bounds) -> (blank, label, denominators)`.
      backward: `(*scores, labels, bounds, denominators, blank_weights, label_weights, cotangents)
        -> d_scores`, as `arcs_bwd`.
    """

    forward: Callable[..., tuple[jax.Array, jax.Array, Any]]
    backward: Callable[..., tuple[jax.Array, ...]]


def all_arcs(
    arcs: Arcs, scores: tuple[jax.Array, ...], sizes: Sizes, symbols: Array
) -> tuple[jax.Array, jax.Array]:
    """Blank and label planes `(*batch, T, S+1)` of all cells, differentiable by `scores`.

    Args:
      sizes: of the planes; `U` is one less than their width.
      symbols: `(*batch, S)`, or `(*batch, S+1)` where the last cell has a label arc, too. Those out
        of range, which may be in padding, have label arcs of NaN.
    """
    given = jnp.asarray(clip_to_int32(symbols))
    labels = jnp.clip(given, 0, sizes.num_classes - 1)
    edge = [(0, 0)] * (given.ndim - 1) + [(0, sizes.U + 1 - given.shape[-1])]
    good = jnp.pad(given == labels, edge, constant_values=True)
    extents = jnp.array([0, sizes.T, 0, labels.shape[-1]], jnp.int32)
    bounds = jnp.broadcast_to(extents, (*sizes.batch, 4))
    *whole, labels, bounds = with_whole_rows(len(sizes.batch), *scores, labels, bounds)
    planes: Any = _arcs(arcs, *align_varying_axes(tuple(whole), labels, bounds))
    blank, label = planes
    return blank, jnp.where(good[..., None, :], label, jnp.nan)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _arcs(
    arcs: Arcs, scores: tuple[jax.Array, ...], labels: jax.Array, bounds: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return arcs.forward(*scores, labels, bounds)[:2]


def _arcs_fwd(arcs, scores, labels, bounds):
    blank, label, denominators = arcs.forward(*scores, labels, bounds)
    return (blank, label), (scores, labels, bounds, denominators)


def _arcs_bwd(arcs, residuals, weights):
    scores, *rest = align_varying_axes(*residuals, *weights)
    # `backward` is that of minus the sum of weights times arcs.
    less = jnp.full_like(rest[-1][..., 0, 0], -1)
    return arcs.backward(*scores, *rest, less), None, None


_arcs.defvjp(_arcs_fwd, _arcs_bwd)
