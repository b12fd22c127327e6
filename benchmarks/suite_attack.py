"""The attack suite: PGD as a whole, against hand-written loops and other libraries."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import networks
import torch
from peers import NORMS, PACKAGES, PEERS, Attack, PeerMaker, Settings
from records import Row, failure, package_version
from sequences import EAGER, Work
from timing import Clock, Timed, Times, ratio, take_turns
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from advfast.attacks import PGDAttack

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
RADII = {"linf": (8 / 255, 2 / 255), "l2": (1.0, 0.25)}  # eps, alpha in pixel units
Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Case:
    network: str
    shape: Shape  # [B, C, H, W]
    norm: str = "linf"
    layout: str = "NCHW"
    precision: str = "fp32"  # bf16: autocast around the network; the images stay fp32
    steps: int = 10

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape))

    def __str__(self) -> str:
        return " ".join(("attack", self.norm, self.precision, self.layout, self.size, self.network))

    def row(self, provider: str, status: str, package: str) -> Row:
        return Row(
            suite="attack", op=f"pgd-{self.steps}", norm=self.norm, provider=provider,
            dtype=self.precision, layout=self.layout, shape=self.size, case=self.network,
            peer_version=package_version(package), status=status,
        )  # fmt: skip


def cases(device: str, *, quick: bool) -> Iterator[Case]:
    if quick:
        yield Case("small-cnn", (16, 1, 28, 28), steps=3)
        yield Case("resnet18-w8", (4, 3, 32, 32), steps=3)
        yield Case("small-cnn", (16, 1, 28, 28), "l2", steps=3)
        return
    if device == "cpu":
        small, large = ("small-cnn", (64, 1, 28, 28)), ("resnet18-w16", (32, 3, 32, 32))
    else:
        small, large = ("small-cnn", (256, 1, 28, 28)), ("resnet18-w64", (512, 3, 32, 32))
    yield Case(*large)
    yield Case(*small)
    yield Case(*large, layout="NHWC")
    yield Case(*large, norm="l2")
    if device == "cuda":
        yield Case(*large, layout="NHWC", precision="bf16")
        yield Case(*small, precision="bf16")


def _autocast(case: Case, device: str) -> contextlib.AbstractContextManager[object]:
    return torch.autocast(device, torch.bfloat16, enabled=case.precision == "bf16")


def by_hand(model: Callable[[Tensor], Tensor], case: Case, device: str, steps: int) -> Attack:
    """The loop as training scripts ship it: autograd.grad, then the eager sequence of the step."""
    eps, alpha = RADII[case.norm]
    step = EAGER["pgd_step_", case.norm]

    def run(images: Tensor, labels: Tensor) -> Tensor:
        x = images.clone().detach()
        for _ in range(steps):
            x.requires_grad = True
            with _autocast(case, device):
                cost = cross_entropy(model(x), labels)
            (grad,) = torch.autograd.grad(cost, x)
            x = step(Work(x, images, grad, alpha, eps))[0]
        return x

    return run


def network_alone(model: nn.Module, case: Case, device: str) -> Attack:
    """As many passes forward and back to the input as the attack takes: the plain net's floor."""

    def run(images: Tensor, labels: Tensor) -> Tensor:
        x = images.clone().requires_grad_()
        for _ in range(case.steps):
            with _autocast(case, device):
                cost = cross_entropy(model(x), labels)
            torch.autograd.grad(cost, x)
        return images

    return run


Maker = Callable[[nn.Module, int], Attack]


def providers(case: Case, device: str, *, compile: bool) -> dict[str, Maker]:
    """Each takes (its own copy of the network, number of steps)."""
    eps, alpha = RADII[case.norm]

    def ours(model: nn.Module, steps: int, fold: bool) -> Attack:
        return PGDAttack(
            model, eps, alpha, steps, False, norm=case.norm, fold=fold, precision=case.precision
        )

    def theirs(maker: PeerMaker, model: nn.Module, steps: int) -> Attack:
        return maker(model, Settings(case.norm, eps, alpha, steps, case.shape))

    found: dict[str, Maker] = {
        "torch": lambda model, steps: by_hand(model, case, device, steps),
        "advfast": partial(ours, fold=True),
        "advfast_exact": partial(ours, fold=False),
    }
    if compile:
        found["torch_compile"] = lambda model, steps: by_hand(
            torch.compile(model, dynamic=False), case, device, steps
        )
    if case.precision == "fp32":
        for name, maker in PEERS.items():
            if case.norm in NORMS[name]:
                found[name] = partial(theirs, maker)
    return found


