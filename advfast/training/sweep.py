"""advfast.sweep: the same training for several seeds and settings, in one table."""

from __future__ import annotations

import copy
import gc
import inspect
import itertools
import json
import re
import sys
import traceback
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advfast.evaluation.picture import PictureSkipped
from advfast.files import write_text
from advfast.kernels.pgd.api import nearest

from . import parallel
from .config import NOT_COMPARED, plain
from .curves import draw_sweep
from .names import RESULTS
from .result import TrainResult
from .sweep_result import (
    COMPLETE,
    FORMAT,
    RECORD,
    SEED,
    Row,
    SweepResult,
    complete_row,
    failed_row,
)
from .train import train

DEFAULT_SEEDS = (0, 1, 2)
PICTURE = "sweep.png"
ERROR = "error.txt"

_OWN = ("out", "resume", "overwrite", "progress")
"""Arguments of `train` that the sweep gives itself."""

_LONGEST_NAME = 160


def sweep(
    model: nn.Module | Callable[[], nn.Module] | str = "small-cnn",
    data: object = "digits",
    *,
    seeds: Sequence[int] | None = None,
    over: Mapping[str, Sequence[Any] | Mapping[str, Any]] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **arguments: Any,
) -> SweepResult:
    """Runs `advfast.train` for every combination of the given values; one table, with mean and standard deviation.

    Each run has its own folder in `out`, named after what varies (``eps=0.1,seed=0``), with everything that `train`
    writes. sweep.csv (a row a run), summary.csv (mean and sample standard deviation over the seeds for each setting of
    the others) and sweep.json (both) are written anew after each run, sweep.png at the end.

    A run that fails, by a loss that is not finite or any other error, is a row with its message (the traceback is in
    error.txt of its folder), and the others go on; see `SweepResult.failed`. Only where the first run ends before it
    has written anything, as with a wrong argument, its error is raised.

    Args:
        model: the name of one of advfast's or a function without arguments that makes one, called anew for each run
            with the run's seed; or an nn.Module, which each run trains a copy of: all then start from the same weights.
        data: as for `train`.
        seeds: a run each; None is 0, 1, 2.
        over: argument of `train` -> its values; "seed", "model" and "data" may be among them. For objects without a
            readable form, a mapping of names to values.
        out: folder; None makes runs/sweep, with a number behind it if that exists.
        resume: go on with the sweep in `out`, if there is one: complete runs are skipped, one that had stopped goes on
            from its checkpoint, failed ones are tried again. Values may be added; runs of earlier values stay in the
            table.
        overwrite: replace a sweep that is in `out`.
        progress: show progress on standard error.
        **arguments: of `train`, the same in all runs. `callbacks` are the same objects in all runs.

    Raises:
        ValueError, TypeError: bad argument; `resume` with other arguments than before.
        Exception: what the first run raises before it has written anything.
        FileExistsError: `out` holds a sweep, and neither `resume` nor `overwrite` is set.
    """
    if parallel.several():
        raise ValueError(
            "a sweep runs in one process, not under torchrun: start its runs one by one, each with advfast.train"
        )
    if resume and (out is None or overwrite):
        raise ValueError(
            "resume needs `out`, the folder of the sweep to go on with, and no overwrite"
        )
    choices = _choices(seeds, over or {}, arguments)
    folder = _free_folder() if out is None else Path(out)
    same = {
        name: _plain(value)
        for name, value in {"model": model, "data": data, **arguments}.items()
        if name not in choices
    }
    result = SweepResult(folder, tuple(choices), [], same)
    saved = _saved(result, resume=resume, overwrite=overwrite)
    runs = [
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    ]
    named = {_name({key: label for key, (label, _) in run.items()}): run for run in runs}
    if not (resume or overwrite):
        _refuse_runs(folder / name for name in named)
    result.rows.extend(row for name, row in saved.items() if name not in named)
    _say(progress, f"sweep of {len(runs)} runs; writes to {folder}")
    for number, (name, run) in enumerate(named.items(), 1):
        varied = {key: _cell(label, value) for key, (label, value) in run.items()}
        begin = f"run {number} of {len(runs)}: {name}"
        row = saved.get(name)
        if row is not None and any(row[key] != value for key, value in varied.items()):
            raise ValueError(f"{folder / name} holds a run with values other than {varied}")
        if row is None:
            _say(progress, f"\n{begin}")
            given = {"model": model, "data": data, **arguments}
            given |= {key: value for key, (_, value) in run.items()}
            given |= {"out": folder / name, "resume": resume, "overwrite": overwrite}
            row = _run(name, varied, given | {"progress": progress}, first=not result.rows)
            _say(progress, f"{begin}: {row.get('error') or row['status']}")
        else:
            _say(progress, f"{begin}: complete already")
        result.rows.append(row)
        result.write()
    try:
        draw_sweep(folder / PICTURE, result)
    except PictureSkipped as reason:
        _say(progress, str(reason))
    return result


