"""Arithmetic of a run: 16 bits, memory format, determinism."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def resolve_precision(precision: str, device: torch.device) -> str:
    """ "auto" is fp32 on a CPU, and on a GPU bf16 from compute capability 8.0 (Ampere) on, fp16 before.

    Raises:
        ValueError: not one of PRECISIONS.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def make_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss in fp16, whose small gradients would be 0; does nothing otherwise."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


@contextmanager
def arithmetic(deterministic: bool, device: torch.device) -> Iterator[None]:
    """torch's switches for a run, put back afterwards.

    Deterministic: only algorithms that give the same bits again; torch raises where there is none. Otherwise cuDNN may
    time its algorithms and keep the fastest: the shapes are the same in every step.
    """
    if not deterministic and device.type != "cuda":
        yield
        return
    switches: Any = torch.utils.deterministic  # its properties are made at run time
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        switches.fill_uninitialized_memory,
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )
    try:
        torch.backends.cudnn.benchmark = not deterministic
        if deterministic:
            # cuBLAS reads it when its first handle is made; later it has no effect, and torch then says so.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.backends.cudnn.deterministic = True
            torch.use_deterministic_algorithms(True)
            # Filling every new tensor with NaN finds bugs; it does not change a result.
            switches.fill_uninitialized_memory = False
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        switches.fill_uninitialized_memory = before[2]
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[3:]
