"""Single cases that were wrong once, each against a value worked out by hand."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import PartitionSpec as P

from jax_rnnt import check_inputs, extended, rnnt_loss, rnnt_loss_from_arcs, rnnt_loss_packed
from jax_rnnt.arcs import arcs_fwd
from jax_rnnt.types import ArcsOptions

PADDING = [0, 1, 2, -1, 3, 2**31 - 1, -(2**31)]


@pytest.mark.parametrize("normalization", ["softmax", "none", "hat"])
@pytest.mark.parametrize("padding", PADDING)
def test_padding_of_labels_is_no_label(
    implementation: str, normalization: str, padding: int
) -> None:
    """A last cell's "label" is padding: also if it is blank, the gradient there is blank's."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(1, 2, 3, 3)))

    def gradient(labels: list[int]) -> jax.Array:
        return jax.grad(
            lambda x: rnnt_loss(
                x,
                jnp.array([labels], jnp.int32),
                None,
                jnp.array([1]),
                normalization=normalization,  # type: ignore[arg-type]
                reduction="sum",
                implementation=implementation,  # type: ignore[arg-type]
            )
        )(logits)

    np.testing.assert_array_equal(gradient([2, padding]), gradient([2, 1]))
    if normalization == "none":  # both paths end with blank in the last frame
        np.testing.assert_allclose(gradient([2, padding])[0, 1, 1, 0], -1, rtol=1e-12)


@pytest.mark.parametrize(("frames", "penalty"), [(300, 1e6), (600, 1e6), (1500, 5e5)])
def test_exponent_range(implementation: str, frames: int, penalty: float) -> None:
    """A dead end far likelier than the only path: exact within the range, beyond it no path or,
    where both ends of the lattice are worked from at once, still exact.

    The label must be emitted in frame 0, and each blank after it costs `penalty`.
    """
    blank = np.zeros((1, frames, 2), np.float32)
    blank[..., 1] = -penalty
    label = np.full((1, frames, 2), -np.inf, np.float32)
    label[0, 0, 0] = -1
    found, posteriors = rnnt_loss_from_arcs(
        blank, label, return_posteriors=True, implementation=implementation
    )
    loss = frames * penalty + 1
    if loss > 5e8 and np.isinf(found[0]):
        loss = np.inf
    np.testing.assert_allclose(found[0], loss, rtol=1e-6)
    wanted = frames if np.isfinite(loss) else 0
    np.testing.assert_allclose(posteriors.blank.sum(), wanted, rtol=1e-6)


