"""The network whose kernel is computed: its parameters that count, and how it is run and left as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

BN_POLICIES = ("eval", "frozen")
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


class _BatchNorms(TorchFunctionMode):
    """Records the statistics of each batch-norm call in turn, or puts recorded ones in their place."""

    def __init__(self, statistics: list[tuple[Tensor, Tensor]], *, record: bool):
        super().__init__()
        self.statistics, self.record, self.calls = statistics, record, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        names = (
            "input",
            "running_mean",
            "running_var",
            "weight",
            "bias",
            "training",
            "momentum",
            "eps",
        )
        given = dict(zip(names, args, strict=False)) | kwargs
        x = given["input"]
        if self.record:
            axes = [d for d in range(x.dim()) if d != 1]
            var, mean = torch.var_mean(x.detach(), axes, correction=0)
            self.statistics.append((mean, var))
        mean, var = self.statistics[self.calls]
        self.calls += 1
        given |= {"running_mean": mean, "running_var": var, "training": False}
        return func(**given)


class Subject:
    """A model with the parameters that its kernel is taken over.

    Args:
        model: maps [n, ...] to logits [n, O].
        params: None for every parameter with requires_grad; or names (a module's name stands for all that is in it) or
            parameters themselves. A parameter named must require grad.
        bn: "eval" (running statistics) or "frozen" (those of `bn_batch`, as constants).
        bn_batch: images for "frozen".
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        params: str | nn.Parameter | Iterable[str | nn.Parameter] | None = None,
        bn: str = "eval",
        bn_batch: Tensor | None = None,
    ):
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.model, self.bn = model, bn
        self.parameters = _selected(model, params)  # name -> parameter; of tied ones the first name
        first = next(iter(self.parameters.values()))
        self.device, self.dtype = first.device, first.dtype
        _check_places(model, self.parameters, self.device, self.dtype)
        _check_bn(model, bn, bn_batch)
        self._statistics: list[tuple[Tensor, Tensor]] | None = None
        if bn == "frozen":
            assert bn_batch is not None
            self._statistics = self._measure(bn_batch)

    @property
    def frozen_statistics(self) -> list[tuple[Tensor, Tensor]]:
        """(mean, variance) of each batch-norm call, for bn="frozen"; else empty."""
        return self._statistics or []

    def _measure(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        found: list[tuple[Tensor, Tensor]] = []
        with self.running(), torch.no_grad(), _BatchNorms(found, record=True):
            self.model(images.to(self.device))
        return found

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Every module in eval mode, parameters that do not count without grad, float32 that is float32 (no TF32),
        attention in its plain form; all as it was at the end."""
        modes = {m: m.training for m in self.model.modules()}
        wanted = {id(p) for p in self.parameters.values()}
        others = [p for p in self.model.parameters() if p.requires_grad and id(p) not in wanted]
        matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        try:
            for module in modes:
                module.training = False
            for p in others:
                p.requires_grad_(False)
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            with sdpa_kernel(SDPBackend.MATH), torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for p in others:
                p.requires_grad_(True)
            torch.backends.cuda.matmul.allow_tf32 = matmul
            torch.backends.cudnn.allow_tf32 = cudnn

    @contextlib.contextmanager
    def statistics(self) -> Iterator[None]:
        """For one forward pass: batch norms use the frozen statistics (bn="frozen")."""
        if self._statistics is None:
            yield
        else:
            with _BatchNorms(self._statistics, record=False):
                yield

    def logits(self, x: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor:
        """[n, O] (further dimensions of the output flattened), under `running`. `parameters` stand in by name."""
        with self.statistics():
            out = (
                torch.func.functional_call(self.model, parameters, (x,))
                if parameters
                else self.model(x)
            )
        if not isinstance(out, Tensor) or out.dim() < 2 or len(out) != len(x):
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"model must map {tuple(x.shape)} to logits [{len(x)}, O], got {got}")
        return out.flatten(1)


def _selected(
    model: nn.Module, params: str | nn.Parameter | Iterable[str | nn.Parameter] | None
) -> dict[str, nn.Parameter]:
    named = dict(model.named_parameters())  # tied parameters once
    every = dict(model.named_parameters(remove_duplicate=False))
    if params is None:
        chosen = {name: p for name, p in named.items() if p.requires_grad}
        if not chosen:
            raise ValueError(
                "model has no parameter with requires_grad, so its kernel is empty; unfreeze some, or pass params="
            )
        return chosen
    items = [params] if isinstance(params, (str, nn.Parameter)) else params
    wanted: set[int] = set()
    for item in items:
        if isinstance(item, str):
            matching = [
                p for name, p in every.items() if name == item or name.startswith(f"{item}.")
            ]
            if not matching:
                raise ValueError(f"params: the model has no parameter or module named {item!r}")
        else:
            matching = [p for p in named.values() if p is item]
            if not matching:
                raise ValueError("params: a tensor among them is not a parameter of the model")
        wanted |= {id(p) for p in matching}
    chosen = {name: p for name, p in named.items() if id(p) in wanted}
    frozen = [name for name, p in chosen.items() if not p.requires_grad]
    if frozen and len(frozen) == len(chosen):
        raise ValueError(
            f"params: {frozen[0]!r} does not require grad, nor does anything else that was named"
        )
    if not chosen:
        raise ValueError("params names no parameter")
    return {name: p for name, p in chosen.items() if p.requires_grad}


def _check_places(
    model: nn.Module, parameters: dict[str, nn.Parameter], device: torch.device, dtype: torch.dtype
) -> None:
    own = next(iter(parameters))
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"parameters must be float32 or float64, got {dtype} ({own}): model.float(); the gradients carry the "
            "precision, `precision=` is that of the products after them"
        )
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        if t.device != device:
            raise ValueError(
                f"the model must be on one device: {name} is on {t.device}, {own} on {device}"
            )
        if t.is_floating_point() and t.dtype != dtype:
            raise TypeError(f"the model must have one dtype: {name} is {t.dtype}, {own} {dtype}")


def _check_bn(model: nn.Module, bn: str, bn_batch: Tensor | None) -> None:
    if bn in ("train", "batch"):
        raise ValueError(
            f"bn={bn!r}: with batch statistics a sample's output depends on the others of its batch, so that there is "
            "no kernel of two samples; use bn='eval', or bn='frozen' with bn_batch for the statistics of one batch"
        )
    if bn not in BN_POLICIES:
        raise ValueError(f"bn must be one of {', '.join(BN_POLICIES)}, got {bn!r}")
    if (bn == "frozen") != (bn_batch is not None):
        raise ValueError(
            "bn='frozen' and bn_batch go together: the batch whose statistics are held fixed"
        )
    if bn == "eval":
        for name, module in model.named_modules():
            if isinstance(module, _BATCH_NORMS) and module.running_mean is None:
                raise ValueError(
                    f"{name} keeps no running statistics (track_running_stats=False), so in eval mode too a sample's "
                    "output depends on its batch; use bn='frozen' with bn_batch"
                )
