"""What can be known of the CUDA kernels where there is no GPU.

Programs are lowered for CUDA on any machine; whether they hold our custom calls, and what those who
have none are told, does not depend on a device.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    ArcsBatch,
    Batch,
    Options,
    arcs_function,
    each_topology,
    loss_function,
    random_arcs,
    random_batch,
)
from factored_cases import factored_function, random_factored

import jax_rnnt
from jax_rnnt._native.platforms import KERNELS

B, T, U, V = 4, 6, 3, 7
DTYPES = [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16]

needs_kernels = pytest.mark.skipif(
    "cuda" not in KERNELS, reason="BUILT WITHOUT CUDA KERNELS: no nvcc was found at installation"
)


def lowered_for_cuda(function: Any, *arguments: Any, **options: Any) -> str:
    """StableHLO of the jitted function for CUDA."""
    traced = jax.jit(function, **options).trace(*arguments)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def custom_calls(text: str) -> list[str]:
    """Targets of the custom calls, less those that only annotate shardings."""
    targets = re.findall(r"custom_call @([\w.$]+)", text)
    return sorted(target for target in targets if target != "Sharding")


def assert_kernels_alone(text: str, *targets: str) -> None:
    """These custom calls and no others, and no loop: the pure-JAX recursion is one."""
    assert custom_calls(text) == sorted(targets)
    assert "stablehlo.while" not in text


def value_and_grad(implementation: str, **options: Any) -> Any:
    function = loss_function(implementation, reduction="sum", **options)
    return lambda batch: jax.value_and_grad(lambda x: function(x, *batch[1:]))(batch.logits)


@pytest.fixture
def batch() -> Batch:
    return random_batch(np.random.default_rng(0), B, T, U, V, dtype=np.float32)


@pytest.fixture
def arcs() -> ArcsBatch:
    return random_arcs(np.random.default_rng(0), B, T, U, dtype=np.float32)


# -------------------------------------------------------------------------------- with the kernels


@needs_kernels
@pytest.mark.parametrize("normalization", ["softmax", "none", "hat"])
@pytest.mark.parametrize("topology", **each_topology)
def test_loss(topology: Options, normalization: str) -> None:
    """Every dtype: two kernels without a gradient, three with one."""
    options = topology | {"normalization": normalization, "fastemit_lambda": 0.1, "clamp": 0.5}
    for dtype in DTYPES:
        batch = random_batch(np.random.default_rng(0), B, T, U, V, dtype=dtype, **options)
        loss = loss_function("auto", **options)
        text = lowered_for_cuda(lambda batch, f=loss: f(*batch), batch)
        assert_kernels_alone(text, "jax_rnnt_arcs_fwd", "jax_rnnt_lattice_score")
        for implementation in ("auto", "native"):
            text = lowered_for_cuda(value_and_grad(implementation, **options), batch)
            assert_kernels_alone(text, "jax_rnnt_arcs_fwd", "jax_rnnt_lattice", "jax_rnnt_arcs_bwd")


@needs_kernels
@pytest.mark.parametrize("topology", **each_topology)
def test_loss_from_arcs(topology: Options, arcs: ArcsBatch) -> None:
    """One kernel, with and without posteriors."""
    for posteriors, target in ((False, "jax_rnnt_lattice_score"), (True, "jax_rnnt_lattice")):
        function = arcs_function("auto", return_posteriors=posteriors, **topology)
        text = lowered_for_cuda(lambda batch, f=function: f(*batch), arcs)
        assert_kernels_alone(text, target)


@needs_kernels
@pytest.mark.parametrize("topology", **each_topology)
def test_alignment(topology: Options, batch: Batch) -> None:
    """Arcs and best path."""

    def align(batch: Batch) -> Any:
        return tuple(jax_rnnt.rnnt_align(batch.logits, batch.labels, **topology))

    text = lowered_for_cuda(align, batch)
    assert_kernels_alone(text, "jax_rnnt_arcs_fwd", "jax_rnnt_best_path")

    def align_packed(batch: Batch) -> Any:
        logits = batch.logits.reshape(-1, V)
        lengths = np.full(B, T), np.full(B, U)
        return tuple(jax_rnnt.rnnt_align_packed(logits, batch.labels, *lengths, **topology))

    targets = custom_calls(lowered_for_cuda(align_packed, batch))
    assert sorted(targets) == ["jax_rnnt_arcs_fwd", "jax_rnnt_packed_best_path"]


@needs_kernels
def test_durations(batch: Batch) -> None:
    """As the loss, with a recursion of its own."""

    def tdt(*scores: Any) -> jax.Array:
        return jax_rnnt.rnnt_loss_tdt(*scores, batch.labels, durations=(0, 1, 2)).sum()

    def multi_blank(logits: Any) -> jax.Array:
        big_blanks = {"big_blank_ids": (-1,), "big_blank_durations": (2,)}
        labels = np.minimum(batch.labels, V - 2)
        return jax_rnnt.rnnt_loss_multi_blank(logits, labels, **big_blanks).sum()

    scores = batch.logits, np.zeros((B, T, U + 1, 3), np.float32)
    for loss, operands in ((tdt, scores), (multi_blank, scores[:1])):
        text = lowered_for_cuda(loss, *operands)
        assert_kernels_alone(text, "jax_rnnt_arcs_fwd", "jax_rnnt_duration_lattice_score")
        text = lowered_for_cuda(jax.grad(loss, tuple(range(len(operands)))), *operands)
        names = "jax_rnnt_arcs_fwd", "jax_rnnt_duration_lattice", "jax_rnnt_arcs_bwd"
        assert_kernels_alone(text, *names)

    def align(*scores: Any) -> Any:
        return tuple(jax_rnnt.rnnt_align_tdt(*scores, batch.labels, durations=(0, 1, 2)))

    names = "jax_rnnt_arcs_fwd", "jax_rnnt_best_duration_path"
    assert_kernels_alone(lowered_for_cuda(align, *scores), *names)


@needs_kernels
@pytest.mark.parametrize("name", ["factored", "smoothed"])
def test_additive_joiner(name: str) -> None:
    """Kernels for the products, too."""
    scales = {"lm_only_scale": 0.2, "am_only_scale": 0.1} if name == "smoothed" else {}
    loss = factored_function("auto", **scales)
    for dtype in DTYPES:
        batch = random_factored(np.random.default_rng(0), B, T, U, V, dtype=dtype)
        text = lowered_for_cuda(lambda batch, f=loss: f(*batch), batch)
        assert_kernels_alone(text, f"jax_rnnt_{name}_fwd", "jax_rnnt_lattice_score")
        text = lowered_for_cuda(jax.grad(lambda *x, f=loss: f(*x).sum(), (0, 1)), *batch)
        targets = f"jax_rnnt_{name}_fwd", "jax_rnnt_lattice", f"jax_rnnt_{name}_bwd"
        assert_kernels_alone(text, *targets)


@needs_kernels
def test_donated_logits(batch: Batch) -> None:
    """The gradient takes their memory, without a call of anything else."""

    def gradient(logits: jax.Array) -> Any:
        return value_and_grad("auto")(batch._replace(logits=logits))

    kept, donated = (lowered_for_cuda(gradient, batch.logits, donate_argnums=n) for n in ((), 0))
    for text in (kept, donated):
        assert_kernels_alone(text, "jax_rnnt_arcs_fwd", "jax_rnnt_lattice", "jax_rnnt_arcs_bwd")
    assert "output_operand_alias" in donated and "output_operand_alias" not in kept


@needs_kernels
def test_vmap_of_grad(batch: Batch) -> None:
    """Still one call each, for all utterances: their mapped axis is a batch dimension."""
    text = lowered_for_cuda(jax.vmap(value_and_grad("auto")), batch)
    assert_kernels_alone(text, "jax_rnnt_arcs_fwd", "jax_rnnt_lattice", "jax_rnnt_arcs_bwd")
    assert f"tensor<{B}x{T}x{U + 1}x{V}xf32>" in text


@needs_kernels
def test_sharding_rules(batch: Batch) -> None:
    """Each call says that its batch dimension can be sharded, to Shardy and to GSPMD."""
    text = lowered_for_cuda(value_and_grad("auto"), batch)
    calls = [line for line in text.splitlines() if "custom_call @jax_rnnt" in line]
    assert len(calls) == 3
    for call in calls:
        assert 'num_batch_dims = "1"' in call and "sdy.sharding_rule" in call


@needs_kernels
def test_export_for_both_platforms(batch: Batch) -> None:
    """One artefact that runs here and has the CUDA kernels; their workspaces may differ in size."""
    from jax.export import DisabledSafetyCheck, deserialize, export

    def function(logits: jax.Array, labels: jax.Array) -> Any:
        return value_and_grad("auto")(Batch(logits, labels))

    arguments = batch.logits, batch.labels
    names = ("jax_rnnt_arcs_fwd", "jax_rnnt_lattice", "jax_rnnt_arcs_bwd")
    checks = [DisabledSafetyCheck.custom_call(name) for name in names]
    exported = export(jax.jit(function), platforms=("cpu", "cuda"), disabled_checks=checks)
    exported = exported(*arguments)
    calls = custom_calls(exported.mlir_module())
    assert sorted(calls) == sorted(2 * names)
    found = deserialize(exported.serialize()).call(*arguments)
    jax.tree.map(np.testing.assert_array_equal, found, jax.jit(function)(*arguments))


@needs_kernels
@pytest.mark.parametrize(("frames", "cells"), [(150, 41), (441, 105), (1500, 301)])
def test_workspaces_are_a_few_planes(frames: int, cells: int) -> None:
    """What the recursion takes beside its results, in `(T, U+1)` planes of utterances of speech."""
    for topology in range(3):
        for element_bytes in (4, 8):
            with_posteriors, score_alone = (
                KERNELS["cuda"].lattice_workspace_elements(
                    frames, cells, topology, posteriors, element_bytes
                )
                for posteriors in (True, False)
            )
            assert 0 < with_posteriors < 4 * frames * cells
            assert 0 < score_alone < 0.25 * frames * cells


def joined(kernel: Any, encoder: Any, predictor: Any) -> jax.Array:
    return jnp.tanh(encoder + predictor) @ kernel


def packed_loss(kernel: Any, encoder: Any, predictor: Any, labels: Any, **options: Any) -> Any:
    lengths = np.full(B, T), np.full(B, U)
    rows = jax_rnnt.pack_joint_inputs(encoder, predictor, *lengths, B * T * (U + 1))
    return jax_rnnt.rnnt_loss_packed(jnp.tanh(rows) @ kernel, labels, *lengths, **options)


def smoothed_loss(kernel: Any, encoder: Any, predictor: Any, labels: Any, **options: Any) -> Any:
    am, lm = encoder @ kernel, predictor @ kernel
    scales = {"lm_only_scale": 0.1, "am_only_scale": 0.1}
    return jax_rnnt.rnnt_loss_smoothed(am, lm, labels, **scales, **options)


def pruned_losses(kernel: Any, encoder: Any, predictor: Any, labels: Any, **options: Any) -> Any:
    starts = np.linspace(0, U - 1, T).astype(np.int32)
    ranges = np.broadcast_to(starts[None, :, None] + np.arange(2, dtype=np.int32), (B, T, 2))
    rows = jax_rnnt.do_rnnt_pruning(encoder, predictor, ranges)
    loss = jax_rnnt.rnnt_loss_pruned(joined(kernel, *rows), labels, ranges, **options)
    operands = joined, kernel, encoder, predictor, labels, ranges
    return loss + jax_rnnt.rnnt_loss_pruned_joint(*operands, **options)


@needs_kernels
@pytest.mark.parametrize(
    ("loss", "implementation"),
    [
        (partial(jax_rnnt.rnnt_loss_joint, joined), "auto"),
        (partial(jax_rnnt.rnnt_loss_joint, joined), "xla"),
        (pruned_losses, "auto"),
        (packed_loss, "auto"),
        (smoothed_loss, "auto"),
        (smoothed_loss, "xla"),
    ],
    ids=["joint", "joint xla", "pruned", "packed", "smoothed", "smoothed xla"],
)
def test_gradients_have_one_order_of_sums(loss: Any, implementation: str) -> None:
    """No scatter that meets an element twice: on a GPU, it would add in any order."""
    rng = np.random.default_rng(0)
    kernel, encoder, predictor = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in [(4, V), (B, T, 4), (B, U + 1, 4)]
    )
    labels = jnp.full((B, U), 2)

    def total(*operands: jax.Array) -> jax.Array:
        return loss(*operands, labels, implementation=implementation).sum()

    text = lowered_for_cuda(jax.grad(total, (0, 1, 2)), kernel, encoder, predictor)
    scatters = re.findall(r'"stablehlo\.scatter".*?unique_indices = (\w+)', text)
    assert len(scatters) == text.count('"stablehlo.scatter"')
    assert set(scatters) <= {"true"}


# ------------------------------------------------------------------------------ without the kernels

WITHOUT_KERNELS = """
import sys, warnings
sys.modules["jax_rnnt._native._cuda"] = None  # as if it had not been built
import jax, jax.numpy as jnp, jax_rnnt
from jax_rnnt._native.platforms import KERNELS
assert "cuda" not in KERNELS

