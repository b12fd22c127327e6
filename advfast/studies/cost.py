"""What a study will cost, said before it begins: counted, and timed on this machine."""

from __future__ import annotations

import copy
import sys
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from advfast.evaluation.words import duration, many

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


def announce(study: str, cost: Cost) -> None:
    """On standard error."""
    print(f"{study}: {cost}", file=sys.stderr)
