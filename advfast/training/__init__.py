"""Adversarial training: one loop, many methods."""

from .catastrophic import CatastrophicOverfitting as CatastrophicOverfitting
from .checkpoint import load as load
from .early_stopping import EarlyStopping as EarlyStopping
from .kernel_monitor import KernelMonitor as KernelMonitor
from .logger import Logger as Logger
from .loop import NonFiniteLoss as NonFiniteLoss
from .mlflow import MLflow as MLflow
from .pnm import PNM as PNM
from .pnm import AdaPNM as AdaPNM
from .result import Selected as Selected
from .result import TrainResult as TrainResult
from .sweep import sweep as sweep
from .sweep_result import SweepResult as SweepResult
from .tensorboard import TensorBoard as TensorBoard
from .train import train as train
from .wandb import WandB as WandB
