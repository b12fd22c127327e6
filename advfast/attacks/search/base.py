"""What APGD, FAB and Square share: settings, one call from images to adversarial images, and who is attacked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from advfast import _backend
from advfast.attacks import checks
from advfast.attacks.arguments import ids_of
from advfast.attacks.finish import over
from advfast.attacks.outputs import Output, check_output
from advfast.attacks.rows import _Selectable
from advfast.attacks.state import bare_model
from advfast.kernels import project_
from advfast.kernels.pgd.api import check_norm

from .oracle import Oracle

RNGS = ("philox", "upstream")
Watch = Callable[[float], None]
"""Called with the share of a search that is done, 0 to 1."""


def part_of(watch: Watch | None, before: float, share: float) -> Watch:
    """Told of a part of a search, tells of the whole: `before` was done, and the part is this share of it."""

    def tell(done: float) -> None:
        if watch is not None:
            watch(min(1.0, before + share * done))

    return tell


@dataclass
class Points(_Selectable):
    """Samples that the model has right when clean.

    Attributes:
        x: [B, ...] the images, in the oracle's dtype and layout.
        labels: [B] int64.
        ids: [B] int64, numbers of the samples: what their random draws are keyed by.
        logits: [B, K] of the images, in the oracle's dtype.
    """

    x: Tensor
    labels: Tensor
    ids: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return len(self.x)


@dataclass
class Found:
    """What a search came to.

    Attributes:
        x: [B, ...] like the points: an adversarial image where there is one, the clean image elsewhere.
        success: [B] bool.
        radius: [B] how far each image is, where that may be more than eps; None: all keep to eps.
    """

    x: Tensor
    success: Tensor
    radius: Tensor | None = None


class SearchAttack:
    """An attack that looks for one misclassified image in the ball of each sample. Call it: ``attack(images, labels)``.

    All arguments are plain attributes and may be changed between calls. The model is left as it was found. torch's
    generators are neither used nor moved.

    Args:
        model: images [B, ...] in [0, 1] -> logits [B, K], K >= 2; normalisation belongs inside it.
        eps: radius in pixel units of [0, 1]; 0 returns the images as they are.
        norm: "linf", "l2" or "l1".
        seed: integer of the random draws.
        rng: "philox": draws are keyed by (seed, sample id) and so independent of the batch split. "upstream": those of
            the published implementation (fra31/auto-attack, pyautoattack 0.2.0) on a CPU, of the batch as it is given.
        fold: permits the engine to change the arithmetic within rounding, as for `PGDAttack`.
        precision: "fp32" (the model's own dtype), or "bf16", "fp16": the model runs under autocast.
        batch_size: most rows of a pass through the model. None: what keeps the device busy.
        output: where the logits are in what the model returns.
        impl: implementation of the fused steps: "auto", "reference", "cpp", "triton".

    Raises:
        TypeError, ValueError: bad settings, here or (when changed later) at the call.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float = 8 / 255,
        *,
        norm: str = "linf",
        seed: int = 0,
        rng: str = "philox",
        fold: bool = True,
        precision: str = "fp32",
        batch_size: int | None = None,
        output: Output = None,
        impl: str = "auto",
    ) -> None:
        self.model = model
        self.eps = eps
        self.norm = norm
        self.seed = seed
        self.rng = rng
        self.fold = fold
        self.precision = precision
        self.batch_size = batch_size
        self.output = output
        self.impl = impl
        self.forwards = 0
        """After a call: images that went through the model."""
        self.backwards = 0
        """After a call: images whose gradient was taken."""
        self.nonfinite = 0
        """After a call: gradient entries that were not finite; they were taken for 0."""

    def __repr__(self) -> str:
        shown = {k: v for k, v in vars(self).items() if k != "model" and not k.startswith("_")}
        for name in ("forwards", "backwards", "nonfinite"):
            shown.pop(name)
        settings = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"{type(self).__name__}(model={type(self.model).__name__}, {settings})"

    def __call__(
        self, images: Tensor, labels: Tensor | None = None, *, sample_ids: Tensor | None = None
    ) -> Tensor:
        """Adversarial images.

        Args:
            images: [B, ...] float, in [0, 1].
            labels: [B] integer classes, or probabilities [B, K], of which the largest counts. None: the model's
                predictions on `images`.
            sample_ids: [B] int64, numbers of the samples in the data set; default 0 .. B-1.

        Returns:
            A new tensor like images: a misclassified image where one was found, the clean image elsewhere; inside the
            ball and the box also after rounding to a 16-bit dtype.

        Raises:
            TypeError, ValueError: what was wrong, expected and got.
        """
        self.check()
        model = bare_model(self.model)
        checks.check_images(images, model)
        if labels is not None:
            labels = checks.check_labels(labels, images)
        self.forwards = self.backwards = self.nonfinite = 0
        result = torch.empty_like(images).copy_(images.detach())
        if not len(images):
            return result
        with self.oracle(images) as oracle:
            x0 = oracle.iterate(images)
            logits = oracle.logits(x0)
            classes = logits.argmax(1) if labels is None else checks.classes_of(labels)
            checks.check_values(x0, (0.0, 1.0), labels, logits.shape[1])
            if sample_ids is None:
                sample_ids = torch.arange(len(x0), device=x0.device)
            ids = ids_of(sample_ids, x0)
            right = (logits.argmax(1) == classes).nonzero()[:, 0]
            points = Points(x0, classes, ids, logits).selected(right)
            if len(points) and self.eps > 0:
                found = self.attack(oracle, points, images.dtype)
                hit = found.success.nonzero()[:, 0]
                result[right[hit]] = found.x[hit].to(images.dtype)
            self.forwards, self.backwards = oracle.forwards, oracle.backwards
            self.nonfinite = int(oracle.nonfinite)
        return result

    def oracle(self, example: Tensor) -> Oracle:
        """The model, to be opened with `with`, as these settings ask for it."""
        return Oracle(
            self.model,
            example,
            output=self.output,
            fold=self.fold,
            precision=self.precision,
            batch_size=self.batch_size,
        )

    def attack(
        self, oracle: Oracle, points: Points, dtype: torch.dtype, watch: Watch | None = None
    ) -> Found:
        """`search`, and a second look: what counts is the image in the caller's dtype, as the model sees it."""
        found = self.search(oracle, points, watch)
        hit = found.success.nonzero()[:, 0]
        if len(hit):
            seen = found.x[hit]
            if dtype != seen.dtype:
                narrow = torch.empty_like(seen, dtype=dtype)
                eps = self.eps if found.radius is None else over(found.radius[hit], seen)
                project_(
                    seen, points.x[hit], eps=eps, norm=self.norm.lower(), out=narrow, impl="auto"
                )
                seen = narrow.to(seen.dtype)
            still = oracle.logits(seen).argmax(1) != points.labels[hit]
            found.success[hit] = still
            found.x[hit] = torch.where(still.view(-1, *[1] * (seen.dim() - 1)), seen, points.x[hit])
        return found

    def search(self, oracle: Oracle, points: Points, watch: Watch | None = None) -> Found:
        """The attack itself, on points that are right when clean. For subclasses.

        Args:
            oracle: open.
            points: at least one; eps is above 0.
            watch: told how far it has come.
        """
        raise NotImplementedError

    def check_targets(self, targets: int, classes: int) -> None:
        """
        Raises:
            ValueError: there are fewer wrong classes than targets.
        """
        if targets >= classes:
            raise ValueError(
                f"{type(self).__name__}: targets={targets} needs at least {targets + 1} classes, the model has "
                f"{classes}"
            )

    def check(self) -> None:
        """
        Raises:
            TypeError, ValueError: a bad setting. Subclasses look at their own, then here.
        """
        if not callable(self.model):
            raise TypeError(f"model must be callable, got {type(self.model).__name__}")
        if isinstance(self.eps, Tensor):
            raise TypeError(f"{type(self).__name__}: eps must be a number, got a tensor")
        checks.check_radius(self.eps)
        check_norm(type(self).__name__, self.norm)
        checks.check_count("seed", self.seed, 0)
        checks.check_choice("rng", self.rng, RNGS)
        checks.check_choice("precision", self.precision, ("fp32", "bf16", "fp16"))
        checks.check_choice("impl", self.impl, ("auto", *_backend.IMPLS))
        if self.batch_size is not None:
            checks.check_count("batch_size", self.batch_size, 1)
        check_output(self.output)
