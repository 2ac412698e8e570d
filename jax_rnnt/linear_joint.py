"""The usual joint network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import jax
import jax.numpy as jnp

from ._native.jax_versions import align_varying_axes, replicated
from .numerics import accumulator_dtype, axis_index
from .validation import one_of

Activation: TypeAlias = Literal["tanh", "relu"]

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
        self, params: Mapping[str, jax.Array], encoder_rows: jax.Array, predictor_rows: jax.Array
    ) -> jax.Array:
        activation = jnp.tanh if self.activation == "tanh" else jax.nn.relu
        kernel, bias = _checked(params, encoder_rows.shape, predictor_rows.shape)
        hidden = activation(encoder_rows + predictor_rows)
        logits = _matmul(*align_varying_axes(hidden, kernel))
        if bias is None:
            return logits
        bias = bias.reshape(*[1] * (logits.ndim - 1), -1)  # also where ranks must not be promoted
        return logits + bias.astype(logits.dtype)


@dataclass(frozen=True)
class _WithSpareClasses:
    """A joint network and parameters of more classes than it has: those behind have logits -inf."""

    joint: LinearJoint
    num_classes: int

    mixed_precision: ClassVar[bool] = True

    def __call__(
        self, params: Mapping[str, jax.Array], encoder_rows: jax.Array, predictor_rows: jax.Array
    ) -> jax.Array:
        if "bias" not in params:
            kernel = params["kernel"]
            is_class = axis_index(1, 0, kernel.shape[-1]) < self.num_classes
            params = {"kernel": kernel, "bias": jnp.where(is_class, 0, -jnp.inf)}
        return self.joint(params, encoder_rows, predictor_rows)


def with_whole_vectors(joint_fn: Any, params: Any, logits: jax.ShapeDtypeStruct) -> tuple[Any, Any]:
    """A joint network for tiles, and its parameters: its rows of logits are whole vectors, if that
    takes few more classes.

    Matrix products are faster so on a CPU; on a GPU, XLA makes kernels of 16-bit numbers wider by
    itself, and copies the logits to make them narrower again. Neither loss nor gradients change.
    """
    num_classes = logits.shape[-1]
    spare = -num_classes % _VECTOR
    if type(joint_fn) is not LinearJoint or spare == 0 or spare > num_classes * _MOST_SPARE:
        return joint_fn, params
    kernel, bias = params["kernel"], params.get("bias")
    padded = {"kernel": jnp.pad(replicated(kernel), ((0, 0), (0, spare)))}
    if bias is not None:
        bias = replicated(bias).astype(logits.dtype)
        padded["bias"] = jnp.pad(bias, (0, spare), constant_values=-jnp.inf)
    return _WithSpareClasses(joint_fn, num_classes), padded


def _checked(
    params: Any, encoder_rows: tuple[int, ...], predictor_rows: tuple[int, ...]
) -> tuple[jax.Array, jax.Array | None]:
    """Kernel and bias for rows of these shapes."""
    letters = "a mapping with 'kernel', (D, V), and 'bias', (V,) or left out"
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
            f"predictor_out has {predictor_rows[-1]} features and encoder_out {D}; LinearJoint "
            "adds them, and expects as many of one as of the other. Project both first."
        )
    if kernel.ndim != 2 or kernel.shape[0] != D:
        raise ValueError(
            f"params['kernel'] has shape {kernel.shape}; expected (D, V) with D = {D}, the "
            "features of encoder_out."
        )
    if bias is not None and bias.shape != kernel.shape[1:]:
        raise ValueError(
            f"params['bias'] has shape {bias.shape}; expected (V,) = {kernel.shape[1:]}, from the "
            "kernel."
        )
    return kernel, bias


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
