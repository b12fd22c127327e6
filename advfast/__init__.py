"""Fused kernels that make adversarial training and the analysis of adversarially trained networks fast."""

__version__ = "0.1.0"

from . import attacks as attacks
from . import kernels as kernels
from . import ntk as ntk
from . import studies as studies
from ._backend import available_impls as available_impls
from ._backend import info as info
from .attacks import AutoAttack as AutoAttack
from .attacks import AutoAttackResult as AutoAttackResult
from .attacks import PGDAttack as PGDAttack
from .attacks import bpda as bpda
from .evaluation import AttackFailed as AttackFailed
from .evaluation import EvalReport as EvalReport
from .evaluation import evaluate as evaluate
from .training import NonFiniteLoss as NonFiniteLoss
from .training import SweepResult as SweepResult
from .training import TrainResult as TrainResult
from .training import load as load
from .training import sweep as sweep
from .training import train as train
