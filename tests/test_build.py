"""The rules that make the torch-free core safe, read off the source; and an installation without the core."""

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .nvcc_report import Kernel, parse_ptxas

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
NATIVE = sorted(
    path
    for path in CSRC.rglob("*")
    if path.suffix in {".h", ".cpp", ".cu", ".cuh"} and path.is_file()
)
PYTHON = sorted((ROOT / "advfast").rglob("*.py"))


def code_of(path: Path) -> str:
    """The file without comments."""
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", text)


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )


def top_level_commas(text: str) -> int:
    depth = commas = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        commas += character == "," and depth == 0
    return commas


def test_there_is_something_to_check():
    assert {path.suffix for path in NATIVE} == {".h", ".cpp", ".cu", ".cuh"}
    assert len(PYTHON) > 5


def test_every_launch_names_its_stream():
    launches = []
    for path in NATIVE:
        launches += re.findall(r"<<<(.*?)>>>", code_of(path), flags=re.DOTALL)
    assert launches
    for launch in launches:
        assert top_level_commas(launch) == 3, launch
        assert "stream" in launch.split(",")[-1], launch


def test_every_launch_is_checked():
    text = code_of(CSRC / "cuda_utils.cuh")
    launch = text[text.index(">>>") :]
    assert re.match(
        r">>>\([^;]*;(\s*#[^\n]*\n[^#]*)*\s*check_cuda\(op, cudaGetLastError\(\)\)", launch
    )
    # Kernels start through that function alone.
    assert [path.name for path in NATIVE if "<<<" in code_of(path)] == ["cuda_utils.cuh"]


@pytest.mark.parametrize("path", NATIVE, ids=lambda p: str(p.relative_to(CSRC)))
def test_core_is_torch_free_and_asynchronous(path):
    code = code_of(path)
    assert not re.search(r"#\s*include\s*[<\"](torch|ATen|c10)/", code)
    for call in ("Malloc", "Free", "DeviceSynchronize", "StreamSynchronize", "Memcpy", "Memset"):
        assert not re.search(rf"\bcuda{call}(?!Async)", code), call
    assert "__half" not in code and "use_fast_math" not in code


def test_pybind11_is_in_one_small_file():
    users = [path.name for path in NATIVE if "pybind11" in code_of(path)]
    assert users == ["bindings.cpp"]
    assert len((CSRC / "bindings.cpp").read_text().splitlines()) <= 260


def attributes(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    strings = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return names | strings


def test_pointers_stay_in_the_kernel_families():
    users = {path.name for path in PYTHON if "data_ptr" in attributes(path)}
    # Two of the attacks' compare addresses, to tell storages apart.
    telling_apart = {"split.py", "graph_key.py"}
    assert "native.py" in users and users <= {"native.py", "ops.py", "triton.py"} | telling_apart
    for path in PYTHON:
        names = attributes(path)
        if path.name not in ("native.py", "_backend.py"):
            assert "advfast._C" not in names, path
            assert not any(re.match(r"\w+_(cpu|cuda)$", n) and "pgd_step" in n for n in names), path
        imported = re.search(
            r"^\s*(from\s+\S*\s+import\s+.*\b_C\b|import\s+\S*\b_C\b)", path.read_text(), re.M
        )
        assert not imported, path


def test_setup_does_not_import_torch():
    tree = ast.parse((ROOT / "setup.py").read_text())
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module)
    assert "setuptools" in modules
    assert not any(name.split(".")[0] in ("torch", "advfast") for name in modules)


def test_import_loads_neither_triton_nor_the_core():
    run = python(
        "import sys, torch; before = set(sys.modules); import advfast;"
        "print([m for m in set(sys.modules) - before if m == 'advfast._C' or m.split('.')[0] == 'triton'])"
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


WITHOUT_CORE = """
import importlib.abc, importlib.util, sys

found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "advfast._C" else found(name, *rest)

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *rest):
        if name == "advfast._C":
            raise ImportError("hidden")

sys.meta_path.insert(0, Hidden())
import advfast, torch

x, x0 = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
grad, other = torch.randn_like(x), x.clone()
advfast.kernels.pgd_step_(x, grad, x0, alpha=0.1, eps=0.2)
advfast.kernels.pgd_step_(other, grad, x0, alpha=0.1, eps=0.2, impl="reference")
assert torch.equal(x, other)
assert "cpp" not in advfast.available_impls("pgd_step_")
try:
    advfast.kernels.pgd_step_(x, grad, x0, alpha=0.1, eps=0.2, impl="cpp")
except RuntimeError as error:
    print(error)
print(advfast.info()["native"])
"""


def test_works_without_the_core():
    run = python(WITHOUT_CORE)
    assert run.returncode == 0, run.stderr
    error, native = run.stdout.splitlines()
    assert error.startswith("pgd_step_: impl='cpp' is not available: ")
    assert "no native core" in error
    assert "not built" in native


def cuda_compiler() -> bool:
    return bool(shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin"))


def test_no_contraction_on_any_compiler(tmp_path):
    text = (ROOT / "CMakeLists.txt").read_text()
    assert "-ffp-contract=off" in text and "--fmad=false" in text
    assert "fast-math" not in text and "fast_math" not in text
    if not shutil.which("cmake"):
        pytest.skip("needs cmake")
    configure = [
        "cmake",
        "-S",
        str(ROOT),
        "-B",
        str(tmp_path),
        "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
    ]
    subprocess.run(configure, check=True, capture_output=True)
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    kernels = [entry for entry in commands if Path(entry["file"]).is_relative_to(CSRC)]
    host = [entry for entry in kernels if entry["file"].endswith(".cpp")]
    device = [entry for entry in kernels if entry["file"].endswith(".cu")]
    assert host and bool(device) == cuda_compiler()
    assert all("-ffp-contract=off" in entry["command"] for entry in host)
    assert all("--fmad=false" in entry["command"] for entry in device)
    # Every kernel file is built.
    built = {Path(entry["file"]).name for entry in device}
    assert not device or built == {path.name for path in CSRC.rglob("*.cu")}


PTXAS = """
ptxas info    : Compiling entry function '_ZN7advfast3abcEv' for 'sm_90'
ptxas info    : Function properties for _ZN7advfast3abcEv
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 16 bytes cumulative stack size, 256 bytes smem
ptxas info    : Compiling entry function '_Z3defv' for 'sm_80'
ptxas info    : Function properties for _Z3defv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 0 barriers, 560 bytes cmem[0]
"""


def test_report_reads_ptxas():
    first, second = parse_ptxas(PTXAS)
    name = "abc" if shutil.which("c++filt") else "_ZN7advfast3abcEv"
    assert first == Kernel(name, "sm_90", 64, 256, 16, 12, 8)
    assert second[1:] == ("sm_80", 30, 0, 0, 0, 0)


@pytest.mark.slow
def test_kernels_do_not_spill(tmp_path):
    if not cuda_compiler():
        pytest.skip("needs nvcc")
    if importlib.util.find_spec("triton") is None and not shutil.which("cuobjdump"):
        pytest.skip("needs cuobjdump")
    report = tmp_path / "report.csv"
    run = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "nvcc_report.py"), "--out", str(report)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(report.read_text().splitlines()) > 10
