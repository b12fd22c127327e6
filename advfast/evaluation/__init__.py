"""Accuracy on clean and on attacked images."""

from .api import AttackFailed as AttackFailed
from .api import evaluate as evaluate
from .report import Accuracy as Accuracy
from .report import EvalReport as EvalReport
