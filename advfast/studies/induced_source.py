"""What the study of induced distributions looks at: a run, or a recipe that becomes one, and its images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advfast.data import Source, TensorSource, load, stratified_split
from advfast.data.splits import as_splits
from advfast.training import rng, setup
from advfast.training.config import plain
from advfast.training.recipes import RECIPES

from .cost import EPOCHS, training_passes
from .induced_sets import digest
from .runs import Maker, Run, maker_of, obtain, open_run, recipe_of
from .runs import Source as RunSource
from .subject import known_part

_VALIDATED = 100
"""Test images that the training of a recipe validates on, so that all training images are trained on: they choose
best.pt, which this study does not look at."""


class Subject:
    """
    Args:
        source, data, model, samples, test_samples, at, data_root: as in `advfast.studies.induced`.

    Attributes:
        recipe: arguments of `advfast.train`; None where the run is there.
        train, test: images as they are; of a run those it trained on, without what it held out.
        epochs: of the checkpoints, ascending.
        name, data_name, model_name: for people.
        norm: of the run.

    Raises:
        ValueError, TypeError, FileNotFoundError: nothing that has checkpoints, or bad arguments.
    """

    def __init__(
        self,
        source: RunSource,
        data: object,
        model: str | Maker | None,
        samples: int | None,
        test_samples: int | None,
        at: Sequence[int] | None,
        data_root: str | Path | None,
    ) -> None:
        if isinstance(source, nn.Module):
            raise TypeError(
                "source must be a run's folder, a checkpoint or a recipe: a network alone has no checkpoints to compare"
            )
        self.recipe = recipe_of(source)
        self._run: Run | None = None
        if self.recipe is None:
            if samples is not None or test_samples is not None:
                raise ValueError(
                    "samples and test_samples are for recipes: a run is trained already"
                )
            assert isinstance(source, (str, Path))
            self._run = open_run(source, model)
            self._of_run(self._run, data, data_root)
            known = self._run.epochs
            self.epochs = _chosen(at, known, [epoch for epoch in known if epoch] or list(known))
            self._whole: dict[str, Any] = self._run.config
        else:
            self.recipe |= {} if data is None else {"data": data}
            self.recipe |= {} if model is None else {"model": model}
            name = self.recipe.get("recipe")
            published = RECIPES[name].arguments if name in RECIPES else {}
            self._whole = published | self.recipe
            for needed in ("model", "data"):
                if needed not in self._whole:
                    raise ValueError(f"the recipe must say `{needed}`")
            self._of_recipe(samples, test_samples, data_root)
            total = int(self._whole.get("epochs", EPOCHS))
            tenth = max(total // 10, 1)
            known = tuple(range(1, total + 1))
            self.epochs = _chosen(at, known, sorted({*range(tenth, total + 1, tenth), total}))
            self.name = str(source) if isinstance(source, (str, Path)) else "recipe"
        maker = self._maker()
        if maker is not None:
            of_seed = Run("", maker=maker)
            if digest(of_seed.fresh(0)) == digest(of_seed.fresh(1)):
                raise ValueError(
                    "model must be a function that makes a network with new weights: the weights of two seeds are the "
                    "same"
                )
            images, _ = self.test.batch(torch.arange(1))
            try:
                with torch.no_grad():
                    maker().eval()(images)
            except RuntimeError as error:
                raise ValueError(
                    f"the model does not take images {list(images.shape[1:])}: {error}; give another `model`, or the "
                    "preset of these data"
                ) from error
        self.model_name = str(plain(self._whole.get("model")))
        self.norm = str(self._whole.get("norm", "linf"))

    def _of_run(self, run: Run, data: object, data_root: str | Path | None) -> None:
        splits = run.splits(data, data_root)
        train, self.test = known_part(splits, "train"), known_part(splits, "test")
        if run.config.get("val") is None and splits.val is None:
            # What the run held out of its training images was not trained on.
            part = setup.run_data(train, None, None, None, run.config["seed"]).train
            assert not isinstance(part, torch.utils.data.DataLoader)
            train = part
        self.train, self.name, self.data_name = train, run.name, splits.name

    def _of_recipe(
        self, samples: int | None, test_samples: int | None, data_root: str | Path | None
    ) -> None:
        assert self.recipe is not None
        data = self._whole["data"]
        splits = load(data, data_root) if isinstance(data, str) else as_splits(data, "own")
        train, test = known_part(splits, "train"), known_part(splits, "test")
        self.train, self.test = few(train, test, samples, test_samples)
        self.data_name = splits.name
        if self.train is not train or not isinstance(data, str):
            self.recipe["data"] = self.train
        if data_root is not None:
            self.recipe["data_root"] = data_root
        if self._whole.get("val") is None:
            shown = torch.arange(min(_VALIDATED, len(self.test)))
            self.recipe["val"] = self.test.subset(shown)

    def _maker(self) -> Maker | None:
        return maker_of(self._whole["model"]) if self._run is None else self._run.maker

    def network(self) -> nn.Module:
        """One of its architecture, to count with."""
        if self._run is not None:
            return self._run.fresh(0)
        maker = self._maker()
        with rng.seeded(0):
            return setup.make_model(self._whole["model"] if maker is None else maker(), self.train)

    def training_passes(self, net: nn.Module) -> float:
        """Passes of an image that the training of the recipe takes; 0 for a run."""
        if self.recipe is None:
            return 0.0
        return training_passes(net, len(self.train), self._whole)

    def obtain(self, folder: Path, *, progress: bool) -> Run:
        """The run; a recipe is trained in `folder`, or gone on with.

        Raises:
            ValueError: a run in `folder` that kept other checkpoints.
        """
        if self._run is not None:
            return self._run
        assert self.recipe is not None
        every = math.gcd(*self.epochs)
        run = obtain(self.recipe, folder, name=self.name, keep_every=every, progress=progress)
        missing = [epoch for epoch in self.epochs if epoch not in run.epochs]
        if missing:
            raise ValueError(
                f"the run in {folder} has no checkpoint of epoch {missing[0]}: it kept {_words(run.epochs)}; choose "
                "among these, or train anew (overwrite=True, --overwrite)"
            )
        return run


def few(
    train: Source, test: Source, samples: int | None, test_samples: int | None
) -> tuple[Source, Source]:
    """Fewer images, each class in proportion, always the same ones; training images that are left over fill up the
    test images.

    Raises:
        ValueError: more than there are.
    """
    left = torch.zeros(0, dtype=torch.long)
    if samples is not None:
        if not 0 < samples < len(train):
            raise ValueError(f"samples must be 1 .. {len(train) - 1} or None, got {samples}")
        left, kept = stratified_split(train.labels, samples, seed=0)
        whole, train = train, train.subset(kept)
    if test_samples is None or test_samples == len(test):
        return train, test
    most = len(test) + len(left)
    if not 0 < test_samples <= most:
        raise ValueError(
            f"test_samples must be 1 .. {most} or None (test images, and training images that are left over), got "
            f"{test_samples}"
        )
    if test_samples < len(test):
        return train, test.subset(stratified_split(test.labels, test_samples, seed=0)[1])
    more = test_samples - len(test)
    if more < len(left):
        left = left[stratified_split(whole.labels[left], more, seed=0)[1]]
    parts = [test.batch(torch.arange(len(test))), whole.batch(left)]
    images, labels = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    return train, TensorSource(images, labels)


def _chosen(at: Sequence[int] | None, known: Sequence[int], default: Sequence[int]) -> list[int]:
    if at is None:
        return list(default)
    unknown = [epoch for epoch in at if epoch not in known]
    if unknown:
        raise ValueError(f"at must be epochs of checkpoints, {_words(known)}, got {unknown[0]}")
    return sorted(set(at))


def _words(epochs: Sequence[int]) -> str:
    """5, 10, 15 or 1 .. 100."""
    if len(epochs) > 2 and list(epochs) == list(range(epochs[0], epochs[-1] + 1)):
        return f"{epochs[0]} .. {epochs[-1]}"
    return ", ".join(map(str, epochs))
