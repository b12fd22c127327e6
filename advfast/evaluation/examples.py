"""The samples that broke although the model was surest of them: what one wants to see first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

KEPT = 8


@dataclass(frozen=True)
class Example:
    """A sample that is right when clean and wrong when attacked.

    Attributes:
        attack: which attack broke it.
        sample: its number in the data.
        label: its class.
        predicted: what the model takes the attacked image for; -1 where its logits contain NaN.
        margin: how sure the model was of the clean image: the logit of the label less the largest other one.
        confidence: softmax probability of the label on the clean image.
        confidence_attacked: softmax probability of `predicted` on the attacked image.
        distance: of the attacked image from the clean one, in the norm of the evaluation.
        image, attacked: [C, H, W] (or the shape of the data) on the CPU; None in a report that was read from a file.
    """

    attack: str
    sample: int
    label: int
    predicted: int
    margin: float
    confidence: float
    confidence_attacked: float
    distance: float
    image: Tensor | None = field(default=None, compare=False, repr=False)
    attacked: Tensor | None = field(default=None, compare=False, repr=False)

    def to_dict(self, images: bool = False) -> dict[str, Any]:
        """Plain values; with `images` also the tensors, which JSON does not take."""
        content = dict(vars(self))
        if not images:
            del content["image"], content["attacked"]
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Example:
        """The inverse of `to_dict`.

        Raises:
            TypeError: something is missing.
        """
        return cls(**content)


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """[B] logit of the label less the largest other one, float32, finite; lowest where it is not a number."""
    wide = logits.float()
    own = wide.gather(1, labels[:, None])[:, 0]
    others = wide.scatter(1, labels[:, None], -torch.inf).amax(1)
    return torch.nan_to_num(own - others, nan=torch.finfo(torch.float32).min)


def surest(
    attack: str,
    images: Tensor,
    attacked: Tensor,
    labels: Tensor,
    numbers: Tensor,
    logits: Tensor,
    logits_attacked: Tensor,
    predicted: Tensor,
    distance: Tensor,
) -> list[Example]:
    """Of samples that an attack broke, those with the largest clean margins, largest first.

    Args:
        images, attacked: [B, ...], clean and attacked.
        labels, numbers: [B] classes and sample numbers.
        logits, logits_attacked: [B, K].
        predicted: [B] on the attacked images, -1 for NaN.
        distance: [B].
    """
    found = margins(logits, labels)
    order = found.argsort(descending=True, stable=True)[:KEPT]
    sure = _probability(logits[order], labels[order])
    after = _probability(logits_attacked[order], predicted[order].long().clamp(min=0))
    return [
        Example(
            attack=attack,
            sample=int(numbers[row]),
            label=int(labels[row]),
            predicted=int(predicted[row]),
            margin=float(found[row]),
            confidence=sure[place],
            confidence_attacked=after[place],
            distance=float(distance[row]),
            image=images[row].detach().cpu(),
            attacked=attacked[row].detach().cpu(),
        )
        for place, row in enumerate(order.tolist())
    ]


def _probability(logits: Tensor, classes: Tensor) -> list[float]:
    chosen = logits.float().softmax(1).gather(1, classes[:, None])[:, 0]
    return torch.nan_to_num(chosen).tolist()


def merged(before: list[Example], new: list[Example]) -> list[Example]:
    """The `KEPT` with the largest margins of both; images that are kept are copies, so that no batch is held."""
    chosen = sorted([*before, *new], key=lambda one: (-one.margin, one.sample))[:KEPT]
    return [one if one in before else _owned(one) for one in chosen]


def _owned(one: Example) -> Example:
    assert one.image is not None and one.attacked is not None
    return replace(one, image=one.image.clone(), attacked=one.attacked.clone())