def _run(name: str, varied: dict[str, Any], given: dict[str, Any], *, first: bool) -> Row:
    """One run, as a row of the table."""
    folder: Path = given["out"]
    try:
        given["model"] = _fresh(given["model"], given[SEED])
        outcome: TrainResult = train(given.pop("model"), given.pop("data"), **given)
        (folder / ERROR).unlink(missing_ok=True)  # of an earlier attempt
        return complete_row(name, varied, outcome)
    except Exception as error:
        if first and not folder.exists():
            raise
        message = " ".join(f"{type(error).__name__}: {error}".split())
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / ERROR, traceback.format_exc())
        return failed_row(name, varied, message)
    finally:
        # A traceback and a model refer to each other: without this a failed run's memory stays in use.
        given.clear()
        gc.collect()


def _fresh(model: Any, seed: int) -> Any:
    """The model that a run may train."""
    if isinstance(model, nn.Module):
        return copy.deepcopy(model)
    if not callable(model):
        return model
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(cuda):
        torch.manual_seed(seed)
        return model()


def _choices(
    seeds: Sequence[int] | None, over: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, list[tuple[str, Any]]]:
    """Varied argument -> (label, value)s, the seed last.

    Raises:
        ValueError, TypeError: what cannot be varied, or is given twice.
    """
    if SEED in arguments or (SEED in over and seeds is not None):
        raise ValueError(
            "the seeds must be given once: as seeds=(0, 1, 2) or as over={'seed': [0, 1, 2]}, not as seed=..."
        )
    parameters = inspect.signature(train).parameters
    known = [name for name in parameters if name not in _OWN]
    free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in (*over, *arguments):
        if name in _OWN or not (free or name in known):
            raise TypeError(
                f"{name!r} is no argument of train that a sweep can take{nearest(name, known)}"
            )
    twice = [name for name in over if name in arguments]
    if twice:
        raise ValueError(f"{twice[0]} is given twice: in over, and as an argument of its own")
    values = {name: of for name, of in over.items() if name != SEED}
    values[SEED] = over.get(SEED, DEFAULT_SEEDS if seeds is None else seeds)
    return {name: _labelled(name, of) for name, of in values.items()}


def _labelled(name: str, values: Any) -> list[tuple[str, Any]]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"the values of {name} must be a list or a mapping, got {values!r}")
    if isinstance(values, Mapping):
        pairs = [(str(label), value) for label, value in values.items()]
    else:
        pairs = [(_label(value), value) for value in values]
    if not pairs:
        raise ValueError(f"there are no values of {name}")
    labels = [_safe(label) for label, _ in pairs]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(
                f"two values of {name} are both named {label!r}: leave one out, or give a mapping of "
                "names to values"
            )
    return pairs


def _label(value: Any) -> str:
    """Readable, and the same in another process."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, (str, int, Path)):
        return str(value)
    if isinstance(value, Mapping):
        return "+".join(f"{key}-{_label(part)}" for key, part in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return "+".join(_label(part) for part in value) or "none"
    return getattr(value, "__name__", type(value).__name__)


def _safe(label: str) -> str:
    """For a file name."""
    return re.sub(r"[^\w.+-]", "-", label)


def _name(labels: Mapping[str, str]) -> str:
    name = ",".join(f"{key}={_safe(label)}" for key, label in labels.items())
    if len(name.encode()) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME // 4]}...{zlib.crc32(name.encode()):08x}"
    return name


def _cell(label: str, value: Any) -> Any:
    """The value itself where a table can hold it."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else label


def _plain(value: Any) -> Any:
    """For sweep.json; an object by its kind."""
    found = plain(value)
    return _label(value) if found is None and value is not None else found


def _free_folder() -> Path:
    number = 1
    while True:
        folder = Path("runs") / ("sweep" if number == 1 else f"sweep-{number}")
        if not folder.exists():
            return folder
        number += 1


def _refuse_runs(folders: Iterable[Path]) -> None:
    """
    Raises:
        FileExistsError: one of them is there and not empty: an earlier sweep was stopped in its first run.
    """
    for folder in folders:
        if folder.is_dir() and any(folder.iterdir()):
            raise FileExistsError(
                f"{folder} already holds a run; go on with the sweep (resume=True, --resume), replace "
                "it (overwrite=True, --overwrite) or choose another folder"
            )


def _saved(result: SweepResult, *, resume: bool, overwrite: bool) -> dict[str, Row]:
    """Rows of the complete runs in the folder, by name.

    Raises:
        FileExistsError, ValueError: what is there cannot be gone on with.
    """
    path = result.path / RECORD
    if not path.exists() or overwrite:
        return {}
    if not resume:
        raise FileExistsError(
            f"{result.path} already holds a sweep; go on with it (resume=True, --resume), replace it "
            "(overwrite=True, --overwrite) or choose another folder"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        rows = {row["run"]: row for row in content["runs"]}
        before = {"varied": content["varied"], **content["arguments"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not the record of a sweep, or is damaged ({error}); remove it to read the runs anew"
        ) from error
    now = {"varied": list(result.varied), **json.loads(json.dumps(result.arguments))}
    for name in {**before, **now}:
        if name not in (*NOT_COMPARED, "callbacks") and before.get(name) != now.get(name):
            raise ValueError(
                f"{result.path} holds a sweep with other arguments: {name} was {before.get(name)!r} and "
                f"is now {now.get(name)!r}. Give the same ones to go on with it, or another folder"
            )
    return {
        name: row
        for name, row in rows.items()
        if row["status"] == COMPLETE and (result.path / name / RESULTS).exists()
    }


def _say(shown: bool, text: str) -> None:
    if shown:
        print(text, file=sys.stderr, flush=True)
