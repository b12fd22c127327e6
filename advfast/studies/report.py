"""A study as one HTML page: styles and figures inside, no scripts, nothing from a network."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .about import ABOUT, About

if TYPE_CHECKING:
    from .result import Expectation, StudyResult

WORDS = {True: "held", False: "FAILED", None: "not measured"}
KINDS = {True: "held", False: "failed", None: "soft"}
"""Style of each."""


def about(name: str) -> About:
    """Of a study; only its name where advfast does not know it."""
    return ABOUT.get(name, About(name, "", ""))


def fill(template: str, **values: Any) -> str:
    """A page of one of the templates beside this file; texts are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(**values)


def style_of(expectations: Iterable[Expectation]) -> str:
    """Of the verdict: "held", "failed", or "soft" where not all could be told."""
    told = [KINDS[one.held] for one in expectations]
    if "failed" in told:
        return "failed"
    return "held" if told and set(told) == {"held"} else "soft"


def render(result: StudyResult, pictures: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        result: what it is about.
        pictures: file name -> PNG.
    """
    known = about(result.name)
    heads, *rows = result.table()
    return fill(
        "report.html",
        title=known.title,
        source=known.source,
        question=known.question,
        verdict=result.verdict,
        verdict_style=style_of(result.expectations),
        expectations=[
            {"text": one.text, "found": one.found, "word": WORDS[one.held], "kind": KINDS[one.held]}
            for one in result.expectations
        ],
        notes=result.notes,
        figures=[
            {"name": name, "uri": f"data:image/png;base64,{base64.b64encode(content).decode()}"}
            for name, content in pictures.items()
        ],
        heads=heads,
        rows=rows,
        several=any(row["runs"] > 1 for row in result.summary),
        reproduce=result.reproduce,
        settings=result.settings,
    )
