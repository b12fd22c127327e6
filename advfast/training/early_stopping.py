"""Ends a run that does not get better."""

from __future__ import annotations

import sys

from .callbacks import TrainState


class EarlyStopping:
    """A callback of `advfast.train`: stops after `patience` epochs in a row without a better held-out accuracy.

    The best epoch is found in the history, so that a resumed run stops where an undisturbed one does. Epochs of a clean
    prefix do not count.

    Args:
        patience: epochs, 1 or more.
        metric: column of the history: "val_robust" (what robust overfitting lowers, Rice et al., ICML 2020) or
            "val_clean".
        least: by how much an epoch must be better to count, 0 or more.

    Raises:
        ValueError: one of them out of range.
    """

    every_rank = True

    def __init__(self, patience: int, metric: str = "val_robust", least: float = 0.0) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience must be an integer >= 1, got {patience!r}")
        if metric not in ("val_robust", "val_clean"):
            raise ValueError(f"metric must be val_robust or val_clean, got {metric!r}")
        if isinstance(least, bool) or not 0 <= least < 1:
            raise ValueError(f"least must be at least 0 and below 1, got {least!r}")
        self.patience, self.metric, self.least = patience, metric, float(least)

    def best(self, history: list[dict[str, float]]) -> dict[str, float]:
        """The row of the last epoch that was better than all before it."""
        best = history[0]
        for row in history[1:]:
            if row[self.metric] > best[self.metric] + self.least:
                best = row
        return best

    def on_train_begin(self, state: TrainState) -> None:
        # Killed between the end of the last epoch and the decision.
        self._look(state)

    def on_epoch_end(self, state: TrainState) -> None:
        self._look(state)

    def _look(self, state: TrainState) -> None:
        if not state.history:
            return
        best, last = self.best(state.history), state.history[-1]
        # Epochs that train on clean images are not expected to be robust.
        since = max(best["epoch"], state.prefix.epochs)
        if last["epoch"] - since < self.patience or last["epoch"] >= state.epochs:
            return
        state.stop = True
        if state.writes:
            print(
                f"early stopping after epoch {last['epoch']:g}: {self.metric} was best in epoch "
                f"{best['epoch']:g} ({best[self.metric]:.3f})",
                file=sys.stderr,
            )
