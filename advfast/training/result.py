"""What training returns."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from advfast.evaluation import EvalReport

from .names import BEST, LAST, PICTURE, RESULTS


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
        path: folder with best.pt, last.pt, history.csv, history.json, config.yaml, results.json and the pictures.
        picture: PNG of adversarial images, or None where it could not be drawn.
        config: the arguments, as in config.yaml.
        environment: what they met: samples, device, threads, versions.
        seconds: wall time of everything, earlier parts of a resumed run included.
        clean_prefix: of a run that began on clean images: how many epochs, why, what they saved; see
            `advfast.training.prefix.Prefix.summary`.
    """

    model: nn.Module
    history: list[dict[str, float]]
    best: Selected
    last: Selected
    path: Path
    picture: Path | None
    config: dict[str, Any]
    environment: dict[str, Any]
    seconds: float
    clean_prefix: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """What results.json holds."""
        return {
            "config": self.config,
            "environment": self.environment,
            "best": self.best.to_dict(),
            "last": self.last.to_dict(),
            "seconds": self.seconds,
            "clean_prefix": self.clean_prefix,
        }


def to_result(
    text: str,
    folder: Path,
    model: nn.Module,
    history: list[dict[str, float]],
) -> TrainResult:
    """The result of a run that is complete, from the text of its results.json; `model` has the best weights already.

    Raises:
        ValueError: the text is damaged.
    """
    path = folder / RESULTS
    try:
        content = json.loads(text)
        selected = {
            name: Selected(
                content[name]["epoch"],
                content[name]["metrics"],
                None
                if content[name]["test"] is None
                else EvalReport.from_dict(content[name]["test"]),
                folder / file,
            )
            for name, file in (("best", BEST), ("last", LAST))
        }
        picture = folder / PICTURE
        return TrainResult(
            model=model.eval(),
            history=history,
            best=selected["best"],
            last=selected["last"],
            path=folder,
            picture=picture if picture.exists() else None,
            config=content["config"],
            environment=content["environment"],
            seconds=content["seconds"],
            clean_prefix=content.get("clean_prefix", {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); remove it and resume to evaluate the run again"
        ) from error
