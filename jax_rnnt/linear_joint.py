"""The usual joint networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from ._native.jax_versions import align_varying_axes, replicated
from .numerics import accumulator_dtype, axis_index
from .validation import one_of, whole_number

Activation: TypeAlias = Literal["tanh", "relu"]
Parameters: TypeAlias = Mapping[str, jax.Array]

_VECTOR = 16
"""Classes that matrix products take together."""
_MOST_SPARE = 1 / 4
"""Of the classes: not to have few of them outweighed."""


@dataclass(frozen=True)
class LinearJoint:
    """The joint network `activation(encoder + predictor) @ kernel + bias`, for the joint losses.

    It can be called with arrays of any equal shapes `(..., D)`, too; then it returns `(..., V)`
    logits. With bfloat16 or float16 input, the matrix products take that dtype and sum in float32,
    logits are float32, and the gradients of kernel and bias are summed in float32 over all cells of
    the batch, which those of a function that casts by itself are not. Where the losses run it in
    tiles, they add classes without probability that fill up rows of logits to whole vectors.

    Its parameters are a mapping with `"kernel"`, `(D, V)`, and `"bias"`, `(V,)` or left out.

    Attributes:
      activation: `"tanh"` or `"relu"`.

    Raises:
      ValueError: an unknown activation; called, a kernel, a bias or rows of shapes that do not fit.
      TypeError: called, parameters that are not such a mapping.
    """

    activation: Activation = "tanh"

    mixed_precision: ClassVar[bool] = True
    """See `JointFunction`."""

    def __post_init__(self) -> None:
        one_of("activation", self.activation, Activation)

    def __call__(
        self, params: Parameters, encoder_rows: jax.Array, predictor_rows: jax.Array
    ) -> jax.Array:
        _check_parameters(params, encoder_rows.shape, predictor_rows.shape)
        return _linear(_joined(self.activation, encoder_rows, predictor_rows), params)


@dataclass(frozen=True)
class LinearDurationJoint:
    """`LinearJoint` for `rnnt_loss_tdt_joint`, with scores of durations behind the logits.

    Its parameters are a mapping with `"kernel"`, `(D, V + num_durations)`, and `"bias"`,
    `(V + num_durations,)` or left out, as NeMo's joint network has them. Called with arrays
    `(..., D)`, it returns `(..., V)` logits and `(..., num_durations)` scores of durations.

    Attributes:
      num_durations: how many durations the loss has.
      activation: `"tanh"` or `"relu"`.

    Raises:
      ValueError, TypeError: as `LinearJoint`; also for `num_durations` below 1 or no whole number.
    """

    num_durations: int
    activation: Activation = "tanh"

    mixed_precision: ClassVar[bool] = True
    """See `JointFunction`."""

    def __post_init__(self) -> None:
        whole_number("num_durations", self.num_durations, minimum=1)
        one_of("activation", self.activation, Activation)

    def __call__(
        self, params: Parameters, encoder_rows: jax.Array, predictor_rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        _check_parameters(params, encoder_rows.shape, predictor_rows.shape, self.num_durations)
        hidden = _joined(self.activation, encoder_rows, predictor_rows)
        of_classes, of_durations = _divided(params, self.num_durations)
        return _linear(hidden, of_classes), _linear(hidden, of_durations)


@dataclass(frozen=True)
class _LinearInTiles:
    """Either of them, with parameters as tiles take them: those of the classes, maybe of more than
    the network has, and those of the durations, if it has any."""

    activation: Activation
    num_classes: int
    """Classes behind them have logits -inf."""

    mixed_precision: ClassVar[bool] = True

    def __call__(
        self, params: Sequence[Parameters], encoder_rows: jax.Array, predictor_rows: jax.Array
    ) -> tuple[jax.Array, ...]:
        of_classes, *of_durations = params
        kernel = of_classes["kernel"]
        if "bias" not in of_classes and kernel.shape[-1] > self.num_classes:
            is_class = axis_index(1, 0, kernel.shape[-1]) < self.num_classes
            of_classes = {"kernel": kernel, "bias": jnp.where(is_class, 0, -jnp.inf)}
        hidden = _joined(self.activation, encoder_rows, predictor_rows)
        # Of products with the same rows XLA would make one on a GPU, and copy the logits out of it.
        same = lax.optimization_barrier(hidden) if of_durations else hidden
        return _linear(hidden, of_classes), *(_linear(same, x) for x in of_durations)


def for_tiles(joint_fn: Any, params: Any, logits: jax.ShapeDtypeStruct) -> tuple[Any, Any]:
    """A joint network and its parameters as they are best run in tiles: of linear ones, rows of
    logits are whole vectors, if that takes few more classes, and durations have their own kernel.

    Matrix products are faster so on a CPU; on a GPU, XLA makes kernels of 16-bit numbers wider by
    itself, and copies the logits to make them narrower again. Neither loss nor gradients change.
    """
    if type(joint_fn) not in (LinearJoint, LinearDurationJoint):
        return joint_fn, params
    num_classes = logits.shape[-1]
    spare = -num_classes % _VECTOR
    if spare > num_classes * _MOST_SPARE:
        spare = 0
    params = {name: replicated(x) for name, x in _given(params).items()}
    of_durations = []
    if type(joint_fn) is LinearDurationJoint:
        params, *of_durations = _divided(params, joint_fn.num_durations)
    of_classes = {"kernel": jnp.pad(params["kernel"], ((0, 0), (0, spare)))}
    if "bias" in params:
        bias = params["bias"].astype(logits.dtype)
        of_classes["bias"] = jnp.pad(bias, (0, spare), constant_values=-jnp.inf)
    return _LinearInTiles(joint_fn.activation, num_classes), [of_classes, *of_durations]


def _given(params: Parameters) -> dict[str, jax.Array]:
    """Kernel and bias, if there is one."""
    named = ((name, params.get(name)) for name in ("kernel", "bias"))
    return {name: x for name, x in named if x is not None}


def _divided(params: Parameters, num_durations: int) -> tuple[Parameters, Parameters]:
    """Those of the classes, and those of the durations behind them."""
    given = _given(params).items()
    of_classes = {name: x[..., :-num_durations] for name, x in given}
    return of_classes, {name: x[..., -num_durations:] for name, x in given}


def _check_parameters(
    params: Any,
    encoder_rows: tuple[int, ...],
    predictor_rows: tuple[int, ...],
    num_durations: int | None = None,
) -> None:
    """That there are kernel and bias for rows of these shapes."""
    columns = "V" if num_durations is None else "V + num_durations"
    letters = f"a mapping with 'kernel', (D, {columns}), and 'bias', ({columns},) or left out"
    if not isinstance(params, Mapping):
        raise TypeError(f"params is a {type(params).__name__}; expected {letters}.")
    if "kernel" not in params:
        raise TypeError(f"params has the keys {list(params)}; expected {letters}.")
    kernel, bias = params["kernel"], params.get("bias")
    for name, value in (("kernel", kernel), ("bias", bias)):
        if value is not None and not hasattr(value, "shape"):
            raise TypeError(
                f"params[{name!r}] is a {type(value).__name__}; expected an array. Convert with "
                "jnp.asarray."
            )
    D = encoder_rows[-1]
    if predictor_rows[-1] != D:
        raise ValueError(
            f"predictor_out has {predictor_rows[-1]} features and encoder_out {D}; the joint "
            "network adds them, and expects as many of one as of the other. Project both first."
        )
    if kernel.ndim != 2 or kernel.shape[0] != D:
        raise ValueError(
            f"params['kernel'] has shape {kernel.shape}; expected (D, {columns}) with D = {D}, the "
            "features of encoder_out."
        )
    if num_durations is not None and kernel.shape[1] <= num_durations:
        raise ValueError(
            f"params['kernel'] has shape {kernel.shape}; expected (D, {columns}) with V >= 1 and "
            f"num_durations = {num_durations}."
        )
    if bias is not None and bias.shape != kernel.shape[1:]:
        raise ValueError(
            f"params['bias'] has shape {bias.shape}; expected ({columns},) = {kernel.shape[1:]}, "
            "from the kernel."
        )


def _joined(activation: Activation, encoder_rows: jax.Array, predictor_rows: jax.Array) -> Any:
    function = jnp.tanh if activation == "tanh" else jax.nn.relu
    return function(encoder_rows + predictor_rows)


def _linear(hidden: jax.Array, params: Parameters) -> jax.Array:
    """`hidden @ kernel + bias`."""
    kernel, bias = params["kernel"], params.get("bias")
    scores = _matmul(*align_varying_axes(hidden, kernel))
    if bias is None:
        return scores
    bias = bias.reshape(*[1] * (scores.ndim - 1), -1)  # also where ranks must not be promoted
    return scores + bias.astype(scores.dtype)


@jax.custom_vjp
def _matmul(rows: jax.Array, kernel: jax.Array) -> jax.Array:
    """`rows @ kernel` from operands of the rows' dtype, in that of sums."""
    return jnp.matmul(
        rows, kernel.astype(rows.dtype), preferred_element_type=accumulator_dtype(rows.dtype)
    )


def _matmul_fwd(rows, kernel):
    return _matmul(rows, kernel), (rows, kernel)


def _matmul_bwd(residuals, cotangent):
    rows, kernel = residuals
    narrow = cotangent.astype(rows.dtype)
    d_rows = jnp.matmul(narrow, kernel.astype(rows.dtype).T)
    flat = (x.reshape(-1, x.shape[-1]) for x in (rows, narrow))
    d_kernel = jnp.einsum("nd,nv->dv", *flat, preferred_element_type=cotangent.dtype)
    return d_rows, d_kernel.astype(kernel.dtype)


_matmul.defvjp(_matmul_fwd, _matmul_bwd)
