"""What APGD raises: cross-entropy, the difference of logits ratio, or a function of the caller's.

In the order of operations of the published implementation, whose bits they have. From two classes on: where the ratio
has no definition in the paper, its denominator is what is left of it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from advfast.attacks.losses import Loss, TargetedLoss
from advfast.kernels.pgd.api import nearest

NAMES = ("ce", "dlr")
_TINY = 1e-12


def _own(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """-(z_y - max_{j != y} z_j) / (z_(1) - z_(3) + 1e-12), [B] (Croce and Hein, ICML 2020, eq. 6).

    With two classes z_(3) does not exist, and over z_(1) - z_(2) the ratio would be constant: the margin alone. It is
    not free of the scale of the logits, but the step is: a sign, or a normalised gradient.
    """
    ordered, order = logits.sort(dim=1)
    own = _own(logits, labels)
    right = (order[:, -1] == labels).to(logits.dtype)
    margin = -(own - ordered[:, -2] * right - ordered[:, -1] * (1.0 - right))
    if logits.shape[1] == 2:
        return margin
    return margin / (ordered[:, -1] - ordered[:, -3] + _TINY)


def dlr_towards(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12), [B] (Croce and Hein, ICML 2020, eq. 7).

    With three classes the denominator is z_(1) - z_(3) + 1e-12, with two there is none, as in `dlr`.
    """
    margin = -(_own(logits, labels) - _own(logits, targets))
    classes = logits.shape[1]
    if classes == 2:
        return margin
    ordered = logits.sort(dim=1).values
    if classes == 3:
        return margin / (ordered[:, -1] - ordered[:, -3] + _TINY)
    return margin / (ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + _TINY)


def _cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    return F.cross_entropy(logits, classes, reduction="none")


def check(loss: object) -> None:
    """
    Raises:
        ValueError: a name that there is not.
    """
    if not callable(loss) and loss not in NAMES:
        raise ValueError(
            f"loss must be one of {', '.join(NAMES)}, or a function of (logits, labels), got {loss!r}"
            f"{nearest(str(loss), NAMES)}"
        )


def loss_of(loss: str | Loss, targeted: bool) -> TargetedLoss:
    """(logits [B, K], labels [B], targets [B]) -> [B], to be raised; the targets are read if `targeted`.

    "ce" towards a target, and a function of (logits, labels), are lowered for the target in place of the label.
    """
    bare = loss if callable(loss) else _cross_entropy if loss == "ce" else dlr
    if not targeted:
        return lambda logits, labels, targets: bare(logits, labels)
    if loss == "dlr":
        return dlr_towards
    return lambda logits, labels, targets: -bare(logits, targets)


def check_values(values: object, rows: int) -> Tensor:
    """What a function of the caller's returned.

    Raises:
        TypeError, ValueError: it is not one value a row.
    """
    if not isinstance(values, Tensor):
        raise TypeError(f"loss must return a tensor, got {type(values).__name__}")
    if values.shape != (rows,):
        raise ValueError(
            f"loss must return one value a sample, shape ({rows},), got {tuple(values.shape)}; "
            "for torch's losses: reduction='none'"
        )
    return values
