"""What the compiled module is made of and how it behaves in a process."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import backsight
from backsight import _C, config, ops

ROOT = Path(__file__).resolve().parents[2]
CUDA_SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))


def load_ptxas() -> object:
    spec = importlib.util.spec_from_file_location("ptxas", ROOT / "tests/ptxas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ptxas"] = module
    spec.loader.exec_module(module)
    return module


ptxas = load_ptxas()


@pytest.fixture
def big_args() -> tuple[Any, ...]:
    """Arguments of a splice large enough for all of torch's threads."""
    base = torch.arange(64 * 64 * 32, dtype=torch.float32).view(1, 32, 64, 64)
    zero = torch.zeros(4, 2, dtype=torch.int64)
    index = torch.zeros(4, dtype=torch.int64)
    patch = base[:, :, :0].expand(4, -1, -1, -1)
    return base, index, [0, 0], [64, 64], patch, zero, zero, [64, 64]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
def test_torch_and_the_kernels_share_one_openmp() -> None:
    # In a process of its own: other libraries bring other OpenMP libraries.
    code = (
        "import torch; from backsight import config, ops; x = torch.rand(4, 32, 64, 64);"
        "ops.max_pool(x, [2, 2], [2, 2], [0, 0], [1, 1]); print(*config.openmp_libraries())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    libraries = run.stdout.split()
    assert len([p for p in libraries if "gomp" in Path(p).name]) == 1, libraries
    assert str(Path(torch.__file__).parent) in libraries[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kernels_work_in_a_forked_child(big_args: tuple[Any, ...]) -> None:
    expected = ops.splice(*big_args).numpy().tobytes()  # the parent's thread pool is up
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a deadlock ends the child
        os._exit(0 if ops.splice(*big_args).numpy().tobytes() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_imports_where_no_gpu_is_visible() -> None:
    code = "import backsight; print(backsight.show_config())"
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert backsight.__version__ in done.stdout


def test_show_config_names_what_matters() -> None:
    shown = dict(line.split(maxsplit=1) for line in config.show_config().splitlines())
    assert shown["backsight"] == backsight.__version__
    assert shown["torch"] == torch.__version__
    assert shown["threads"].startswith(f"{torch.get_num_threads()} of ")
    assert _C.isa() in config.show_config()
    assert ("not compiled in" in config.show_config()) == (not _C.cuda_archs)


class TestPtxas:
    def test_a_spill_is_seen(self) -> None:
        text = """ptxas info    : Compiling entry function '_Z1fv' for 'sm_80'
            16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
            ptxas info    : Used 255 registers, used 0 barriers, 380 bytes cmem[0]"""
        (kernel,) = ptxas.parse(text, "f.cu", "sm_80")  # type: ignore[attr-defined]
        assert (kernel.registers, kernel.spill, kernel.stack) == (255, 20, 16)

    @pytest.mark.skipif(ptxas.nvcc() is None, reason="needs nvcc")  # type: ignore[attr-defined]
    @pytest.mark.parametrize("source", CUDA_SOURCES, ids=lambda p: p.name)
    def test_no_kernel_spills(self, source: Path) -> None:
        kernels = ptxas.measure([source], ("sm_90a",))  # type: ignore[attr-defined]
        assert [k for k in kernels if k.spill or k.stack] == []
        assert kernels or source.name == "info.cu"
        # Half the threads a multiprocessor can hold, at 256 a block.
        assert all(k.registers <= 64 for k in kernels)
