"""The ntk suite: whole kernels, against torch.func, hooks, neural-tangents, nngeometry and the arithmetic alone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import floors
import memory
import networks
import ntk_providers
import torch
from ntk_providers import NeuralTangents, Scene
from records import Row, failure, package_version
from timing import Clock, Timed, Times, ratio, take_turns
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from advfast import ntk

WRONG = 1e-3  # relative error in the Frobenius norm; float32 alone makes some 1e-7
PATIENCE = 10.0  # seconds of the rounds for one provider, but two rounds at least
LONGEST = 120.0  # seconds of a first call after which a provider is not timed
NT = {"neural_tangents": 3, "neural_tangents_jacobian": 1}
PEERS = ("nngeometry", *NT)
ALL = ("torch_func", "torch_func_once", "hooks", *PEERS)
PACKAGES = dict.fromkeys(("torch_func", "torch_func_once", "hooks", "matmul"), "torch")
PACKAGES["nngeometry"] = "nngeometry"


@dataclass(frozen=True)
class Case:
    network: str
    shape: tuple[int, int, int, int]  # [N, C, H, W]
    readout: str = "full"  # full: all 10 logits | sum
    against: tuple[str, ...] = (
        "torch_func",
        "torch_func_once",
        "hooks",
        *NT,
    )  # () : advfast alone, by its own check
    timed: bool = True  # False: one call, its memory

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape))

    def __str__(self) -> str:
        names = ("ntk", self.readout, "fp32", self.size, self.network)
        return " ".join((*names, "" if self.timed else "memory")).rstrip()


def cases(device: str, *, quick: bool) -> Iterator[Case]:
    if quick:
        yield Case("strided-cnn", (4, 1, 28, 28), against=ALL)
        yield Case("resnet18-w4", (2, 3, 16, 16))
        yield Case("resnet18-w4", (4, 3, 16, 16), "sum", ("torch_func", "hooks"))
        yield Case("resnet18-w4", (8, 3, 16, 16), against=(), timed=False)
    elif device == "cpu":
        yield Case("resnet18-w16", (32, 3, 32, 32))
        yield Case("resnet18-w64", (8, 3, 32, 32))
        yield Case("strided-cnn", (64, 1, 28, 28))
        yield Case("strided-cnn", (16, 1, 28, 28), against=("torch_func", "hooks", "nngeometry"))
        yield Case("resnet18-w16", (128, 3, 32, 32), "sum", ("torch_func", "hooks"))
        yield Case("vit-tiny", (8, 3, 32, 32), against=("torch_func",))
        yield Case("resnet18-w64", (64, 3, 32, 32), against=(), timed=False)
    else:
        yield Case("resnet18-w64", (64, 3, 32, 32), against=("torch_func", "hooks"))
        yield Case("strided-cnn", (64, 1, 28, 28), against=("torch_func", "hooks"))
        yield Case("vit-tiny", (32, 3, 32, 32), against=("torch_func",))
        yield Case("resnet18-w64", (1000, 3, 32, 32), against=())
        yield Case("resnet18-w64", (10_000, 3, 32, 32), "sum", against=())


@dataclass(frozen=True)
class Arithmetic:
    """FLOP of a kernel: what cannot be left out of the capture, and the plan's contraction."""

    capture: float
    contraction: float


def capture_flop(model: nn.Module, images: Tensor, readouts: int) -> float:
    """Of a forward pass and `readouts` backward passes that give no gradient of a weight, nor of the images."""
    single = images[:1].clone().requires_grad_()
    wanted = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in wanted:
            p.requires_grad_(False)
        # The fused kernels of attention are not counted; their products are those of the plain form.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            out = model(single).sum()
        forward = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            out.backward()
        backward = counter.get_total_flops()
        first = floors.products(model, single.detach())[0]
    finally:
        for p in wanted:
            p.requires_grad_(True)
    return len(images) * (forward + readouts * (backward - first.flops / 2))


@dataclass
class Tried:
    """A provider's first call."""

    status: str = "ok"
    call: Callable[[], object] | None = None
    ms: float | None = None
    kernel: Tensor | None = None
    error: float | None = None
    peak: int | None = None
    version: str = ""


def ours(scene: Scene, precision: str = "fp32") -> Callable[[], Tensor]:
    def run() -> Tensor:
        found = ntk.ntk(
            scene.model, scene.images, readout=scene.readout, precision=precision, check=False
        )
        return found.tensor

    return run


