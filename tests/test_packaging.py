"""Wheels built from a copy of the sources, installed elsewhere: with the native core, and without any compiler."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

needs_build_tools = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("setuptools", "pybind11", "ninja", "cmake"))
    or int(version("setuptools").split(".")[0]) < 77,
    reason="needs the build requirements (pip install .[dev])",
)


def wheel(tmp_path: Path, **environment: str) -> tuple[Path, str]:
    """(the wheel, what the build printed), built offline."""
    source = tmp_path / "source"
    shutil.copytree(
        ROOT,
        source,
        ignore=shutil.ignore_patterns(
            ".git", ".venv*", "build", "*.so", "*.egg-info", "runs", ".*_cache"
        ),
    )
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-v", "--no-index", "--no-build-isolation", "--no-deps",
         "-w", str(tmp_path / "wheels"), str(source)],
        env={**os.environ, "PIP_NO_INDEX": "1", **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (made,) = (tmp_path / "wheels").glob("*.whl")
    return made, done.stdout + done.stderr


def seen_from(installed: Path, cwd: Path) -> dict:
    """advfast.info() and the result of a step, of the package in `installed`."""
    code = """
import sys
# An editable install would lend its own native core to the package that is looked at.
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
import json, torch, advfast
from advfast.kernels import pgd_step_
x0 = torch.rand(2, 3, 4, 4)
x = pgd_step_(x0.clone(), torch.randn_like(x0), x0, alpha=.1, eps=.1)
print(json.dumps({"file": advfast.__file__, "moved": (x != x0).float().mean().item(),
                  "impls": advfast.available_impls("pgd_step_", "cpu"), "info": advfast.info()}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@needs_build_tools
@pytest.mark.parametrize("compiler", [True, False], ids=["compiler", "no-compiler"])
def test_wheel_works_elsewhere(tmp_path, compiler):
    environment = {"ADVFAST_CUDA": "off"}
    if not compiler:
        environment["CXX"] = "/nowhere/c++"
    made, printed = wheel(tmp_path, **environment)
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(made) as archive:
        names = archive.namelist()
        archive.extractall(installed)
    assert "advfast/py.typed" in names and any("LICENSE" in name for name in names)
    assert not any(name.startswith(("tests", "benchmarks", "csrc")) for name in names)
    seen = seen_from(installed, elsewhere)
    assert seen["file"].startswith(str(installed)) and seen["moved"] > 0.5
    if compiler:
        assert "cpp" in seen["impls"] and "none-any" not in made.name
        assert seen["info"]["version"] == "0.1.0"
    else:
        assert "no C++ compiler found" in printed
        assert seen["impls"] == ["reference"] and "py3-none-any" in made.name
        assert "no C++ compiler" in seen["info"]["native"]
