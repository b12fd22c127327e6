"""AT-BSL: adversarial training with balanced softmax (Yue et al., CVPR 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from advfast.attacks import GaussianPGD
from advfast.attacks.state import crafting
from advfast.data import Batch, Loader, Mixed

from .base import Method, Settings, Step

if TYPE_CHECKING:
    from ..loop import Batches

STARTS = ("normal", "uniform")


class ATBSL(Method):
    """CE(f(x') + log n, y) on PGD images of plain cross-entropy; n [C] are the training images of each class.

    The logarithms of the counts are added to all logits, in training alone, so that the network itself is evaluated as
    if the classes were equally frequent ("balanced softmax", Ren et al., NeurIPS 2020). Options:

    * start: "normal", 0.001 times normal noise, as in the authors' code, or "uniform" in the ball;
    * counts: n, where the data do not tell (a DataLoader of one's own, extra data).

    Raises:
        ValueError: an option out of range; or, before a run starts, a class without an image, counts that do not fit
            the model's classes, or data that do not tell them.
    """

    options: ClassVar[tuple[str, ...]] = ("start", "counts")

    log_counts: Tensor
    """log n, [C] in the dtype of the logits."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        self.given = _counts(self.option("counts", None))
        if "start" in self.options:
            start = self.option("start", "normal")
            if start not in STARTS:
                raise ValueError(f"start must be one of {', '.join(STARTS)}, got {start!r}")
            self.pgd = self.attack(GaussianPGD) if start == "normal" else self.attack()

    def begin(self, batches: Batches, images: Tensor) -> None:
        with crafting(self.model, "eval"), torch.no_grad():
            logits = self.logits(images)
        counts = self.given or class_counts(batches, logits.shape[1])
        if len(counts) != logits.shape[1]:
            raise ValueError(
                f"counts must be one for each of the {logits.shape[1]} classes of the model, got {len(counts)}"
            )
        if min(counts) < 1:
            raise ValueError(
                f"class {counts.index(min(counts))} has no training image: balanced softmax needs one of each of the "
                f"{len(counts)} classes"
            )
        self.counts = torch.tensor(counts, device=logits.device)
        self.log_counts = self.counts.to(logits.dtype).log()

    def craft(self, batch: Batch) -> Tensor:
        return self.pgd(batch.images, batch.labels, sample_ids=batch.indices)

    def loss(self, images: Tensor, batch: Batch) -> Step:
        logits = self.logits(images)
        return Step(self.cross_entropy(logits + self.log_counts, batch.labels), logits)

    def passes(self) -> float:
        return 2 * self.steps + 3


def class_counts(batches: object, classes: int) -> list[int]:
    """Training images of each class.

    Raises:
        ValueError: the batches do not tell.
    """
    if not isinstance(batches, Loader) or isinstance(batches, Mixed):
        kind = "extra data are mixed in" if isinstance(batches, Mixed) else "a DataLoader"
        raise ValueError(
            f"the number of training images of each class is not known ({kind}): give the method's option counts"
        )
    return torch.bincount(batches.labels.cpu(), minlength=classes).tolist()


def _counts(value: object) -> list[int]:
    """The option; [] where it is not given."""
    if value is None:
        return []
    whole = isinstance(value, (list, tuple)) and all(
        isinstance(count, int) and not isinstance(count, bool) and count > 0 for count in value
    )
    if not whole or not value:
        raise ValueError(f"counts must be a list of integers > 0, one a class, got {value!r}")
    return list(value)  # type: ignore[call-overload]