def makers(case: Case, scene: Scene, device: str) -> dict[str, Callable[[], Callable[[], Tensor]]]:
    """The reference first."""
    found: dict[str, Callable[[], Callable[[], Tensor]]] = {}
    if "torch_func" in case.against:
        found["torch_func"] = partial(ntk_providers.with_torch_func, scene)
    if "torch_func_once" in case.against:
        found["torch_func_once"] = partial(ntk_providers.with_torch_func, scene, once=True)
    if "hooks" in case.against:
        found["hooks"] = partial(ntk_providers.with_hooks, scene)
    if "nngeometry" in case.against:
        found["nngeometry"] = partial(ntk_providers.with_nngeometry, scene)
    found["advfast"] = partial(ours, scene)
    if device == "cuda":
        found["advfast_tf32"] = partial(ours, scene, "tf32")
    return found


def attempt(make: Callable[[], Callable[[], Tensor]], device: str, *, memory_too: bool) -> Tried:
    """Timed once, with its peak of memory, which is of this first call and so with all that stays."""
    try:
        call = make()
    except ImportError as error:
        return Tried(f"skipped: {error}")
    made: list[Tensor] = []
    begin = end = 0.0

    def first_call() -> None:
        nonlocal begin, end
        begin = time.perf_counter()
        made.append(call())
        if device == "cuda":
            torch.cuda.synchronize()
        end = time.perf_counter()

    peak = None
    try:
        if not memory_too:
            first_call()
        elif device == "cuda":
            peak = memory.device_peak(first_call)
        else:
            peak = memory.host_peak(lambda: first_call, rounds=1)
    except Exception as error:
        return Tried(failure(error))
    return Tried("ok", call, (end - begin) * 1e3, made[0], peak=peak)


def attempt_neural_tangents(scene: Scene, implementation: int, kept: contextlib.ExitStack) -> Tried:
    try:
        peer = NeuralTangents(scene, implementation)
    except ImportError as error:
        return Tried(f"skipped: {error}")
    except Exception as error:
        return Tried(failure(error))
    kept.callback(peer.close)
    try:
        begin = time.perf_counter()
        peer()
        ms = (time.perf_counter() - begin) * 1e3
        return Tried("ok", peer, ms, peer.kernel(), version=peer.version)
    except Exception as error:
        return Tried(failure(error))


def compare(tried: dict[str, Tried], reference: Tensor | None) -> None:
    """Fills in the errors; a provider that disagrees with the reference is not timed. Kernels are let go."""
    for state in tried.values():
        kernel, state.kernel = state.kernel, None
        if kernel is None or reference is None:
            continue
        if kernel.shape != reference.shape:
            state.status, state.call = f"wrong: its shape is {tuple(kernel.shape)}", None
            continue
        difference = (kernel.to(reference.device) - reference).double().norm()
        state.error = float(difference / reference.double().norm())
        if not state.error <= WRONG:
            said = f"{state.error:.2g} from torch_func, {WRONG:g} is allowed"
            state.status, state.call = f"wrong: {said}", None


def checked_error(scene: Scene) -> float:
    """Without a reference: the engine's check, a product with Theta against J (J^T v) by autograd."""
    few = replace(scene, images=scene.images[:8])
    found = ntk.ntk(few.model, few.images, readout=few.readout, precision="fp32", check=True)
    assert found.check is not None
    return found.check.error


