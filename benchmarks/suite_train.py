"""The training suite: a step of advfast.train against the same one by hand in torch and with torchattacks."""

from __future__ import annotations

import contextlib
import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import networks
import torch
import training_epochs
from records import Row, failure, package_version
from timing import Clock, Timed, Times, ratio
from torch import Tensor
from training_epochs import Epochs
from training_loops import ALPHA, EPS, Peer, peers

import advfast
from advfast.training import methods
from advfast.training.callbacks import TrainState

LR = 0.05
CHECKED = 3  # steps from equal starts whose losses are compared
WARMUPS = 2  # steps that are not counted
Shape = tuple[int, int, int, int]
Data = tuple[Tensor, Tensor]
Maker = Callable[[torch.nn.Module, methods.Settings], methods.Method]


@dataclass(frozen=True)
class Case:
    network: str
    batch: Shape  # [B, C, H, W]
    images: int  # an epoch
    epochs: int
    steps: int = 10
    method: str = "pgd-at"
    precision: str = "fp32"

    @property
    def size(self) -> str:
        return "x".join(map(str, self.batch))

    @property
    def op(self) -> str:
        return f"{self.method}-{self.steps}"

    def __str__(self) -> str:
        return f"{self.op} linf {self.precision} NCHW {self.size} {self.network}"

    def row(self, provider: str, status: str = "ok") -> Row:
        return Row(
            suite="train", op=self.op, norm="linf", provider=provider, dtype=self.precision,
            layout="NCHW", shape=self.size, case=f"{self.network}, {self.images} images",
            status=status, peer_version=package_version(provider.partition("_")[0]),
        )  # fmt: skip


def cases(device: str, *, quick: bool) -> Iterator[Case | Epochs]:
    if device == "cuda" and not quick:
        for batch, epochs in ((128, 3), (512, 4)):
            yield Epochs("resnet18-w64", (batch, 3, 32, 32), 50_000, epochs)
        yield Epochs(
            "resnet18-w64", (128, 3, 32, 32), 50_000, 15, method="fgsm-rs", steps=1, whole=True
        )
    for method in ("pgd-at", "trades"):
        if quick:
            yield Case("small-cnn", (32, 1, 28, 28), 128, epochs=1, steps=2, method=method)
        elif device == "cpu":
            yield Case("resnet18-w16", (128, 3, 32, 32), 2048, epochs=2, method=method)
            yield Case("small-cnn", (128, 1, 28, 28), 1024, epochs=6, method=method)
        else:
            for precision in ("fp32", "bf16"):
                yield Case(
                    "resnet18-w64", (512, 3, 32, 32), 10240, epochs=2, method=method,
                    precision=precision,
                )  # fmt: skip


def make_data(case: Case | Epochs) -> Data:
    """Ten noisy prototypes: something that a network learns in a few steps, made in no time."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(10, (case.images,), generator=generator)
    prototypes = torch.rand(10, *case.batch[1:], generator=generator)
    noise = torch.rand(case.images, *case.batch[1:], generator=generator)
    return (prototypes[labels] + noise) / 2, labels


@dataclass
class InStep:
    """A callback of advfast.train: the peers take each step that it has taken, on its batch, at its learning rate.

    So all take turns within one run, and validation, saving and their own turns are in nobody's time. A failing peer
    drops out.

    Attributes:
        seeds: set torch's generator before every step, the same for all: equal starts, where they draw alike.
    """

    peers: dict[str, Peer]
    data: Data
    clock: Clock
    device: str
    seeds: bool = False
    ms: dict[str, list[float]] = field(default_factory=lambda: {"advfast": []})
    losses: dict[str, list[float]] = field(default_factory=lambda: {"advfast": []})
    failed: dict[str, str] = field(default_factory=dict)
    started: float = 0.0

    def on_train_begin(self, state: TrainState) -> None:
        self._begin(state)

    def on_epoch_end(self, state: TrainState) -> None:
        self._begin(state)

    def on_step_end(self, state: TrainState) -> None:
        self._wait()
        self.ms["advfast"].append((time.perf_counter() - self.started) * 1e3)
        self.losses["advfast"].append(state.loss.item())
        assert state.batch is not None and state.batch.indices is not None
        chosen = state.batch.indices.cpu()
        images, labels = (t[chosen].to(self.device) for t in self.data)
        assert torch.equal(images, state.batch.images)
        done = len(self.ms["advfast"])
        names = [name for name in self.peers if name not in self.failed]
        first = done % max(1, len(names))
        for name in names[first:] + names[:first]:
            self._turn(name, images, labels, state.lr, done - 1)
        self._begin(state)

    def _turn(self, name: str, images: Tensor, labels: Tensor, lr: float, step: int) -> None:
        found: list[Tensor] = []
        if self.seeds:
            torch.manual_seed(step)
        try:
            ms = self.clock(Timed(lambda: found.append(self.peers[name](images, labels, lr))))
        except Exception as error:
            self.failed[name] = failure(error)
            return
        self.ms.setdefault(name, []).append(ms)
        self.losses.setdefault(name, []).append(found[0].item())

    def _begin(self, state: TrainState) -> None:
        if self.seeds:
            torch.manual_seed(len(self.ms["advfast"]))
        self._wait()
        self.started = time.perf_counter()

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def together(
    case: Case,
    data: Data,
    device: str,
    clock: Clock,
    *,
    method: Maker | None = None,
    seeds: bool = False,
    beside: bool = True,
    **settings: Any,
) -> InStep:
    """A run of advfast.train with its peers `beside` it, all from the same weights; method: None is the case's."""
    net = networks.make(case.network, case.batch[1]).to(device)
    untrained = copy.deepcopy(net)
    bf16 = case.precision == "bf16"
    autocast = partial(torch.autocast, device, torch.bfloat16) if bf16 else contextlib.nullcontext
    run = InStep({}, data, clock, device, seeds=seeds)
    makers = peers(
        lambda: copy.deepcopy(untrained).train(), case.method, case.steps, autocast
    ).items()
    for name, make in makers if beside else ():
        try:
            run.peers[name] = make()
        except ImportError as error:
            run.failed[name] = f"skipped: {error}"
    with tempfile.TemporaryDirectory() as folder:
        advfast.train(
            net, data, method=method or case.method, eps=EPS, alpha=ALPHA, steps=case.steps,
            epochs=case.epochs, val=(data[0][:64], data[1][:64]), batch_size=case.batch[0], lr=LR,
            seed=0, out=folder, precision=case.precision, overwrite=True, progress=False,
            callbacks=[run], **settings,
        )  # fmt: skip
    return run


