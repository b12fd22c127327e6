"""The gradient attacks of foolbox.attacks, under its names."""

from typing import NoReturn

from .base import Attack as Attack
from .base import FixedEpsilonAttack as FixedEpsilonAttack
from .base import Repeated as Repeated
from .projected_gradient_descent import L1BasicIterativeAttack as L1BasicIterativeAttack
from .projected_gradient_descent import L1FastGradientAttack as L1FastGradientAttack
from .projected_gradient_descent import (
    L1ProjectedGradientDescentAttack as L1ProjectedGradientDescentAttack,
)
from .projected_gradient_descent import L2BasicIterativeAttack as L2BasicIterativeAttack
from .projected_gradient_descent import L2FastGradientAttack as L2FastGradientAttack
from .projected_gradient_descent import (
    L2ProjectedGradientDescentAttack as L2ProjectedGradientDescentAttack,
)
from .projected_gradient_descent import LinfBasicIterativeAttack as LinfBasicIterativeAttack
from .projected_gradient_descent import LinfFastGradientAttack as LinfFastGradientAttack
from .projected_gradient_descent import (
    LinfProjectedGradientDescentAttack as LinfProjectedGradientDescentAttack,
)

FGSM = LinfFastGradientAttack
FGM = L2FastGradientAttack
LinfPGD = LinfProjectedGradientDescentAttack
L2PGD = L2ProjectedGradientDescentAttack
L1PGD = L1ProjectedGradientDescentAttack
PGD = LinfPGD


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(
        f"advfast.compat.foolbox.attacks has no {name}: it has PGD, BasicIterativeAttack and "
        "FastGradientAttack in Linf, L2 and L1; foolbox's own attacks take any advfast model in "
        "foolbox.PyTorchModel"
    )