@pytest.mark.cpu_only("about the instruction sets of CPUs")
def test_unknown_cpu_target_is_an_import_error() -> None:
    """A mistyped environment variable raises on import; it does not end the process in a call."""
    environment = {**os.environ, "JAX_RNNT_CPU_TARGET": "sse9", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax_rnnt"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "CPU target 'sse9' is not available; use one of:" in result.stderr


@pytest.mark.parametrize("replicated", [(), ("labels",), ("lengths",), ("labels", "lengths")])
def test_explicit_mesh_with_missing_and_replicated(
    implementation: str, devices: list[jax.Device], replicated: tuple[str, ...]
) -> None:
    """On explicit axes, lengths may be left out, and labels and lengths be replicated."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4, 3, 5)))
    labels, lengths = jnp.ones((8, 2), jnp.int32), jnp.full(8, 3, jnp.int32)

    def gradient(logits: jax.Array, labels: jax.Array, lengths: jax.Array) -> jax.Array:
        return jax.grad(
            lambda x: rnnt_loss(x, labels, lengths, implementation=implementation).sum()
        )(logits)

    wanted = gradient(logits, labels, lengths)
    with jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else jax.sharding.use_mesh(mesh):
        operands = [
            jax.device_put(x, jax.NamedSharding(mesh, P() if name in replicated else P("data")))
            for name, x in (("logits", logits), ("labels", labels), ("lengths", lengths))
        ]
        found = jax.jit(gradient)(*operands)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_checkify_of_nothing(shape: tuple[int, int]) -> None:
    """No utterances or no labels: nothing to complain about."""
    B, U = shape

    @jax.jit
    @checkify.checkify
    def checked(labels: jax.Array, lengths: jax.Array) -> None:
        check_inputs(jnp.zeros((B, 4, U + 1, 5)), labels, lengths)

    error, _ = checked(jnp.zeros(shape, jnp.int32), jnp.zeros(B, jnp.int32))
    assert error.get() is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": None}, TypeError, "labels is None"),
        ({"labels": [[1], [1, 2]]}, TypeError, "labels is not an array"),
        ({"clamp": 10**400}, ValueError, "clamp is 1"),
        (
            {"fastemit_lambda": 1e39},
            ValueError,
            "fastemit_lambda is 1e.39; .*largest of float32",
        ),
        ({"where": [1, 0]}, TypeError, r"where has dtype int64; .*jnp.asarray\(where, bool\)"),
        ({"topology": np.array(["regular", "modified"])}, ValueError, "topology"),
        ({"check": np.array([True, False])}, TypeError, "check"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_hostile_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    """Each names the argument, whatever was passed for it."""
    arguments = {"labels": np.ones((2, 2), np.int32), **arguments}
    with pytest.raises(error, match=message):
        rnnt_loss(np.zeros((2, 4, 3, 5), np.float32), **arguments)
    if "labels" in message:
        with pytest.raises(error, match=message):
            check_inputs(np.zeros((2, 4, 3, 5), np.float32), arguments["labels"])


def test_hat_ignores_other_classes_without_label_arcs(implementation: str) -> None:
    """HAT's blank is a Bernoulli variable of its own: where no label can follow, the other classes
    have no effect, whatever they hold.
    """
    logits = np.zeros((1, 2, 1, 3), np.float32)
    logits[0, 0, 0, 1], logits[0, 1, 0, 2] = np.inf, np.nan
    labels = np.zeros((1, 0), np.int32)

    def total(x: jax.Array) -> jax.Array:
        return rnnt_loss(x, labels, normalization="hat", implementation=implementation).sum()

    loss, gradient = jax.value_and_grad(total)(jnp.asarray(logits))
    np.testing.assert_allclose(loss, 2 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, np.broadcast_to([-0.5, 0, 0], (1, 2, 1, 3)), rtol=1e-6)


def test_arcs_of_bad_utterances_end_with_them(implementation: str) -> None:
    """In a band, whose last cell has a label arc, that of the utterance before a bad one stays."""
    options = ArcsOptions(implementation=implementation)  # type: ignore[arg-type]
    logits, labels = jnp.zeros((2, 1, 2, 4), jnp.float32), jnp.ones((2, 2), jnp.int32)
    bounds = jnp.array([[0, 1, 0, 2], [-1, -1, -1, -1]], jnp.int32)
    blank, label, _ = arcs_fwd(options, logits, labels, bounds)
    wanted = np.array([-np.log(4), -np.inf])[:, None, None]
    np.testing.assert_allclose(blank, np.broadcast_to(wanted, (2, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(label, np.broadcast_to(wanted, (2, 1, 2)), rtol=1e-6)


# The last one: where arcs begin to count as -inf.
IMPROBABLE = [
    (-40_000.0, -40_000.5),
    (-300_000.0, -300_000.25),
    (-3_600_000.25, -3_600_000.0),
    (-9_999_998.0, -10_000_000.0),
]


def check_improbable_paths(implementation: str, first: float, second: float) -> None:
    """Two paths that differ by one arc each, of so small probabilities: only the difference counts,
    which is exact in float32.
    """
    blank, label = np.zeros((2, 1, 2, 2), np.float32)
    label[0, :, 0] = first, second
    _, posteriors = rnnt_loss_from_arcs(
        blank,
        label,
        return_posteriors=True,
        implementation=implementation,  # type: ignore[arg-type]
    )
    np.testing.assert_allclose(
        posteriors.label[0, 0, 0], 1 / (1 + np.exp(second - first)), atol=2e-6
    )


@pytest.mark.parametrize(("first", "second"), IMPROBABLE)
def test_improbable_paths_compare(implementation: str, first: float, second: float) -> None:
    check_improbable_paths(implementation, first, second)


def test_pure_jax_exponentials_round_each_product() -> None:
    """As processors without fused multiplication do: outside of jit each operation is by itself."""
    x = np.array([x for pair in IMPROBABLE for x in pair] + [-0.3, -87.5, -1e3, 5.25], np.float32)
    found = extended.exp(jnp.asarray(x))
    exponents = np.asarray(found.exponent, np.float64) * np.log(2)
    logarithms = np.log(np.asarray(found.mantissa, np.float64)) + exponents
    np.testing.assert_allclose(logarithms, x.astype(np.float64), rtol=1e-12, atol=2e-7)


def test_left_out_utterance_without_rows() -> None:
    """`where` leaves out also what has not enough packed rows: a mean over the others is theirs."""
    rows, labels = np.random.default_rng(0).normal(size=(10, 5)), np.ones((2, 2), int)
    where, label_lengths = np.array([True, False]), np.array([2, 2])

    @jax.jit  # where lengths are not known: 9 rows and 12 of 10
    def mean(frames: jax.Array) -> jax.Array:
        return rnnt_loss_packed(rows, labels, frames, label_lengths, where=where, reduction="mean")

    wanted = rnnt_loss(rows[:9].reshape(1, 3, 3, 5), labels[:1])
    np.testing.assert_allclose(mean(np.array([3, 4])), wanted[0], rtol=1e-12)


def test_nan_in_padding_under_debug_nans() -> None:
    """Outside of jit, too: no operation of JAX's touches padding."""
    logits = np.random.default_rng(0).normal(size=(2, 4, 3, 5))
    logits[1, 2:] = np.nan
    operand, labels, frames = jnp.asarray(logits), np.ones((2, 2), int), np.array([4, 2])
    with jax.debug_nans(True):
        gradient = jax.grad(lambda x: rnnt_loss(x, labels, frames).sum())(operand)
    assert np.isfinite(gradient).all() and not gradient[1, 2:].any()
