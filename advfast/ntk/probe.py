"""Probe images: which ones, and the kernel of a network in training on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from advfast.attacks import AutoAttack, PGDAttack
from advfast.evaluation.named import named

from . import metrics as dense
from . import scalars
from .kernel import NTK, ntk
from .labels import one_hot

DEFAULT = ("trace", "top_share", "effective_rank", "alignment", "specialization")
"""Metrics, as far as the readout has them."""

Attack = str | Callable[[nn.Module, Tensor, Tensor], Tensor]


def balanced_probe(labels: Tensor, n: int, seed: int = 0) -> Tensor:
    """Numbers of n samples, as many of each class as can be, sorted by class: int64 [n].

    Args:
        labels: classes int [N].
        n: 1 .. N.
        seed: which samples of a class are taken depends on it and on `labels` alone.

    Raises:
        ValueError: n is out of range.
    """
    if not 1 <= n <= len(labels):
        raise ValueError(f"n must be 1 .. {len(labels)}, the number of samples, got {n}")
    labels = labels.cpu()
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    # The first of every class, then the second of every class, and so on: the first n of those.
    counts = torch.unique(labels, return_counts=True)[1].tolist()
    rank = torch.cat([torch.arange(count) for count in counts])
    taken = torch.argsort(rank, stable=True)[:n]
    return by_class[taken.sort().values]


class Probe:
    """Images whose kernel is taken again and again while a network trains, each time attacked anew.

    Args:
        x: images [N, ...] in [0, 1], not augmented.
        y: their classes int [N].
        attack: a name as in `advfast.evaluate`; a callable (model, images, labels) -> images; None for the clean kernel
            alone.
        readout: of `advfast.ntk.ntk`.
        arguments: of `advfast.ntk.ntk`.

    Raises:
        TypeError, ValueError: bad arguments.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        attack: Attack | None = "pgd-10",
        readout: Any = "full",
        **arguments: Any,
    ) -> None:
        if (
            not isinstance(x, Tensor)
            or not isinstance(y, Tensor)
            or x.dim() < 2
            or len(x) != len(y)
        ):
            got = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in (x, y)]
            raise ValueError(
                f"x must be images [N, ...] and y their classes [N], got {got[0]}, {got[1]}"
            )
        one_hot(y)  # the labels alone, before any training
        if isinstance(attack, str):
            _named(attack, nn.Identity(), 0.1, "linf")
        elif attack is not None and not callable(attack):
            raise TypeError(f"attack must be a name, a callable or None, got {attack!r}")
        self.x, self.y = x.detach().clone(), y.detach().clone()
        self.attack, self.readout, self.arguments = attack, readout, arguments

    def kernels(self, model: nn.Module, eps: float, norm: str, **arguments: Any) -> dict[str, NTK]:
        """ "clean", and "adversarial" where there is an attack; the model in eval mode, and left as it was.

        Args:
            eps, norm: of an attack that is a name.
            arguments: of `advfast.ntk.ntk`, where none were given before.
        """
        from advfast.training import rng

        before = rng.state()
        try:
            first = next(model.parameters())
            labels = self.y.to(first.device)
            images = {"clean": self.x.to(first.device, first.dtype)}
            if self.attack is not None:
                images["adversarial"] = self._attacked(model, images["clean"], labels, eps, norm)
            needed = isinstance(self.readout, str) and self.readout in ("margin", "loss")
            given = {"y1": labels if needed else None, "readout": self.readout}
            return {
                kind: ntk(model, x, **given, **arguments | self.arguments)
                for kind, x in images.items()
            }
        finally:
            rng.set_state(before)

    def measured(
        self,
        model: nn.Module,
        eps: float,
        norm: str,
        names: Iterable[str] | None = None,
        of: str = "trace",
        **arguments: Any,
    ) -> dict[str, tuple[dict[str, float], Tensor]]:
        """Of each of `kernels` its metrics, and the kernel [M, M] itself in float32 on the CPU, as it is kept.

        Args:
            names, of: as of `advfast.ntk.summary`; names None is `DEFAULT`.
        """
        found = {}
        for kind, theta in self.kernels(model, eps, norm, **arguments).items():
            labels, chosen = self.y.to(theta.tensor.device), names
            if chosen is None:
                known = scalars.allowed(theta.tensor.shape[2], labels)
                chosen = [name for name in DEFAULT if name in known]
            values = scalars.summary(theta, labels, chosen, of)
            found[kind] = values, dense.matrix(theta, of).float().cpu()
        return found

    def _attacked(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: str) -> Tensor:
        if callable(self.attack):
            modes = [(module, module.training) for module in model.modules()]
            try:
                return self.attack(model.eval(), x.clone(), y.clone()).detach()
            finally:
                for module, training in modes:
                    module.training = training
        assert isinstance(self.attack, str)
        return _named(self.attack, model, eps, norm)(x, y)


def _named(attack: str, model: nn.Module, eps: float, norm: str) -> PGDAttack | AutoAttack:
    made, _ = named(attack, model, eps=eps, norm=norm, seed=0, precision="fp32")
    if made is None:
        raise ValueError(f"attack must be one that changes the images, or None, got {attack!r}")
    return made
