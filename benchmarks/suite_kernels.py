"""The kernel suite: every implementation of the pgd ops against plain torch and a copy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from records import Row, failure, package_version
from sequences import EAGER, INPLACE, Result, Work
from timing import Clock, Timed, Times, ratio, take_turns
from torch import Tensor

import advfast
from advfast import kernels

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMPLS = {"cpu": ("reference", "cpp"), "cuda": ("reference", "triton", "cuda")}
# eps in pixel units at 3x32x32, as papers take it for the norm; l1 and l2 grow with the image.
RADII = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Case:
    op: str
    norm: str
    shape: Shape  # [B, C, H, W]
    dtype: str = "fp32"  # of the gradient; x and x0 are fp32
    layout: str = "NCHW"
    out: str = ""  # dtype of the next model input that is written in the same pass, if any

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def extra(self) -> str:
        return f"out={self.out}" if self.out else ""

    def __str__(self) -> str:
        parts = (self.op, self.norm, self.dtype, self.layout, self.size, self.extra)
        return " ".join(parts).strip()

    @property
    def eps(self) -> float:
        pixels = self.shape[1] * self.shape[2] * self.shape[3] / 3072
        growth = {"linf": 1.0, "l2": pixels**0.5, "l1": pixels}[self.norm]
        return RADII[self.norm] * growth

    @property
    def alpha(self) -> float:
        return self.eps / 4


def bytes_moved(case: Case) -> int:
    """The fewest bytes that the op must move: each input read once, each output written once.

    l2 and l1 need a norm before they can move anything; a sample that stays in a cache is still
    read from memory once.
    """
    numbers = torch.Size(case.shape).numel()
    sizes = {"fp32": 4, "bf16": 2, "": 0}
    if case.op == "random_start":
        return numbers * (4 + 4)  # x0 read, the start written
    moved = 4 + 4 + 4 + sizes[case.out]  # x read and written, x0 read, out written
    if case.op == "pgd_step_":
        moved += sizes[case.dtype]  # grad read
    return numbers * moved


def cases(device: str, *, quick: bool) -> Iterator[Case]:
    """In the order of importance: a run that stops at its time budget has the first ones."""
    if quick:
        shapes: list[Shape] = [(16, 3, 64, 64), (32, 3, 32, 32)]
        for shape in shapes:
            yield Case("pgd_step_", "linf", shape)
            yield Case("pgd_step_", "linf", shape, "bf16", "NHWC", "bf16")
            yield Case("pgd_step_", "l2", shape)
            yield Case("pgd_step_", "l1", shape)
            yield Case("project_", "linf", shape)
            yield Case("random_start", "linf", shape)
        return
    large, small = (64, 3, 224, 224), (128, 3, 32, 32)
    yield from (Case("pgd_step_", norm, shape) for norm in RADII for shape in (large, small))
    if device == "cuda":
        # fp32 tensors of 1 MiB to 1 GiB; 128x3x32x32 is 1.5 MiB, 64x3x224x224 is 37 MiB.
        for norm, mib in itertools.product(("linf", "l2"), (1, 4, 16, 64, 256, 1024)):
            yield Case("pgd_step_", norm, (mib, 4, 256, 256))
    for shape in (large, small):
        for dtype, layout, out in itertools.product(DTYPES, LAYOUTS, ("", "bf16", "fp32")):
            if (dtype, layout, out) != ("fp32", "NCHW", ""):
                yield Case("pgd_step_", "linf", shape, dtype, layout, out)
        for norm in ("l2", "l1"):
            yield Case("pgd_step_", norm, shape, "fp32", "NHWC")
            yield Case("pgd_step_", norm, shape, "bf16", "NCHW", "bf16")
            yield Case("pgd_step_", norm, shape, "bf16", "NHWC", "bf16")
        for op, norm, layout in itertools.product(("project_", "random_start"), RADII, LAYOUTS):
            yield Case(op, norm, shape, "fp32", layout)
        yield Case("project_", "linf", shape, "fp32", "NCHW", "bf16")


@dataclass
class Inputs:
    x: Tensor
    x0: Tensor
    grad: Tensor
    scale: Tensor | None
    shift: Tensor | None


def make_inputs(case: Case, device: str) -> Inputs:
    """Images, a gradient, and an x outside of the ball, so that every projection has work to do."""
    generator = torch.Generator().manual_seed(0)
    layout = LAYOUTS[case.layout]

    def put(t: Tensor) -> Tensor:
        return t.to(device).contiguous(memory_format=layout)

    x0 = torch.rand(case.shape, generator=generator)
    noise = torch.randn(case.shape, generator=generator)
    grad = put(noise.flip(0).mul(1e-3).to(DTYPES[case.dtype]))
    if case.norm == "linf":
        x = put((x0 + noise * case.eps).clamp_(0, 1))
    else:
        order = 2 if case.norm == "l2" else 1
        size = torch.linalg.vector_norm(noise, order, dim=(1, 2, 3), keepdim=True)
        x = put(x0 + noise * (1.5 * case.eps / size))
    scale = shift = None
    if case.out:
        channels = case.shape[1]
        mean, std = ((v * 2)[:channels] for v in (MEAN, STD))
        shift = torch.tensor(mean, device=device).view(1, -1, 1, 1)
        scale = (1 / torch.tensor(std, device=device)).view(1, -1, 1, 1)
    return Inputs(x, put(x0), grad, scale, shift)


def work_of(case: Case, inputs: Inputs) -> Work:
    x = inputs.x.clone(memory_format=torch.preserve_format)
    out = torch.empty_like(x, dtype=DTYPES[case.out]) if case.out else None
    return Work(
        x, inputs.x0, inputs.grad, case.alpha, case.eps, out, inputs.scale, inputs.shift
    )  # fmt: skip


def fused(case: Case, impl: str, w: Work) -> Result:
    if case.op == "random_start":
        start = kernels.random_start(w.x0, eps=w.eps, norm=case.norm, seed=0, impl=impl)
        return start, None
    given: dict[str, Any] = {"eps": w.eps, "norm": case.norm, "out": w.out, "impl": impl}
    if w.out is not None:
        given |= {"scale": w.scale, "shift": w.shift}
    if case.op == "project_":
        return kernels.project_(w.x, w.x0, **given), w.out
    return kernels.pgd_step_(w.x, w.grad, w.x0, alpha=w.alpha, **given), w.out


def compiled(case: Case) -> Callable[[Work], Result]:
    """EAGER under torch.compile; tensors are arguments of the compiled function, not captured."""
    sequence = EAGER[case.op, case.norm]

    def run(x, x0, grad, out, scale, shift):
        return sequence(_View(x, x0, grad, case.alpha, case.eps, out, scale, shift))

    torch.compiler.reset()  # one program a case: else it becomes a dynamic one, or hits the limit
    program = torch.compile(run, fullgraph=True, dynamic=False)
    return lambda w: program(w.x, w.x0, w.grad, w.out, w.scale, w.shift)


class _View(Work):
    """Work without a buffer of its own."""

    def __post_init__(self) -> None:
        pass


def providers(case: Case, device: str, *, compile: bool) -> dict[str, Callable[[Work], Result]]:
    found: dict[str, Callable[[Work], Result]] = {
        "torch": EAGER[case.op, case.norm],
        "torch_inplace": INPLACE[case.op, case.norm],
    }
    if compile:
        found["torch_compile"] = compiled(case)
    for impl in IMPLS[device]:
        found[impl] = partial(fused, case, impl)
    return found


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0


def fault(case: Case, provider: str, got: Result, wanted: Result) -> str:
    """What is wrong with a result, or "". `wanted` is the reference implementation's."""
    x, out = got
    fused_impl = provider not in ("torch", "torch_inplace", "torch_compile")
    if case.op == "random_start" and not fused_impl:
        return ""  # other random numbers
    exact = case.norm == "linf" and (fused_impl or case.out == "")
    # fp32 sums of a whole sample, and compilers that contract a*b+c, differ in the last digits.
    allowed = 2e-5 * max(1.0, case.eps if case.norm == "l2" else 1.0)
    if provider == "torch_compile" or not exact:
        apart = _difference(x, wanted[0])
        if not apart <= allowed:
            return f"{apart:.3g} from the reference, allowed {allowed:.3g}"
    elif not torch.equal(x, wanted[0]):
        return f"not the bits of the reference, {_difference(x, wanted[0]):.3g} apart"
    if out is not None and wanted[1] is not None:
        allowed = 2**-7 * 4 if case.out == "bf16" else 1e-3  # one unit of bf16 at 2..4
        apart = _difference(out, wanted[1])
        if not apart <= allowed:
            return f"out {apart:.3g} from the reference, allowed {allowed:.3g}"
    return ""


