"""Adversarial training with transferable adversarial examples (Zheng et al., CVPR 2020)."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from advfast.attacks import checks
from advfast.data import Batch, Loader
from advfast.graphs import plain_attributes

from .base import OF_A_CALL, Method, Settings

if TYPE_CHECKING:
    from ..loop import Batches

START = 0.001
"""Deviation of the normal start in pixels, of the authors' code."""


class ATTA(Method):
    """PGD adversarial training whose perturbations are kept from epoch to epoch: each goes on where it ended.

    A sample's perturbation lives in the coordinates of its padded image: what crop and flip do to the image in an epoch
    is done to it, and undone when it is put back ("inverse data augmentation"); what is outside of the window stays as
    it is. Before the first epoch and before every epoch whose number `reset_every` divides, all of them start again
    from 0.001 N(0, 1), as in the authors' code. `steps` PGD steps an epoch follow, from the stored point put into ball
    and box. steps None is 1; alpha None is eps/4.

    Of a sample that comes twice in a batch (extra data are drawn with replacement) one of the two is kept. The
    perturbations are float32, 4 C (H + 2 pad) (W + 2 pad) bytes a sample on the device and in last.pt: 0.96 GB for
    the 50,000 images of CIFAR-10 with a crop padded by 4. Options:

    * reset_every: 10 epochs, as published.

    Raises:
        ValueError: an option out of range; or, before a run starts, data that are no numbered samples of advfast's own
            loader, an augmentation that scales, or several processes.
    """

    options: ClassVar[tuple[str, ...]] = ("reset_every",)
    defaults: ClassVar[dict[str, Any]] = {"steps": 1}
    soft_labels: ClassVar[bool] = False

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        self.reset_every = self.option("reset_every", 10)
        checks.check_count("reset_every", self.reset_every, 1)
        self.pgd = self.attack()
        self.begun = 0
        """Last epoch that was begun."""

    def begin(self, batches: Batches, images: Tensor) -> None:
        if not isinstance(batches, Loader):
            raise ValueError(
                "atta keeps a perturbation of each sample: it needs the data as tensors or a Dataset, "
                "not a DataLoader of your own"
            )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            world = torch.distributed.get_world_size()
            if world > 1:
                raise ValueError(
                    "atta keeps the perturbations of all samples in one process, which sees every sample in "
                    f"every epoch: it cannot run in {world}"
                )
        if images.dim() != 4:
            raise ValueError(
                f"atta needs images (C, H, W), the data have {tuple(images.shape[1:])}"
            )
        self.augment = batches.augment
        if self.augment.decode_side is not None:
            raise ValueError(
                "atta puts perturbations back where they were: augment 'random-resized-crop' scales them"
            )
        cells = self.augment.canvas
        self.delta = torch.zeros(
            (batches.samples, images.shape[1], cells[0] * cells[1]), device=images.device
        )
        self.drawn = torch.zeros_like(batches.drawn(1))

    def begin_epoch(self, epoch: int, batches: Batches) -> None:
        assert isinstance(batches, Loader)
        self.drawn.copy_(batches.drawn(epoch))
        if epoch > self.begun:
            if not self.begun or epoch % self.reset_every == 0:
                self.delta.normal_(0, START)
            self.begun = epoch

    def craft(self, batch: Batch) -> Tensor:
        images, numbers = batch.images, batch.indices
        assert numbers is not None
        places = self.augment.places(self.drawn.index_select(0, numbers))  # [B, H, W]
        places = places[:, None].flatten(2).expand(-1, images.shape[1], -1)
        kept = self.delta.index_select(0, numbers)
        start = images + kept.gather(2, places).view(images.shape)
        crafted = self.pgd(images, batch.labels, sample_ids=numbers, init=start)
        kept.scatter_(2, places, (crafted - images).flatten(2))
        self.delta.index_copy_(0, numbers, kept)
        return crafted

    def graph_key(self) -> Hashable:
        # Not of the epoch that was begun: the graph would be made anew in each.
        return plain_attributes(self.pgd, *OF_A_CALL)

    def passes(self) -> float:
        return 2 * self.steps + 3

    def state_dict(self) -> dict[str, Any]:
        return {"delta": self.delta, "begun": self.begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.delta.copy_(state["delta"])
        self.begun = int(state["begun"])
