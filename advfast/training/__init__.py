"""Adversarial training: one loop, many methods."""

from .catastrophic import CatastrophicOverfitting as CatastrophicOverfitting
from .checkpoint import load as load
from .early_stopping import EarlyStopping as EarlyStopping
from .loop import NonFiniteLoss as NonFiniteLoss
from .result import Selected as Selected
from .result import TrainResult as TrainResult
from .sweep import sweep as sweep
from .sweep_result import SweepResult as SweepResult
from .train import train as train
