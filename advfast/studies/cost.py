"""What a study will cost, said before it begins: counted, and timed on this machine."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from advfast.evaluation.words import duration, many
from advfast.training import methods

EPOCHS = 30
"""Of `advfast.train`, where none are given."""
PGD_20 = 1 + 2 * 20
"""Passes of an image that PGD-20 is tested on, with the clean one."""
_TIMED = 32
"""Images of the pass that is timed."""


@dataclass(frozen=True)
class Cost:
    """
    Attributes:
        passes: images through the network once, forward, or backward to the input or to the weights.
        flops: of one such pass, multiplications and additions counted apart.
        seconds: of all passes, at the rate at which a forward pass ran on this machine in fp32 just now.
    """

    passes: float
    flops: float
    seconds: float

    def __str__(self) -> str:
        device = "this GPU" if torch.cuda.is_available() else "this CPU"
        return (
            f"{many(round(self.passes))} passes of an image, {self.passes * self.flops:.2g} FLOPs: about "
            f"{duration(self.seconds)} on {device}"
        )


def estimate(model: nn.Module, images: Tensor, passes: float) -> Cost:
    """
    Args:
        model: images [B, C, H, W] -> logits; it is copied and not changed.
        images: [N, C, H, W], some of those that it will see.
        passes: as in `Cost`: of a training, images a step x steps x the method's `passes()`.
    """
    # Not before it is used: it loads Triton.
    from torch.utils.flop_counter import FlopCounterMode

    net, batch = copy.deepcopy(model).eval(), images[:_TIMED]
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            net(batch)
        times = []
        for _ in range(3):
            started = time.perf_counter()
            net(batch)
            if batch.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
    each = sorted(times)[1] / len(batch)
    return Cost(passes, counter.get_total_flops() / len(batch), passes * each)


def training_passes(model: nn.Module, images: int, arguments: Mapping[str, Any]) -> float:
    """Passes of a training.

    Args:
        images: of an epoch.
        arguments: of `advfast.train`: method, epochs (30 where they are not given), eps, alpha, steps, norm count.
    """
    settings = methods.Settings(
        arguments.get("eps", 8 / 255), arguments.get("alpha"), arguments.get("steps"), arguments.get("norm", "linf"),
        options=dict(arguments.get("method_options") or {}),
    )  # fmt: skip
    method = methods.make(arguments.get("method", "pgd-at"), copy.deepcopy(model), settings)
    return images * arguments.get("epochs", EPOCHS) * method.passes()


def announce(study: str, cost: Cost) -> None:
    """On standard error."""
    print(f"{study}: {cost}", file=sys.stderr)
