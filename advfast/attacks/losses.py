"""Losses that an attack raises (untargeted) or lowers (targeted), each one value a sample.

16-bit logits are taken to float32 first, so that no loss overflows or loses its gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from advfast.kernels.pgd.api import nearest

Loss = Callable[[Tensor, Tensor], Tensor]


def widen(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _others_max(logits: Tensor, labels: Tensor) -> Tensor:
    """[B] the largest logit of another class."""
    own = F.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).amax(1)


def _own(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None])[:, 0]


def ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, [B]."""
    return F.cross_entropy(widen(logits), labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y, [B] (Carlini & Wagner, S&P 2017, f_6 without its floor). At least 2 classes."""
    logits = widen(logits)
    return _others_max(logits, labels) - _own(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """(max_{j != y} z_j - z_y) / (z_(1) - z_(3)), [B] (Croce & Hein, ICML 2020, eq. 6). At least 3 classes."""
    logits = widen(logits)
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def kl(logits: Tensor, clean_logits: Tensor) -> Tensor:
    """KL(softmax(clean) || softmax(adversarial)), [B] (TRADES, Zhang et al., ICML 2019, eq. 5)."""
    log_q = F.log_softmax(widen(logits), 1)
    log_p = F.log_softmax(widen(clean_logits), 1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


LOSSES: dict[str, Loss] = {"ce": ce, "margin": margin, "dlr": dlr, "kl": kl}
MIN_CLASSES = {"margin": 2, "dlr": 3}


def check_loss(loss: object) -> None:
    if not callable(loss) and loss not in LOSSES:
        names = ", ".join(LOSSES)
        raise ValueError(
            f"loss must be one of {names}, or a function of (logits, labels), got {loss!r}"
            f"{nearest(str(loss), list(LOSSES))}"
        )
