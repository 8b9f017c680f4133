"""Drives CMake; everything else is declared in pyproject.toml and CMakeLists.txt."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# Build options that may be given as environment variables of the same name.
OPTIONS = ("BACKSIGHT_CUDA", "BACKSIGHT_CUDA_ARCHS", "BACKSIGHT_WERROR")


class CMakeBuild(build_ext):
    """Builds `backsight._C` with CMake and Ninja into the place setuptools asks for."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        work = Path(self.build_temp).resolve() / "cmake"
        work.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            *("-S", str(ROOT), "-B", str(work), "-G", "Ninja"),
            # A build folder of before remembers a ninja that pip has since removed.
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            "-DCMAKE_BUILD_TYPE=" + ("Debug" if self.debug else "Release"),
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *(f"-D{name}={os.environ[name]}" for name in OPTIONS if name in os.environ),
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(work)], check=True)


setup(
    ext_modules=[Extension("backsight._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
