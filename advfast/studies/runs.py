"""What a study looks at: a run's folder, a checkpoint, a network, or a recipe by which a run is made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from advfast.data import Splits, load
from advfast.data.splits import as_splits
from advfast.kernels.pgd.api import nearest
from advfast.models import make as make_model
from advfast.training import checkpoint, names, rng
from advfast.training.recipes import RECIPES
from advfast.training.train import train
from advfast.userfile import is_user_object, load_object

Source = str | Path | nn.Module | Mapping[str, Any]
"""A run's folder or a checkpoint; a network; a recipe: the name of a published one, a .yaml file as `advfast train
--config` reads it, or the arguments of `advfast.train` as a mapping, whose "model" may be a function that makes one."""

Maker = Callable[[], nn.Module]
_OWN = ("out", "overwrite", "resume", "progress", "keep_every", "save_every")
"""Arguments of `advfast.train` that a study gives."""
_PUT_IN = ("norm_layers", "cosine_head")


@dataclass(frozen=True)
class Run:
    """
    Attributes:
        name: for tables and figures.
        points: (epoch, checkpoint), ascending: the kept ones (`keep_every` of `advfast.train`) where there are such,
            else the last one (its folder may hold best.pt besides). Empty for a network.
        config: arguments of `advfast.train`; {} for a network.
        maker: makes a network for the weights, where a checkpoint does not say which; a network, where there is no
            checkpoint.
    """

    name: str
    points: tuple[tuple[int, Path], ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    maker: Maker | None = None

    @property
    def epochs(self) -> tuple[int, ...]:
        return tuple(epoch for epoch, _ in self.points)

    def model(self, epoch: int | None = None) -> nn.Module:
        """A network of its own, in eval mode, on the GPU if there is one.

        Args:
            epoch: one of `epochs`; None is the last.

        Raises:
            KeyError: there is no checkpoint of this epoch.
            ValueError: the checkpoint is damaged, or of another network.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if not self.points:
            assert self.maker is not None
            return copy.deepcopy(self.maker()).eval().to(device)
        file = dict(self.points)[self.points[-1][0] if epoch is None else epoch]
        return checkpoint.load(file, None if self.maker is None else self.maker()).to(device)

    def fresh(self, seed: int) -> nn.Module:
        """The same architecture with new weights, in train mode, on the GPU if there is one.

        What training put in place of layers (`norm_layers` and the cosine classifier of `advfast.train`) is not in it.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with rng.seeded(seed):
            if self.maker is not None:
                return self.maker().train().to(device)
            made = checkpoint.read(self.points[0][1])["model"]
            own = {key: v for key, v in made["kwargs"].items() if key not in _PUT_IN}
            return make_model(made["name"], **own).train().to(device)

    def splits(self, data: object = None, root: str | Path | None = None) -> Splits:
        """The data, or those of the run.

        Raises:
            ValueError: neither says which.
        """
        data = self.config.get("data") if data is None else data
        if not isinstance(data, str):
            if data is not None:
                return as_splits(data, "own")
            raise ValueError(f"{self.name} does not say on which data it was trained: give `data`")
        if data.endswith(" from Python>"):
            raise ValueError(f"{self.name} was trained on data from Python: give `data`")
        return load(data, root)


def open_run(source: str | Path, model: str | Maker | None = None, name: str | None = None) -> Run:
    """A run's folder or a checkpoint.

    Args:
        model: makes the network, or "file.py:make", where the checkpoint does not say.
        name: for tables; None takes that of the folder, or of the file.

    Raises:
        FileNotFoundError: it has no checkpoint.
        ValueError: not a checkpoint of advfast, or of a network that is not known by name.
    """
    path = Path(source)
    files = [path] if path.is_file() else sorted((path / names.KEPT).glob("epoch-*.pt"))
    if not files:
        files = [path / names.LAST]
        if not files[0].is_file():
            files = [path / names.BEST]
    if not files[0].is_file():
        what = f"it has no {names.LAST}" if path.is_dir() else "there is no such file"
        raise FileNotFoundError(f"{path} is neither a run's folder nor a checkpoint: {what}")
    first = checkpoint.read(files[0])
    maker = maker_of(model if model is not None else first["config"].get("model"))
    if maker is None and "name" not in first["model"]:
        raise ValueError(
            f"{files[0]} holds a {first['model']['class']}, which advfast cannot make by name: give `model`, a "
            "function that makes it, or file.py:make"
        )
    points = [(first["epoch"], files[0])]
    points += [(int(file.stem.rpartition("-")[2]), file) for file in files[1:]]
    label = name or (path.stem if path.is_file() else path.resolve().name)
    return Run(label, tuple(sorted(points)), dict(first["config"]), maker)


def obtain(
    source: Source,
    folder: Path,
    *,
    name: str | None = None,
    model: str | Maker | None = None,
    keep_every: int | None = None,
    progress: bool = True,
    **changes: Any,
) -> Run:
    """The run of any source; one that is a recipe is trained, or gone on with, in `folder`.

    Args:
        model: as in `open_run`.
        keep_every: epochs between the checkpoints that a training here keeps.
        changes: arguments of `advfast.train` in place of those of a recipe.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError, TypeError: neither a run nor a recipe; bad arguments.
    """
    if isinstance(source, nn.Module):
        return Run(name or type(source).__name__, maker=lambda: source)
    arguments = recipe_of(source)
    if arguments is None:
        assert not isinstance(source, Mapping)
        return open_run(source, model, name)
    arguments |= changes
    made = arguments.get("model")
    maker = maker_of(made)
    if maker is not None:
        with rng.seeded(arguments.get("seed", 0)):
            arguments["model"] = maker()
    train(
        **arguments, out=folder, resume=True, keep_every=keep_every, progress=progress,
    )  # fmt: skip
    label = name or (source if isinstance(source, str) else folder.name)
    return open_run(folder, maker, str(label))


def recipe_of(source: str | Path | Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of `advfast.train`, if it is a recipe; None for a path of a run.

    Raises:
        ValueError: a name of neither; a .yaml file that is no mapping.
    """
    if isinstance(source, Mapping):
        return _without_own(source)
    text = str(source)
    if text in RECIPES:
        return {"recipe": text}
    if Path(source).suffix in (".yaml", ".yml"):
        content = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{source} must hold arguments of advfast.train, name: value")
        return _without_own(content)
    if Path(source).exists() or "/" in text or text.endswith(".pt"):
        return None
    raise ValueError(
        f"{text!r} is no folder of a run, no checkpoint and no recipe; recipes are {', '.join(RECIPES)}"
        f"{nearest(text, list(RECIPES))}"
    )


def check_kept(sources: Iterable[object], folder: Path) -> None:
    """What overwriting a study deletes must not be what it looks at.

    Raises:
        ValueError: a path lies in `folder`.
    """
    for source in sources:
        if isinstance(source, (str, Path)):
            path = Path(source).resolve()
            if folder.resolve() in (path, *path.parents):
                raise ValueError(
                    f"{source} lies in {folder}, which overwrite deletes: choose another folder for the study"
                )


def _without_own(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Without where and how a run is kept, which is the study's: config.yaml of a run may say it."""
    return {name: value for name, value in arguments.items() if name not in _OWN}


def maker_of(model: object) -> Maker | None:
    """None for a network that is known by name."""
    if isinstance(model, str) and is_user_object(model):
        model = load_object(model)
    if isinstance(model, nn.Module):
        made: nn.Module = model
        return lambda: copy.deepcopy(made)
    return model if callable(model) else None
