"""Several attacks, one after another on what the ones before left right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .attack import Attack


class MultiAttack(Attack):
    """For each image the first attack's result that the model gets wrong; the image itself if there is none.

    Args:
        attacks: two or more attacks on the same model.
        verbose: print the share of images broken after each attack.

    Raises:
        ValueError: fewer than two attacks, or different models.
    """

    def __init__(self, attacks: Sequence[Any], verbose: bool = False) -> None:
        if len(attacks) < 2:
            raise ValueError(f"attacks must be two or more, got {len(attacks)}")
        super().__init__("MultiAttack", attacks[0].model)
        self.attacks = attacks
        self.verbose = verbose
        self.check_validity()
        self._left: list[int] | None = None
        """While `save` runs: images, and how many of them were right after each attack."""

    def check_validity(self) -> None:
        if len(self.attacks) < 2:
            raise ValueError(f"attacks must be two or more, got {len(self.attacks)}")
        if any(attack.model is not self.attacks[0].model for attack in self.attacks):
            raise ValueError("the attacks must be on the same model, got different ones")

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        images = images.detach()
        if self.device is not None:
            images = images.to(self.device)
        if labels is None:
            labels = self.get_output_with_eval_nograd(images).argmax(1)
        labels = labels.detach().to(images.device)
        result = images.clone()
        right = torch.arange(len(images), device=images.device)
        left = [len(images)]
        for attack in self.attacks:
            if len(right):
                crafted = attack(images[right], labels[right])
                with torch.no_grad():
                    wrong = self.get_logits(crafted).argmax(1) != labels[right]
                result[right[wrong]] = crafted[wrong]
                right = right[~wrong]
            left.append(len(right))
        if self.verbose:
            print(self._success_rates(left))
        if self._left is not None:
            self._left = [a + b for a, b in zip(self._left, left, strict=True)]
        return result

    @staticmethod
    def _rates(left: list[int]) -> list[float]:
        return [100 * (1 - count / left[0]) if left[0] else 0.0 for count in left[1:]]

    def _success_rates(self, left: list[int]) -> str:
        return "Attack success rate: " + " | ".join(f"{rate:2.2f} %" for rate in self._rates(left))

    def save(
        self,
        data_loader: Iterable[Sequence[Tensor]],
        save_path: str | Path | None = None,
        verbose: bool = True,
        return_verbose: bool = False,
        save_predictions: bool = False,
        save_clean_inputs: bool = False,
        save_type: str = "float",
    ) -> tuple | None:
        """As for one attack; the returned tuple and the printed line also hold the success rates in percent."""
        quiet, self.verbose = self.verbose, False
        self._left = [0] * (len(self.attacks) + 1)
        try:
            found = super().save(
                data_loader, save_path, verbose, return_verbose, save_predictions,
                save_clean_inputs, save_type,
            )  # fmt: skip
            if found is None:
                return None
            accuracy, l2, elapsed = found
            return accuracy, self._rates(self._left), l2, elapsed
        finally:
            self.verbose = quiet
            self._left = None

    def _save_print(
        self, progress: float, rob_acc: float, l2: float, elapsed_time: float, end: str
    ) -> None:
        assert self._left is not None
        print(
            f"- Save progress: {progress:2.2f} % / Robust accuracy: {rob_acc:2.2f} % / "
            f"{self._success_rates(self._left)} / L2: {l2:1.5f} ({elapsed_time:2.3f} it/s) \t",
            end=end,
        )
