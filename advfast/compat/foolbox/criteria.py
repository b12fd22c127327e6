"""When an input counts as adversarial."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from .tensors import unwrapped


class Criterion(ABC):
    """A function of (perturbed [B, ...], outputs [B, K]) that returns bool [B]; `a & b` asks for both."""

    @abstractmethod
    def __repr__(self) -> str: ...

    @abstractmethod
    def __call__(self, perturbed: Any, outputs: Any) -> Any: ...

    def __and__(self, other: Criterion) -> Criterion:
        return _Both(self, other)


class _Both(Criterion):
    def __init__(self, first: Criterion, second: Criterion) -> None:
        self.first = first
        self.second = second

    def __repr__(self) -> str:
        return f"{self.first!r} & {self.second!r}"

    def __call__(self, perturbed: Any, outputs: Any) -> Any:
        first, restore = unwrapped(self.first(perturbed, outputs))
        second, _ = unwrapped(self.second(perturbed, outputs))
        return restore(first & second)


def _predicted(outputs: Any, classes: Any, name: str) -> tuple[Any, Any]:
    logits, restore = unwrapped(outputs, "outputs")
    predicted = logits.argmax(-1)
    if predicted.shape != classes.shape:
        raise ValueError(
            f"{name} must have shape {tuple(predicted.shape)}, one for each input, "
            f"got {tuple(classes.shape)}"
        )
    return predicted, restore


class Misclassification(Criterion):
    """Adversarial is what is not classified as its label; labels int [B]."""

    def __init__(self, labels: Any) -> None:
        self.labels = unwrapped(labels, "labels")[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.labels!r})"

    def __call__(self, perturbed: Any, outputs: Any) -> Any:
        predicted, restore = _predicted(outputs, self.labels, "labels")
        return restore(predicted != self.labels)


class TargetedMisclassification(Criterion):
    """Adversarial is what is classified as its target; target_classes int [B]."""

    def __init__(self, target_classes: Any) -> None:
        self.target_classes = unwrapped(target_classes, "target_classes")[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target_classes!r})"

    def __call__(self, perturbed: Any, outputs: Any) -> Any:
        predicted, restore = _predicted(outputs, self.target_classes, "target_classes")
        return restore(predicted == self.target_classes)
