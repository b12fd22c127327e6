"""Whole epochs of advfast.train on a GPU, as its targets are given, beside an eager loop by hand."""

from __future__ import annotations

import copy
import statistics
import tempfile
from dataclasses import dataclass, replace
from functools import partial

import networks
import torch
from records import Row, failure, package_version
from timing import Clock, Timed, Times, ratio
from torch import Tensor, nn
from training_loops import ALPHA, EPS, peers

import advfast

LR = 0.05
PEER_STEPS = 30  # of the loop by hand; its epoch is their median times the steps of an epoch
WARMUPS = 5
Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Epochs:
    """A run of several epochs; the time is that of one (the first is not counted), or `whole` of all of them."""

    network: str
    batch: tuple[int, int, int, int]  # [B, C, H, W]
    images: int
    epochs: int
    method: str = "pgd-at"
    steps: int = 10
    precision: str = "bf16"
    whole: bool = False

    @property
    def size(self) -> str:
        return "x".join(map(str, self.batch))

    @property
    def op(self) -> str:
        count = f"{self.epochs} epochs" if self.whole else "epoch"
        steps = f"-{self.steps}" if self.method == "pgd-at" else ""
        return f"{self.method}{steps} {count}"

    def __str__(self) -> str:
        return f"{self.op} linf {self.precision} {self.size} {self.network}"

    def row(self, provider: str, status: str = "ok") -> Row:
        return Row(
            suite="train", op=self.op, norm="linf", provider=provider, dtype=self.precision,
            layout="NCHW" if provider == "torch" else "", shape=self.size,
            case=f"{self.network}, {self.images} images, crop and flip", status=status,
            peer_version=package_version(provider.partition("_")[0]),
        )  # fmt: skip


def measure(case: Epochs, data: Data, device: str, clock: Clock) -> list[Row]:
    """ "advfast": as captured graphs, which on a GPU is an error if it cannot be. "advfast_eager": the same without."""
    net = networks.make(case.network, case.batch[1]).to(device)
    times: dict[str, Times] = {}
    rows = []
    required = "required" if device == "cuda" else "auto"
    for provider, capture, epochs in (
        ("advfast", required, case.epochs),
        *([] if case.whole else [("advfast_eager", "off", 2)]),
    ):
        row = case.row(provider)
        try:
            ms, losses = _train(case, copy.deepcopy(net), data, capture, epochs)
        except Exception as error:
            rows.append(replace(row, status=failure(error)))
            continue
        if not losses[-1] < losses[0]:
            row = replace(
                row, status=f"wrong: the loss went from {losses[0]:.4g} to {losses[-1]:.4g}"
            )
        else:
            times[provider] = Times((sum(ms),) if case.whole else tuple(ms[1:]))
        rows.append(row)
    if case.method == "pgd-at":
        rows.append(case.row("torch"))
        times["torch"] = _by_hand(case, net, data, device, clock)
    return [_timed(row, times) if row.provider in times else row for row in rows]


def _train(
    case: Epochs, net: nn.Module, data: Data, capture: str, epochs: int
) -> tuple[list[float], list[float]]:
    """(milliseconds, mean losses) of the epochs; validation and saving are not in them."""
    alpha = ALPHA if case.method == "pgd-at" else None
    with tempfile.TemporaryDirectory() as folder:
        history = advfast.train(
            net, data, method=case.method, eps=EPS, alpha=alpha, steps=case.steps, epochs=epochs,
            val=(data[0][:64], data[1][:64]), batch_size=case.batch[0], lr=LR, seed=0, out=folder,
            augment=["crop", "flip"], precision=case.precision, capture=capture, overwrite=True,
            progress=False,
        ).history  # fmt: skip
    return [row["seconds"] * 1e3 for row in history], [row["train_loss"] for row in history]


def _by_hand(case: Epochs, net: nn.Module, data: Data, device: str, clock: Clock) -> Times:
    """Milliseconds of an epoch, from a few steps on images that are on the device; without augmentation."""
    bf16 = {"bf16": torch.bfloat16}.get(case.precision)
    autocast = partial(torch.autocast, device, bf16, bf16 is not None)
    model = copy.deepcopy(net).train()
    peer = peers(lambda: model, case.method, case.steps, autocast)["torch"]()
    images, labels = (part[: case.batch[0]].to(device) for part in data)
    found = [clock(Timed(lambda: peer(images, labels, LR))) for _ in range(PEER_STEPS)]
    steps = -(-case.images // case.batch[0])
    return Times(tuple(ms * steps for ms in found[min(WARMUPS, PEER_STEPS // 2) :]))


def _timed(row: Row, times: dict[str, Times]) -> Row:
    mine = times[row.provider]
    return replace(
        row, ms_p20=mine.percentile(20), ms_p50=statistics.median(mine.ms),
        ms_p80=mine.percentile(80), rounds=len(mine.ms),
        ratio_to_torch=ratio(times, "torch", row.provider),
    )  # fmt: skip
