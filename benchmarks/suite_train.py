"""The training suite: a PGD-AT step of advfast.train against the same one by hand in torch."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import networks
import torch
from records import Row, package_version
from sequences import EAGER, Work, start_linf
from timing import Clock, Timed, Times, ratio
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import advfast
from advfast.training.schedules import one_cycle

EPS, ALPHA, LR = 8 / 255, 2 / 255, 0.05
Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Case:
    network: str
    batch: Shape  # [B, C, H, W]
    images: int  # an epoch
    epochs: int  # the first one is not counted
    steps: int = 10

    @property
    def size(self) -> str:
        return "x".join(map(str, self.batch))

    def __str__(self) -> str:
        return f"pgd-at-{self.steps} linf fp32 NCHW {self.size} {self.network}"

    def row(self, provider: str, status: str) -> Row:
        return Row(
            suite="train", op=f"pgd-at-{self.steps}", norm="linf", provider=provider,
            dtype="fp32", layout="NCHW", shape=self.size,
            case=f"{self.network}, {self.images} images", status=status,
            peer_version=package_version("advfast" if provider == "advfast" else "torch"),
        )  # fmt: skip


def cases(device: str, *, quick: bool) -> Iterator[Case]:
    if quick:
        yield Case("small-cnn", (32, 1, 28, 28), 64, epochs=2, steps=2)
    elif device == "cpu":
        yield Case("small-cnn", (128, 1, 28, 28), 1024, epochs=6)
    else:
        yield Case("resnet18-w64", (512, 3, 32, 32), 10240, epochs=5)
        yield Case("small-cnn", (128, 1, 28, 28), 10240, epochs=5)


def make_data(case: Case) -> tuple[Tensor, Tensor]:
    """Ten noisy prototypes: something that a network learns in a few steps, made in no time."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(10, (case.images,), generator=generator)
    prototypes = torch.rand(10, *case.batch[1:], generator=generator)
    noise = torch.rand(case.images, *case.batch[1:], generator=generator)
    return (prototypes[labels] + noise) / 2, labels


def epochs_by_hand(
    model: nn.Module, case: Case, data: tuple[Tensor, Tensor], device: str
) -> Callable[[], float]:
    """A call is one epoch and returns its mean loss; all but the attack is as in advfast.train."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    order = torch.Generator().manual_seed(0)
    batch = case.batch[0]
    total = case.epochs * math.ceil(case.images / batch)
    step = EAGER["pgd_step_", "linf"]
    taken = 0

    def craft(images: Tensor, labels: Tensor) -> Tensor:
        model.eval()
        x = start_linf(Work(images, images, images, ALPHA, EPS))[0]
        for _ in range(case.steps):
            x.requires_grad = True
            (grad,) = torch.autograd.grad(cross_entropy(model(x), labels), x)
            x = step(Work(x, images, grad, ALPHA, EPS))[0]
        model.train()
        return x

    def epoch() -> float:
        nonlocal taken
        losses = []
        for chosen in torch.randperm(case.images, generator=order).split(batch):
            images, labels = (t[chosen].to(device) for t in data)
            for group in optimizer.param_groups:
                group["lr"] = one_cycle(taken, total, LR)
            loss = cross_entropy(model(craft(images, labels)), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            taken += 1
        return float(torch.stack(losses).mean())

    return epoch


def measure(case: Case, device: str, *, quick: bool, clock: Clock) -> list[Row]:
    """Both train from the same weights on the same batches; the last epoch's losses must agree.

    The loop by hand runs before and after, as a training run cannot take turns epoch by epoch.
    """
    data = make_data(case)
    net = networks.make(case.network, case.batch[1]).to(device)
    steps = case.images // case.batch[0]

    untrained = copy.deepcopy(net)
    losses: list[float] = []

    def by_hand() -> list[float]:
        epoch = epochs_by_hand(copy.deepcopy(untrained), case, data, device)
        return [clock(Timed(lambda: losses.append(epoch()))) / steps for _ in range(case.epochs)]

    before = by_hand()
    with tempfile.TemporaryDirectory() as folder:
        history = advfast.train(
            net, data, method="pgd-at", eps=EPS, alpha=ALPHA, steps=case.steps, epochs=case.epochs,
            val=(data[0][:64], data[1][:64]), batch_size=case.batch[0], lr=LR, seed=0, out=folder,
            overwrite=True, progress=False,
        ).history  # fmt: skip
    ours = [row["seconds"] * 1e3 / steps for row in history]
    loss, wanted = history[-1]["train_loss"], losses[-1]
    status = "ok"
    if not abs(loss - wanted) <= 0.1 * max(wanted, 0.5):  # the random starts differ
        status = f"wrong: loss {loss:.4g}, by hand {wanted:.4g}"
    hand = before[1:] + by_hand()[1:]
    times = {"torch": Times(tuple(hand)), "advfast": Times(tuple(ours[1:]))}
    rows = [case.row("torch", "ok"), case.row("advfast", status)]
    return [row if row.status != "ok" else _timed(row, times) for row in rows]


def _timed(row: Row, times: dict[str, Times]) -> Row:
    mine = times[row.provider]
    return replace(
        row, ms_p20=mine.percentile(20), ms_p50=mine.median, ms_p80=mine.percentile(80),
        rounds=len(mine.ms), ratio_to_torch=ratio(times, "torch", row.provider),
    )  # fmt: skip


def skipped(case: Case, reason: str) -> Row:
    return case.row("all", f"skipped: {reason}")
