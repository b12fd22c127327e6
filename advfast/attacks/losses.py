"""Losses that an attack raises (untargeted) or lowers (targeted), each one value a sample.

Labels are classes, int64 [B]; "ce" also takes probabilities, [B, K]. 16-bit logits are taken to float32 first, so that
no loss overflows or loses its gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from advfast.kernels.pgd.api import nearest

Loss = Callable[[Tensor, Tensor], Tensor]
TargetedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits [B, K], labels [B], classes to reach [B]) -> [B], to be raised."""


def widen(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _others_max(logits: Tensor, labels: Tensor) -> Tensor:
    """[B] the largest logit of another class."""
    # Not one_hot: on a CPU it reads the labels, and would wait for them.
    own = labels[:, None] == torch.arange(logits.shape[1], device=logits.device)
    return logits.masked_fill(own, -torch.inf).amax(1)


def _in_dtype(labels: Tensor, logits: Tensor) -> Tensor:
    return labels.to(logits.dtype) if labels.is_floating_point() else labels


def _own(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None])[:, 0]


def ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the class, or with the probabilities, [B]."""
    logits = widen(logits)
    return F.cross_entropy(logits, _in_dtype(labels, logits), reduction="none")


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


def _ce_towards(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    return -ce(logits, targets)


def _margin_towards(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """z_t - z_y, [B]."""
    logits = widen(logits)
    return _own(logits, targets) - _own(logits, labels)


def _dlr_towards(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2), [B] (Croce & Hein, ICML 2020, eq. 7). At least 4 classes."""
    logits = widen(logits)
    top = logits.topk(4, dim=1).values
    spread = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
    return _margin_towards(logits, labels, targets) / (spread + 1e-12)


LOSSES: dict[str, Loss] = {"ce": ce, "margin": margin, "dlr": dlr, "kl": kl}
MIN_CLASSES = {"margin": 2, "dlr": 3}
TARGETED_MIN_CLASSES = {"ce": 2, "margin": 2, "dlr": 4}
_TOWARDS: dict[str, TargetedLoss] = {
    "ce": _ce_towards,
    "margin": _margin_towards,
    "dlr": _dlr_towards,
}


def targeted(loss: str | Loss) -> TargetedLoss:
    """The form of a loss that an untargeted attack raises on its way to one given class.

    It knows the true class beside the one to reach, and so "margin" and "dlr" compare the two. A function of (logits,
    labels) is given the classes to reach as labels, and lowered.

    Raises:
        ValueError: "kl", which knows no classes, or a name that there is not.
    """
    check_loss(loss)
    if callable(loss):
        return lambda logits, labels, targets: -loss(logits, targets)
    if loss not in _TOWARDS:
        raise ValueError(
            f"loss={loss!r} has no targeted form; it must be one of {', '.join(_TOWARDS)}"
        )
    return _TOWARDS[loss]


def _through_log_softmax(logits: Tensor, probabilities: Tensor) -> Tensor:
    """d -(probabilities * log_softmax(logits)).sum() / d logits: softmax - probabilities, in the bits of autograd."""
    log_q = torch.log_softmax(logits, 1)
    return torch._log_softmax_backward_data(probabilities.neg(), log_q, 1, log_q.dtype)


def _ce_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    logits = widen(logits)
    if labels.is_floating_point():
        return _through_log_softmax(logits, labels.to(logits.dtype))
    own = torch.zeros_like(logits).scatter_(1, labels[:, None], 1.0)
    return _through_log_softmax(logits, own)


def _kl_gradient(logits: Tensor, clean_logits: Tensor) -> Tensor:
    return _through_log_softmax(widen(logits), torch.log_softmax(widen(clean_logits), 1).exp())


CLOSED: dict[str, Loss] = {"ce": _ce_gradient, "kl": _kl_gradient}
"""(logits, labels) -> d loss.sum() / d widen(logits), [B, K]: autograd's bits without its graph."""


def check_loss(loss: object) -> None:
    if not callable(loss) and loss not in LOSSES:
        names = ", ".join(LOSSES)
        raise ValueError(
            f"loss must be one of {names}, or a function of (logits, labels), got {loss!r}"
            f"{nearest(str(loss), list(LOSSES))}"
        )
