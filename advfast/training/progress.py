"""Progress on standard error: a bar on a terminal, a few lines elsewhere."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

_LINES = 10
"""At most about this many lines where there is no terminal."""


class Progress:
    """A callback of the loop; says at once what runs and where it writes.

    Args:
        config: the settings of the run.
        steps: steps an epoch.
        trained_on: "adversarial" or "clean": what the accuracy on the batch is of.
        folder: where the run writes.
        shown: False shows nothing.
    """

    def __init__(
        self, config: dict[str, Any], steps: int, trained_on: str, folder: Path, shown: bool
    ) -> None:
        self._epochs = epochs = config["epochs"]
        self._accuracy = "robust" if trained_on == "adversarial" else "accuracy"
        self._terminal = shown and sys.stderr.isatty()
        self._lines = shown and not self._terminal
        self._every = math.ceil(epochs / _LINES)
        self._batch = ""
        self._validation = ""
        if shown:
            print(_settings(config, trained_on, folder), file=sys.stderr, flush=True)
        self._bar = tqdm(
            total=epochs * steps,
            desc=f"epoch 1/{epochs}",
            unit="step",
            disable=not self._terminal,
            bar_format="{desc} {percentage:3.0f}%|{bar:10}| {elapsed}<{remaining}{postfix}",
        )

    def on_step_end(self, loss: float, accuracy: float, images_per_second: float) -> None:
        if self._terminal:
            self._batch = f"loss {loss:.3f}, {self._accuracy} {accuracy:.0%}, {images_per_second:.0f} images/s"
            self._bar.set_postfix_str(self._batch + self._validation, refresh=False)
            self._bar.update()

    def on_epoch_end(self, row: dict[str, float]) -> None:
        epoch = int(row["epoch"])
        held_out = f"held out: clean {row['val_clean']:.1%}, robust {row['val_robust']:.1%}"
        self._validation = f" | {held_out}"
        if self._terminal:
            self._bar.set_description_str(f"epoch {min(epoch + 1, self._epochs)}/{self._epochs}")
            self._bar.set_postfix_str(self._batch + self._validation)
        if self._lines and (epoch % self._every == 0 or epoch in (1, self._epochs)):
            print(
                f"epoch {epoch}/{self._epochs}: loss {row['train_loss']:.3f}, {self._accuracy} "
                f"{row['train_accuracy']:.1%}, {row['images_per_second']:.0f} images/s; {held_out}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        self._bar.close()


def _settings(config: dict[str, Any], trained_on: str, folder: Path) -> str:
    samples = config["samples"]
    model = config["model"].get("name") or config["model"]["class"]
    threads = f", {config['threads']} threads" if config["device"] == "cpu" else ""
    attack = f"{config['norm']} eps {config['eps']:.4g}"
    if trained_on == "adversarial":
        attack += f", alpha {config['alpha']:.4g}, {config['steps']} steps"
    else:
        attack = f"evaluated at {attack}"
    return (
        f"{config['method']}: {model} on {config['data']} ({samples['train']} training images, "
        f"{samples['val']} held out, {samples['test']} test), {config['device']}{threads}\n"
        f"{attack}; {config['epochs']} epochs, batch size {config['batch_size']}, "
        f"learning rate {config['lr']:g}, seed {config['seed']}; writes to {folder}"
    ).replace(", 1 threads", ", 1 thread")
