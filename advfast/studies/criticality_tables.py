"""Stages of a network, their averages, the published results, and what was expected of them."""

from __future__ import annotations

import csv
import itertools
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from .judge import mean_of
from .result import Expectation, Row, StudyResult

WHOLE = "all"
"""The stage of all layers."""

STAGES, MEASURED, PUBLISHED = "stages", "measured", "published"
"""The table of a study with its stages' averages, and what its column "source" says."""

_COLUMNS = (
    "model_id", "layer", "trial", "pred_cos_sim", "pred_l1_err", "pred_l2_err", "top1_acc", "recovered_acc",
)  # fmt: skip
_BLOCK = re.compile(r"(.+?)\.(\d+)\.(.+)")
_DEEP = 18
"""Layers from which on a network is one of those of which the published order is expected."""

_SHORTCUTS = ("downsample", "shortcut", "convShortcut", "skip")


def shared_prefix(names: Sequence[str]) -> str:
    """What all names begin with, whole components with their dot: "net." of net.conv1 and net.layer1.0.conv1."""
    parts = [name.split(".") for name in names]
    count = 0
    while all(len(part) > count + 1 and part[count] == parts[0][count] for part in parts):
        count += 1
    return "".join(f"{part}." for part in parts[0][:count]) if len(parts) > 1 else ""


def stage_of(layer: str, depth: int = 1) -> str:
    """The first `depth` components of a layer's name: "layer1" of layer1.0.conv1."""
    return ".".join(layer.split(".")[:depth])


def stage_rows(rows: Sequence[Row]) -> list[Row]:
    """A row a model and a stage, and one for all its layers: layers, trials, mean over the layers, and the sample
    deviation of that mean from trial to trial (None for one trial)."""
    found: list[Row] = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model and row["criticality"] is not None]
        if not own:
            continue
        for stage in (*dict.fromkeys(row["stage"] for row in own), WHOLE):
            chosen = [row for row in own if stage in (WHOLE, row["stage"])]
            trials: dict[int, list[float]] = {}
            for row in chosen:
                trials.setdefault(row["seed"], []).append(row["criticality"])
            means = [statistics.fmean(values) for values in trials.values()]
            found.append({
                "model": model, "eps": chosen[0].get("eps"), "stage": stage,
                "layers": len({row["layer"] for row in chosen}), "trials": len(means),
                "criticality_mean": statistics.fmean(row["criticality"] for row in chosen),
                "criticality_std": statistics.stdev(means) if len(means) > 1 else None,
            })  # fmt: skip
    return found


def read_criticality(path: str | Path, stage_depth: int = 1) -> list[Row]:
    """The published results (raw-results/results.csv of the paper's repository), or a table of that form.

    A line a network, layer and trial, with the columns model_id, layer, trial, pred_cos_sim (mean cosine, 0 .. 1),
    pred_l1_err, pred_l2_err, top1_acc (percent) and recovered_acc; others are not read, nor are lines of the layer
    "original".

    Returns:
        Rows with the columns of the study: model, eps (None), stage, layer, kind (None), seed (the trial), criticality,
        l1, l2, accuracy (a share), recovered_accuracy.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing; a value is no number; nothing in it.
    """
    path = Path(path)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path} has no column {missing[0]}; expected {', '.join(_COLUMNS)}, got "
                f"{', '.join(reader.fieldnames or ()) or 'nothing'}"
            )
        lines = [line for line in reader if line["layer"] != "original"]
    if not lines:
        raise ValueError(f"{path} has no layers")
    names: dict[str, list[str]] = {}
    for line in lines:
        names.setdefault(line["model_id"], []).append(line["layer"])
    prefixes = {model: shared_prefix(own) for model, own in names.items()}
    rows = []
    for number, line in enumerate(lines, 1):
        layer = line["layer"].removeprefix(prefixes[line["model_id"]])
        try:
            rows.append({
                "model": line["model_id"], "eps": None, "stage": stage_of(layer, stage_depth), "layer": layer,
                "kind": None, "seed": int(float(line["trial"])), "criticality": 1 - float(line["pred_cos_sim"]),
                "l1": float(line["pred_l1_err"]), "l2": float(line["pred_l2_err"]),
                "accuracy": float(line["top1_acc"]) / 100, "recovered_accuracy": float(line["recovered_acc"]),
            })  # fmt: skip
        except ValueError as error:
            raise ValueError(f"{path}, layer {number} of {len(lines)}: {error}") from error
    return rows


