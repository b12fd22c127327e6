"""The attack suite: PGD as a whole, against hand-written loops, other libraries and the convolutions alone."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import floors
import memory
import networks
import timeline
import torch
from attack_providers import RADII, Case, Maker, by_hand, network_alone, providers
from peers import PACKAGES, Attack
from records import Row, failure, package_version
from timing import Clock, Timed, Times, ratio, take_turns
from torch import Tensor
from torch.nn.functional import cross_entropy

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
FLOORS = {"NCHW": "convolutions", "NHWC": "convolutions_nhwc"}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_LOSS = {"advfast_bf16": 0.1}
"""How far the loss may be from the hand-written loop's, where that is not 2 %: other precision, other images."""


def cases(device: str, *, quick: bool) -> Iterator[Case]:
    if quick:
        yield Case("small-cnn", (16, 1, 28, 28), steps=3, everyone=True)
        yield Case("small-cnn", (16, 1, 28, 28), "l2", steps=3)
        yield Case("resnet18-w8", (4, 3, 32, 32), layout="NHWC", steps=3)
        yield Case("preact-resnet18-w8", (4, 3, 32, 32), steps=3)
        yield Case("vit-tiny", (2, 3, 32, 32), steps=1)
        yield Case("tiny", (4, 3, 8, 8), steps=40)
        yield Case("resnet18-w8", (8, 3, 32, 32), steps=1, timed=False)
    elif device == "cpu":
        yield Case("resnet18-w64", (16, 3, 32, 32), steps=3, everyone=True)
        yield Case("resnet18-w16", (64, 3, 32, 32), everyone=True)
        yield Case("small-cnn", (128, 1, 28, 28), steps=40, everyone=True)
        yield Case("mnist-cnn", (128, 1, 28, 28), steps=40)
        yield Case("preact-resnet18-w16", (64, 3, 32, 32))
        yield Case("vit-tiny", (16, 3, 32, 32), steps=3)
        yield Case("resnet18-w16", (64, 3, 32, 32), layout="NHWC")
        yield Case("resnet18-w16", (64, 3, 32, 32), "l2")
        yield Case("tiny", (4, 3, 8, 8), steps=200)
        yield Case("resnet18-w64", (64, 3, 32, 32), steps=2, timed=False)
    else:
        yield Case("resnet18-w64", (128, 3, 32, 32), everyone=True)
        yield Case("resnet18-w64", (128, 3, 32, 32), layout="NHWC", precision="bf16", everyone=True)
        yield Case("resnet18-w64", (1024, 3, 32, 32), layout="NHWC", precision="bf16")
        yield Case("small-cnn", (128, 1, 28, 28), steps=40, everyone=True)
        yield Case("preact-resnet18-w64", (128, 3, 32, 32), layout="NHWC", precision="bf16")
        yield Case("vit-tiny", (128, 3, 32, 32), precision="bf16")
        yield Case("resnet18-w64", (128, 3, 32, 32), "l2")
        yield Case("tiny", (4, 3, 8, 8), steps=200)


def fault(
    case: Case, device: str, provider: str, got: Tensor, wanted: Tensor, images: Tensor,
    loss: Callable[[Tensor], float],
) -> str:  # fmt: skip
    """What is wrong with adversarial images, or "". `wanted` is the hand-written loop's."""
    eps = RADII[case.norm][0]
    if got.shape != images.shape or not bool(torch.isfinite(got).all()):
        return f"shape {tuple(got.shape)}, or not finite"
    got = got.detach()  # cleverhans leaves its graph attached
    moved = (got.double() - images.double()).flatten(1)
    size = moved.abs().amax(1) if case.norm == "linf" else moved.norm(dim=1)
    # Peers hold the ball to the rounding of float32 only.
    if float(size.max()) > eps * (1 + 1e-6) + 1e-7 or got.min() < 0 or got.max() > 1:
        return f"outside of the ball or the box: {float(size.max()):.9g} against eps {eps:.9g}"
    folds = provider.startswith("advfast") and provider != "advfast_exact"
    same_bits = case.norm == "linf" and provider != "torch_compile" and not folds
    if device == "cpu" and case.precision == "fp32" and same_bits:
        return "" if torch.equal(got, wanted) else "not the bits of the hand-written loop"
    # Other arithmetic, or a GPU's atomic additions: the same attack must be as strong.
    ours, theirs = loss(got), loss(wanted)
    if abs(ours - theirs) > _LOSS.get(provider, 0.02) * max(1.0, abs(theirs)):
        return f"its loss is {ours:.5g}, the hand-written loop's {theirs:.5g}"
    return ""


@dataclass
class Tried:
    """A provider's first calls."""

    status: str = "ok"
    attack: Attack | None = None
    first_ms: float | None = None
    equal: float | None = None
    saved: int | None = None
    peak: int | None = None
    first_peak: int | None = None


