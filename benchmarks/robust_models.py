"""Adversarially trained networks of the AutoAttack benchmarks; made once and kept in a folder.

python benchmarks/robust_models.py --models FOLDER [NAME ...]      # ten minutes for all on two cores
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import networks
import torch
from torch import Tensor, nn

import advfast

_HELD_OUT = 300
Pair = tuple[Tensor, Tensor]  # images [N, 1, H, W] in [0, 1], labels [N]


@dataclass(frozen=True)
class Recipe:
    """PGD adversarial training, steps of eps/4, batches of 128."""

    name: str
    network: str  # a name of networks.make
    data: str  # a name of advfast.data.load
    norm: str
    eps: float
    images: int
    epochs: int
    steps: int
    lr: float = 0.05


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("fashion-linf", "mnist-cnn", "fashion-mnist", "linf", 0.1, 20_000, 6, 7),
        Recipe("fashion-l2", "mnist-cnn", "fashion-mnist", "l2", 1.0, 20_000, 6, 7),
        Recipe("digits-linf", "mnist-cnn", "digits", "linf", 0.1, 797, 40, 7),
        Recipe("digits-l2", "mnist-cnn", "digits", "l2", 0.5, 797, 40, 7),
        Recipe("fashion-resnet", "resnet18-w8", "fashion-mnist", "linf", 0.1, 6_000, 3, 3),
    )
}
DIGITS_TRAIN = 797
"""Of 1797 digits; the other 1000 are the test set here."""


def quick(recipe: Recipe) -> Recipe:
    """A minute's worth or less: no result, a trial."""
    return replace(recipe, name=f"{recipe.name}-quick", images=min(recipe.images, 797), epochs=2)


def data(name: str) -> tuple[Pair, Pair]:
    """Training images in a random order, and the test images."""
    splits = advfast.data.load(name)
    assert splits.test is not None
    if name != "digits":
        train, test = splits.train, splits.test
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        return train.batch(order), test.batch(torch.arange(len(test)))
    parts = [part.batch(torch.arange(len(part))) for part in (splits.train, splits.test)]
    images, labels = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    own, other = slice(None, DIGITS_TRAIN), slice(DIGITS_TRAIN, None)
    return (images[own], labels[own]), (images[other], labels[other])


def obtain(recipe: Recipe, folder: Path) -> tuple[nn.Module, Pair]:
    """(the network after its training, in eval mode; test images and labels). Trained where `folder` lacks it."""
    (images, labels), test = data(recipe.data)
    model = networks.make(recipe.network, 1, side=images.shape[-1])
    path = folder / f"{recipe.name}.pt"
    if not path.exists():
        began = time.perf_counter()
        held_out = (images[-_HELD_OUT:], labels[-_HELD_OUT:])
        kept = min(recipe.images, len(images) - _HELD_OUT)
        with tempfile.TemporaryDirectory() as work:
            advfast.train(
                model, (images[:kept], labels[:kept]), method="pgd-at", eps=recipe.eps,
                norm=recipe.norm, steps=recipe.steps, epochs=recipe.epochs, batch_size=128,
                lr=recipe.lr, val=held_out, seed=0, out=work, progress=False,
            )  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
        print(f"trained {recipe} in {time.perf_counter() - began:.0f} s", flush=True)
    model.load_state_dict(torch.load(path))
    return model.eval().requires_grad_(False), test


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RECIPES)}; default: all")
    parser.add_argument("--models", type=Path, required=True, help="folder of the weights")
    parser.add_argument("--quick", action="store_true", help="a few images and epochs: a trial")
    options = parser.parse_args(arguments)
    for name in options.names or RECIPES:
        recipe = quick(RECIPES[name]) if options.quick else RECIPES[name]
        model, test = obtain(recipe, options.models)
        report = advfast.evaluate(model, test, eps=recipe.eps, norm=recipe.norm, limit=1000)
        print(name, report, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
