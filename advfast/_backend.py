"""What was built and what can run: finds `_C` and Triton lazily, chooses an implementation."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

IMPLS = ("reference", "cpp", "cuda", "triton")
_ACTIVATIONS = (
    "relu_bits_",
    "positive_bits",
    "add_relu_bits_",
    "gate_",
    "affine_relu_bits",
    "affine_gate_",
)
_NTK = ("ntk_rows", "ntk_patch_gram", "ntk_gram_", "ntk_chain_", "ntk_hadamard_")
_APGD = ("apgd_step_", "apgd_l1_step", "l1_box_correction")
OPS = (
    "pgd_step_", "project_", "random_start", "conv2d_input_grad", *_ACTIVATIONS, "row_hash", "hyperplane_project",
    "square_window", "square_accept_",
    *_NTK,
    *_APGD,
)  # fmt: skip

NOT_MADE = "it is not made for this op"

_NOT_MADE: dict[str, tuple[str, ...]] = {"conv2d_input_grad": ("cuda", "triton")}
_NOT_MADE |= dict.fromkeys((*_ACTIVATIONS, "row_hash", "ntk_rows", "ntk_patch_gram"), ("cuda",))
_NOT_MADE |= dict.fromkeys(("square_window", "square_accept_"), ("cuda",))
_NOT_MADE |= {
    "ntk_gram_": ("cpp", "cuda", "triton"),
    "hyperplane_project": ("cuda", "triton"),
}
_NOT_MADE |= {"apgd_step_": ("cuda",)} | dict.fromkeys(_APGD[1:], ("cuda", "triton"))
"""Implementations that an op does not have: on a GPU the library behind torch is hard to beat in a convolution, and
Triton is enough for what is one pass over memory, or a product with nothing fused behind it. A plain matrix product is
the library's everywhere."""

_ADDED = {"hyperplane_project": "hyperplane_project_cpu"}
_ADDED |= {"apgd_step_": "apgd_step_cpu"} | dict.fromkeys(_APGD[1:], "apgd_l1_cpu")
_ADDED |= dict.fromkeys(("square_window", "square_accept_"), "square_window_cpu")
"""What the core has since an op was added to it: a core of before stays in an editable checkout that is updated."""

_FLOAT32: dict[str, tuple[str, ...]] = {
    "pgd_step_": ("cuda", "triton"),
    "project_": ("cuda", "triton"),
}
_FLOAT32 |= {"random_start": ("cuda", "triton"), "conv2d_input_grad": ("cpp",), "row_hash": ()}
_FLOAT32 |= {"hyperplane_project": ()}
_FLOAT32 |= dict.fromkeys(("square_window", "square_accept_"), ("triton",))
_FLOAT32 |= dict.fromkeys(_NTK, ("cpp", "cuda", "triton"))
_FLOAT32 |= {"apgd_step_": ("triton",)}
"""Implementations that take float32 alone."""

_NOT_FLOAT64: dict[str, tuple[str, ...]] = dict.fromkeys(_ACTIVATIONS, ("cpp",))
"""Implementations that take float32, bfloat16 and float16: whoever asks for double does not ask for speed."""


@functools.cache
def native() -> ModuleType | None:
    """The compiled core, or None where it was not built."""
    if importlib.util.find_spec("advfast._C") is None:
        return None
    return importlib.import_module("advfast._C")


@functools.cache
def triton_version() -> str | None:
    """The version of Triton without importing it, or None where it is not installed."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


def triton_interprets() -> bool:
    """Whether Triton kernels run in the interpreter, on CPU tensors (set before Triton is imported)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _why_not(op: str, impl: str, device_type: str) -> str | None:
    """Why `impl` cannot run on this kind of device; None if it can."""
    if impl == "reference":
        return None
    if impl in _NOT_MADE.get(op, ()):
        return NOT_MADE
    if impl == "cpp":
        if device_type != "cpu":
            return f"it runs on the CPU and the tensors are on {device_type}"
        core = native()
        if core is None:
            return (
                "this installation has no native core (no C++ compiler was found when it was built)"
            )
        if not hasattr(core, _ADDED.get(op, "build_info")):
            return "the native core was built from older sources: build it again (pip install -e .)"
        return None
    if impl == "cuda":
        core = native()
        if core is None or not hasattr(core, "pgd_step_cuda"):
            return "this installation has no CUDA core (nvcc was not found when it was built)"
        if device_type != "cuda":
            return f"it runs on CUDA and the tensors are on {device_type}"
        return None
    if triton_version() is None:
        return "Triton is not installed"
    if device_type == "cuda" or (device_type == "cpu" and triton_interprets()):
        return None
    return f"it runs on CUDA (or with TRITON_INTERPRET=1) and the tensors are on {device_type}"


