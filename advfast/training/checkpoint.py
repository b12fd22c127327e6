"""Checkpoints: a plain dictionary of tensors, strings and numbers, loadable with weights_only=True."""

from __future__ import annotations

import errno
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advfast import models
from advfast.evaluation.report import versions
from advfast.files import write_atomic

from .names import BEST

_FORMAT = "advfast-checkpoint-2"


def describe(model: nn.Module) -> dict[str, Any]:
    """How to rebuild a model: its registered name and arguments, or its class for the user to rebuild."""
    made = models.spec(model)
    if made is not None:
        return made
    kind = type(model)
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **models.changes(model)}


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights and buffers, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def save(
    path: Path,
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    epoch: int,
    metrics: dict[str, Any],
    config: dict[str, Any],
    run: dict[str, Any] | None = None,
) -> None:
    """Writes a checkpoint atomically.

    Args:
        model: described in it, not saved.
        state: weights and buffers that count: what is evaluated.
        epoch: after which they are.
        metrics: the epoch's row of the history.
        config: the run's arguments.
        run: everything else that going on with the run needs.
    """
    content = {
        "format": _FORMAT,
        "model": describe(model),
        "state": dict(state),
        "epoch": epoch,
        "metrics": metrics,
        "config": config,
        "versions": versions(),
    }
    if run is not None:
        content["run"] = run
    write_atomic(path, lambda stream: torch.save(content, stream))


def read(path: str | Path) -> dict[str, Any]:
    """The dictionary in a checkpoint, tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint of advfast, or is damaged.
    """
    path = Path(path)
    if path.is_file() and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not an advfast checkpoint, or was cut short")
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, KeyError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise  # not the content: it cannot be read
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not an advfast checkpoint, or is damaged: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        other = f", this one is {found!r}" if isinstance(found, str) else ""
        raise ValueError(
            f"{path} is not an advfast checkpoint: expected a file that advfast.train wrote "
            f"(format {_FORMAT!r}{other})"
        )
    return content


def fill(model: nn.Module, content: Mapping[str, Any], path: Path) -> None:
    """The weights of a checkpoint into a model.

    Raises:
        ValueError: it is a checkpoint of another model.
    """
    made = content["model"]
    try:
        model.load_state_dict(content["state"])
    except RuntimeError as error:
        wanted = made.get("name") or made["class"]
        raise ValueError(
            f"{path} holds a {wanted} whose weights do not fit this {type(model).__name__}: "
            + " ".join(str(error).split())
        ) from error


def load(checkpoint: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The model of a checkpoint, in eval mode.

    Args:
        checkpoint: file that `advfast.train` wrote: best.pt or last.pt, or the folder of a run (its best.pt). With
            `model`, also weights that others published, see `advfast.models.load_published`.
        model: for a model that is not one of advfast's by name: a new one of the same architecture, which is filled;
            its batch normalisation becomes of the kind in the checkpoint (`norm_layers` of `train`), and its last layer
            a cosine classifier where that has one (method "robal").

    Returns:
        The model on the CPU, or `model` where it is. With averaged weights (EMA) it is those.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a checkpoint; of another model; or `model` is needed.
    """
    path = Path(checkpoint)
    if path.is_dir():
        path = path / BEST
    try:
        content = read(path)
    except ValueError as not_ours:
        if model is None:
            raise
        try:
            models.load_published(model, path)
        except TypeError:
            raise not_ours from None
        return model.eval()
    made = content["model"]
    if model is None:
        if "name" not in made:
            raise ValueError(
                f"{path} holds a {made['class']}, which advfast cannot make by name: "
                "pass a new one, advfast.load(checkpoint, model)"
            )
        model = models.make(made["name"], **made["kwargs"])
    else:
        changed = {**made, **made.get("kwargs", {})}
        models.use_norm_layers(model, changed.get("norm_layers", "batch"))
        if "cosine_head" in changed:
            models.use_cosine_head(model, changed["cosine_head"])
    fill(model, content, path)
    return model.eval()