def lowered(implementation, T):
    def loss(x):
        return jax_rnnt.rnnt_loss(x, jnp.ones((2, 3), int), implementation=implementation).sum()
    x = jnp.zeros((2, T, 4, 5))
    return jax.jit(jax.grad(loss)).trace(x).lower(lowering_platforms=("cuda",)).as_text()

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    lowered("xla", 5)
    # No platform has a kernel of what this does.
    pruning = jax.jit(jax_rnnt.do_rnnt_pruning)
    rows = jnp.zeros((2, 5, 4)), jnp.zeros((2, 4, 4)), jnp.zeros((2, 5, 2), int)
    pruning.trace(*rows).lower(lowering_platforms=("cuda",))
    assert not caught
    for T in (5, 6):  # two programs of three ops each, one warning
        text = lowered("auto", T)
        assert "stablehlo.while" in text and "custom_call @jax_rnnt" not in text
(warning,) = [w for w in caught if "jax_rnnt" in str(w.message)]
print("WARNING", warning.message)
try:
    lowered("native", 5)
except NotImplementedError as error:
    print("ERROR", error)
x = jnp.zeros((2, 5, 4, 5))  # and the CPU has its kernels all the same
print(jax_rnnt.rnnt_loss(x, jnp.ones((2, 3), int), implementation="native"))
"""


def run_alone(script: str, **environment: str) -> str:
    """Standard output of a Python program that sees no GPU."""
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_built_without_a_cuda_compiler() -> None:
    """`auto` warns once and runs in pure JAX, `native` raises; both say what to install."""
    output = run_alone(WITHOUT_KERNELS)
    for line in ("WARNING", "ERROR"):
        (message,) = re.findall(rf"^{line} (.*)$", output, flags=re.MULTILINE)
        assert "built without a CUDA compiler" in message
        assert "nvcc" in message and "pip install" in message and "JAX_RNNT_CUDA=ON" in message
    assert "implementation='native' has no kernel for platform 'cuda'" in output


# -------------------------------------------------------------------------- the extension by itself


@needs_kernels
def test_no_cuda_libraries_are_linked() -> None:
    """The runtime is inside the extension, the driver is looked for on the first launch."""
    ldd = shutil.which("ldd")
    if ldd is None:
        pytest.skip("NEEDS ldd")
    path = str(KERNELS["cuda"].__file__)
    listed = subprocess.run([ldd, path], capture_output=True, text=True, check=True).stdout
    assert "libc.so" in listed and "not found" not in listed
    assert not re.search(r"cuda|cudart|nvrtc|nvidia", listed.replace(path, ""))


IMPORT_AND_LOWER = """
import jax, jax.numpy as jnp, jax_rnnt
from jax_rnnt._native.platforms import KERNELS
assert "cuda" in KERNELS
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
x = jnp.zeros((2, 5, 4, 5))
grad = jax.jit(jax.grad(lambda x: jax_rnnt.rnnt_loss(x, jnp.ones((2, 3), int)).sum()))
grad.trace(x).lower(lowering_platforms=("cuda",))
print(grad(x).shape)
"""


@needs_kernels
@pytest.mark.cpu_only("about machines without a GPU")
def test_nothing_looks_for_a_gpu(tmp_path: Path) -> None:
    """Neither importing, nor lowering for CUDA, nor running on the CPU: the loader's log has no
    search for the driver, nor does importing start one of JAX's platforms.
    """
    log = tmp_path / "loader"
    run_alone(IMPORT_AND_LOWER, LD_DEBUG="libs", LD_DEBUG_OUTPUT=str(log))
    text = "".join(path.read_text(errors="replace") for path in tmp_path.iterdir())
    assert "_cuda." in text, "the loader kept no log"
    assert not re.search(r"find library=\S*(libcuda|cudart|nvidia)", text)
