"""Attacks on one inner loop."""

from .pgd import PGDAttack as PGDAttack
