"""The networks of `criticality`: where they come from, their labels, layers, radii and makers."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from advfast import models as networks
from advfast.data import Source as Images
from advfast.data.sources import TensorSource
from advfast.training import rng
from advfast.training.config import plain
from advfast.training.recipes import RECIPES
from advfast.training.train import train
from advfast.userfile import is_user_object, load_object

from .cost import Cost, estimate, training_passes
from .criticality_measure import Init, Layer, find_layers
from .criticality_tables import shared_prefix
from .runs import Maker, Run, Source, obtain, open_run, recipe_of
from .subject import known_part

Model = Source | Callable[[], nn.Module]
_CONFIG = ("method", "eps", "norm", "epochs", "seed")


@dataclass(frozen=True)
class Parts:
    """
    Attributes:
        train: what recipes are trained on.
        test: what is looked at.
        given: what the user gave; None where it is that of a network.
        root: folder of the files of a built-in one.
    """

    name: str
    train: Images | DataLoader
    test: Images
    given: object = None
    root: str | Path | None = None

    def arguments(self, samples: int | None, tested: int | None) -> dict[str, Any]:
        """Of `advfast.train`, in place of those of the recipes: the first so many images, where that is asked for.

        Raises:
            ValueError: the training images are behind a DataLoader.
        """
        if samples is None and tested is None and (self.given is None or isinstance(self.given, str)):  # fmt: skip
            return {} if self.given is None else {"data": self.given, "data_root": self.root}
        if isinstance(self.train, DataLoader):
            raise ValueError("the training images must not be behind a DataLoader")
        return {
            "data": _first(self.train, samples), "test": _first(self.test, tested)
        }  # fmt: skip

    def training_images(self, samples: int | None) -> int:
        count = 0 if isinstance(self.train, DataLoader) else len(self.train)
        return count if samples is None else min(samples, count)


@dataclass(frozen=True)
class Subject:
    """
    Attributes:
        prefix: what the names of all its layers begin with.
        eps: radius of its training, 0 for standard; None where it is not known.
        weights: 8 hexadecimal digits that differ for other weights.
        maker: makes one with new weights; None where there is no such way.
    """

    label: str
    run: Run
    layers: list[Layer]
    prefix: str
    eps: float | None
    weights: str
    maker: Maker | None

    def net(self) -> nn.Module:
        return self.run.model()

    def short(self, layer: Layer) -> str:
        return layer.name.removeprefix(self.prefix)

    @property
    def settings(self) -> dict[str, Any]:
        config = {name: plain(self.run.config[name]) for name in _CONFIG if name in self.run.config}
        return {"weights": self.weights, "prefix": self.prefix, **config}


@dataclass(frozen=True)
class Sources:
    """
    Attributes:
        recipes: label -> arguments of `advfast.train`.
        runs: label -> run, of those that are there; in `labels` both have their order.
        makers: label -> what makes a network anew, of those that were given so.
    """

    labels: list[str]
    model: str | Maker | None
    eps: dict[str, float | None]
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    makers: dict[str, Maker] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        models: Model | Sequence[Model] | Mapping[str, Model],
        model: str | Maker | None,
        eps: Sequence[float | None] | None,
    ) -> Sources:
        """
        Raises:
            ValueError, TypeError, FileNotFoundError: none; what is neither a run nor a network nor a recipe.
        """
        by_label = _labelled(models)
        if eps is not None and len(eps) != len(by_label):
            raise ValueError(f"eps must have a value for each of {len(by_label)} networks, got {len(eps)}")  # fmt: skip
        radii = dict(zip(by_label, eps if eps is not None else [None] * len(by_label), strict=True))
        made = cls(list(by_label), model, radii)
        for label, source in by_label.items():
            made._add(label, source)
        return made

    def _add(self, label: str, source: Model) -> None:
        if isinstance(source, str) and is_user_object(source):
            source = load_object(source)
        if isinstance(source, nn.Module):
            self.runs[label] = obtain(source, Path(), name=label)
        elif callable(source):
            net = source()
            if not isinstance(net, nn.Module):
                raise TypeError(f"{label} must make an nn.Module, got {type(net).__name__}")
            self.runs[label], self.makers[label] = obtain(net, Path(), name=label), source
        else:
            recipe = recipe_of(source)
            if recipe is not None:
                self.recipes[label] = recipe
            else:
                assert isinstance(source, (str, Path))
                self.runs[label] = open_run(source, self.model, label)

    def parts(self, data: object, root: str | Path | None) -> tuple[Parts, bool]:
        """The data, and whether their labels are known.

        Raises:
            ValueError: nothing says which; no test images.
        """
        if isinstance(data, Tensor):
            test = TensorSource(data, torch.zeros(len(data), dtype=torch.int64))
            return Parts("images", test, test), False
        runs = [*self.runs.values(), *(Run(name, config=r) for name, r in self.recipes.items())]
        named = [run for run in runs if isinstance(run.config.get("data"), str)]
        if data is None and not named:
            raise ValueError("no network says on which data it was trained: give `data`")
        splits = (runs if data is not None else named)[0].splits(data, root)
        part = "test"
        if (
            splits.test is None
        ):  # what is there, such as a folder of ImageNet's validation images alone
            part = "val" if splits.val is not None else "test" if self.recipes else "train"
        return Parts(splits.name, splits.train, known_part(splits, part), data, root), True

    def obtain(
        self, folder: Path, kinds: Sequence[str], init: Init, *, progress: bool, **changes: Any
    ) -> list[Subject]:
        """All of them, trained where they are recipes.

        Raises:
            ValueError: no such layers; no way to make a network for init="network".
        """
        found = {}
        for label in sorted(self.labels, key=lambda label: label in self.recipes):  # errors now
            run = self.runs.get(label)
            if run is None:
                run = obtain(
                    self.recipes[label], folder / label.replace("/", "-"), name=label, model=self.model,
                    progress=progress, **changes,
                )  # fmt: skip
            net = run.model()
            layers = find_layers(net, kinds)
            maker = self._maker(label, run, net)
            if init == "network" and maker is None:
                raise ValueError(
                    f"init='network' needs a way to make {label} anew: give a function that makes it, or "
                    "init='module'"
                )
            prefix = shared_prefix([layer.name for layer in layers])
            eps = self.eps[label] if self.eps[label] is not None else _radius(run)
            found[label] = Subject(label, run, layers, prefix, eps, _weights(net), maker)
        return [found[label] for label in self.labels]

    def _maker(self, label: str, run: Run, net: nn.Module) -> Maker | None:
        spec = networks.spec(net)
        if spec is not None:  # before the user's function, which may load weights
            return partial(networks.make, spec["name"], **spec["kwargs"])
        return self.makers.get(label, run.maker if run.points else None)

    def cost(
        self, example: Tensor, images: int, trials: int, kinds: Sequence[str], training_images: int
    ) -> Cost:
        """Of all networks: half a pass an image, layer and trial, and the trainings.

        Args:
            example: some of the images, [B, C, H, W].
        """
        costs = []
        device = "cuda" if torch.cuda.is_available() else "cpu"
        for label in self.labels:
            net = self._network(label, example).to(device)
            passes = images * (1 + trials * len(find_layers(net, kinds)) / 2)
            if label in self.recipes:
                recipe = _with_published(self.recipes[label])
                passes += training_passes(net, training_images, recipe)
            costs.append(estimate(net, example.to(device), passes))
        passes = sum(each.passes for each in costs)
        flops = sum(each.passes * each.flops for each in costs) / passes
        return Cost(passes, flops, sum(each.seconds for each in costs))

    def _network(self, label: str, example: Tensor) -> nn.Module:
        """One like it; of a recipe with new weights."""
        if label in self.runs:
            return self.runs[label].model()
        made = _with_published(self.recipes[label]).get("model", "small-cnn")
        if isinstance(made, str) and is_user_object(made):
            made = load_object(made)
        if isinstance(made, str):
            with rng.seeded(0):
                return networks.make(made, in_shape=list(example.shape[1:]), classes=10)
        net = made if isinstance(made, nn.Module) else made()
        if not isinstance(net, nn.Module):
            raise TypeError(
                f"the model of {label} must make an nn.Module, got {type(net).__name__}"
            )
        return net


def _labelled(models: Model | Sequence[Model] | Mapping[str, Model]) -> dict[str, Model]:
    if isinstance(models, Mapping) and not _is_recipe(models):
        found = {str(label): source for label, source in models.items()}
    else:
        single = isinstance(models, (str, Path, Mapping)) or callable(models)
        sources: list[Any] = [models] if single else list(models)  # type: ignore[arg-type]
        labels = [_label(source) for source in sources]
        if len(set(labels)) < len(labels):
            labels = [
                str(source) if isinstance(source, (str, Path)) else label
                for source, label in zip(sources, labels, strict=True)
            ]
        if len(set(labels)) < len(labels):
            raise ValueError(
                f"two networks have the same label: {', '.join(labels)}; give a mapping from labels to them"
            )
        found = dict(zip(labels, sources, strict=True))
    if not found:
        raise ValueError("there are no networks: give one or more")
    return found


def _is_recipe(models: Mapping[str, Any]) -> bool:
    return bool(models.keys() & inspect.signature(train).parameters.keys())


def _label(source: Model) -> str:
    if isinstance(source, nn.Module):
        return type(source).__name__
    if isinstance(source, Mapping):
        return str(source.get("method", "run"))
    if isinstance(source, (str, Path)):
        if is_user_object(source):
            return str(source).rpartition(":")[2]
        path = Path(source)
        return path.stem if path.suffix in (".pt", ".yaml", ".yml") else path.resolve().name
    return str(getattr(source, "__name__", type(source).__name__))


def _with_published(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """With the arguments of the published recipe that it names."""
    base = RECIPES[recipe["recipe"]].arguments if recipe.get("recipe") in RECIPES else {}
    return {**base, **recipe}


def _radius(run: Run) -> float | None:
    if run.config.get("method") == "standard":
        return 0.0
    eps = run.config.get("eps")
    return float(eps) if isinstance(eps, (int, float)) else None


def _weights(net: nn.Module) -> str:
    check = 0
    for name, tensor in net.state_dict().items():
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        check = zlib.crc32(content, zlib.crc32(name.encode(), check))
    return f"{check:08x}"


def _first(source: Images, count: int | None) -> Images:
    return source if count is None else source.subset(torch.arange(min(count, len(source))))
