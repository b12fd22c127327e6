"""`PGDAttack` behind the call of adv-lib's pgd_linf.

adv-lib returns the clean image where it found nothing; ours returns the last iterate.
"""

import torch
from adv_lib import attacks
from torch import Tensor, nn

from advfast import PGDAttack

LOSSES = {"ce": "ce", "dl": "margin", "dlr": "dlr"}


def pgd_linf(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    ε: float | Tensor,
    targeted: bool = False,
    steps: int = 40,
    random_init: bool = True,
    restarts: int = 1,
    loss_function: str = "ce",
    relative_step_size: float = 0.01 / 0.3,
    absolute_step_size: float | None = None,
    callback: object = None,
) -> Tensor:
    if callback is not None:
        raise TypeError("callback is adv-lib's own")
    eps = ε.reshape(-1, *[1] * (inputs.dim() - 1)) if isinstance(ε, torch.Tensor) else ε
    attack = PGDAttack(
        model, eps, absolute_step_size or eps * relative_step_size, steps, random_init,
        loss=LOSSES[loss_function.lower()], targeted=targeted, restarts=restarts,
    )  # fmt: skip
    return attack(inputs, labels)


attacks.pgd_linf = pgd_linf