def residual_parts(layers: Sequence[str]) -> tuple[list[str], list[str]]:
    """(first convolutions of the blocks that begin a stage and change the shape, convolutions of the other blocks but
    their first), by the names stage.block.layer; both empty for a network of fewer than 18 layers or without such
    blocks."""
    if len(layers) < _DEEP:
        return [], []
    blocks: dict[tuple[str, str], list[str]] = {}
    for layer in layers:
        match = _BLOCK.fullmatch(layer)
        if match:
            blocks.setdefault((match[1], match[2]), []).append(layer)
    entry, middle = [], []
    for own in blocks.values():
        shortcut = [name for name in own if any(word in name for word in _SHORTCUTS)]
        if shortcut:
            entry.append(own[0])
        else:
            middle += own[1:2]
    return (entry, middle) if len(entry) > 1 and middle else ([], [])


def expectations(result: StudyResult) -> list[Expectation]:
    """Written down on 2026-11-30, before the first run, from the published results on ImageNet."""
    found = []
    for model in dict.fromkeys(row["model"] for row in result.rows):
        layers = list(dict.fromkeys(row["layer"] for row in result.select(model=model)))
        entry, middle = residual_parts(layers)
        if entry:
            found += _depth(result, model, entry, middle)
    return [*found, *_radii(result)]


def _depth(
    result: StudyResult, model: str, entry: Sequence[str], middle: Sequence[str]
) -> list[Expectation]:
    def mean(layers: Sequence[str]) -> float | None:
        values = [
            mean_of(result, "criticality", {"model": model, "layer": name}) for name in layers
        ]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known else None

    first, rest = mean(entry), mean(middle)
    texts = (
        f"{model}: the first convolutions of the stages that change the shape have a criticality of 0.9 or more on "
        "average",
        f"{model}: the second convolutions of the blocks inside the stages are less critical than those, below 0.5 on "
        "average",
    )  # fmt: skip
    if first is None or rest is None:
        return [Expectation(text, "not measured", None) for text in texts]
    return [
        Expectation(texts[0], f"{first:.2f} ({', '.join(entry)})", first >= 0.9),
        Expectation(texts[1], f"{rest:.2f} ({', '.join(middle)})", rest < min(first, 0.5)),
    ]


def _radii(result: StudyResult) -> list[Expectation]:
    """Of networks that were trained at several radii, 0 for standard training."""
    radii = sorted({row["eps"] for row in result.rows if row["eps"] is not None})
    if len(radii) < 2:
        return []
    means = [mean_of(result, "criticality", {"eps": eps}) for eps in radii]
    known = [mean for mean in means if mean is not None]
    listed = ", ".join(f"{m:.3f} at {eps:.3g}" for m, eps in zip(known, radii, strict=False))
    found = [
        Expectation(
            "the average criticality of all layers grows with eps", listed,
            all(a < b for a, b in itertools.pairwise(known))
            if len(known) == len(radii) else None,
        )
    ]  # fmt: skip
    low, high = ({row["stage"]: 0.0 for row in result.select(eps=e)} for e in (radii[0], radii[-1]))
    stages = [
        stage for stage in low
        if stage in high and len({r["layer"] for r in result.select(eps=radii[0], stage=stage)}) > 1
    ]  # fmt: skip
    if len(stages) < 2:
        return found
    ends = [
        [mean_of(result, "criticality", {"eps": e, "stage": s}) for e in (radii[0], radii[-1])]
        for s in (stages[0], stages[-1])
    ]
    (a, b), (c, d) = ends
    text = (
        f"adversarial training at the largest eps raises the criticality of the first stage of several layers "
        f"({stages[0]}) more than that of the last ({stages[-1]})"
    )
    if a is None or b is None or c is None or d is None:
        return [*found, Expectation(text, "not measured", None)]
    return [*found, Expectation(text, f"{b - a:+.3f} against {d - c:+.3f}", b - a > d - c)]


def notes(result: StudyResult) -> list[str]:
    """A line a model: the averages of its stages."""
    by_model: dict[str, list[str]] = {}
    for row in stage_rows(result.rows):
        by_model.setdefault(row["model"], []).append(
            f"{row['stage']} {row['criticality_mean']:.2f}"
        )
    return [
        f"criticality by stage, {model}: {', '.join(stages)}" for model, stages in by_model.items()
    ]