def drawing_as_torchattacks(name: str, *, fold: bool) -> Maker:
    """A method whose attack draws its starts as the peers do, from torch's generator in every call."""

    def make(model: torch.nn.Module, settings: methods.Settings) -> methods.Method:
        method = methods.make(name, model, settings)
        for attack in method.attacks():
            attack.start, attack.fold, attack.capture = "torch", fold, "off"
        return method

    return make


def allowed(case: Case, provider: str, device: str) -> float:
    """The largest relative difference of these losses from those of the loop by hand.

    Rounding alone: "advfast" folds, so that now and then a sample crosses a kink of the network and ends elsewhere,
    with the same loss for the attack and another one in train mode. The KL of TRADES has next to no gradient at its
    start, and only the loop by hand computes it in the released form. Convolutions of a GPU are in TF32.
    """
    if device == "cuda" or case.precision != "fp32":
        return 2e-2
    return 1e-2 if provider == "advfast" or case.method == "trades" else 1e-6


def check(case: Case, data: Data, device: str, clock: Clock) -> tuple[dict[str, float], InStep]:
    """Relative differences of the losses of a few steps from equal starts, against those of "torch"."""
    few = CHECKED * case.batch[0]
    case, data = replace(case, epochs=1), (data[0][:few], data[1][:few])
    # The trainer's layout and optimiser round differently too.
    plain = {"channels_last": False, "optimizer_options": {"fused": False}}
    exact, folded = (
        together(
            case, data, device, clock, method=drawing_as_torchattacks(case.method, fold=fold),
            seeds=True, beside=not fold, capture="off", **settings,
        )
        for fold, settings in ((False, plain), (True, {}))
    )  # fmt: skip
    losses = {**exact.losses, "advfast_exact": exact.losses["advfast"], **folded.losses}
    wanted = losses["torch"]
    apart = {
        name: max(abs(a - b) / abs(b) for a, b in zip(found, wanted, strict=True))
        for name, found in losses.items()
        if name not in exact.failed
    }
    return apart, exact


def measure(case: Case | Epochs, device: str, *, quick: bool, clock: Clock) -> list[Row]:
    """First a few steps from equal starts, whose losses must agree; then the times, of steps as they come."""
    data = make_data(case)
    if isinstance(case, Epochs):
        return training_epochs.measure(case, data, device, clock)
    apart, checked = check(case, data, device, clock)
    run = together(case, data, device, clock)
    failed = {**run.failed, **checked.failed}
    times = {name: Times(tuple(ms[WARMUPS:])) for name, ms in run.ms.items() if name not in failed}
    rows = []
    for name in ("torch", "torchattacks", "advfast", "advfast_exact"):
        if name in failed:
            rows.append(case.row(name, failed[name]))
            continue
        row = replace(case.row(name), rel_error=apart[name])
        most = allowed(case, name, device)
        if not apart[name] <= most:
            status = f"wrong: losses {apart[name]:.2g} from torch's, {most:g} is allowed"
            rows.append(replace(row, status=status))
        elif name in times:
            rows.append(_timed(row, times))
        else:
            rows.append(replace(row, status="untimed: fold=False, its losses alone"))
    return rows


def _timed(row: Row, times: dict[str, Times]) -> Row:
    mine = times[row.provider]
    return replace(
        row, ms_p20=mine.percentile(20), ms_p50=mine.median, ms_p80=mine.percentile(80),
        rounds=len(mine.ms), ratio_to_torch=ratio(times, "torch", row.provider),
        ratio_to_torchattacks=ratio(times, "torchattacks", row.provider),
    )  # fmt: skip


def skipped(case: Case | Epochs, reason: str) -> Row:
    return case.row("all", f"skipped: {reason}")
