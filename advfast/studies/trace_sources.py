"""Runs that are there already, or recipes, under labels: what `ntk_trace` overlays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from advfast.data import Splits
from advfast.training import checkpoint
from advfast.training.recipes import RECIPES
from advfast.training.setup import make_model

from .cost import training_passes
from .runs import Maker, Run, Source, obtain, open_run, recipe_of
from .subject import known_part

Sources = Source | Sequence[Source] | Mapping[str, Source | Sequence[Source]]
"""One, several, or label -> one, or several of different seeds."""

Key = tuple[str, int]
"""Label and seed."""


def labelled(sources: Sources) -> list[tuple[str | None, Source]]:
    """Each with its label; None for that of the run.

    Raises:
        ValueError: there are none.
    """
    if isinstance(sources, (str, Path, nn.Module)) or _is_recipe(sources):
        return [(None, sources)]  # type: ignore[list-item]
    found: list[tuple[str | None, Source]] = []
    if isinstance(sources, Mapping):
        for label, those in sources.items():
            several: Any = those if isinstance(those, (list, tuple)) else [those]
            found += [(str(label), one) for one in several]
    else:
        found += [(None, one) for one in sources]
    if not found:
        raise ValueError("sources must be one or more runs, checkpoints, networks or recipes")
    return found


def _is_recipe(sources: object) -> bool:
    return isinstance(sources, Mapping) and ("data" in sources or "recipe" in sources)


class Runs:
    """
    Args:
        sources: see `Sources`.
        model: makes networks that checkpoints do not name.

    Raises:
        ValueError, TypeError, FileNotFoundError: not a source.
    """

    def __init__(self, sources: Sources, model: str | Maker | None) -> None:
        self.model = model
        self.given = labelled(sources)
        self.recipes: dict[int, dict[str, Any]] = {}
        self.found: dict[int, Run] = {}
        for number, (label, source) in enumerate(self.given):
            recipe = None if isinstance(source, nn.Module) else recipe_of(source)
            if isinstance(source, nn.Module):
                self.found[number] = obtain(source, Path(), name=label)
            elif recipe is not None:
                published = RECIPES[recipe["recipe"]].arguments if recipe.get("recipe") in RECIPES else {}  # fmt: skip
                self.recipes[number] = {**published, **recipe}
            else:
                assert isinstance(source, (str, Path))
                self.found[number] = open_run(source, model, label)

    def splits(self, data: object, root: str | Path | None) -> Splits:
        """`data`, or what all the runs were trained on.

        Raises:
            ValueError: they are of different data, and `data` does not say which.
        """
        own = [run.config.get("data") for run in self.found.values() if run.config]
        own += [recipe.get("data") for recipe in self.recipes.values()]
        names = sorted({str(name) for name in own})
        if data is None and len(names) > 1:
            raise ValueError(f"the runs are of different data ({', '.join(names)}): give `data`")
        first = own[0] if own else None
        return Run("the network", config={"data": first} if first is not None else {}).splits(
            data, root
        )

    def network(self, splits: Splits) -> nn.Module:
        """One of them, with any weights."""
        for run in self.found.values():
            return run.model()
        return self._of_recipe(next(iter(self.recipes.values())), splits)

    def passes(self, splits: Splits) -> float:
        """Of an image, in the trainings that are still to be done."""
        train = known_part(splits, "train")
        return sum(
            training_passes(self._of_recipe(recipe, splits), len(train), recipe)
            for recipe in self.recipes.values()
        )

    def _of_recipe(self, recipe: Mapping[str, Any], splits: Splits) -> nn.Module:
        made = recipe.get("model", "small-cnn")
        if not isinstance(made, (str, nn.Module)):
            made = made()
        return make_model(made, known_part(splits, "train"))

    def epochs(self, number: int, keep_every: int) -> list[int]:
        """Of the checkpoints of a run, or that a recipe will have."""
        if number in self.found:
            return list(self.found[number].epochs or (0,))
        last = self.recipes[number].get("epochs", 30)
        return sorted({*range(0, last, keep_every), last})

    def obtain(self, folder: Path, keep_every: int, *, progress: bool) -> dict[Key, Run]:
        """All of them, in order, recipes trained in a folder each.

        Raises:
            ValueError: two of the same label and seed.
        """
        runs: dict[Key, Run] = {}
        for number, (label, source) in enumerate(self.given):
            run = self.found.get(number)
            if run is None:
                name = label or f"run{number + 1}"
                seed = self.recipes[number].get("seed", 0)
                run = obtain(
                    source, folder / f"{name.replace('/', '-')}-seed{seed}", name=name, model=self.model,
                    keep_every=keep_every, progress=progress,
                )  # fmt: skip
            key = run.name, int(run.config.get("seed", 0))
            if key in runs:
                raise ValueError(
                    f"two runs of the label {key[0]!r} have the seed {key[1]}: give each a label"
                )
            runs[key] = run
        return runs


def radius_of(runs: Iterable[Run], given: Mapping[str, Any]) -> tuple[float, str]:
    """eps and norm of the attack: those given, or those that all the runs were trained with.

    Raises:
        ValueError: they differ, or no run says.
    """
    found: list[Any] = []
    for name, plain in (("eps", None), ("norm", "linf")):
        if given.get(name) is not None:
            found.append(given[name])
            continue
        # A network by itself does not say.
        own = {run.config.get(name, plain) for run in runs if run.config} or {plain}
        if len(own) > 1 or own == {None}:
            what = ", ".join(sorted(map(str, own)))
            raise ValueError(f"the runs do not agree on {name} ({what}): give `{name}`")
        found += own
    return float(found[0]), str(found[1])


def model_name(runs: Iterable[Run]) -> str:
    """Of the network, where the checkpoints say; for the settings of a study."""
    for run in runs:
        if run.points:
            described = checkpoint.read(run.points[-1][1])["model"]
            return str(described.get("name", described.get("class", "")))
        return type(run.model()).__name__
    return ""
