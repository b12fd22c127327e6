"""Builds the native core with CMake. Everything else is in pyproject.toml; flags are in CMakeLists.txt.

ADVFAST_NATIVE = auto | on | off   auto: build the core if there is a C++ compiler, else install pure Python
ADVFAST_CUDA   = auto | on | off   auto: with the CUDA part if there is an nvcc (a GPU is never looked for)
ADVFAST_CUDA_ARCHS = "80;90;100"   compute capabilities
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def setting(name: str) -> str:
    value = os.environ.get(name, "auto").lower()
    if value not in ("auto", "on", "off"):
        raise SystemExit(f"{name} must be auto, on or off, got {value!r}")
    return value


def has_compiler() -> bool:
    named = os.environ.get("CXX")
    names = [named.split()[0]] if named else ["c++", "g++", "clang++", "cl"]
    return any(shutil.which(name) for name in names)


def commit() -> str:
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return git.stdout.strip() if git.returncode == 0 else "unknown"


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        ninja = shutil.which("ninja")
        # Paths are given anew each time: those cached by an earlier isolated build are gone by now.
        options = {
            "ADVFAST_PYTHON": "ON",
            "ADVFAST_TESTS": "OFF",
            "ADVFAST_CUDA": setting("ADVFAST_CUDA"),
            "ADVFAST_CUDA_ARCHS": os.environ.get("ADVFAST_CUDA_ARCHS", "80;90;100"),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": str(target.parent),
            "CMAKE_BUILD_TYPE": "Release",
        }
        generator = []
        if ninja:
            generator = ["-G", "Ninja"]
            options["CMAKE_MAKE_PROGRAM"] = ninja
        environment = dict(
            os.environ, ADVFAST_VERSION=self.distribution.get_version(), ADVFAST_COMMIT=commit()
        )
        defines = [f"-D{name}={value}" for name, value in options.items()]
        configure = ["cmake", "-S", str(ROOT), "-B", str(build), *generator, *defines]
        jobs = str(self.parallel or os.cpu_count() or 1)
        subprocess.run(configure, check=True, env=environment)
        subprocess.run(["cmake", "--build", str(build), "-j", jobs], check=True, env=environment)


native = setting("ADVFAST_NATIVE")
if native == "auto" and not has_compiler():
    print("advfast: no C++ compiler found; installing without the native core", file=sys.stderr)
    native = "off"

setup(
    ext_modules=[] if native == "off" else [Extension("advfast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