def _row(case: Case, provider: str, status: str) -> Row:
    return Row(
        suite="kernels", op=case.op, norm=case.norm, provider=provider, dtype=case.dtype,
        layout=case.layout, shape=case.size, case=case.extra, bytes=bytes_moved(case),
        peer_version=package_version("torch" if "torch" in provider else "advfast"), status=status,
    )  # fmt: skip


def skipped(case: Case, reason: str) -> Row:
    return _row(case, "all", f"skipped: {reason}")


def _timed(row: Row, times: dict[str, Times], copied: int) -> Row:
    """The row with the times of its provider; `copied` is the number of bytes that "copy" moves."""
    if row.provider not in times:
        return row
    mine = times[row.provider]
    assert row.bytes is not None
    rate, copy_rate = row.bytes / mine.median / 1e6, copied / times["copy"].median / 1e6
    return replace(
        row, ms_p20=mine.percentile(20), ms_p50=mine.median, ms_p80=mine.percentile(80),
        gb_per_s=rate, copy_gb_per_s=copy_rate, floor_ms=row.bytes / copy_rate / 1e6,
        percent_of_copy=100 * rate / copy_rate, rounds=len(mine.ms),
        ratio_to_torch=ratio(times, "torch", row.provider),
        ratio_to_inplace=ratio(times, "torch_inplace", row.provider),
    )  # fmt: skip


