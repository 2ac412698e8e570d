"""A joint network as the losses that run it in tiles see it: a function of rows and parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from ._native.platforms import cores_of_tile, tile_bytes
from .numerics import accumulator_dtype

JointCallable = Callable[..., jax.Array]
"""`(params, encoder_rows, predictor_rows) -> logits`, see `rnnt_loss_joint`."""

DurationJointCallable = Callable[..., tuple[jax.Array, jax.Array]]
"""The same with a second result, scores of durations, see `rnnt_loss_tdt_joint`."""


@dataclass(frozen=True)
class JointFunction:
    """A joint network and the form of its parameters: what is static about it.

    The parameters' leaves are divided into variables, which have gradients and come in the dtype in
    which these are summed, and constants, of which random keys come as integers. The arrays that
    the function closes over follow the constants, since not everything that runs it may have some.

    It returns the scores of rows as a tuple: logits, and what else there is.

    A function with `mixed_precision` takes variables in that dtype, where another gets its own
    parameters, and rounds the gradient by its logits to the dtype of the rows.
    """

    function: JointCallable | DurationJointCallable
    structure: Any  # of the pytree of parameters
    leaves: tuple[_Leaf, ...]
    closed_over: tuple[_Leaf, ...]
    first_closed_over: tuple[Any, ...] = field(compare=False)  # when it was traced first

    def __call__(
        self, variables: Sequence[jax.Array], constants: Sequence[jax.Array], *rows: jax.Array
    ) -> tuple[jax.Array, ...]:
        rest, fixed = iter(variables), iter(constants)
        leaves = [x.assemble(rest, fixed) for x in self.leaves]
        if not self._mixed_precision:
            leaves = [
                x.astype(leaf.dtype) if leaf.varies else x
                for x, leaf in zip(leaves, self.leaves, strict=True)
            ]
        params = self.structure.unflatten(leaves)
        if not self.closed_over:
            return tuple(jax.tree.leaves(self.function(params, *rows)))
        arrays = [x.assemble(fixed, fixed) for x in self.closed_over]
        traced = jax.make_jaxpr(self.function)(params, *rows)
        self._check_closed_over(traced.consts)
        operands = jax.tree.leaves((params, rows))
        return tuple(jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, arrays))(*operands))

    def gradient_dtype(self, *of_rows: Any) -> Any:
        """That to which it rounds the gradient by its logits, from those of the rows. None: as it
        comes."""
        return jnp.result_type(*of_rows) if self._mixed_precision else None

    @property
    def _mixed_precision(self) -> bool:
        return getattr(self.function, "mixed_precision", False)

    def _check_closed_over(self, arrays: Sequence[Any]) -> None:
        """That they are those of the first tracing, for which others are handed in."""
        first = self.first_closed_over
        if len(arrays) == len(first) and all(map(_is_same, arrays, first)):
            return
        raise TypeError(
            "joint_fn closes over different arrays when it is called with different numbers of "
            "rows; expected a function that computes each row alike, however many there are. Pass "
            "the arrays in params, which may be any pytree of arrays."
        )


@dataclass(frozen=True)
class _Leaf:
    """What to restore of an array; `key_impl` of random keys."""

    dtype: Any
    key_impl: str | None

    @property
    def varies(self) -> bool:
        """Whether there is a gradient by it."""
        return jnp.issubdtype(self.dtype, jnp.inexact)

    def assemble(self, variables: Iterator[jax.Array], constants: Iterator[jax.Array]) -> jax.Array:
        """The next array of this kind; a variable in the dtype of sums."""
        if self.key_impl is not None:
            return jax.random.wrap_key_data(next(constants), impl=self.key_impl)
        return next(variables) if self.varies else next(constants)


def _leaf(x: jax.Array) -> _Leaf:
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return _Leaf(x.dtype, str(jax.random.key_impl(x)) if is_key else None)


def take_apart(
    function: JointCallable | DurationJointCallable, params: Any, closed_over: Sequence[Any] = ()
) -> tuple[JointFunction, list[jax.Array], list[jax.Array], list[jax.Array]]:
    """The network, its variables, its constants and what it closes over, in the order of tracing.

    The latter are further constants. Inside `shard_map` they must stay replicated: tracing the
    function has put the casts that they need into it.
    """
    leaves, structure = jax.tree.flatten(params)
    arrays = [jnp.asarray(x) for x in closed_over]
    joint = JointFunction(
        function,
        structure,
        tuple(map(_leaf, leaves)),
        tuple(map(_leaf, arrays)),
        tuple(closed_over),
    )
    variables = [for_sums(x) for x in leaves if _leaf(x).varies]
    constants = [_as_data(x) for x in leaves if not _leaf(x).varies]
    return joint, variables, constants, [_as_data(x) for x in arrays]


def _is_same(x: Any, y: Any) -> bool:
    """Of two constants, which may have been made anew from the same numbers."""
    if x is y:
        return True
    with jax.ensure_compile_time_eval():
        x, y = (np.asarray(_as_data(jnp.asarray(z))) for z in (x, y))
        return x.dtype == y.dtype and np.array_equal(x, y, equal_nan=True)


def _as_data(x: jax.Array) -> jax.Array:
    """Random keys as integers."""
    return jax.random.key_data(x) if _leaf(x).key_impl else x


def default_rows_per_tile(
    logits: jax.ShapeDtypeStruct, *operands: jax.Array, most: int | None = None
) -> int:
    """How many rows to compute at a time, by the widest of logits, encoder and predictor rows.

    Enough for matrix products to be fast, within the caches. `most` limits what more than one core
    may have.
    """
    widest = max(x.shape[-1] for x in (logits, *operands))
    row_bytes = max(widest, 1) * accumulator_dtype(logits.dtype).itemsize
    of_one_core = max(tile_bytes(cpu=2 * 2**20, gpu=48 * 2**20) // row_bytes, 64)
    rows = of_one_core * cores_of_tile()
    return rows if most is None else max(min(rows, most), of_one_core)


def for_sums(x: jax.Array) -> jax.Array:
    """In the dtype in which gradients are summed."""
    return x.astype(accumulator_dtype(x.dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x
