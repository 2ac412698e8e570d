"""What the CUDA kernels take on each architecture: registers, stack and spills, as ptxas says.

    python benchmarks/cuda_resources.py
    python benchmarks/cuda_resources.py --architectures 90 --output report.json cuda/lattice.cu

compiles the device code, with warnings as errors, and prints a table. It needs nvcc but no GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
# As cmake/CudaExtension.cmake.
FLAGS = ("-std=c++17", "-O3", "-ftz=true", "-Werror", "all-warnings", "-Xptxas", "-v")

# As cmake/CudaCompiler.cmake. nvcc itself does not ask for equal versions.
PACKAGES = tuple(
    f"nvidia-{name}==13.0.*"
    for name in ("cuda-nvcc", "cuda-crt", "nvvm", "cuda-runtime", "cuda-cccl")
)


@dataclasses.dataclass
class Kernel:
    """One kernel on one architecture; sizes in bytes a thread, shared memory a block."""

    name: str
    architecture: str
    registers: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    shared: int = 0

    @property
    def spills(self) -> int:
        return self.spill_stores + self.spill_loads


def find_nvcc() -> str:
    """CUDACXX, or nvcc of the PATH or of /usr/local/cuda, or of NVIDIA's Python packages."""
    if "CUDACXX" in os.environ:
        return os.environ["CUDACXX"]
    folders = [*os.get_exec_path(), "/usr/local/cuda/bin"]
    packages = importlib.util.find_spec("nvidia")
    for location in (packages and packages.submodule_search_locations) or ():
        folders.append(str(Path(location) / "cu13" / "bin"))
    nvcc = shutil.which("nvcc", path=os.pathsep.join(folders))
    if nvcc is None:
        quoted = " ".join(f'"{package}"' for package in PACKAGES)
        raise FileNotFoundError(f"there is no nvcc; this gets one: pip install {quoted}")
    return nvcc


def parse(output: str) -> list[Kernel]:
    """Kernels, with mangled names, from what `ptxas -v` prints."""
    kernels: list[Kernel] = []
    for line in output.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)' for 'sm_(\w+)'", line):
            kernels.append(Kernel(match[1], match[2]))
        if not kernels:
            continue
        if match := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            # Functions that are not inlined have such lines, too; they count for their kernel.
            kernels[-1].stack += int(match[1])
            kernels[-1].spill_stores += int(match[2])
            kernels[-1].spill_loads += int(match[3])
        if match := re.search(r"Used (\d+) registers", line):
            kernels[-1].registers = int(match[1])
            if match := re.search(r"(\d+) bytes smem", line):
                kernels[-1].shared = int(match[1])
    return kernels


def demangle(kernels: Sequence[Kernel]) -> None:
    """Names as in the source, where binutils is installed; without parameters."""
    if shutil.which("c++filt") is None:
        return
    names = "\n".join(kernel.name for kernel in kernels)
    names = subprocess.run(["c++filt", "-p"], input=names, capture_output=True, text=True).stdout
    for kernel, name in zip(kernels, names.splitlines(), strict=True):
        kernel.name = name.replace("(anonymous namespace)::", "")


def compile_kernels(source: Path, architectures: Sequence[str] = ARCHITECTURES) -> list[Kernel]:
    """Compiles a .cu file for all architectures.

    Raises:
      subprocess.CalledProcessError: nvcc has an error or a warning; it is printed.
      FileNotFoundError: there is no nvcc.
    """
    command = [find_nvcc(), *FLAGS, "-c", str(source), "-o", os.devnull]
    command += [f"-I{folder}" for folder in (ROOT / "cuda", ROOT / "cpp")]
    command += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        done.check_returncode()
    kernels = parse(done.stdout)
    demangle(kernels)
    return kernels


def table(kernels: Sequence[Kernel]) -> str:
    """Markdown; one row a kernel, one column an architecture."""
    found = {kernel.architecture for kernel in kernels}
    architectures = sorted(found, key=lambda name: int(name.rstrip("af")))
    rows: dict[str, dict[str, Kernel]] = {}
    for kernel in kernels:
        rows.setdefault(kernel.name, {})[kernel.architecture] = kernel

    def cell(kernel: Kernel | None) -> str:
        if kernel is None:
            return ""
        text = str(kernel.registers)
        if kernel.stack:
            text += f", {kernel.stack} B stack"
        if kernel.spills:
            text += f", {kernel.spill_stores}+{kernel.spill_loads} B spilled"
        return text

    lines = [
        "Registers; stack and spills (stores+loads) where there are any.",
        "",
        "| kernel | " + " | ".join(f"sm_{a}" for a in architectures) + " |",
        "|---|" + "---|" * len(architectures),
    ]
    for name, row in rows.items():
        lines.append(f"| `{name}` | " + " | ".join(cell(row.get(a)) for a in architectures) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sources", nargs="*", type=Path, help=".cu files; cuda/*.cu by default")
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES, metavar="XY")
    parser.add_argument("--output", type=Path, help="also write the numbers here, as JSON")
    arguments = parser.parse_args()
    kernels: list[Kernel] = []
    for source in arguments.sources or sorted((ROOT / "cuda").glob("*.cu")):
        kernels += compile_kernels(source, arguments.architectures)
    print(table(kernels))
    if arguments.output:
        rows = [dataclasses.asdict(kernel) for kernel in kernels]
        arguments.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
