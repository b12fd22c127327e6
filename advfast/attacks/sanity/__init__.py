"""Checks that catch robustness which is not there."""

from .compare import compare as compare
from .examine import examine as examine
from .finding import Finding as Finding
from .finding import Sweep as Sweep
from .modes import train_mode as train_mode
from .sweep import sweep as sweep
