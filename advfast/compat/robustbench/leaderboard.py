"""The JSON of a model on RobustBench's leaderboard: model_info/<data set>/<threat model>/<Name><Year><Word>.json.

The fields are those of the 188 Linf and L2 files in RobustBench/robustbench at 78fcc9e: all of them have `FIELDS`, most
`unreliable` and `footnote`; accuracies are texts in per cent with two decimals, eps a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from advfast.attacks.autoattack.versions import VERSIONS
from advfast.evaluation import EvalReport
from advfast.files import write_text

from .names import EPS, SAMPLES, check_benchmark

FIELDS = (
    "link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture", "eps",
    "clean_acc", "reported", "autoattack_acc",
)  # fmt: skip
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_STANDARD = "AutoAttack, version standard:"
_HARMLESS = frozenset({"few-classes", "log-probabilities", "train-mode"})
"""Findings that are no reason to doubt the number."""
_CLOSE = 1e-9


def leaderboard_json(
    report: EvalReport,
    *,
    model_name: str,
    name: str,
    authors: str,
    link: str,
    architecture: str,
    dataset: str = "cifar10",
    threat_model: str = "Linf",
    venue: str = "",
    additional_data: bool = False,
    number_forward_passes: int = 1,
    reported: float | None = None,
    footnote: str | None = None,
    unreliable: bool | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    incomplete: bool = False,
) -> dict[str, Any]:
    """What RobustBench's leaderboard asks for, from an evaluation with "clean" and "autoattack".

    Args:
        report: of `evaluate` here, or of `advfast.evaluate`.
        model_name: the leaderboard's name of the model, <Name><Year><FirstWordOfTitle>: "Wong2020Fast".
        name, authors, link: of the paper: its title, "First Author, Second Author", its address.
        architecture: such as "WideResNet-34-10".
        dataset, threat_model: the leaderboard.
        venue: such as "ICLR 2020"; empty for none.
        additional_data: whether other data were used for training.
        number_forward_passes: of one prediction.
        reported: robust accuracy in the paper, in per cent, if it gives one.
        footnote: a sentence for the table.
        unreliable: whether AutoAttack may overstate it; None takes that from the findings of the report.
        out: folder in which to write model_info/<data set>/<threat model>/<model_name>.json.
        overwrite: replaces one that is there.
        incomplete: takes a number that is not of a whole standard AutoAttack at the leaderboard's eps, and says so in
            the footnote.

    Returns:
        The content of the file.

    Raises:
        ValueError, TypeError: a field is wrong; or, without `incomplete`, what the evaluation lacks.
        FileExistsError: there is such a file.
    """
    check_benchmark(dataset, threat_model)
    if not isinstance(report, EvalReport):
        raise TypeError(f"report must be an EvalReport, got {type(report).__name__}")
    if not isinstance(model_name, str) or not _SAFE.fullmatch(model_name):
        raise ValueError(
            "model_name must be <Name><Year><FirstWordOfTitle> of letters, digits, '_', '-' and '.', such as "
            f"'Wong2020Fast', got {model_name!r}"
        )
    attack = _autoattack(report, incomplete)
    lacking = list(_lacking(report, attack, dataset, threat_model))
    if lacking and not incomplete:
        raise ValueError(
            f"a leaderboard takes a whole standard AutoAttack at its eps, and {'; '.join(lacking)} "
            "(incomplete=True takes it and says so in the footnote)"
        )
    doubts = sorted({finding.code for finding in report.findings} - _HARMLESS)
    notes = [footnote] if footnote else []
    if lacking:
        notes.append(f"Not a whole standard evaluation: {'; '.join(lacking)}.")
    content: dict[str, Any] = {
        "link": link,
        "name": name,
        "authors": authors,
        "additional_data": additional_data,
        "number_forward_passes": number_forward_passes,
        "dataset": dataset,
        "venue": venue,
        "architecture": architecture,
        "eps": eps_text(report.eps, threat_model),
        "clean_acc": _percent(report["clean"].value),
        "reported": "" if reported is None else f"{reported:.2f}",
        "autoattack_acc": _percent(report[attack].value),
        "footnote": " ".join(notes) or None,
        "unreliable": bool(doubts) if unreliable is None else unreliable,
    }
    check_content(content)
    if out is not None:
        file = Path(out) / "model_info" / dataset / threat_model / f"{model_name}.json"
        if file.exists() and not overwrite:
            raise FileExistsError(f"{file} is already there (overwrite=True replaces it)")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(content, indent=2) + "\n")
    return content


def eps_text(eps: float, threat_model: str) -> str:
    """ "8/255" for a multiple of 1/255 in Linf, else the number."""
    levels = eps * 255
    if threat_model == "Linf" and levels >= 1 and abs(levels - round(levels)) < 1e-6:
        return f"{round(levels)}/255"
    return f"{eps:.6g}"


def check_content(content: dict[str, Any]) -> None:
    """Types and ranges, as the files of the leaderboard have them.

    Raises:
        ValueError, TypeError: what is wrong.
    """
    missing = [field for field in FIELDS if field not in content]
    if missing:
        raise ValueError(f"fields of the leaderboard are missing: {', '.join(missing)}")
    for field in ("link", "name", "authors", "venue", "architecture"):
        if not isinstance(content[field], str):
            raise TypeError(f"{field} must be a text, got {content[field]!r}")
        if field != "venue" and not content[field].strip():
            raise ValueError(f"{field} must not be empty")
    if not re.match(r"https?://\S+$", content["link"]):
        raise ValueError(
            f"link must be an address, http://... or https://..., got {content['link']!r}"
        )
    for field in ("additional_data", "unreliable"):
        if field in content and not isinstance(content[field], bool):
            raise TypeError(f"{field} must be True or False, got {content[field]!r}")
    passes = content["number_forward_passes"]
    if isinstance(passes, bool) or not isinstance(passes, int) or passes < 1:
        raise ValueError(f"number_forward_passes must be an integer >= 1, got {passes!r}")
    values = {
        field: float(content[field] or "nan")
        for field in ("clean_acc", "reported", "autoattack_acc")
    }
    for field, value in values.items():
        if not 0 <= value <= 100 and (field != "reported" or content[field]):
            raise ValueError(f"{field} must be per cent, 0 to 100, got {content[field]!r}")
    if values["autoattack_acc"] > values["clean_acc"]:
        raise ValueError(
            f"autoattack_acc {content['autoattack_acc']} is above clean_acc {content['clean_acc']}"
        )


def _autoattack(report: EvalReport, incomplete: bool) -> str:
    """The name of the AutoAttack in the report."""
    standard = [name for name, words in report.attacks.items() if words.startswith(_STANDARD)]
    found = [name for name in standard if name in report.results]
    if incomplete and not found:
        found = [name for name in report.results if name.startswith("autoattack")]
    if not found or "clean" not in report.results:
        raise ValueError(
            "the report must hold 'clean' and 'autoattack' (version standard), it has "
            f"{', '.join(report.results) or 'nothing'}"
        )
    return found[0]


def _lacking(report: EvalReport, attack: str, dataset: str, threat_model: str) -> Iterable[str]:
    """What it would take to be a number of the leaderboard."""
    if not report.attacks.get(attack, "").startswith(_STANDARD):
        yield f"this is {report.attacks.get(attack) or attack}"
    parts = [part for part in report.stages.get(attack, {}) if part != "clean"]
    if parts and parts != list(VERSIONS["standard"]):
        yield f"its parts are {', '.join(parts)}"
    wanted = EPS[dataset, threat_model]
    if abs(report.eps - wanted) > _CLOSE:
        yield f"eps is {report.eps:.6g}, that of the leaderboard {eps_text(wanted, threat_model)}"
    if report.norm.lower() != threat_model.lower():
        yield f"the norm is {report.norm}, not {threat_model}"
    if report[attack].total != SAMPLES[dataset]:
        yield f"it is of {report[attack].total} samples, not {SAMPLES[dataset]}"
    if dataset != "imagenet" and not report.data.startswith(f"{dataset} (test)"):
        yield f"it is of {report.data or 'unknown data'}, not of the test set of {dataset}"
    if report.settings.get("precision", "fp32") != "fp32":
        yield f"the attack ran in {report.settings['precision']}"
    for warning in report.warnings:
        yield f"the report warns: {warning}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"
