"""Names of a run's files, and its folder."""

from __future__ import annotations

from pathlib import Path

CONFIG, RESULTS = "config.yaml", "results.json"
HISTORY_CSV, HISTORY_JSON = "history.csv", "history.json"
AE_PREDICTIONS = "ae_predictions.csv"
BEST, LAST = "best.pt", "last.pt"
KEPT = "checkpoints"
"""Folder of the checkpoints of `keep_every`."""

PICTURE, CURVES = "adversarial.png", "curves.png"
_ALL = (CONFIG, RESULTS, HISTORY_CSV, HISTORY_JSON, AE_PREDICTIONS, BEST, LAST, PICTURE, CURVES)


def kept(folder: Path, epoch: int) -> Path:
    """The checkpoint of `keep_every` after so many epochs."""
    return folder / KEPT / f"epoch-{epoch:04d}.pt"


def run_folder(out: str | Path | None, name: str, *, overwrite: bool, resume: bool | str) -> Path:
    """Makes the folder of a run: `out`, or the first of runs/<name>, runs/<name>-2, ... that is free.

    With resume="auto", runs/<name> itself, so that a job that is started again finds it.

    Raises:
        FileExistsError: `out` holds a run already, and neither `overwrite` nor `resume` is set.
        OSError: the folder cannot be made.
    """
    if out is None and resume == "auto":
        out = Path("runs") / name
    if out is None:
        number = 1
        while True:
            folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
            try:
                _make(folder, exist_ok=False)
                return folder
            except FileExistsError:
                number += 1
    folder = Path(out)
    found = [folder / file for file in _ALL if (folder / file).exists()]
    if found and not (overwrite or resume):
        raise FileExistsError(
            f"{folder} already holds a run ({found[0].name}); go on with it (resume=True, --resume), "
            "replace it (overwrite=True, --overwrite) or choose another folder"
        )
    _make(folder, exist_ok=True)
    if not resume:
        for file in found:
            # Else a run that stops early would leave files of two runs side by side.
            file.unlink()
        for file in (folder / KEPT).glob("epoch-*.pt"):
            file.unlink()
    return folder


def _make(folder: Path, *, exist_ok: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        if isinstance(error, FileExistsError) and folder.is_dir():
            raise
        raise type(error)(f"cannot make the folder {folder} for the results: {error}") from error
