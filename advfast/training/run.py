"""The course of a run: epochs, validation, and what is saved when."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from advfast.files import write_csv, write_json

from . import checkpoint, names, rng
from .callbacks import TrainState
from .loop import Loop, evaluating
from .methods import Method


class Run:
    """Trains, validates and saves.

    last.pt is written first after an epoch and is what counts: everything else (best.pt, the history files) can be made
    again from it. So a process may be killed between any two writes. Of several ranks the first one writes, and all
    call every method at the same place.

    Args:
        loop: ready to go on.
        method: whose state is saved, and by whose images the best epoch is chosen.
        validate: () -> (clean, robust) accuracy on the held-out split.
        save_every: steps between two savings inside an epoch; None saves after epochs alone.
        keep_every: epochs after which a checkpoint stays; None keeps none.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        method: Method,
        validate: Callable[[], tuple[float, float]],
        environment: dict[str, Any],
        save_every: int | None,
        keep_every: int | None = None,
    ) -> None:
        self.loop = loop
        self.state: TrainState = loop.state
        self.method = method
        self.modifiers = loop.modifiers
        self.callbacks = loop.callbacks
        self.validate = validate
        self.environment = environment
        self.ranks = loop.ranks
        self.save_every, self.keep_every = save_every, keep_every
        self.best: dict[str, float] = {}
        self.best_state: dict[str, Tensor] = {}
        self.last_state: dict[str, Tensor] = {}
        self.finished = False
        loop.between = self.between
        self._spent = 0.0
        self._started = time.perf_counter()

    @property
    def model(self) -> nn.Module:
        return self.state.model

    @property
    def folder(self) -> Path:
        return self.state.folder

    @property
    def seconds(self) -> float:
        return self._spent + time.perf_counter() - self._started

    def train(self) -> None:
        """All epochs that are left.

        Raises:
            NonFiniteLoss, Stopped, OSError: as they come; see `Loop` and `write_atomic`.
        """
        try:
            self.callbacks.call("on_train_begin", self.state)
            self.state.prefix.begin()
            self.loop.agree()
            if not self.state.history and not self.loop.step:
                self.keep(0)
            if self.state.stop and self.state.history and not self.loop.step:
                # Killed between the end of an epoch and the saving of what a callback made of it.
                self.finished = True
                self.keep(len(self.state.history), last=True)
                self.save()
            while not self.finished:
                self._epoch()
        finally:
            self.callbacks.call("on_train_end", self.state)

    def _epoch(self) -> None:
        state = self.state
        row = self.loop.train_epoch()
        # One rank of several cannot leave the validation, where it meets the others.
        at_once = nullcontext() if self.ranks.world > 1 else self.loop.interrupt.at_once()
        with evaluating(self.model, self.modifiers), at_once:
            row["val_clean"], row["val_robust"] = self.validate()
        row |= self.ranks.alone(lambda: self.loop.speed)
        state.row = row
        state.history.append(row)
        self.finished = state.stop or self.loop.epoch == state.epochs
        if not self.best or self._rank(row) > self._rank(self.best):
            self.best = row
        if not self.finished:
            state.prefix.after_epoch(state.epoch, lambda: self.seconds)
        # Before last.pt: a kill between the two repeats the epoch, and with it this.
        self.keep(state.epoch, last=self.finished)
        self.loop.next_epoch()
        self.save()
        if self.best is row:
            self.best_state = self.last_state
            self.save_best()
        self.write_history()
        self.callbacks.call("on_epoch_end", state)
        self.ranks.alone(lambda: None)  # however long the callbacks of rank 0 take
        asked = self.loop.agree()
        if state.stop and not self.finished:
            self.finished = True
            self.keep(state.epoch, last=True)
            self.save()
        if not self.finished:
            self.loop.interrupt.check(asked)

    def between(self) -> None:
        """After every step."""
        if self.save_every and self.state.global_step % self.save_every == 0:
            self.save()

    def save(self) -> None:
        """last.pt: the run as it stands, between any two steps."""
        self.loop.settle()
        with evaluating(self.model, self.modifiers):
            self.last_state = checkpoint.state_of(self.model)
        raw = self.last_state
        if self.modifiers:
            raw = checkpoint.state_of(self.model)
        run = {
            "weights": raw,
            "optimizer": self.state.optimizer.state_dict(),
            "scaler": self.loop.train_step.scaler.state_dict(),
            "loop": self.loop.state_dict(),
            "method": self.method.state_dict(),
            "method_of_ranks": self.ranks.gathered(self.method.state_dict())
            if self.method.per_rank
            else [],
            "modifiers": [modifier.state_dict() for modifier in self.modifiers],
            "callbacks": self.callbacks.state_dict(),
            "clean_prefix": self.state.prefix.state_dict(),
            "rng": rng.state(),
            "history": self.state.history,
            "best": self.best,
            "finished": self.finished,
            "seconds": self.seconds,
            "environment": self.environment,
        }
        self.ranks.alone(
            lambda: checkpoint.save(
                self.folder / names.LAST,
                self.model,
                self.last_state,
                epoch=len(self.state.history),
                metrics=self.state.row,
                config=self.state.config,
                run=run,
            )
        )

    def keep(self, epoch: int, last: bool = False) -> None:
        """The weights that count, in a file of their own, where it is the turn of this epoch."""
        if self.keep_every is None or not (last or epoch % self.keep_every == 0):
            return
        with evaluating(self.model, self.modifiers):
            state = checkpoint.state_of(self.model)

        def write() -> None:
            path = names.kept(self.folder, epoch)
            path.parent.mkdir(exist_ok=True)
            checkpoint.save(
                path, self.model, state, epoch=epoch, metrics=self.state.row, config=self.state.config
            )  # fmt: skip

        self.ranks.alone(write)

    def save_best(self) -> None:
        """best.pt: the weights alone."""
        self.ranks.alone(
            lambda: checkpoint.save(
                self.folder / names.BEST,
                self.model,
                self.best_state,
                epoch=int(self.best["epoch"]),
                metrics=self.best,
                config=self.state.config,
            )
        )

    def write_history(self) -> None:
        history = self.state.history

        def write() -> None:
            write_csv(self.folder / names.HISTORY_CSV, history)
            write_json(self.folder / names.HISTORY_JSON, {"history": history})
            for name, rows in self.method.tables().items():
                if rows:
                    write_csv(self.folder / name, rows)

        if history:
            self.ranks.alone(write)

    def restore(self, content: dict[str, Any]) -> None:
        """Goes to where last.pt was written, random states included; makes good what a kill has left undone.

        Raises:
            ValueError: it does not belong to this run, or best.pt is missing.
        """
        run, path = content["run"], self.folder / names.LAST
        checkpoint.fill(self.model, {**content, "state": run["weights"]}, path)
        try:
            self.state.optimizer.load_state_dict(run["optimizer"])
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}: the optimiser does not fit: {error}") from error
        self.loop.train_step.scaler.load_state_dict(run["scaler"])
        self.loop.load_state_dict(run["loop"])
        self.method.load_state_dict(self._method_of(run))
        for modifier, saved in zip(self.modifiers, run["modifiers"], strict=True):
            modifier.load_state_dict(saved)
        self.callbacks.load_state_dict(run.get("callbacks", {}))
        if "clean_prefix" in run:  # not where an older version wrote it
            self.state.prefix.load_state_dict(run["clean_prefix"])
        self.state.history[:] = run["history"]
        self.state.row = run["history"][-1] if run["history"] else {}
        self.finished = run["finished"]
        self.best = run["best"]
        self.last_state = content["state"]
        self._spent = run["seconds"]
        if self.best:
            self._restore_best(content)
        self.write_history()
        rng.set_state(run["rng"])

    def _method_of(self, run: dict[str, Any]) -> dict[str, Any]:
        """The state of the method in this rank."""
        if not self.method.per_rank:
            return run["method"]
        states = run["method_of_ranks"]
        if len(states) != self.ranks.world:
            raise ValueError(
                f"the method has a state of its own in each rank: a run that was begun with {len(states)} goes "
                f"on with as many, not {self.ranks.world}"
            )
        return states[self.ranks.rank]

    def _restore_best(self, content: dict[str, Any]) -> None:
        path = self.folder / names.BEST
        epoch = int(self.best["epoch"])
        saved = self.ranks.alone(lambda: checkpoint.read(path) if path.exists() else None)
        if saved is not None and saved["epoch"] == epoch:
            self.best_state = saved["state"]
        elif content["epoch"] == epoch and not self.loop.step:
            # Killed after last.pt and before best.pt was written.
            self.best_state = content["state"]
            self.save_best()
        else:
            found = "is missing" if saved is None else f"is of epoch {saved['epoch']}"
            raise ValueError(
                f"{path} {found}, but the best epoch of the run was {epoch}: put the file back, or "
                "start again with overwrite"
            )

    def _rank(self, row: dict[str, float]) -> tuple[float, float]:
        pair = row["val_robust"], row["val_clean"]
        return pair if self.method.trains_on == "adversarial" else pair[::-1]
