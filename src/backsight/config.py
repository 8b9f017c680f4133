"""What this installation runs with."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy
import torch

from backsight import _C
from backsight._version import __version__


def openmp_libraries() -> list[str]:
    """Paths of the OpenMP libraries loaded into this process (Linux; elsewhere empty)."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    paths = {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if "/" in line}
    return sorted(p for p in paths if "omp" in Path(p).name and ".so" in Path(p).name)


def _cuda() -> list[tuple[str, str]]:
    if not _C.cuda_archs:
        return [("CUDA", "not compiled in (BACKSIGHT_CUDA=OFF, or no nvcc when it was built)")]
    runtime, driver, devices = _C.cuda_info()

    def version(number: int) -> str:
        return f"{number // 1000}.{number % 1000 // 10}" if number else "none"

    return [
        ("CUDA", f"compiled for {_C.cuda_archs}"),
        ("CUDA runtime", f"{version(runtime)}, linked statically"),
        ("CUDA driver", f"supports up to {version(driver)}" if driver else "none"),
        ("GPU", devices),
        ("torch's CUDA", torch.version.cuda or "none: this torch is built for the CPU"),
    ]


def show_config() -> str:
    """A table of what backsight runs with: instruction set, CUDA, threads, versions, and the path
    of transposed convolutions that the environment asks for."""
    rows = [
        ("backsight", __version__),
        ("Python", platform.python_version()),
        ("torch", torch.__version__),
        ("numpy", numpy.__version__),
        ("platform", platform.platform()),
        ("instruction set", _C.isa()),
        ("threads", f"{torch.get_num_threads()} of {os.cpu_count()} CPUs"),
        ("OpenMP", ", ".join(openmp_libraries()) or "unknown"),
        ("BACKSIGHT_DECONV", os.environ.get("BACKSIGHT_DECONV", "auto")),
        *_cuda(),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
