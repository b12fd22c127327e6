"""The attack functions that papers' repositories carry with them, on advfast's engine.

`attack_pgd` of Rice et al. (ICML 2020, robust overfitting) and of Wong et al. (ICLR 2020, Fast), `trades_loss` and
`_pgd_whitebox` of Zhang et al. (ICML 2019, TRADES), `LinfPGDAttack` and `L2PGDAttack` of advertorch and of Rade's
adversarial_robustness_pytorch. Names and order of the arguments are theirs; what they read from globals is a keyword
here. Every function takes an nn.Module or any other callable, and further settings of `advfast.PGDAttack` (fold,
precision, capture and so on) as keywords.

A model is attacked in the modes in which it comes, as theirs is, and left as it was found: running statistics that the
passes of an attack in train mode moved are put back (bn="train-update" lets them move).
"""

from .deltas import attack_pgd as attack_pgd
from .deltas import attack_pgd_fast as attack_pgd_fast
from .deltas import attack_pgd_rice as attack_pgd_rice
from .perturb import L2PGDAttack as L2PGDAttack
from .perturb import LinfPGDAttack as LinfPGDAttack
from .trades import pgd_whitebox as _pgd_whitebox
from .trades import pgd_whitebox as pgd_whitebox
from .trades import trades_loss as trades_loss

__all__ = [
    "L2PGDAttack",
    "LinfPGDAttack",
    "_pgd_whitebox",
    "attack_pgd",
    "attack_pgd_fast",
    "attack_pgd_rice",
    "pgd_whitebox",
    "trades_loss",
]
