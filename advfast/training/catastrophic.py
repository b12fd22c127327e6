"""Notices catastrophic overfitting, and ends the run with the weights before it, or goes on from them with noise."""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from advfast.attacks import PGDAttack
from advfast.attacks.state import crafting, model_device
from advfast.data import as_source, ordered, randomness
from advfast.files import write_csv

from .callbacks import TrainState

ACTIONS = ("stop", "report", "noise")


class CatastrophicOverfitting:
    """A callback of `advfast.train` that watches for catastrophic overfitting (Wong et al., ICLR 2020).

    At a check the same training images, unchanged, are attacked with the model in eval mode: FGSM (zero start, one step
    of eps) and PGD-10 (steps of eps/4). It fires when PGD accuracy has fallen by more than `drop` since the check
    before while FGSM accuracy has not fallen (by more than drop/4), or when FGSM accuracy is higher by more than `gap`.
    eps and norm are those of the training method at that step; epochs that train on clean images are not looked at.

    Args:
        every: steps between checks, 1 or more; None checks after each epoch. The last step of an epoch, before
            validation, is always looked at.
        samples: training images, chosen by the run's seed (of a DataLoader: its first), 1 or more.
        drop: of PGD accuracy between two checks.
        gap: between FGSM and PGD accuracy; None to look at the drop alone.
        action: "stop" puts the weights of the last check that was in order back (averaged ones too) and ends the run,
            so that these are validated and saved; "report" only tells, once, and goes on; "noise" puts them back,
            switches on the noise of a method that waits for it (n-fgsm with start="monitor"), once, and goes on with
            an optimiser that begins anew: its momentum is that of the collapse.
        restore: of "noise", whether it puts the weights back and lets the optimiser begin anew.

    Attributes:
        history: a dictionary a check: step, epoch, fgsm, pgd (accuracies), fired, and what a subclass has in `more`.
            Also in <out>/catastrophic.csv.
        fired: whether it has.

    Raises:
        ValueError: an argument out of range.
    """

    every_rank = True

    FILE = "catastrophic.csv"

    def __init__(
        self,
        every: int | None = None,
        *,
        samples: int = 256,
        drop: float = 0.2,
        gap: float | None = 0.3,
        action: str = "stop",
        restore: bool = True,
    ) -> None:
        for name, count in (("every", 1 if every is None else every), ("samples", samples)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {count!r}")
        for name, size in (("drop", drop), ("gap", 1.0 if gap is None else gap)):
            if isinstance(size, bool) or not isinstance(size, (int, float)) or not 0 < size <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {size!r}")
        if action not in ACTIONS:
            raise ValueError(f"action must be one of {', '.join(ACTIONS)}, got {action!r}")
        if not isinstance(restore, bool):
            raise ValueError(f"restore must be True or False, got {restore!r}")
        self.every, self.samples, self.action, self.restore = every, samples, action, restore
        self.drop, self.gap = float(drop), 1.0 if gap is None else float(gap)
        self.history: list[dict[str, Any]] = []
        self.fired = False
        self._good: dict[str, Any] = {}
        self._images = self._labels = torch.zeros(0)

    def on_train_begin(self, state: TrainState) -> None:
        self._images, self._labels = self._probe(state)
        if not state.global_step:
            # Of a run before this one, where an object is used again.
            self.history, self.fired, self._good = [], False, {}
        if self.fired and self.action == "stop":
            state.stop = True

    def on_step_end(self, state: TrainState) -> None:
        due = state.step == state.steps_per_epoch or (
            self.every is not None and state.global_step % self.every == 0
        )
        if not due or state.method is None or state.method.trains_on == "clean":
            return
        if self.fired and self.action == "stop":
            return
        eps, norm = float(state.method.eps), state.method.settings.norm
        # One rank's numbers decide in all: on GPUs a rounding may tell them apart.
        (fgsm, pgd), more = state.ranks.alone(
            lambda: (self.measure(state.model, eps, norm), self.more(state, eps, norm))
        )
        fires = self._fires(fgsm, pgd)
        row = {"step": state.global_step, "epoch": state.epoch, "fgsm": fgsm, "pgd": pgd}
        self.history.append(row | {"fired": int(fires)} | more)
        if state.writes:
            write_csv(state.folder / self.FILE, self.history)
        if fires:
            self._fire(state)
        else:
            self._good = {
                "step": state.global_step,
                "weights": _copied(state.model.state_dict()),
                "modifiers": [_copied(modifier.state_dict()) for modifier in state.modifiers],
            }

    def measure(self, model: nn.Module, eps: float, norm: str) -> tuple[float, float]:
        """(FGSM, PGD-10) accuracy on the images of the run; the model is left as it is."""
        found = []
        for alpha, steps in ((eps, 1), (eps / 4, 10)):
            right = 0
            for images, labels in zip(
                self._images.split(256), self._labels.split(256), strict=True
            ):
                attacked = images
                if eps:
                    attack = PGDAttack(
                        model, eps, alpha, steps, steps > 1, norm=norm, seed=0, check=False
                    )
                    attacked = attack(images, labels)
                with crafting(model, "eval"), torch.no_grad():
                    right += int((model(attacked).argmax(1) == labels).sum())
            found.append(right / len(self._labels))
        return found[0], found[1]

    def more(self, state: TrainState, eps: float, norm: str) -> dict[str, float]:
        """Further columns of a check, by the first rank alone; it leaves the run as it is."""
        return {}

    def _fires(self, fgsm: float, pgd: float) -> bool:
        if fgsm - pgd > self.gap:
            return True
        if not self.history:
            return False
        before = self.history[-1]
        return before["pgd"] - pgd > self.drop and before["fgsm"] - fgsm <= self.drop / 4

    def _fire(self, state: TrainState) -> None:
        first, self.fired = not self.fired, True
        row, then = self.history[-1], "training goes on"
        if self.action == "stop":
            state.stop, then = True, f"training ends{self._put_back(state)}"
        elif self.action == "noise" and first:
            then += " with noise"
            if self.restore:
                then += self._put_back(state)
                state.optimizer.state.clear()
            state.method.switch_on()
        if first and state.writes:
            before = f"{self.history[-2]['pgd']:.3f} -> " if len(self.history) > 1 else ""
            print(
                f"catastrophic overfitting at step {row['step']} (epoch {row['epoch']}): PGD-10 accuracy "
                f"{before}{row['pgd']:.3f}, FGSM {row['fgsm']:.3f}, on {len(self._labels)} training "
                f"images; {then}",
                file=sys.stderr,
            )

    def _put_back(self, state: TrainState) -> str:
        """The weights of the last check that was in order; says of which step they are."""
        if not self._good:
            return ", and no check before was in order: the weights stay"
        state.model.load_state_dict(self._good["weights"])
        for modifier, saved in zip(state.modifiers, self._good["modifiers"], strict=True):
            modifier.load_state_dict(saved)
        return f" with the weights of step {self._good['step']}"

    def _probe(self, state: TrainState) -> tuple[Tensor, Tensor]:
        device = model_device(state.model) or torch.device("cpu")
        if isinstance(state.data, DataLoader):
            images, labels = [], []
            for batch in ordered(state.data, self.samples, device):
                images.append(batch.images)
                labels.append(batch.labels)
                if sum(map(len, labels)) >= self.samples:
                    break
            return torch.cat(images)[: self.samples], torch.cat(labels)[: self.samples]
        source = as_source(state.data)
        random = randomness.generator(int(state.config["seed"]), 0, randomness.PROBE)
        chosen = torch.from_numpy(random.permutation(len(source))[: self.samples])
        images_, labels_ = source.batch(chosen.sort().values)
        return images_.to(device), labels_.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Saved with the run."""
        return {"history": self.history, "fired": self.fired, "good": self._good}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history, self.fired = list(state["history"]), bool(state["fired"])
        self._good = state["good"]


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """On the CPU, where they take no room from training."""
    return {
        name: value.detach().cpu().clone()
        if isinstance(value, Tensor)
        else _copied(value)
        if isinstance(value, dict)
        else copy.deepcopy(value)
        for name, value in state.items()
    }
