"""Loads a network of the package robustbench, and says what is missing where that cannot be."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from advfast.kernels.pgd.api import nearest

from .names import Name, parse_name

_INSTALL = "pip install git+https://github.com/RobustBench/robustbench.git"


def load(
    name: str,
    dataset: str = "cifar10",
    threat_model: str = "Linf",
    *,
    model_dir: str | Path = "./models",
    download: bool = False,
) -> nn.Module:
    """A network of RobustBench's model zoo, in eval mode, on the CPU.

    Args:
        name: such as "Wong2020Fast", or the whole "robustbench:cifar10/Linf/Wong2020Fast".
        dataset: "cifar10", "cifar100" or "imagenet".
        threat_model: "Linf" or "L2".
        model_dir: folder of the weights, laid out as the package does it: <dataset>/<threat model>/<name>.pt, those of
            an ensemble <name>.pt_m0.pt, <name>.pt_m1.pt, ....
        download: lets the package fetch weights that are not there. Those of its timm models are no files in model_dir
            and only had so.

    Raises:
        ImportError: the package is not installed, cannot be imported, or something else has its name.
        ValueError: no such leaderboard or network.
        FileNotFoundError: the weights are not there.
        RuntimeError: the package failed to load them.
    """
    asked = parse_name(name if "/" in name else f"{dataset}/{threat_model}/{name}")
    package = robustbench()
    folder = Path(model_dir)
    if not download:
        _check_weights(package, asked, folder)
    try:
        model = package.load_model(
            asked.model,
            model_dir=str(folder),
            dataset=asked.dataset,
            threat_model=asked.threat_model,
        )
    except Exception as error:
        raise RuntimeError(
            f"robustbench failed to load {_full(asked)} from {folder}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise RuntimeError(
            f"robustbench.load_model returned a {type(model).__name__}, no nn.Module"
        )
    return model.eval()


def robustbench() -> Any:
    """The package of that name.

    Raises:
        ImportError: not installed, cannot be imported, or something else has its name.
    """
    owners = [] if "robustbench" in sys.modules else _owners()
    if owners and "robustbench" not in owners:
        raise ImportError(_impostor(", ".join(owners)))
    try:
        package = importlib.import_module("robustbench")
    except ModuleNotFoundError as error:
        if error.name == "robustbench":
            raise ImportError(f"the package robustbench is not installed: {_INSTALL}") from error
        raise ImportError(_broken(error)) from error
    except Exception as error:
        raise ImportError(_broken(error)) from error
    if not (callable(getattr(package, "load_model", None)) and hasattr(package, "benchmark")):
        raise ImportError(_impostor(getattr(package, "__file__", None) or "somebody else"))
    return package


def _owners() -> list[str]:
    """Installed distributions that bring a top-level package of that name."""
    return importlib.metadata.packages_distributions().get("robustbench", [])


def _impostor(owner: str) -> str:
    return (
        f"the package robustbench that is found here is not RobustBench's but that of {owner} (torchattacks "
        f"3.5.1 ships an old copy of it): install the real one, without torchattacks beside it: {_INSTALL}"
    )


_NEEDED = {
    "autoattack": "pip install git+https://github.com/fra31/auto-attack",
    "pkg_resources": "pip install 'setuptools<81'",
}
"""Modules that robustbench 1.1.1 imports and does not ask for, and what brings them."""


def _broken(error: Exception) -> str:
    missing = getattr(error, "name", None)
    hint = f"; it needs {_NEEDED.get(missing, missing)}" if missing else ""
    return (
        f"robustbench is installed, but importing it failed: {type(error).__name__}: {error}{hint}"
    )


def _full(asked: Name) -> str:
    return f"{asked.dataset}/{asked.threat_model}/{asked.model}"


def _zoo(package: ModuleType, asked: Name) -> dict[str, dict[str, Any]] | None:
    """Network -> its entry; None for a version of the package that has no such list."""
    try:
        zoo = importlib.import_module("robustbench.model_zoo").model_dicts
    except (ImportError, AttributeError):
        return None
    for dataset, models in zoo.items():
        if getattr(dataset, "value", dataset) == asked.dataset:
            for threat_model, found in models.items():
                if getattr(threat_model, "value", threat_model) == asked.threat_model:
                    return dict(found)
    return {}


def _check_weights(package: ModuleType, asked: Name, folder: Path) -> None:
    zoo = _zoo(package, asked)
    if zoo is not None and asked.model not in zoo:
        raise ValueError(
            f"robustbench has no network {_full(asked)}{nearest(asked.model, list(zoo))}; those of timm it fetches "
            "itself (download=True)"
        )
    source = (zoo or {}).get(asked.model, {}).get("gdrive_id")
    place = folder / asked.dataset / asked.threat_model
    names = [f"{asked.model}.pt"]
    if isinstance(source, (list, tuple)):
        names = [f"{asked.model}.pt_m{index}.pt" for index in range(len(source))]
    missing = [str(place / name) for name in names if not (place / name).is_file()]
    if missing:
        where = f" (Google Drive id {source})" if source else ""
        raise FileNotFoundError(
            f"the weights of {_full(asked)} are not there: {', '.join(missing)}; put them there{where}, or let "
            "robustbench fetch them (download=True)"
        )
