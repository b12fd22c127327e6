"""What one call puts on the time line of a GPU: launches, and how much of it is not convolution or matmul."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

# Kernels of cuDNN, cuBLAS and CUTLASS; not cuDNN's conversions of layout and dtype, nor pointwise kernels that a
# compiler names after the convolution before them.
_PRODUCT = re.compile(
    r"conv(?!ert)|gemm|gemv|cutlass|xmma|wgmma|implicit|dgrad|fprop|winograd|flash", re.IGNORECASE
)
_POINTWISE = re.compile(r"^triton_(poi|red|per)_")
_LAUNCHES = re.compile(r"^cu(da)?Launch(Cooperative)?Kernel")


class Event(NamedTuple):
    name: str
    on_device: bool
    microseconds: float


@dataclass(frozen=True)
class Timeline:
    graph_launches: int  # by the host
    kernel_launches: int  # by the host, outside of graphs
    product_ms: float  # of the GPU, in convolutions, matmuls and attention
    other_ms: float  # of the GPU, in all else


def count(events: Iterable[Event]) -> Timeline:
    graphs = kernels = 0
    product = other = 0.0
    for event in events:
        if event.on_device:
            if _PRODUCT.search(event.name) and not _POINTWISE.search(event.name):
                product += event.microseconds
            else:
                other += event.microseconds
        elif event.name == "cudaGraphLaunch":
            graphs += 1
        elif _LAUNCHES.search(event.name):
            kernels += 1
    return Timeline(graphs, kernels, product / 1e3, other / 1e3)


def profiled(call: Callable[[], object]) -> Timeline:
    """One call under torch.profiler, on a CUDA device; call it before, so that nothing is set up in it."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return count(
        Event(event.name, event.device_type == DeviceType.CUDA, event.time_range.elapsed_us())
        for event in profiler.events() or ()
        if not event.is_user_annotation
    )