def saved_bytes(model: nn.Module, attack: Attack, images: Tensor, labels: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass of one step, parameters not counted."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = t  # the reference keeps the address from being used again
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        attack(images, labels)
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def peak_bytes(attack: Attack, images: Tensor, labels: Tensor) -> int:
    """Device memory that the attack takes above what was allocated before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attack(images, labels)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


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
    same_bits = case.norm == "linf" and provider not in ("torch_compile", "advfast")
    if device == "cpu" and case.precision == "fp32" and same_bits:
        return "" if torch.equal(got, wanted) else "not the bits of the hand-written loop"
    # Other arithmetic, or a GPU's atomic additions: the same attack must be as strong.
    ours, theirs = loss(got), loss(wanted)
    if abs(ours - theirs) > 0.02 * max(1.0, abs(theirs)):
        return f"its loss is {ours:.5g}, the hand-written loop's {theirs:.5g}"
    return ""


def measure(case: Case, device: str, *, quick: bool, clock: Clock) -> list[Row]:
    """Checks every provider against the hand-written loop, then times those that agree with it."""
    generator = torch.Generator().manual_seed(1)
    layout = LAYOUTS[case.layout]
    images = torch.rand(case.shape, generator=generator).to(device).contiguous(memory_format=layout)
    labels = torch.randint(10, case.shape[:1], generator=generator).to(device)
    net = networks.make(case.network, case.shape[1], layout).to(device)

    def loss(x: Tensor) -> float:
        with torch.no_grad():
            return float(cross_entropy(net(x), labels))

    wanted = by_hand(net, case, device, case.steps)(images, labels)
    status: dict[str, str] = {"network": "ok"}
    memory: dict[str, int] = {}
    equal: dict[str, float] = {}
    passes = network_alone(copy.deepcopy(net), case, device)
    items: dict[str, Timed] = {"network": Timed(partial(passes, images, labels))}
    torch.compiler.reset()
    for name, make in providers(case, device, compile=not quick).items():
        # A copy each: some peers leave gradients in the parameters.
        model = copy.deepcopy(net)
        try:
            attack = make(model, case.steps)
        except ImportError as error:
            status[name] = f"skipped: {error}"
            continue
        try:
            got = attack(images, labels)
            if device == "cuda":
                memory[name] = peak_bytes(attack, images, labels)
            else:
                memory[name] = saved_bytes(model, make(model, 1), images, labels)
        except Exception as error:
            status[name] = failure(error)
            continue
        equal[name] = float((got == wanted).double().mean())
        wrong = fault(case, device, name, got, wanted, images, loss)
        status[name] = f"wrong: {wrong}" if wrong else "ok"
        if not wrong:
            items[name] = Timed(partial(attack, images, labels))
    seconds, least = (1.0, 3) if quick else (20.0, 7)
    times = take_turns(items, clock, seconds=seconds, min_rounds=least, warmups=1)
    return [
        _row(case, name, state, times, memory.get(name), equal.get(name))
        for name, state in status.items()
    ]


def _row(
    case: Case, name: str, state: str, times: dict[str, Times], memory: int | None,
    equal: float | None,
) -> Row:  # fmt: skip
    package = PACKAGES.get(name, "advfast" if name.startswith("advfast") else "torch")
    row = case.row(name, state, package)
    if name not in times:
        return row
    mine = times[name]
    return replace(
        row, floor_ms=times["network"].median, ms_p20=mine.percentile(20), ms_p50=mine.median,
        ms_p80=mine.percentile(80), rounds=len(mine.ms), memory_bytes=memory, equal_share=equal,
        ratio_to_torch=ratio(times, "torch", name),
    )  # fmt: skip


def skipped(case: Case, reason: str) -> Row:
    return case.row("all", f"skipped: {reason}", "advfast")
