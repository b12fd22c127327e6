"""A page of all studies in a folder, as HTML and as Markdown: each with its figure, its verdict and its command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from advfast.files import write_text

from .about import ABOUT
from .report import about, fill, style_of
from .result import RECORD, REPORT, ROWS, StudyResult, load_study

INDEX, README = "index.html", "README.md"
_MARK = "<!-- Made by `advfast study index`: changes are lost. -->"
_WIDTH = 280


@dataclass(frozen=True)
class Entry:
    """A study on the page; links are relative to it."""

    name: str
    title: str
    source: str
    setting: str  # data, and the folder where several are of one study
    verdict: str
    style: str
    reproduce: str
    report: str
    figure: str  # "" for none
    links: tuple[tuple[str, str], ...]  # text, address

    @property
    def figure_name(self) -> str:
        return Path(self.figure).stem


def index(folder: str | Path) -> list[Path]:
    """Writes index.html and README.md (which GitHub shows) about every study.json below a folder.

    Both show figures that lie in the studies' folders, by relative links: they are read from a file as from a server.
    Studies are in the order of `advfast.studies.about.ABOUT`, others after them by name.

    Returns:
        The two files.

    Raises:
        FileNotFoundError: there is no study below the folder.
        FileExistsError: it has a README.md that is not of this function.
        ValueError: a study.json that is not a study's record.
    """
    folder = Path(folder)
    readme = folder / README
    if readme.exists() and _MARK not in readme.read_text(encoding="utf-8"):
        raise FileExistsError(f"{readme} is not one that `index` wrote: move it to have one made")
    records = sorted(folder.rglob(RECORD))
    if not records:
        raise FileNotFoundError(f"{folder} has no {RECORD} below it")
    order = {name: number for number, name in enumerate(ABOUT)}
    studies = [(load_study(record), record.parent) for record in records]
    studies.sort(key=lambda one: (order.get(one[0].name, len(order)), one[0].name, str(one[1])))
    names = [result.name for result, _ in studies]
    entries = [
        _entry(result, place.relative_to(folder), place, several=names.count(result.name) > 1)
        for result, place in studies
    ]
    write_text(folder / INDEX, fill("index.html", studies=entries))
    write_text(readme, _markdown(entries))
    return [folder / INDEX, readme]


def _entry(result: StudyResult, relative: Path, place: Path, *, several: bool) -> Entry:
    known = about(result.name)
    pictures = sorted(path.name for path in place.glob("*.png"))
    chosen = f"{known.figure}.png"
    figure = chosen if chosen in pictures else next(iter(pictures), "")
    files = [(REPORT, "report"), (ROWS, "rows"), (figure, "PNG")]
    files.append((figure.removesuffix(".png") + ".svg", "SVG"))

    def link(name: str) -> str:
        return quote((relative / name).as_posix())

    words = [str(result.settings.get("data", ""))]
    if several and relative.name not in (result.name, words[0]):
        words.append(relative.as_posix())
    there = (place / REPORT).exists()
    return Entry(
        result.name, known.title, known.source, ", ".join(word for word in words if word),
        result.verdict, style_of(result.expectations), result.reproduce,
        link(REPORT if there else RECORD), link(figure) if figure else "",
        tuple((text, link(name)) for name, text in files if name and (place / name).exists()),
    )  # fmt: skip


def _markdown(entries: list[Entry]) -> str:
    lines = [
        _MARK, "", "# Studies", "",
        "Published studies, made again with advfast: what each found, and whether what was expected beforehand came. "
        f"[{INDEX}]({INDEX}) is the same page for a browser.", "",
        "| signature | study | verdict | made by | files |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for one in entries:
        picture = f'<a href="{one.figure}"><img src="{one.figure}" width="{_WIDTH}" alt="{_cell(one.name)}"></a>'
        title = f"**[{_cell(one.title)}]({one.report})**"
        about_it = [title, f"({_cell(one.setting)})" if one.setting else "", _cell(one.source)]
        cells = [
            picture if one.figure else "",
            "<br>".join(part for part in about_it if part),
            _cell(one.verdict),
            f"<code>{_cell(one.reproduce)}</code>" if one.reproduce else "",
            "<br>".join(f"[{text}]({address})" for text, address in one.links),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Of a Markdown table: nothing in it is a mark."""
    for mark, escaped in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("|", "&#124;"),
        ("\n", " "),
    ):
        text = text.replace(mark, escaped)
    for mark in "*_`[]":
        text = text.replace(mark, f"&#{ord(mark)};")
    return text
