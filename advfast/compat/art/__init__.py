"""The evasion attacks of the Adversarial Robustness Toolbox (ART 1.20) for PyTorch, on advfast's engine.

The modules are where ART has them, so that ``from art.`` becomes ``from advfast.compat.art.``. A
`PyTorchClassifier` of ART itself is taken as well. See docs/migration/art.md.
"""

from typing import NoReturn

from .absent import missing
from .attacks.evasion import BasicIterativeMethod as BasicIterativeMethod
from .attacks.evasion import FastGradientMethod as FastGradientMethod
from .attacks.evasion import MomentumIterativeMethod as MomentumIterativeMethod
from .attacks.evasion import ProjectedGradientDescent as ProjectedGradientDescent
from .attacks.evasion import ProjectedGradientDescentPyTorch as ProjectedGradientDescentPyTorch
from .estimators.classification import PyTorchClassifier as PyTorchClassifier


def __getattr__(name: str) -> NoReturn:
    raise missing(name)