def measure(case: Case, device: str, *, quick: bool, clock: Clock) -> list[Row]:
    """Checks every provider of a case against the reference, then times those that agree."""
    compile = not quick or (case.op == "pgd_step_" and case.norm == "linf")
    inputs = make_inputs(case, device)
    wanted = fused(case, "reference", work_of(case, inputs))
    able = advfast.available_impls(case.op, device)
    status: dict[str, str] = {}
    items: dict[str, Timed] = {}
    for provider, run in providers(case, device, compile=compile).items():
        if provider in IMPLS[device] and provider not in able:
            status[provider] = f"skipped: {advfast.info()['ops'][case.op][provider]}"
            continue
        w = work_of(case, inputs)
        try:
            wrong = fault(case, provider, run(w), wanted)
        except Exception as error:
            status[provider] = failure(error)
            continue
        status[provider] = f"wrong: {wrong}" if wrong else "ok"
        if not wrong:
            items[provider] = Timed(partial(run, w), partial(w.x.copy_, inputs.x))
    source, target = inputs.x, torch.empty_like(inputs.x)
    items["copy"] = Timed(partial(target.copy_, source))
    with torch.no_grad():
        seconds, least = (0.3, 3) if quick else (4.0, 15)
        times = take_turns(items, clock, seconds=seconds, min_rounds=least)
    copied = 2 * source.numel() * source.element_size()
    return [_timed(_row(case, name, state), times, copied) for name, state in status.items()]
