"""Configuration of the test-suite: 64-bit types, strict promotion, eight host devices, one chosen
platform.
"""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

DEVICES = 8
_flag = "--xla_force_host_platform_device_count"
if _flag not in os.environ.get(
    "XLA_FLAGS", ""
):  # must be in place before jax starts its CPU client
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}={DEVICES}".strip()

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from cuda_emulation import build  # noqa: E402

pytest_plugins = ["selection"]

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# the parametrised `implementation` is a function-scoped fixture that holds no state
_allowed = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture]
_common = {"deadline": None, "suppress_health_check": _allowed}
hypothesis.settings.register_profile(
    "ci", max_examples=40, derandomize=True, database=None, **_common
)
hypothesis.settings.register_profile("thorough", max_examples=1000, **_common)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        choices=("cpu", "cuda", "cuda-emulated"),
        default="cpu",
        help="platform that the tests run on; one that is not there is an error, never a skip. "
        "cuda-emulated: the CUDA kernels, compiled for the CPU",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Select the platform before any test module touches jax."""
    backend = config.getoption("--backend")
    if backend == "cuda":
        # Joint networks are part of some tests, and a GPU's default is TF32, of 10 bits.
        jax.config.update("jax_default_matmul_precision", "highest")
    if backend == "cuda-emulated":
        backend = "cpu"
        build.install()
    jax.config.update("jax_platforms", "cpu" if backend == "cpu" else f"{backend},cpu")
    try:
        found = {"cuda": "gpu"}.get(backend, backend)
        actual = jax.default_backend()
    except RuntimeError as error:
        raise pytest.UsageError(
            f"--backend={backend}: jax cannot start that platform: {error}"
        ) from error
    if actual != found:
        raise pytest.UsageError(f"--backend={backend}: jax runs on {actual!r} instead")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The CPU kernels' instruction sets are no matter of the emulated device."""
    emulated = config.getoption("--backend") == "cuda-emulated"
    return True if emulated and collection_path.name == "test_targets.py" else None


MOST_MAPPINGS = 30_000
"""Linux lets a process have 65,530 memory mappings. A compiled program takes about ten."""

_finished = itertools.count(1)


def pytest_runtest_teardown() -> None:
    """Forgets compiled programs in time: the compiler crashes where no mapping is left."""
    maps = Path("/proc/self/maps")
    if next(_finished) % 20 or not maps.exists():
        return
    if maps.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


def pytest_report_header(config: pytest.Config) -> str:
    devices = jax.devices()
    return f"jax {jax.__version__}, {len(devices)} x {devices[0].device_kind}"


_ORDINARY = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
}


@pytest.fixture
def ordinary_jax() -> Iterator[None]:
    """The benchmarks are programs of their own: they run with JAX's defaults, not the suite's."""
    suite = {name: getattr(jax.config, name) for name in _ORDINARY}
    for name, value in _ORDINARY.items():
        jax.config.update(name, value)
    yield
    for name, value in suite.items():
        jax.config.update(name, value)


@pytest.fixture(params=["native", "xla"])
def implementation(request: pytest.FixtureRequest) -> str:
    """Both implementations of the library; each is compared with an oracle, not with the other."""
    return request.param


@pytest.fixture(scope="session")
def devices() -> list[jax.Device]:
    """The eight devices that sharding tests need."""
    found = jax.devices()
    if len(found) < DEVICES:
        pytest.skip(
            f"NEEDS {DEVICES} DEVICES, {found[0].platform} has {len(found)}: "
            "run this file with --backend=cpu"
        )
    return found[:DEVICES]
