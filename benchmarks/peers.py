"""PGD of other libraries, each called as its documentation shows, without a random start.

Each maker takes (model, settings) and returns attack(images, labels) -> images, or raises
ImportError where the package is missing. make_peers_env.sh installs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Attack = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    norm: str
    eps: float
    alpha: float
    steps: int
    shape: tuple[int, ...]  # [B, C, H, W]
    classes: int = 10


def with_torchattacks(model: nn.Module, s: Settings) -> Attack:
    import torchattacks

    kind = torchattacks.PGD if s.norm == "linf" else torchattacks.PGDL2
    return kind(model, eps=s.eps, alpha=s.alpha, steps=s.steps, random_start=False)


def with_foolbox(model: nn.Module, s: Settings) -> Attack:
    import foolbox

    kind = foolbox.attacks.LinfPGD if s.norm == "linf" else foolbox.attacks.L2PGD
    attack = kind(abs_stepsize=s.alpha, steps=s.steps, random_start=False)
    device = next(model.parameters()).device
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=device)

    def run(images: Tensor, labels: Tensor) -> Tensor:
        return attack(wrapped, images, labels, epsilons=s.eps)[1]

    return run


def with_art(model: nn.Module, s: Settings) -> Attack:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    device = next(model.parameters()).device
    classifier = PyTorchClassifier(
        model=model, loss=nn.CrossEntropyLoss(), input_shape=s.shape[1:], nb_classes=s.classes,
        clip_values=(0.0, 1.0), device_type="gpu" if device.type == "cuda" else "cpu",
    )  # fmt: skip
    # Its default batch of 32 would only make it slower.
    attack = ProjectedGradientDescentPyTorch(
        classifier, norm="inf", eps=s.eps, eps_step=s.alpha, max_iter=s.steps, num_random_init=0,
        batch_size=s.shape[0], verbose=False,
    )  # fmt: skip

    def run(images: Tensor, labels: Tensor) -> Tensor:
        made = attack.generate(images.cpu().numpy(), labels.cpu().numpy())
        return torch.from_numpy(made).to(device)

    return run


def with_cleverhans(model: nn.Module, s: Settings) -> Attack:
    import numpy
    from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

    def run(images: Tensor, labels: Tensor) -> Tensor:
        return projected_gradient_descent(
            model, images, s.eps, s.alpha, s.steps, numpy.inf, clip_min=0, clip_max=1, y=labels,
            rand_init=False,
        )  # fmt: skip

    return run


PeerMaker = Callable[[nn.Module, Settings], Attack]
PEERS: dict[str, PeerMaker] = {
    "torchattacks": with_torchattacks,
    "foolbox": with_foolbox,
    "art": with_art,
    "cleverhans": with_cleverhans,
}
# The distribution whose version is reported.
PACKAGES = {
    "torchattacks": "torchattacks",
    "foolbox": "foolbox",
    "art": "adversarial-robustness-toolbox",
    "cleverhans": "cleverhans",
}
# ART and cleverhans clamp to the box inside the l2 step: other results, so other work.
NORMS = {
    "torchattacks": ("linf", "l2"),
    "foolbox": ("linf", "l2"),
    "art": ("linf",),
    "cleverhans": ("linf",),
}
