"""Compiles the CUDA sources with ptxas -v and gates on what it says: no spills, no local memory.

python tests/ptxas.py [csrc/cuda/splice.cu ...]     prints a table of registers per kernel
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARCHS = ("sm_80", "sm_90a")


@dataclass(frozen=True)
class Kernel:
    source: str
    arch: str
    name: str
    registers: int
    spill: int  # bytes stored and loaded
    stack: int  # bytes


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


def parse(text: str, source: str, arch: str) -> list[Kernel]:
    """Kernels in the order in which ptxas lists them."""
    kernels = []
    for block in text.split("Compiling entry function '")[1:]:
        name = block.split("'", 1)[0]
        stack, stores, loads = map(
            int,
            re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block
            ).groups(),  # type: ignore[union-attr]
        )
        registers = int(re.search(r"Used (\d+) registers", block)[1])  # type: ignore[index]
        kernels.append(Kernel(source, arch, demangled(name), registers, stores + loads, stack))
    return kernels


def demangled(name: str) -> str:
    if not shutil.which("c++filt"):
        return name
    shown = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout
    shown = shown.strip().replace("(anonymous namespace)::", "")
    return re.sub(r"\(.*", "", shown).replace("backsight::", "").replace("void ", "")


def compile_verbosely(compiler: str, source: Path, arch: str) -> list[Kernel]:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [compiler, "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "-cubin", f"-arch={arch}",
             "-Xptxas=-v", "-Werror=all-warnings", "-o", f"{folder}/out.cubin", str(source)],
            capture_output=True,
            text=True,
        )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"nvcc failed on {source} for {arch}:\n{done.stderr}")
    return parse(done.stderr + done.stdout, source.name, arch)


def measure(sources: list[Path], archs: tuple[str, ...] = ARCHS) -> list[Kernel]:
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("expected nvcc on PATH, in CUDA_HOME or in /usr/local/cuda, found none")
    pairs = [(source, arch) for arch in archs for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda pair: compile_verbosely(compiler, *pair), pairs)
        return [kernel for kernels in found for kernel in kernels]


def main() -> int:
    sources = [Path(a) for a in sys.argv[1:]] or sorted((ROOT / "csrc/cuda").glob("*.cu"))
    kernels = measure(sources)
    for k in kernels:
        print(f"{k.arch:7} {k.source:12} {k.registers:4} registers {k.spill:4} spilt  {k.name}")
    return 1 if any(k.spill or k.stack for k in kernels) else 0


if __name__ == "__main__":
    sys.exit(main())
