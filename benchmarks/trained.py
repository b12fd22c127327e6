"""Networks that are robust to some degree, for what random weights say nothing about."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import networks
import torch
from torch import Tensor, nn

import advfast

EPS = 0.1
_HELD_OUT = 200
Pair = tuple[Tensor, Tensor]  # images [N, 1, 28, 28] in [0, 1], labels [N]


@dataclass(frozen=True)
class Recipe:
    """PGD adversarial training, eps 0.1, alpha eps/4, batches of 128."""

    network: str  # a name of networks.make
    images: int
    epochs: int
    steps: int


SMALL = Recipe("mnist-cnn", 20_000, epochs=4, steps=7)
RESNET = Recipe("resnet18-w16", 3_000, epochs=2, steps=2)
QUICK = {
    "mnist-cnn": Recipe("mnist-cnn", 512, epochs=3, steps=2),
    "resnet18-w8": Recipe("resnet18-w8", 256, epochs=1, steps=1),
}


def fashion_mnist(train: int, test: int) -> tuple[Pair, Pair]:
    """Training images in a random order, and the first test images."""
    splits = advfast.data.load("fashion-mnist")
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))
    assert splits.test is not None
    return splits.train.batch(order[:train]), splits.test.batch(torch.arange(test))


def prototypes(train: int, test: int) -> tuple[Pair, Pair]:
    """Ten noisy patterns: something that a network learns in a moment, and that needs no files."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (train + test,), generator=generator)
    patterns = torch.rand(10, 1, 28, 28, generator=generator)
    noise = torch.rand(len(labels), 1, 28, 28, generator=generator)
    images = 0.3 * patterns[labels] + 0.7 * noise
    return (images[:train], labels[:train]), (images[train:], labels[train:])


def obtain(recipe: Recipe, train: Pair, checkpoint: Path | None = None) -> nn.Module:
    """The network after its training, in eval mode; or, with a checkpoint of it, with those weights.

    train: at least recipe.images and 200 more, which are held out to choose the epoch.
    """
    model = networks.make(recipe.network, 1, side=28)
    if checkpoint is not None:
        return advfast.load(checkpoint, model)
    print(f"training {recipe}", flush=True)
    kept = (train[0][: recipe.images], train[1][: recipe.images])
    held_out = (train[0][-_HELD_OUT:], train[1][-_HELD_OUT:])
    with tempfile.TemporaryDirectory() as folder:
        advfast.train(
            model, kept, method="pgd-at", eps=EPS, steps=recipe.steps, epochs=recipe.epochs,
            batch_size=128, lr=0.05, val=held_out, seed=0, out=folder, progress=False,
        )  # fmt: skip
    return model.eval()


def needed(recipe: Recipe) -> int:
    return recipe.images + _HELD_OUT
