"""What the training loop asks of a modifier."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from advfast.data import Batch


class Modifier:
    """Goes with any method; every hook does nothing unless overridden. Several compose in the order given.

    A modifier whose `state_dict` holds what it needs resumes like everything else.
    """

    name = "modifier"

    def begin(self, model: nn.Module) -> None:
        """Before the first step, with the model as it will be trained (on its device)."""

    def batch(self, batch: Batch) -> Batch:
        """Before the images are attacked: another batch, for example a mixed one."""
        return batch

    def after_step(self, model: nn.Module) -> None:
        """After the optimiser's step."""

    @contextmanager
    def evaluating(self, model: nn.Module) -> Iterator[None]:
        """Around evaluation and saving: the weights that count."""
        yield

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, lists and dictionaries of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave; called after `begin`."""
