"""Both directions of a GRU in one scan, with a backward pass that suits a CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def _project(states: jax.Array, kernel: jax.Array) -> jax.Array:
    """(..., 2, B, H) times (2, H, 3H): two plain products, faster on a CPU than a batched one."""
    return jnp.stack([states[..., i, :, :] @ kernel[i] for i in range(2)], axis=-3)


def _gates(
    kernel: jax.Array, bias: jax.Array, gates: jax.Array, states: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Reset gate, update gate, candidate, and the recurrent term that the reset gate scales."""
    projected = _project(states, kernel)
    hidden = states.shape[-1]
    opened = jax.nn.sigmoid(gates[..., : 2 * hidden] + projected[..., : 2 * hidden])
    reset, update = jnp.split(opened, 2, axis=-1)
    recurrent = projected[..., 2 * hidden :] + bias
    return reset, update, jnp.tanh(gates[..., 2 * hidden :] + reset * recurrent), recurrent


def plain_scan(kernel: jax.Array, bias: jax.Array, gates: jax.Array, keep: jax.Array) -> jax.Array:
    """States (T, 2, B, H) of two independent GRUs (Cho et al. 2014, biased recurrent term).

    `kernel` (2, H, 3H) and `bias` (2, 1, H) are the recurrent parameters, `gates` (T, 2, B, 3H)
    the projected inputs in the order reset, update, candidate. `keep` (T, 2, B, 1) is 1 in
    real frames and 0 in padding, where the state becomes 0.
    """

    def step(state: jax.Array, inputs: tuple[jax.Array, jax.Array]):
        gate, mask = inputs
        _, update, candidate, _ = _gates(kernel, bias, gate, state)
        state = mask * (candidate + update * (state - candidate))
        return state, state

    start = jnp.zeros((*gates.shape[1:3], kernel.shape[1]), gates.dtype)
    return jax.lax.scan(step, start, (gates, keep))[1]


@jax.custom_vjp
def gru_scan(kernel: jax.Array, bias: jax.Array, gates: jax.Array, keep: jax.Array) -> jax.Array:
    """`plain_scan`, with a faster gradient for all but `keep`.

    Only one product a frame is sequential in the backward pass. All else, the gradient of
    `kernel` first of all, is done for all frames at once; differentiating the scan would add
    to that gradient in every frame.
    """
    return plain_scan(kernel, bias, gates, keep)


def _forward(kernel: jax.Array, bias: jax.Array, gates: jax.Array, keep: jax.Array):
    states = plain_scan(kernel, bias, gates, keep)
    return states, (kernel, bias, gates, keep, states)


def _backward(residuals: Residuals, cotangent: jax.Array):
    kernel, bias, gates, keep, states = residuals
    hidden = states.shape[-1]
    before = jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])
    reset, update, candidate, recurrent = _gates(kernel, bias, gates, before)
    # Derivatives of a state with respect to the three pre-activations, elementwise.
    by_candidate = keep * (1 - update) * (1 - candidate**2)
    by_reset = by_candidate * recurrent * reset * (1 - reset)
    by_update = keep * (before - candidate) * update * (1 - update)
    by_projected = jnp.concatenate([by_reset, by_update, by_candidate * reset], axis=-1)
    transposed = kernel.transpose(0, 2, 1)

    def step(later: jax.Array, inputs: tuple[jax.Array, jax.Array, jax.Array]):
        own, slope, carried = inputs
        total = own + later
        return total * carried + _project(slope * jnp.tile(total, 3), transposed), total

    start = jnp.zeros_like(states[0])
    inputs = (cotangent, by_projected, update * keep)
    totals = jax.lax.scan(step, start, inputs, reverse=True)[1]
    d_projected = by_projected * jnp.tile(totals, 3)
    d_kernel = jnp.stack(
        [
            before[:, i].reshape(-1, hidden).T @ d_projected[:, i].reshape(-1, 3 * hidden)
            for i in range(2)
        ]
    )
    d_bias = d_projected[..., 2 * hidden :].sum((0, 2))[:, None]
    d_gates = jnp.concatenate([d_projected[..., : 2 * hidden], by_candidate * totals], axis=-1)
    return d_kernel, d_bias, d_gates, jnp.zeros_like(keep)


gru_scan.defvjp(_forward, _backward)
