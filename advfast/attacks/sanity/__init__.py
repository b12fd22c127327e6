"""Checks that catch robustness which is not there."""

from .finding import Finding as Finding
from .finding import Sweep as Sweep
