"""Adversarial training inside Lightning: a LightningModule on the methods of `advfast.train`, and robust validation.

    module = AdversarialModule(model, "trades", eps=8 / 255)
    Trainer(max_epochs=30, callbacks=[RobustValidation()]).fit(module, train_loader, val_loader)

What `advfast.train` has besides (its modifiers, the held-out selection, bit-exact resume, a step as one CUDA graph) is
not in it: Lightning's own callbacks and checkpoints are. Works with the package lightning, and with pytorch_lightning
where that was imported first.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from advfast.attacks.checks import check_radius
from advfast.data import Batch
from advfast.evaluation.attacks import entries
from advfast.evaluation.inputs import logits_of
from advfast.kernels.pgd.api import check_norm
from advfast.training import methods, optim, schedules

_PRECISION = {"bf16-mixed": "bf16", "16-mixed": "fp16"}
"""Lightning's name -> that of the attack."""


def _lightning() -> Any:
    names = ["lightning.pytorch", "pytorch_lightning"]
    if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
        names.reverse()
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError("advfast.compat.lightning needs the package lightning: pip install lightning")


pl: Any = _lightning()


class AdversarialModule(pl.LightningModule):
    """A classifier that Lightning trains on adversarial images, by automatic optimisation.

    Batches are (images [B, C, H, W] in [0, 1], labels [B]), or with sample numbers [B] as a third part, by which random
    starts are then keyed. The attack runs on the bare model: under DDP it does not communicate. With a trainer's
    precision "bf16-mixed" or "16-mixed" it runs in these 16 bits too, its iterate in float32. Logs train_loss,
    train_accuracy (on the images trained on) and val_clean or test_clean.

    Args:
        model: images -> logits [B, K]; normalisation inside.
        method: a name or a class, see `advfast.train`; one whose crafting is apart from its loss: not "free", "yopo"
            and "atta".
        eps, alpha, steps, norm, bn, method_options, label_smoothing: see `advfast.train`.
        optimizer, lr, momentum, weight_decay, optimizer_options: see `advfast.train`.
        schedule, schedule_options: see `advfast.train`; over the steps that the trainer will make.

    Raises:
        ValueError, TypeError: a bad argument, or a method that needs more than a loss.
    """

    def __init__(
        self,
        model: nn.Module,
        method: str | methods.Maker = "pgd-at",
        *,
        eps: float = 8 / 255,
        alpha: float | None = None,
        steps: int | None = None,
        norm: str = "linf",
        bn: str = "eval",
        method_options: Mapping[str, Any] | None = None,
        label_smoothing: float = 0.0,
        optimizer: str | optim.Maker = "sgd",
        lr: float | None = None,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        optimizer_options: Mapping[str, Any] | None = None,
        schedule: str | Callable[[int], float] = "one-cycle",
        schedule_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        norm = check_norm("AdversarialModule", norm)
        check_radius(eps)
        self.model = model
        self.eps, self.norm = float(eps), norm
        lr = optim.rate(lr, optimizer)
        self._schedule = schedule, lr, schedule_options
        if not callable(schedule):
            schedules.make(schedule, lr, epochs=1, steps=1, options=schedule_options)
        self._optimizer = lambda: optim.make(
            optimizer,
            model,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            options=optimizer_options,
        )

        def make(precision: str) -> methods.Method:
            settings = methods.Settings(
                self.eps, alpha, steps, norm, bn, precision, label_smoothing,
                options=dict(method_options or {}),
            )  # fmt: skip
            return methods.make(method, model, settings)

        self._make = make
        self.method = make("fp32")
        own = type(self.method)
        if own.update is not methods.Method.update or own.begin is not methods.Method.begin:
            raise ValueError(
                f"method {method!r} does more in a step than make a loss, or keeps something of every sample: "
                "Lightning's automatic optimisation cannot run it, advfast.train can"
            )

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            saved = self.method.state_dict()
            self.method = self._make(_PRECISION.get(str(self.trainer.precision), "fp32"))
            self.method.load_state_dict(saved)

    def on_train_epoch_start(self) -> None:
        self.method.begin_epoch(self.current_epoch + 1, self.trainer.train_dataloader)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch[0], batch[1]
        count = len(labels)
        # Places, so that two ranks do not have the same starts.
        places = torch.arange(count, device=images.device) + self.global_rank * count
        numbers = batch[2] if len(batch) > 2 else places
        given = Batch(images, labels, numbers)
        step = self.method.loss(self.method.craft(given), given)
        accuracy = (step.logits.detach().argmax(1) == labels).float().mean()
        self.log("train_loss", step.loss.detach(), prog_bar=True, batch_size=count)
        self.log("train_accuracy", accuracy, batch_size=count)
        return step.loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self._clean("val_clean", batch)

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self._clean("test_clean", batch)

    def _clean(self, name: str, batch: Sequence[Tensor]) -> None:
        right = (self.model(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log(name, right, prog_bar=True, batch_size=len(batch[1]), sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self._optimizer()
        schedule, lr, options = self._schedule
        if not callable(schedule):
            total = self.trainer.estimated_stepping_batches
            if not total < float("inf"):
                raise ValueError(
                    "the schedule needs a trainer with an end: give it max_epochs or max_steps"
                )
            # Without a number of epochs, milestones in epochs have no meaning: it is all one.
            epochs = max(self.trainer.max_epochs or 1, 1)
            schedule = schedules.make(
                schedule, lr, epochs=epochs, steps=max(int(total) // epochs, 1), options=options
            )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": _ByStep(optimizer, schedule), "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["advfast"] = self.method.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.method.load_state_dict(checkpoint.get("advfast", {}))


class _ByStep(LRScheduler):
    """The rate of every group is that of the step, times the group's "lr_scale"."""

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Callable[[int], float]) -> None:
        self._of_step = schedule
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        rate = self._of_step(self.last_epoch)
        return [rate * group.get("lr_scale", 1.0) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().state_dict().items() if key != "_of_step"}


class RobustValidation(pl.Callback):
    """Accuracy under attack on the validation data, logged as val_<attack> beside the module's own.

    A sample that is misclassified when clean is broken; the others are attacked, by starts keyed by (seed, place in the
    data). As in `advfast.evaluate`, a sample with NaN among its logits is wrong.

    Args:
        attacks: names that `advfast.evaluate` knows, or attacks that it takes.
        eps, norm: None is those of the `AdversarialModule`.
        every: epochs between validations under attack.
        batches: the first so many of each validation; None for all.
        seed: of the starts.

    Raises:
        ValueError, TypeError: a bad argument; in `fit`, an unknown attack, or no eps for a module of another kind.
    """

    def __init__(
        self,
        attacks: Sequence[object] = ("pgd-10",),
        *,
        eps: float | None = None,
        norm: str | None = None,
        every: int = 1,
        batches: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, count in (("every", every), ("batches", 1 if batches is None else batches)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {count!r}")
        self.attacks, self.eps, self.norm = tuple(attacks), eps, norm or ""
        self.every, self.batches, self.seed = every, batches, seed
        self._made: list[Any] = []
        self._seen = 0

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._seen = 0
        if self._made:
            return
        eps = getattr(pl_module, "eps", None) if self.eps is None else self.eps
        norm: str = self.norm or getattr(pl_module, "norm", "linf")
        if eps is None:
            raise ValueError("RobustValidation needs eps for a module that is no AdversarialModule")
        self._made = entries(
            self.attacks, _classifier(pl_module), eps=eps, norm=norm, seed=self.seed, precision="fp32"
        )  # fmt: skip

    def on_validation_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: Sequence[Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking or (trainer.current_epoch + 1) % self.every:
            return
        if self.batches is not None and batch_idx >= self.batches:
            return
        model, images, labels = _classifier(pl_module), batch[0], batch[1]
        # Every rank has places of its own.
        places = self._seen + torch.arange(len(labels), device=labels.device)
        numbers = places * trainer.world_size + trainer.global_rank
        self._seen += len(labels)
        clean = _right(model, images, labels)
        left = clean.nonzero()[:, 0]
        for entry in self._made:
            right = clean.clone()
            if entry.craft is not None and len(left):
                crafted = entry.craft(images[left], labels[left], numbers[left])
                right[left] = _right(model, crafted, labels[left])
            pl_module.log(
                f"val_{entry.name}",
                right.float().mean(),
                prog_bar=True,
                on_step=False,
                on_epoch=True,
                batch_size=len(labels),
                sync_dist=True,
            )


def _classifier(module: Any) -> nn.Module:
    return module.model if isinstance(module, AdversarialModule) else module


def _right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        logits = logits_of(model, images)
    return (logits.argmax(1) == labels) & ~logits.isnan().any(1)
