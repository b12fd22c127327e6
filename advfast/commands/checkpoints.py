"""The model behind a checkpoint, and what its run leaves as defaults."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advfast import models
from advfast.compat.robustbench import names
from advfast.kernels.pgd.api import nearest
from advfast.training import checkpoint, load
from advfast.training.config import from_python
from advfast.userfile import is_user_object, load_object


@dataclass(frozen=True)
class Trained:
    """A model from a checkpoint.

    Attributes:
        model: in eval mode, on the GPU if there is one.
        file: the checkpoint.
        config: the arguments of its run.
    """

    model: nn.Module
    file: Path
    config: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.file.parent

    def results_folder(self, name: str) -> Path:
        """The first of <folder>/<name>, <folder>/<name>-2, ... that is free."""
        number = 1
        while True:
            folder = self.folder / (name if number == 1 else f"{name}-{number}")
            if not folder.exists():
                return folder
            number += 1


def open_checkpoint(path: Path, model: str | None) -> Trained:
    """
    Args:
        path: a run's folder (its best.pt) or a checkpoint; or "robustbench:cifar10/Linf/Wong2020Fast", a network of the
            package robustbench with its weights under ./models.
        model: "file.py:name" of a function that makes the network; the name of a published one
            ("cifar10/Linf/Wong2020Fast"), for weights that are not of advfast; "robustbench:cifar10/Linf/Wong2020Fast",
            where `path` is the folder of that package's weights; None: as the checkpoint says.

    Raises:
        FileNotFoundError, ValueError, TypeError: no checkpoint, or not of this model.
        ImportError, RuntimeError: the package robustbench is not there, or failed.
    """
    if names.is_name(str(path)):
        if model is not None:
            raise ValueError(f"{path} says which network it is; leave out --model")
        return _of_robustbench(str(path), Path("models"))
    if model is not None and names.is_name(model):
        return _of_robustbench(model, path)
    file = path / "best.pt" if path.is_dir() else path
    if not file.is_file():
        what = f"it has no {file.name}" if path.is_dir() else "there is no such file"
        raise FileNotFoundError(f"{path} is neither a run's folder nor a checkpoint: {what}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if model in models.PUBLISHED:
        published = models.make_published(model)
        models.load_published(published, file)
        return Trained(published.eval().to(device), file, {})
    network = None if model is None else _network(model)
    content = checkpoint.read(file)
    if network is None and "name" not in content["model"]:
        own = content["config"].get("model")
        if not isinstance(own, str) or not is_user_object(own):
            raise ValueError(
                f"{file} holds a {content['model']['class']}, which advfast cannot make by name: give "
                "--model file.py:name, a function that makes it"
            )
        network = _network(own)
    loaded = load(file, network)
    return Trained(loaded.to(device), file, dict(content["config"]))


def _of_robustbench(text: str, folder: Path) -> Trained:
    """Its data, norm and eps are those of its leaderboard, unless the command line says otherwise."""
    from advfast.compat.robustbench import load as load_of_robustbench

    asked = names.parse_name(text)
    loaded = load_of_robustbench(text, model_dir=folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    file = folder / asked.dataset / asked.threat_model / f"{asked.model}.pt"
    config = {"data": asked.dataset, "norm": asked.threat_model.lower(), "eps": asked.eps}
    return Trained(loaded.to(device), file, config)


def _network(text: str) -> nn.Module:
    if not is_user_object(text):
        raise ValueError(
            "--model must be file.py:name, a function that makes the network, or the name of a "
            f"published one (advfast.models.PUBLISHED), got {text!r}"
            f"{nearest(text, list(models.PUBLISHED))}; advfast's own networks are made from the "
            "checkpoint alone"
        )
    found = load_object(text)
    if callable(found) and not isinstance(found, nn.Module):
        found = found()
    if not isinstance(found, nn.Module):
        raise TypeError(f"{text} must make an nn.Module, got {type(found).__name__}")
    return found


def defaults(
    trained: Trained, given: dict[str, Any], *, quiet: bool, fallback: dict[str, Any]
) -> dict[str, Any]:
    """Fills what was not given from the run's config, and says so on standard error.

    Args:
        given: option -> value; None takes that of the run.
        fallback: option -> value for a run that does not say either.

    Raises:
        ValueError: neither the command line nor the run says on which data.
    """
    taken = {
        name: trained.config[name]
        for name, value in given.items()
        if value is None
        and trained.config.get(name) is not None
        and not from_python(trained.config[name])
    }
    if taken and not quiet:
        words = ", ".join(
            f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in taken.items()
        )
        print(f"as in the run's config: {words}", file=sys.stderr)
    filled = {name: taken.get(name) if value is None else value for name, value in given.items()}
    filled = {
        name: fallback.get(name) if value is None else value for name, value in filled.items()
    }
    if filled.get("data") is None:
        raise ValueError(
            f"{trained.file} does not say on which data, or they were given from Python: name the data "
            "with --data"
        )
    return filled
