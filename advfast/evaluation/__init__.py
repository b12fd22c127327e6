"""Accuracy on clean and on attacked images."""

from .evaluate import AttackFailed as AttackFailed
from .evaluate import evaluate as evaluate
from .report import Accuracy as Accuracy
from .report import EvalReport as EvalReport
