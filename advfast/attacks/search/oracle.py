"""A model opened for an attack that asks it many times: logits and input gradients of any rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from advfast.attacks import checks
from advfast.attacks.losses import widen
from advfast.attacks.network import Network, open_network
from advfast.attacks.outputs import Output, selector
from advfast.attacks.split import FOLDED_ELEMENTS
from advfast.attacks.state import bare_model, crafting, parameter_dtype

Objective = Callable[[Tensor, slice], Tensor]
"""(logits [b, K], which rows of the input they are of) -> [b], of which the sum is differentiated."""

_ON_CPU, _LEAST_ROWS = 200_000, 64
"""Input elements of a pass on a CPU, whose caches larger ones leave (a gradient of ResNet-18 of width 8 takes 40 % more
at 2,250 images of 28x28 than at 250); and rows at least."""
_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Oracle:
    """What an attack may ask of a model, in pieces of `rows` images; a context manager.

    Inside the `with` the model is in eval mode and gradients are enabled; afterwards it is as it was found.

    Args:
        model: images [B, ...] -> logits [B, K], as for `PGDAttack`.
        example: [B, ...] images, for their shape, device and dtype; a few are computed with.
        output: where the logits are in what the model returns.
        fold: permits a change of arithmetic within rounding, as for `PGDAttack`.
        precision: "fp32": the model's own dtype; "bf16", "fp16": it runs under autocast.
        batch_size: most rows of a pass. None: what keeps the device busy.

    Attributes:
        wide: dtype of iterates, logits and gradients: float32, or float64 for a model or images in it.
        memory_format: in which 4-d iterates are best kept, or None.
        rows: most rows of a pass.
        forwards, backwards: rows that went through the model so far, a gradient counting as one of each.
        nonfinite: int64 [1], gradient entries that were not finite so far; they are taken for 0.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        example: Tensor,
        *,
        output: Output = None,
        fold: bool = True,
        precision: str = "fp32",
        batch_size: int | None = None,
    ) -> None:
        self._model = bare_model(model)
        self._example = example.detach()
        self._output, self._fold = output, fold
        self._autocast = _AUTOCAST[precision]
        own = parameter_dtype(self._model)
        self.wide = torch.float64 if torch.float64 in (example.dtype, own) else torch.float32
        # Without parameters the model may want what it is given.
        self._input_dtype = own or example.dtype
        elements = max(1, example[0].numel()) if len(example) else 1
        most = max(1, FOLDED_ELEMENTS // elements)
        if example.device.type == "cpu":
            most = min(most, max(_ON_CPU // elements, _LEAST_ROWS))
        self.rows = batch_size or most
        self.memory_format: torch.memory_format | None = None
        self.forwards = self.backwards = 0
        self.nonfinite = torch.zeros(1, dtype=torch.int64, device=example.device)
        self._stack = ExitStack()
        self._network: Network | None = None

    def __enter__(self) -> Oracle:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            device = self._example.device.type
            stack.enter_context(
                torch.autocast(device, self._autocast, enabled=self._autocast is not None)
            )
            stack.enter_context(crafting(self._model, "eval"))
            self._network = open_network(
                self._model,
                input_dtype=self._input_dtype,
                select=_Select(self._output),
                sixteen_bit=self._autocast is not None,
                fold=self._fold,
                deterministic=False,
                example=self._example.to(self._input_dtype),
            )
            self.memory_format = self._network.memory_format
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._network = None
        self._stack.__exit__(*raised)

    def iterate(self, images: Tensor) -> Tensor:
        """A copy in `wide`, laid out as the network likes it."""
        layout = torch.contiguous_format
        if images.dim() == 4 and self.memory_format is not None:
            layout = self.memory_format
        return images.detach().to(self.wide, memory_format=layout, copy=True)

    def logits(self, x: Tensor) -> Tensor:
        """[B, K] in `wide`, of images [B, ...] in `wide`; no gradients."""
        network = self._opened()
        self.forwards += len(x)
        parts = [network.logits(x[piece].to(self._input_dtype)) for piece in self._pieces(len(x))]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(self.wide)

    def gradient(self, x: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
        """(logits [B, K], d objective.sum() / d x like x), both in `wide`, the gradient in its true scale."""
        network = self._opened()
        self.forwards += len(x)
        self.backwards += len(x)
        logits, gradients = [], []
        for piece in self._pieces(len(x)):
            asked = _Asked(objective, piece)
            part, gradient = network.gradient(x[piece].to(self._input_dtype), asked)
            gradient = gradient.to(self.wide)
            if self._autocast is not None or part.dtype in (torch.float16, torch.bfloat16):
                # It was computed from a logit gradient of about 1, so as not to underflow.
                size = asked.scale(widen(part)).to(self.wide)
                gradient = gradient * size.view(-1, *[1] * (x.dim() - 1))
            logits.append(part.to(self.wide))
            gradients.append(gradient)
        found = gradients[0] if len(gradients) == 1 else torch.cat(gradients)
        self.nonfinite += (~found.isfinite()).sum()
        found = torch.nan_to_num(found, 0.0, 0.0, 0.0)
        if x.dim() == 4 and self.memory_format is not None:
            found = found.contiguous(memory_format=self.memory_format)
        return (logits[0] if len(logits) == 1 else torch.cat(logits)), found

    def _opened(self) -> Network:
        if self._network is None:
            raise RuntimeError("the oracle is closed: ask it inside `with`")
        return self._network

    def _pieces(self, count: int) -> list[slice]:
        """As few as may be, of equal sizes."""
        pieces = max(1, -(-count // self.rows))
        return [slice(count * i // pieces, count * (i + 1) // pieces) for i in range(pieces)]


class _Select:
    """What the model returns -> logits [B, K], checked."""

    def __init__(self, output: Output) -> None:
        self.bare = selector(output)

    def __call__(self, returned: object) -> Tensor:
        logits = self.bare(returned)
        return checks.check_logits(logits, len(logits), 1, None)


class _Asked:
    """The objective of some rows, as the network takes it."""

    def __init__(self, objective: Objective, rows: slice) -> None:
        self._objective, self._rows = objective, rows

    def __call__(self, logits: Tensor) -> Tensor:
        return self._objective(widen(logits), self._rows)

    def scale(self, logits: Tensor) -> Tensor:
        """[b] the powers of two by which the network shrank the logit gradients; 0 where there is none."""
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            (cotangent,) = torch.autograd.grad(self(leaf).sum(), leaf)
        largest = cotangent.abs().amax(1)
        safe = torch.where(largest > 0, largest, 1.0)
        return torch.where(largest > 0, torch.exp2(torch.floor(torch.log2(safe))), 0.0)
