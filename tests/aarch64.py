"""Makes a Python with this library for aarch64, which QEMU emulates.

    python tests/aarch64.py DIRECTORY
    DIRECTORY/python ARGUMENT ...

The directory gets what that needs: Debian's Python and C library for arm64, JAX and the packages
of the test-suite in the versions that are installed here, and the library, compiled for aarch64 by
a compiler that runs here. It needs Debian, a Python of the same version as Debian's, and

    apt-get install qemu-user-static g++-aarch64-linux-gnu
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
QEMU, COMPILER = "qemu-aarch64-static", "aarch64-linux-gnu-g++"
WHEELS = ("manylinux_2_28", "manylinux_2_27", "manylinux2014", "manylinux_2_17", "linux")
PACKAGES = (
    "jax",
    "jaxlib",
    "numpy",
    "scipy",
    "flatbuffers",
    "hypothesis",
    "pytest",
    "pytest-xdist",
)

# It has this name for itself, so that processes that it starts are emulated, too. `-P`: the library
# is not imported from where its sources are.
PYTHON = """#!/bin/sh
export PYTHONPATH="{site}"
exec {qemu} -L "{root}" -0 "{python}" "{root}/usr/bin/python3" -P "$@"
"""

# Lists and archives of packages in a place of their own.
APT_CONFIG = """
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Sandbox::User "";
Dir::State "{0}/state";
Dir::State::status "{0}/status";
Dir::Cache "{0}/cache";
"""


class Machine:
    """What the emulated one has in a directory."""

    def __init__(self, directory: Path):
        self.directory = directory.resolve()
        self.root = self.directory / "root"
        self.site = self.directory / "site"
        self.python = self.root / "usr/bin/python"  # where it looks for its library from

    def setup(self) -> None:
        if not self.root.exists():
            self._get_python()
        text = PYTHON.format(qemu=QEMU, root=self.root, site=self.site, python=self.python)
        self.python.write_text(text)
        self.python.chmod(0o755)
        shortcut = self.directory / "python"
        shortcut.unlink(missing_ok=True)
        shortcut.symlink_to(self.python)
        about = "import sys, sysconfig as s; print(*sys.version_info[:2], s.get_path('include'))"
        found = subprocess.check_output([self.python, "-c", about], text=True)
        *numbers, include = found.split()
        if numbers != [str(n) for n in sys.version_info[:2]]:
            sys.exit(f"Debian's Python is {'.'.join(numbers)}; run this with the same version")
        pinned = [f"{name}=={version(name)}" for name in PACKAGES]
        installed = self.directory / "installed.txt"
        if not installed.exists() or installed.read_text().split() != pinned:
            shutil.rmtree(self.site, ignore_errors=True)
            self._install(".".join(numbers), *pinned)
            installed.write_text("\n".join(pinned))
        wheel = self._build("".join(numbers), include)
        self._install(".".join(numbers), "--no-deps", str(wheel))

    def _get_python(self) -> None:
        apt = self.directory / "apt"
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (apt / folder).mkdir(parents=True, exist_ok=True)
        (apt / "status").touch()
        (apt / "apt.conf").write_text(APT_CONFIG.format(apt))
        environment = os.environ | {"APT_CONFIG": str(apt / "apt.conf")}
        get = ["apt-get", "install", "--yes", "--no-install-recommends", "--download-only", "-qq"]
        subprocess.run(["apt-get", "update", "-qq"], env=environment, check=True)
        subprocess.run([*get, "python3-dev", "libstdc++6"], env=environment, check=True)
        parts = self.root.with_suffix(".part")
        for package in (apt / "cache/archives").glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, parts], check=True)
        parts.rename(self.root)

    def _install(self, python: str, *packages: str) -> None:
        chosen = [f"--platform={name}_aarch64" for name in WHEELS]
        chosen += ["--implementation=cp", f"--python-version={python}", "--only-binary=:all:"]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade"]
        subprocess.run([*pip, f"--target={self.site}", *chosen, *packages], check=True)

    def _build(self, python: str, include: str) -> Path:
        """The library's wheel."""
        definitions = {
            "CMAKE_SYSTEM_NAME": "Linux",
            "CMAKE_SYSTEM_PROCESSOR": "aarch64",
            "CMAKE_CXX_FLAGS": f"-I{self.root}/usr/include",
            "Python_INCLUDE_DIR": include,
            "JAX_RNNT_CUDA": "OFF",
            "JAX_RNNT_WERROR": "ON",
        }
        environment = {
            "CXX": COMPILER,
            "_PYTHON_HOST_PLATFORM": "linux-aarch64",
            "SETUPTOOLS_EXT_SUFFIX": f".cpython-{python}-aarch64-linux-gnu.so",
        }
        wheels = self.directory / "wheels"
        shutil.rmtree(wheels, ignore_errors=True)
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"-w{wheels}"]
        settings = [f"-Ccmake.define.{name}={value}" for name, value in definitions.items()]
        settings.append(f"-Cbuild-dir={self.directory / 'build'}")
        subprocess.run(
            [*build, *settings, str(REPOSITORY)], env=os.environ | environment, check=True
        )
        (wheel,) = wheels.iterdir()
        return wheel


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if not all(map(shutil.which, (QEMU, COMPILER))):
        sys.exit("apt-get install qemu-user-static g++-aarch64-linux-gnu")
    Machine(Path(sys.argv[1])).setup()


if __name__ == "__main__":
    main()
