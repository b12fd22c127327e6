"""What tests of methods write out by hand: networks, batches, one step of plain SGD."""

import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from advfast.data import Batch
from advfast.kernels import random_start
from advfast.training import methods
from advfast.training.step import TrainStep

EPS, LR = 0.1, 0.3


def settings(**changes):
    options = changes.pop("options", {})
    base = {"eps": EPS, "alpha": None, "steps": None, "norm": "linf", "options": options}
    return methods.Settings(**base | changes)


def network(dtype=torch.float64, inplace=False):
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace), nn.Flatten(), nn.Linear(256, 3)
    ).to(dtype)  # fmt: skip


def batch_of(size=12, dtype=torch.float64, seed=5):
    """With some pixels at the ends of the box."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(size, 1, 8, 8, dtype=dtype, generator=generator) * 1.2 - 0.1
    return Batch(images.clamp(0, 1), torch.arange(size) % 3, torch.arange(size) + 7)


def made(name, model, batch, **changes):
    """A method that has begun."""
    method = methods.make(name, model, settings(**changes))
    method.begin(None, batch.images[:2])
    return method


def one_step(method, batch, *, momentum=0.0, scaler=None):
    """TrainStep with plain SGD."""
    return TrainStep(
        method.model,
        torch.optim.SGD(method.model.parameters(), lr=LR, momentum=momentum),
        (),
        scaler or torch.amp.GradScaler("cpu", enabled=False),
    )(method, batch)


def image_gradient(model, images, labels, mode="eval"):
    """Of the cross-entropy, by a copy of the network."""
    model = copy.deepcopy(model).train(mode == "train")
    images = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(model(images), labels), images)
    return gradient


def descend(model, loss):
    """One step of SGD."""
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter -= LR * gradient


def uniform(images, radius, ids, bounds=(0.0, 1.0)):
    """The start that an attack draws next from torch's generator, which is left as it was."""
    state = torch.get_rng_state()
    seed = torch.randint(2**63 - 1, (1,))
    torch.set_rng_state(state)
    return random_start(images, eps=radius, bounds=bounds, seed=seed, sample_ids=ids)


def assert_same_weights(model, other, **tolerance):
    for (name, one), two in zip(
        model.state_dict().items(), other.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(
            one, two, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
