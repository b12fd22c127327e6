"""A study as one HTML page: styles and figures inside, no scripts, nothing from a network."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .about import ABOUT, About

if TYPE_CHECKING:
    from .result import StudyResult

_TEMPLATE = Path(__file__).with_name("report.html")
WORDS = {True: "held", False: "FAILED", None: "not measured"}


def render(result: StudyResult, pictures: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        result: what it is about; its texts are escaped.
        pictures: file name -> PNG.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    about = ABOUT.get(result.name, About(result.name, "", ""))
    heads, *rows = result.table()
    expectations = [
        {
            "text": one.text, "found": one.found, "word": WORDS[one.held],
            "kind": {True: "held", False: "failed", None: "soft"}[one.held],
        }
        for one in result.expectations
    ]  # fmt: skip
    kinds = {one["kind"] for one in expectations}
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=about.title,
        source=about.source,
        question=about.question,
        verdict=result.verdict,
        all_held=kinds == {"held"},
        any_failed="failed" in kinds,
        expectations=expectations,
        notes=result.notes,
        figures=[
            {"name": name, "uri": f"data:image/png;base64,{base64.b64encode(content).decode()}"}
            for name, content in pictures.items()
        ],
        heads=heads,
        rows=rows,
        several=any(row["runs"] > 1 for row in result.summary),
        settings=result.settings,
    )