def measure(case: Case, device: str, *, quick: bool, clock: Clock) -> list[Row]:
    """Checks every provider against torch.func's Jacobians, then times those that agree, in turns."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(case.shape, generator=generator).to(device)
    model = networks.make(case.network, case.shape[1], side=case.shape[2]).to(device)
    scene = Scene(case.network, model, images, case.readout)
    ntk_providers.measure_rates_anew()
    plan = ntk.plan(model, images, readout=case.readout, precision="fp32")
    arithmetic = Arithmetic(capture_flop(model, images, plan.readouts), 2.0 * plan.contraction_macs)
    # Without this torch_func and hooks would convolve in TF32 on a GPU.
    with contextlib.ExitStack() as kept, torch.backends.cudnn.flags(allow_tf32=False):
        tried = {
            name: attempt(make, device, memory_too=True)
            for name, make in makers(case, scene, device).items()
        }
        for name, implementation in NT.items():
            if name in case.against:
                tried[name] = attempt_neural_tangents(scene, implementation, kept)
        compare(tried, tried["torch_func"].kernel if "torch_func" in tried else None)
        for state in tried.values():
            if case.timed and state.call is not None and (state.ms or 0.0) > 1e3 * LONGEST:
                state.status, state.call = f"untimed: its first call took over {LONGEST:g} s", None
        if not case.against:
            tried["advfast"].error = checked_error(scene)
        rows = {
            name: _row(case, name, state, arithmetic, plan.readouts)
            for name, state in tried.items()
        }
        if not case.timed:
            return list(rows.values())
        products = _products(device, quick=quick)
        items = {name: Timed(run) for name, (run, _) in products.items()}
        items |= {name: Timed(state.call) for name, state in tried.items() if state.call}
        seconds, least, patience = (0.5, 3, 0.5) if quick else (15.0, 5, PATIENCE)
        times = take_turns(
            items, clock, seconds=seconds, min_rounds=least, warmups=1,
            known={name: state.ms for name, state in tried.items() if state.ms is not None},
            rounds_of=lambda ms: max(2, int(1e3 * patience / ms)),
        )  # fmt: skip
    rates = {name: flop / times[name].median / 1e6 for name, (_, flop) in products.items()}
    for name, rate in rates.items():
        own = times[name]
        rows[name] = replace(
            _row(case, name, Tried(), None, plan.readouts), ms_p20=own.percentile(20),
            ms_p50=own.median, ms_p80=own.percentile(80), rounds=len(own.ms), gflop_per_s=rate,
        )  # fmt: skip
    return [
        _timed(row, times, arithmetic, rates) if name in tried and name in times else row
        for name, row in rows.items()
    ]


def _products(device: str, *, quick: bool) -> dict[str, tuple[Callable[[], object], float]]:
    """Large matrix products, (call, FLOP): the rate of this machine in the same rounds."""
    side = 8192 if device == "cuda" else 512 if quick else 2048
    a, b = (torch.rand(side, side, device=device) for _ in range(2))

    def tf32() -> None:
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            torch.mm(a, b)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False

    found: dict[str, tuple[Callable[[], object], float]] = {
        "matmul": (lambda: torch.mm(a, b), 2.0 * side**3)
    }
    if device == "cuda":
        found["matmul_tf32"] = tf32, 2.0 * side**3
    return found


def _row(case: Case, name: str, state: Tried, arithmetic: Arithmetic | None, readouts: int) -> Row:
    status = state.status
    if status == "ok" and not case.timed:
        status = "untimed: memory alone"
    package = "advfast" if name.startswith("advfast") else PACKAGES.get(name)
    return Row(
        suite="ntk", op=f"ntk-{case.readout}", provider=name,
        dtype="tf32" if name.endswith("tf32") else "fp32", layout="NCHW", shape=case.size,
        case=case.network, peer_version=state.version or (package_version(package) if package else ""),
        readouts=readouts or None, first_ms=state.ms, peak_bytes=state.peak, rel_error=state.error,
        capture_gflop=arithmetic and arithmetic.capture / 1e9,
        contraction_gflop=arithmetic and arithmetic.contraction / 1e9, status=status,
    )  # fmt: skip


def _timed(row: Row, times: dict[str, Times], work: Arithmetic, rates: dict[str, float]) -> Row:
    """The row with its times; rates in GFLOP/s."""
    name, mine = row.provider, times[row.provider]
    low = rates["matmul_tf32"] if name.endswith("tf32") else rates["matmul"]
    # FLOP at GFLOP/s are nanoseconds.
    floor = (work.capture / rates["matmul"] + work.contraction / low) / 1e6
    return replace(
        row, ms_p20=mine.percentile(20), ms_p50=mine.median, ms_p80=mine.percentile(80),
        rounds=len(mine.ms), floor_ms=floor, ratio_to_floor=mine.median / floor,
        percent_of_matmul=100 * floor / mine.median,
        gflop_per_s=(work.capture + work.contraction) / mine.median / 1e6,
        ratio_to_torch_func=ratio(times, "torch_func", name),
        ratio_to_neural_tangents=ratio(times, "neural_tangents", name),
    )  # fmt: skip


def skipped(case: Case, reason: str) -> Row:
    return _row(replace(case, timed=True), "all", Tried(f"skipped: {reason}"), None, 0)
