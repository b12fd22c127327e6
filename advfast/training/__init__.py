"""Adversarial training."""

from .checkpoint import load as load
from .result import TrainResult as TrainResult
from .train import train as train
