"""Checkpoints: a plain dictionary of tensors, strings and numbers, loadable with weights_only=True."""

from __future__ import annotations

import pickle
import platform
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advfast import models

from .files import write_atomic

_FORMAT = "advfast-checkpoint-1"


def versions() -> dict[str, str]:
    from advfast import __version__

    return {
        "advfast": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def describe(model: nn.Module) -> dict[str, Any]:
    """How to rebuild a model: its registered name and arguments, or its class for the user to rebuild."""
    made = models.spec(model)
    if made is not None:
        return made
    kind = type(model)
    return {"class": f"{kind.__module__}.{kind.__qualname__}"}


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the weights and buffers, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def save(
    path: Path,
    model: nn.Module,
    state: dict[str, torch.Tensor],
    *,
    epoch: int,
    metrics: dict[str, float],
    config: dict[str, Any],
) -> None:
    """Writes a checkpoint atomically; `state` is what `state_of` gave."""
    content = {
        "format": _FORMAT,
        "model": describe(model),
        "state": state,
        "epoch": epoch,
        "metrics": metrics,
        "config": config,
        "versions": versions(),
    }
    write_atomic(path, lambda stream: torch.save(content, stream))


def read(path: str | Path) -> dict[str, Any]:
    """The dictionary in a checkpoint, tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint of advfast, or is damaged.
    """
    path = Path(path)
    if path.exists() and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not an advfast checkpoint, or was cut short")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not an advfast checkpoint, or is damaged: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(
            f"{path} is not an advfast checkpoint: expected a file that advfast.train wrote "
            f"(format {_FORMAT})"
        )
    return content


def load(checkpoint: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The model of a checkpoint, in eval mode.

    Args:
        checkpoint: file that `advfast.train` wrote: best.pt or last.pt, or the folder of a run (its best.pt).
        model: for a model that is not one of advfast's by name: a new one of the same architecture, which is filled.

    Returns:
        The model on the CPU, or `model` where it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a checkpoint; of another model; or `model` is needed.
    """
    path = Path(checkpoint)
    if path.is_dir():
        path = path / "best.pt"
    content = read(path)
    made = content["model"]
    if model is None:
        if "name" not in made:
            raise ValueError(
                f"{path} holds a {made['class']}, which advfast cannot make by name: "
                "pass a new one, advfast.load(checkpoint, model)"
            )
        model = models.make(made["name"], **made["kwargs"])
    try:
        model.load_state_dict(content["state"])
    except RuntimeError as error:
        wanted = made.get("name") or made["class"]
        raise ValueError(
            f"{path} holds a {wanted} whose weights do not fit this {type(model).__name__}: "
            + " ".join(str(error).split())
        ) from error
    return model.eval()
