"""The usual joint network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import jax
import jax.numpy as jnp

from .reference import accumulator_dtype
from .validation import one_of

Activation: TypeAlias = Literal["tanh", "relu"]


@dataclass(frozen=True)
class LinearJoint:
    """The joint network `activation(encoder + predictor) @ kernel + bias`, for `rnnt_loss_joint`.

    It can be called with arrays of any equal shapes `(..., D)`, too; then it returns `(..., V)`
    logits. With bfloat16 or float16 input, the matrix products take that dtype and sum in float32,
    logits are float32, and the gradients of kernel and bias are summed in float32 over all cells of
    the batch, which those of a function that casts by itself are not.

    Its parameters are a mapping with `"kernel"`, `(D, V)`, and `"bias"`, `(V,)` or left out.

    Attributes:
      activation: `"tanh"` or `"relu"`.

    Raises:
      ValueError: an unknown activation.
    """

    activation: Activation = "tanh"

    takes_variables_for_sums: ClassVar[bool] = True
    """Parameters come in the dtype in which gradients are summed, see `JointFunction`."""

    def __post_init__(self) -> None:
        one_of("activation", self.activation, Activation)

    def __call__(
        self, params: Mapping[str, jax.Array], encoder_rows: jax.Array, predictor_rows: jax.Array
    ) -> jax.Array:
        activation = jnp.tanh if self.activation == "tanh" else jax.nn.relu
        logits = _matmul(activation(encoder_rows + predictor_rows), params["kernel"])
        bias = params.get("bias")
        if bias is None:
            return logits
        bias = bias.reshape(*[1] * (logits.ndim - 1), -1)  # also where ranks must not be promoted
        return logits + bias.astype(logits.dtype)


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
