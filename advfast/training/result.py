"""What training returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from advfast.evaluation import EvalReport


@dataclass(frozen=True)
class Selected:
    """The weights after one epoch.

    Attributes:
        epoch: counted from 1.
        metrics: its row of the history.
        test: accuracy on the test set; None without one.
        checkpoint: the file.
    """

    epoch: int
    metrics: dict[str, float]
    test: EvalReport | None
    checkpoint: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "epoch": self.epoch,
            "metrics": self.metrics,
            "test": None if self.test is None else self.test.to_dict(),
            "checkpoint": self.checkpoint.name,
        }


@dataclass(frozen=True)
class TrainResult:
    """Outcome of `advfast.train`.

    Attributes:
        model: the model, in eval mode, with the weights of `best`.
        history: a row an epoch: epoch, lr, train_loss, train_accuracy (on the images trained on: adversarial for
            pgd-at), val_clean, val_robust, seconds, images_per_second.
        best: the epoch that was best on the held-out split.
        last: the last epoch.
        path: folder with best.pt, last.pt, history.csv, config.json, results.json and adversarial.png.
        picture: the PNG, or None where it could not be drawn.
        config: the settings, as in config.json.
        seconds: wall time of everything.
    """

    model: nn.Module
    history: list[dict[str, float]]
    best: Selected
    last: Selected
    path: Path
    picture: Path | None
    config: dict[str, Any]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """What results.json holds."""
        return {
            "config": self.config,
            "best": self.best.to_dict(),
            "last": self.last.to_dict(),
            "seconds": self.seconds,
        }