@dataclass(frozen=True)
class Scene:
    """What all providers of a case are given."""

    case: Case
    device: str
    images: Tensor
    labels: Tensor
    wanted: Tensor
    loss: Callable[[Tensor], float]

    def attempt(self, name: str, make: Maker, model: torch.nn.Module) -> Tried:
        """The first call of all, timed once; whether it is right; then what it needs in memory."""
        case, images, labels = self.case, self.images, self.labels
        try:
            attack = make(model, case.steps)
        except ImportError as error:
            return Tried(f"skipped: {error}")
        made: list[Tensor] = []

        def first_call() -> None:
            made.append(attack(images, labels))

        saved = peak = first_peak = None
        try:
            begin = time.perf_counter()
            if self.device == "cuda":
                # With the memory of the graph, if it is captured; a replay takes no more.
                peak = first_peak = memory.device_peak(first_call)
            else:
                first_call()
            first = (time.perf_counter() - begin) * 1e3
            got = made.pop()
            wrong = fault(case, self.device, name, got, self.wanted, images, self.loss)
            if wrong:
                return Tried(f"wrong: {wrong}")
            equal = float((got == self.wanted).double().mean())
            del got
            if self.device == "cpu":
                saved = memory.saved_bytes(model, partial(make(model, 1), images, labels))
                short = partial(make(model, min(case.steps, 3)), images, labels)
                peak = memory.host_peak(lambda: short)
                if "compile" not in name:
                    first_peak = memory.host_peak(lambda: self._on_a_copy(make, model))
        except Exception as error:
            return Tried(failure(error))
        return Tried("ok", attack, first, equal, saved, peak, first_peak)

    def _on_a_copy(self, make: Maker, model: torch.nn.Module) -> Callable[[], Tensor]:
        attack = make(copy.deepcopy(model), min(self.case.steps, 3))
        return lambda: attack(self.images, self.labels)


def measure(case: Case, device: str, *, quick: bool, clock: Clock) -> list[Row]:
    """Checks every provider against the hand-written loop, then times those that agree with it."""
    generator = torch.Generator().manual_seed(1)
    layout = LAYOUTS[case.layout]
    images = torch.rand(case.shape, generator=generator).to(device).contiguous(memory_format=layout)
    labels = torch.randint(10, case.shape[:1], generator=generator).to(device)
    net = networks.make(case.network, case.shape[1], layout, side=case.shape[2]).to(device)

    def loss(x: Tensor) -> float:
        with torch.no_grad():
            return float(cross_entropy(net(x), labels))

    wanted = by_hand(net, case, device, case.steps)(images, labels)
    scene = Scene(case, device, images, labels, wanted, loss)
    torch.compiler.reset()
    # A copy each: some peers leave gradients in the parameters, and a first call is one of a new model.
    tried = {
        name: scene.attempt(name, make, copy.deepcopy(net))
        for name, make in providers(case, device, compile=case.timed and not quick).items()
    }
    if not case.timed:
        return [_row(case, name, state) for name, state in tried.items()]
    found = floors.products(net, images)
    dtype = _DTYPES[case.precision]
    alone = network_alone(copy.deepcopy(net), case, device)
    items: dict[str, Timed] = {"network": Timed(partial(alone, images, labels))}
    for name, own in LAYOUTS.items():
        if name == "NCHW" or any(len(product.inputs) == 4 for product in found):
            run = floors.products_alone(found, own, dtype, device, case.steps)
            items[FLOORS[name]] = Timed(run)
    for name, state in tried.items():
        if state.attack is not None:
            items[name] = Timed(partial(state.attack, images, labels))
    seconds, least = (1.0, 3) if quick else (15.0, 5)
    times = take_turns(items, clock, seconds=seconds, min_rounds=least, warmups=1)
    rate = floors.flops(found, case.steps) / floors.matmul_rate(dtype, device) * 1e3
    alone_rows = {name: Tried() for name in items if name not in tried}
    return [
        _timed(_row(case, name, state), times, rate, items.get(name), device)
        for name, state in (alone_rows | tried).items()
    ]


def _row(case: Case, name: str, state: Tried) -> Row:
    package = PACKAGES.get(name, "advfast" if name.startswith("advfast") else "torch")
    status = state.status
    if status == "ok" and not case.timed:
        status = "untimed: memory alone"
    return Row(
        suite="attack", op=f"pgd-{case.steps}", norm=case.norm, provider=name,
        dtype="bf16" if name == "advfast_bf16" else case.precision, layout=case.layout,
        shape=case.size, case=case.network, peer_version=package_version(package),
        first_ms=state.first_ms, memory_bytes=state.saved, peak_bytes=state.peak,
        first_peak_bytes=state.first_peak, equal_share=state.equal, status=status,
    )  # fmt: skip


def _timed(
    row: Row, times: dict[str, Times], matmul_ms: float, item: Timed | None, device: str
) -> Row:
    """The row with its times. matmul_ms: what its convolutions take at the rate of a matmul."""
    name = row.provider
    if name not in times or item is None:
        return row
    mine = times[name]
    floor = min(times[floor].median for floor in FLOORS.values() if floor in times)
    over = None
    if row.case == "tiny" and name not in ("network", *FLOORS.values()):
        steps = int(row.op.removeprefix("pgd-"))
        over = (mine.median - times["network"].median) / steps * 1e3
    row = replace(
        row, floor_ms=floor, ms_p20=mine.percentile(20), ms_p50=mine.median,
        ms_p80=mine.percentile(80), rounds=len(mine.ms), ratio_to_floor=mine.median / floor,
        percent_of_matmul=100 * matmul_ms / mine.median, us_over_network=over,
        ratio_to_torch=ratio(times, "torch", name),
        ratio_to_torchattacks=ratio(times, "torchattacks", name),
    )  # fmt: skip
    if device == "cuda" and (name == "torchattacks" or name.startswith("advfast")):
        seen = timeline.profiled(item.call)
        row = replace(
            row, graph_launches=seen.graph_launches, kernel_launches=seen.kernel_launches,
            other_ms=seen.other_ms,
        )  # fmt: skip
    return row


def skipped(case: Case, reason: str) -> Row:
    return _row(replace(case, timed=True), "all", Tried(f"skipped: {reason}"))
