"""Training on clean images, for comparison."""

from __future__ import annotations

from .base import Method


class Standard(Method):
    """Cross-entropy on the images as they are; the attack settings are not used."""

    trains_on = "clean"
