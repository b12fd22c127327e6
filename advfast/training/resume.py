"""Going on with a run: what was saved, and what an interruption says."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advfast.files import clean_temporaries

from . import checkpoint, names
from .config import check_same
from .interrupt import Stopped
from .loop import Batches, NonFiniteLoss

if TYPE_CHECKING:
    from .run import Run


def saved_run(
    folder: Path, config: dict[str, Any], environment: dict[str, Any]
) -> dict[str, Any] | None:
    """last.pt of the run to go on with; None if nothing was saved yet.

    Raises:
        ValueError: it is not a run's checkpoint, or of a run with other arguments, data or model.
    """
    clean_temporaries(folder)
    path = folder / names.LAST
    if not path.exists():
        return None
    try:
        saved = checkpoint.read(path)
    except ValueError as error:
        best = folder / names.BEST
        again = f", or from the weights of {best} (weights=)" if best.exists() else ""
        raise ValueError(
            f"{error}. There is no earlier state of the run to go on with: start again with overwrite=True "
            f"(--overwrite){again}"
        ) from error
    if "run" not in saved:
        raise ValueError(f"{path} holds weights alone, without the state of a run to go on with")
    check_same(saved["config"], config, folder)
    before = saved["run"]["environment"]
    for name, what in (("fingerprint", "training data"), ("model", "model")):
        if before[name] != environment[name]:
            raise ValueError(
                f"{folder} holds a run with another {what}: it was {before[name]} and is now "
                f"{environment[name]}"
            )
    return saved


def complete_run(folder: Path) -> tuple[dict[str, Any], str] | None:
    """(best.pt, the text of results.json) of a run that has ended; None if what is left is the test."""
    path = folder / names.RESULTS
    if not path.exists():
        return None
    return checkpoint.read(folder / names.BEST), path.read_text(encoding="utf-8", errors="replace")


def note(saved: dict[str, Any] | None, environment: dict[str, Any], loader: Batches) -> str:
    """What a resumed run says at the beginning."""
    if saved is None:
        return ""
    at = saved["run"]["loop"]
    notes = [f"resumed in epoch {at['epoch']} after {at['step']} steps of it"]
    if saved["run"]["finished"]:
        notes = ["resumed after the last epoch: what is left is the test"]
    before = saved["run"]["environment"]
    for name in ("device", "threads", "versions", "ranks"):
        then = before.get(name, 1)  # one rank, where an older version wrote it
        if then != environment[name]:
            notes.append(
                f"{name} was {then} and is {environment[name]}: not the same bits as without "
                "the interruption"
            )
    if not loader.stateful:
        notes.append("the order of a DataLoader's samples is not restored")
    return "; ".join(notes)


@contextmanager
def explained(run: Run) -> Iterator[None]:
    """Saves on a signal, and adds to an error what is there to go on with."""
    try:
        yield
    except Stopped as stopped:
        if not run.finished:
            run.save()
        loop = run.loop
        where = (
            f"in epoch {loop.epoch} after {loop.step} steps"
            if not run.finished
            else "after training"
        )
        if run.ranks.first:
            print(
                f"{stopped} {where}: saved in {run.folder}; go on with resume=True (--resume)",
                file=sys.stderr,
            )
        if stopped.signum == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + stopped.signum) from None
    except NonFiniteLoss as error:
        count = len(run.state.history)
        if count:
            path = run.folder / names.LAST
            checkpoint.fill(run.model, run.ranks.alone(lambda: checkpoint.read(path)), path)
        there = f"epochs up to {count} are" if count else "no epoch is"
        raise NonFiniteLoss(f"{error}; {there} saved in {run.folder}") from None
    except OSError as error:
        last = run.folder / names.LAST
        if not last.exists():
            raise
        told = type(error)(
            f"{error}; {last} is as it was: go on with resume=True (--resume) when this is put right"
        )
        told.errno = error.errno
        raise told from error
