"""Progress on standard error: a bar on a terminal, a few lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from tqdm import tqdm

from .callbacks import TrainState

_LINES = 10
"""At most about this many lines where there is no terminal."""

_SECONDS = 0.2
"""Between two readings of the loss: reading it makes a GPU wait for the CPU."""


class Progress:
    """A callback; says at once what runs and where it writes.

    Args:
        environment: of the run, see `TrainResult`.
        trains_on: "adversarial" or "clean", of the run's method.
        note: a further line to show at the beginning.
    """

    def __init__(self, environment: dict[str, Any], trains_on: str, note: str = "") -> None:
        self._environment = environment
        self._trains_on = trains_on
        self._note = note
        self._terminal = sys.stderr.isatty()
        self._batch = ""
        self._validation = ""
        self._read = 0.0
        self._bar: tqdm | None = None

    def on_train_begin(self, state: TrainState) -> None:
        _say(_settings(state, self._environment, self._trains_on))
        if self._note:
            _say(self._note)
        self._every = math.ceil(state.epochs / _LINES)
        self._bar = tqdm(
            total=state.epochs * state.steps_per_epoch,
            initial=state.global_step,
            desc=f"epoch {state.epoch}/{state.epochs}",
            unit="step",
            disable=not self._terminal,
            bar_format="{desc} {percentage:3.0f}%|{bar:10}| {elapsed}<{remaining}{postfix}",
        )

    def on_step_end(self, state: TrainState) -> None:
        if not self._terminal or self._bar is None:
            return
        if state.step == 1:
            self._bar.set_description_str(f"epoch {state.epoch}/{state.epochs}", refresh=False)
        now = time.monotonic()
        if now - self._read >= _SECONDS and state.batch is not None:
            self._read = now
            accuracy = state.correct.item() / len(state.batch.labels)
            self._batch = (
                f"loss {state.loss.item():.3f}, {_accuracy(state)} {accuracy:.0%}, "
                f"{state.images_per_second:.0f} images/s"
            )
            self._bar.set_postfix_str(self._batch + self._validation, refresh=False)
        self._bar.update()

    def on_epoch_end(self, state: TrainState) -> None:
        row, epoch, epochs = state.row, state.epoch, state.epochs
        held_out = f"held out: clean {row['val_clean']:.1%}, robust {row['val_robust']:.1%}"
        self._validation = f" | {held_out}"
        if self._terminal and self._bar is not None:
            self._bar.set_postfix_str(self._batch + self._validation)
        elif epoch % self._every == 0 or epoch in (1, epochs) or state.stop:
            _say(
                f"epoch {epoch}/{epochs}: loss {row['train_loss']:.3f}, {_accuracy(state)} "
                f"{row['train_accuracy']:.1%}, {row['images_per_second']:.0f} images/s; {held_out}"
            )

    def on_train_end(self, state: TrainState) -> None:
        if self._bar is not None:
            self._bar.close()


def _accuracy(state: TrainState) -> str:
    """What the accuracy on the batch is called; the clean epochs of a run have a method of their own."""
    return "accuracy" if state.method and state.method.trains_on == "clean" else "robust"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _settings(state: TrainState, environment: dict[str, Any], trains_on: str) -> str:
    config = state.config
    samples = environment["samples"]
    model = environment["model"].get("name") or environment["model"]["class"]
    machine = environment["device"]
    if machine == "cpu":
        machine += f", {environment['threads']} thread" + "s" * (environment["threads"] > 1)
    if environment["ranks"] > 1:
        machine = f"{environment['ranks']} ranks, {machine}"
    machine += f", {environment['precision']}"
    attack = f"{config['norm']} eps {config['eps']:.4g}"
    if trains_on == "adversarial":
        attack += f", alpha {config['alpha']:.4g}, {config['steps']} steps"
    else:
        attack = f"evaluated at {attack}"
    shown = {name: "?" if count is None else count for name, count in samples.items()}
    return (
        f"{config['method']}: {model} on {environment['data']} "
        f"({shown['train']} training images, {shown['val']} held out, {shown['test']} test), "
        f"{machine}\n"
        f"{attack}; {state.epochs} epochs, batch size {config['batch_size']}, "
        f"learning rate {config['lr']:g} ({config['schedule']}), "
        f"seed {config['seed']}; writes to {state.folder}"
    )
