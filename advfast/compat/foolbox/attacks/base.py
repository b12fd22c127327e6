"""How an attack is called: one or several radii, a criterion, three results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from advfast.attacks.state import crafting
from advfast.compat.modes import as_called, statistics_kept

from ..criteria import Criterion, Misclassification
from ..distances import LpDistance
from ..tensors import unwrapped


def get_criterion(criterion: Any) -> Any:
    """A criterion as it is, of foolbox's too; labels as Misclassification."""
    if isinstance(criterion, Criterion) or _is_a(criterion, "Criterion"):
        return criterion
    return Misclassification(criterion)


def _is_a(value: Any, name: str) -> bool:
    """By name: the criteria of an installed foolbox are taken without importing it."""
    return any(kind.__name__ == name for kind in type(value).__mro__)


def goal_of(criterion: Any) -> tuple[Tensor, bool]:
    """(classes int [B], whether they are to be reached).

    Raises:
        ValueError: a criterion that has no classes to follow a gradient of.
    """
    if _is_a(criterion, "Misclassification"):
        return unwrapped(criterion.labels, "labels")[0], False
    if hasattr(criterion, "target_classes"):
        return unwrapped(criterion.target_classes, "target_classes")[0], True
    raise ValueError(
        "unsupported criterion: this attack needs Misclassification or TargetedMisclassification, "
        f"got {criterion!r}"
    )


def verify_input_bounds(x: Tensor, model: Any) -> None:
    """Raises AssertionError, as foolbox does, with one synchronisation."""
    if not x.numel():
        return
    smallest, largest = torch.stack(torch.aminmax(x.detach())).tolist()
    lower, upper = model.bounds
    if not (smallest >= lower and largest <= upper):
        raise AssertionError(
            f"inputs must lie in the bounds ({lower}, {upper}) of the model, got values from "
            f"{smallest:.6g} to {largest:.6g}"
        )


def raise_if_kwargs(kwargs: dict[str, Any]) -> None:
    if kwargs:
        raise TypeError(f"the attack got an unexpected keyword argument {next(iter(kwargs))!r}")


def engine_model(model: Any) -> Any:
    """What the engine runs: the module of our PyTorchModel; any other model as a function."""
    network = getattr(model, "network", None)
    if isinstance(network, torch.nn.Module):
        return network
    return lambda images: unwrapped(model(images), "outputs")[0]


@contextmanager
def left_alone(model: Any) -> Iterator[None]:
    """Submodules run in the mode that they are in; running statistics are put back."""
    network = engine_model(model)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        statistics_kept(network),
        crafting(*as_called(network)),
    ):
        yield


class Attack(ABC):
    """Call it: ``raw, clipped, success = attack(model, inputs, criterion, epsilons=...)``."""

    distance: LpDistance

    @abstractmethod
    def __call__(
        self, model: Any, inputs: Any, criterion: Any, *, epsilons: Any, **kwargs: Any
    ) -> tuple[Any, Any, Any]: ...

    def repeat(self, times: int) -> Attack:
        """The best of `times` runs for each sample: the first one that succeeded."""
        return Repeated(self, times)

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={v}" for k, v in vars(self).items() if not k.startswith("_"))
        return f"{type(self).__name__}({shown})"


def _radii(epsilons: Any) -> tuple[list[Any], bool]:
    """(radii, whether a single one was given)."""
    if not isinstance(epsilons, Iterable) or (isinstance(epsilons, Tensor) and epsilons.dim() == 0):
        return [epsilons], True
    values = list(epsilons)
    if not values:
        raise ValueError("epsilons must be a number or at least one number, got none")
    return values, False


def _in_shape(raw: list[Tensor], clipped: list[Tensor], success: Tensor, restore, single: bool):
    if single:
        return restore(raw[0]), restore(clipped[0]), restore(success[0])
    return [restore(x) for x in raw], [restore(x) for x in clipped], restore(success)


class FixedEpsilonAttack(Attack):
    """An attack that looks for adversarial inputs within a given radius; a subclass writes `run`."""

    @abstractmethod
    def run(self, model: Any, inputs: Any, criterion: Any, *, epsilon: float, **kwargs: Any) -> Any:
        """Perturbed inputs, [B, ...], for one radius."""

    def __call__(
        self, model: Any, inputs: Any, criterion: Any, *, epsilons: Any, **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        """Attacks the inputs within each radius.

        Args:
            model: a PyTorchModel, or any object with `bounds` that maps inputs to logits.
            inputs: [B, ...] inside the bounds, a torch tensor or an EagerPy tensor of one.
            criterion: Misclassification, TargetedMisclassification, or labels int [B].
            epsilons: a radius or several, in the units of the bounds.

        Returns:
            (raw, clipped, success): what `run` returned; the same within epsilon of the inputs; bool [B], whether
            `clipped` meets the criterion. For several radii lists of K, and success is [K, B].

        Raises:
            AssertionError: inputs outside the bounds. NotImplementedError: a radius is None. TypeError: unknown
                keyword. ValueError: unsupported criterion or kind of tensor.
        """
        x, restore = unwrapped(inputs)
        verify_input_bounds(x, model)
        criterion = get_criterion(criterion)
        values, single = _radii(epsilons)
        if any(value is None for value in values):
            raise NotImplementedError(
                "an attack with a fixed radius needs numbers in epsilons, got None"
            )
        radii = [float(value) for value in values]
        raw, clipped = self._runs(model, x.detach(), criterion, radii, kwargs)
        with left_alone(model), torch.no_grad():
            success = [
                unwrapped(criterion(x, unwrapped(model(x), "outputs")[0]))[0] for x in clipped
            ]
        return _in_shape(raw, clipped, torch.stack(success), restore, single)

    def _runs(
        self, model: Any, x: Tensor, criterion: Any, radii: list[float], kwargs: dict[str, Any]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """(raw, clipped) for each radius."""
        raw = [
            unwrapped(self.run(model, x, criterion, epsilon=radius, **kwargs))[0].detach()
            for radius in radii
        ]
        pairs = zip(raw, radii, strict=True)
        return raw, [self.distance.clip_perturbation(x, y, radius) for y, radius in pairs]


class Repeated(Attack):
    """The best of several runs of an attack; see `Attack.repeat`."""

    def __init__(self, attack: Attack, times: int) -> None:
        if times < 1:
            raise ValueError(f"times must be 1 or more, got {times}")
        self.attack = attack
        self.times = times

    @property
    def distance(self) -> LpDistance:  # type: ignore[override]  # read-only here
        return self.attack.distance

    def __call__(
        self, model: Any, inputs: Any, criterion: Any, *, epsilons: Any, **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        x, restore = unwrapped(inputs)
        criterion = get_criterion(criterion)
        values, single = _radii(epsilons)
        raw, clipped, success = self.attack(model, x, criterion, epsilons=values, **kwargs)
        for _ in range(self.times - 1):
            new_raw, new_clipped, new_success = self.attack(
                model, x, criterion, epsilons=values, **kwargs
            )
            better = new_success & ~success
            for k in range(len(values)):
                pick = better[k].reshape(-1, *[1] * (x.dim() - 1))
                raw[k] = torch.where(pick, new_raw[k], raw[k])
                clipped[k] = torch.where(pick, new_clipped[k], clipped[k])
            success = success | new_success
        return _in_shape(raw, clipped, success, restore, single)

    def repeat(self, times: int) -> Attack:
        return Repeated(self.attack, self.times * times)
