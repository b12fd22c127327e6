"""Foolbox's calls on the attacks of this library: ``import advfast.compat.foolbox as fb``.

PyTorch only. The attacks are those of `attacks`; models, criteria and attacks of an installed foolbox can be mixed in.
"""

from typing import NoReturn

from . import attacks as attacks
from . import criteria as criteria
from . import distances as distances
from . import evaluation as utils
from . import models as models
from .attacks import Attack as Attack
from .criteria import Criterion as Criterion
from .criteria import Misclassification as Misclassification
from .criteria import TargetedMisclassification as TargetedMisclassification
from .evaluation import accuracy as accuracy
from .evaluation import samples as samples
from .models import Model as Model
from .models import PyTorchModel as PyTorchModel

__all__ = [
    "Attack", "Criterion", "Misclassification", "Model", "PyTorchModel", "TargetedMisclassification",
    "accuracy", "attacks", "criteria", "distances", "models", "samples", "utils",
]  # fmt: skip


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(
        f"advfast.compat.foolbox has no {name}: it has {', '.join(__all__)}; the rest is foolbox's "
        "own, which takes any advfast model in foolbox.PyTorchModel"
    )