def available_impls(op: str, device: torch.device | str | None = None) -> tuple[str, ...]:
    """The implementations of `op` that can run on `device`, the preferred one first.

    Args:
        op: name of a fused op, for example "pgd_step_".
        device: default "cuda" where torch sees one, else "cpu".

    Raises:
        ValueError: unknown op.
    """
    if op not in OPS:
        raise ValueError(f"unknown op {op!r}; the ops are {', '.join(OPS)}")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    order = ("cuda", "triton", "cpp", "reference")
    # The interpreter is a checking tool: it never serves a request for the best implementation.
    if device.type == "cpu":
        order = ("cpp", "reference", "triton", "cuda")
    return tuple(impl for impl in order if _why_not(op, impl, device.type) is None)


def resolve_impl(
    op: str, impl: str, device: torch.device, *, float32: bool, float64: bool = False
) -> str:
    """The implementation to run. Only "auto" chooses; a named one runs or raises.

    Args:
        op: name of the op, for messages.
        impl: "auto" or a name of IMPLS.
        device: where the tensors are.
        float32: whether the images are float32, which the GPU implementations require.
        float64: whether the values are float64, for the ops whose implementations differ in that.

    Raises:
        ValueError: unknown name.
        RuntimeError: the named implementation cannot run here, with the reason.
    """
    if impl == "auto":
        impl = os.environ.get("ADVFAST_IMPL", "auto")
    return _resolve(op, impl, device.type, float32, float64)


@functools.cache
def _resolve(op: str, impl: str, device_type: str, float32: bool, float64: bool) -> str:
    refusing = () if float32 else _FLOAT32.get(op, ())
    if float64:
        refusing += _NOT_FLOAT64.get(op, ())
    if impl == "auto":
        for name in available_impls(op, device_type):
            if name not in refusing:
                return name
    if impl not in IMPLS:
        raise ValueError(f"{op}: impl must be one of auto, {', '.join(IMPLS)}, got {impl!r}")
    reason = _why_not(op, impl, device_type)
    if reason is None and impl in refusing:
        unfit = (*refusing, *_NOT_MADE.get(op, ()))
        others = ", ".join(name for name in IMPLS if name not in unfit)
        takes = "float32" if impl in _FLOAT32.get(op, ()) else "float32, bfloat16 and float16"
        reason = f"it takes {takes} tensors (others: {others})"
    if reason is not None:
        raise RuntimeError(f"{op}: impl={impl!r} is not available: {reason}")
    return impl


def _commit(built: dict[str, Any]) -> str:
    """The commit of the source tree that is running, or the one that was built."""
    root = Path(__file__).resolve().parent.parent
    if (root / ".git").exists():
        command = ["git", "rev-parse", "HEAD"]
        git = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if git.returncode == 0:
            return git.stdout.strip()
    return built.get("commit", "unknown")


def info() -> dict[str, Any]:
    """What was built and what can run here: the first thing a bug report needs.

    Returns:
        version, commit, python, torch, platform; `native` (compiler, CPU instruction set) and `cuda`
        (compiler version and architectures) or why they are missing; `gpu`; `triton`; and `ops`, where
        ops[op][impl] is "available" or the reason why not, on the GPU if torch sees one, else on the CPU.
    """
    core = native()
    built = dict(core.build_info()) if core else {}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if core is None:
        compiled: Any = "not built: no C++ compiler was found, or ADVFAST_NATIVE=off"
    else:
        compiled = {"compiler": built["compiler"], "cpu_isa": core.cpu_isa()}
    if built.get("cuda_version"):
        cuda: Any = {"nvcc": built["cuda_version"], "archs": built["cuda_archs"]}
    else:
        cuda = "not built: nvcc was not found, or ADVFAST_CUDA=off"
    devices = {"cpp": "cpu", "cuda": "cuda" if gpu else "cpu", "triton": "cuda" if gpu else "cpu"}
    from advfast import __version__

    return {
        "version": __version__,
        "commit": _commit(built),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "native": compiled,
        "cuda": cuda,
        "gpu": gpu or "none seen by torch",
        "triton": triton_version() or "not installed",
        "ops": {
            op: {
                impl: _why_not(op, impl, devices.get(impl, "cpu")) or "available" for impl in IMPLS
            }
            for op in OPS
        },
    }
