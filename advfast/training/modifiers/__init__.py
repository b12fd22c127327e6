"""Modifiers: what goes with any method. One file each."""

from .base import Modifier as Modifier
from .ema import EMA as EMA
