"""Adversarial training: one loop, many methods."""

from .checkpoint import load as load
from .loop import NonFiniteLoss as NonFiniteLoss
from .result import Selected as Selected
from .result import TrainResult as TrainResult
from .sweep import sweep as sweep
from .sweep_result import SweepResult as SweepResult
from .train import train as train
