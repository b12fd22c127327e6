"""Studies on disk: the command that made one, what is drawn again, parquet, and the page of all."""

import importlib
import importlib.util
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from advfast import cli, invocation, studies
from advfast.studies import load_study, presets
from advfast.studies.about import ABOUT
from advfast.studies.grid import run_grid
from advfast.studies.result import Expectation, StudyResult

VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """Tags in pairs, addresses and text."""

    def __init__(self, path):
        super().__init__()
        self.open, self.links, self.words = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def picture(*names):
    def draw(result):
        from advfast.evaluation.canvas import new_figure

        for name in names:
            figure = new_figure(2, 2)
            figure.subplots().plot([row["gap"] for row in result.rows])
            yield name, figure

    return draw


def saved(folder, name, held=True, data="digits", figures=("a",), reproduce="", **settings):
    rows = [{"lr": 0.1, "seed": seed, "gap": 0.5 + seed} for seed in (0, 1)]
    result = StudyResult(
        name, {"data": data, **settings}, ("lr", "seed"), ("gap",), rows,
        [Expectation("less", "1", held)], picture(*figures), reproduce=reproduce,
    )  # fmt: skip
    result.save(folder)
    return result


@pytest.fixture
def several(tmp_path):
    """Two studies of one kind, one that advfast does not know, one whose figure is not the first by name."""
    saved(tmp_path / "zz-own", "own | <study>", held=None)
    saved(tmp_path / "induced-fashion mnist", "induced", held=False, data="fashion-mnist")
    saved(tmp_path / "induced", "induced", reproduce="advfast study induced --data 'a <b>'")
    saved(tmp_path / "noise-scale", "noise-scale", figures=("a", "noise_scale"))
    return tmp_path


def test_the_page_shows_each_study_in_order_with_links_that_lead_somewhere(several):
    files = studies.index(several)
    assert [file.name for file in files] == ["index.html", "README.md"]
    page = Page(files[0])
    for link in page.links:
        assert (several / unquote(link)).is_file(), link
    titles = [
        "Learning rate / batch size and the robust gap (digits)",
        "Distributions that adversarial training induces (digits)",
        "Distributions that adversarial training induces (fashion-mnist, induced-fashion mnist)",
        "own | <study> (digits)",
    ]
    places = [page.text.index(title) for title in titles]
    assert places == sorted(places)
    assert "noise-scale/noise_scale.png" in page.links and "noise-scale/a.png" not in page.links
    assert "induced-fashion%20mnist/report.html" in page.links
    assert page.text.count("the signature holds: 1 of 1 expectations held") == 2
    assert page.text.count("0 of 1 expectations held") == 1
    assert "nothing was expected that these runs could tell" in page.text
    assert "advfast study induced --data 'a <b>'" in page.text
    assert '<span class="failed">0 of 1' in files[0].read_text()


def test_the_readme_has_a_row_each_and_nothing_breaks_its_table(several):
    text = studies.index(several)[1].read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 5 and all(row.count("|") == 6 for row in rows)
    assert "<code>advfast study induced --data 'a &lt;b&gt;'</code>" in rows[2]
    for part in ("induced/a.png", "induced/a.svg", "induced/rows.csv", "induced/report.html"):
        assert f"({part})" in rows[2]
    assert 'src="induced/a.png" width="280"' in rows[2]
    assert "own &#124; &lt;study&gt;" in rows[4]


def test_a_page_is_made_again_but_no_other_file_is_lost(several):
    first = [file.read_bytes() for file in studies.index(several)]
    assert [file.read_bytes() for file in studies.index(several)] == first
    (several / "README.md").write_text("mine\n")
    with pytest.raises(FileExistsError, match="not one that `index` wrote"):
        studies.index(several)
    assert (several / "README.md").read_text() == "mine\n"
    with pytest.raises(FileNotFoundError, match=r"no study\.json below"):
        studies.index(several / "none")


def test_studies_without_figures_are_shown(tmp_path):
    rows = [{"seed": 0, "gap": 1.0}]
    StudyResult("toy", {}, ("seed",), ("gap",), rows).save(tmp_path / "toy")
    page, readme = studies.index(tmp_path)
    assert Page(page).links == ["toy/report.html", "toy/report.html", "toy/rows.csv"]
    assert "|  | **[toy](toy/report.html)** |" in readme.read_text()


def measure(seed):
    return {"gap": 1.0 + seed, "asked": None}


def grid(out=None, **arguments):
    return run_grid(
        "toy", [{"seed": 0}], measure, settings={}, out=out, progress=False, **arguments
    )


@invocation.recorded
def toy(data, *, out=None, resume=False, **training):
    return grid(out, resume=resume)


def test_what_made_a_study_is_in_its_record(tmp_path):
    assert grid().reproduce == ""
    call = toy(
        "digits", out=tmp_path, eps=0.1, model=grid, at=(0, 1), root=Path("a"), more={"k": [1]}
    )
    words = "toy('digits', eps=0.1, model=<grid>, at=[0, 1], root='a', more={'k': [1]})"
    words = words.replace("'digits'", "data='digits'", 1)
    assert call.reproduce == f"{'.'.join(__name__.split('.')[:2])}.{words}"
    assert load_study(tmp_path).reproduce == call.reproduce
    assert f"Made by {call.reproduce} Settings" in Page(tmp_path / "report.html").text
    line = invocation.command(["study", "toy", "--resume", "--at", "0, 1", "--quiet"])
    assert line == "advfast study toy --at '0, 1'"
    with invocation.asking(line):
        assert toy("digits", out=tmp_path, resume=True).reproduce == line
    assert invocation.asked() == ""


def test_a_study_is_drawn_again_by_its_own_name(tmp_path):
    saved(tmp_path, "noise-scale")
    assert load_study(tmp_path, picture("b")).figures().keys() == {"b.png", "b.svg"}
    with pytest.raises(KeyError):  # its own figure wants batch sizes, which these rows do not have
        load_study(tmp_path).figures()
    saved(tmp_path / "toy", "toy")
    assert load_study(tmp_path / "toy").figures() == {}


def test_committed_studies_are_drawn_again_from_the_command_line(tmp_path, capsys):
    source = Path(__file__).resolve().parents[2] / "docs/studies/noise-scale/study.json"
    folder = tmp_path / "noise-scale"
    folder.mkdir()
    (folder / "study.json").write_bytes(source.read_bytes())
    assert cli.main(["study", "redraw", str(folder)]) == 0
    made = {path.name for path in folder.iterdir()}
    assert {"noise_scale.png", "noise_scale.svg", "report.html", "rows.csv"} <= made
    assert load_study(folder).rows == load_study(source).rows
    assert str(folder / "noise_scale.svg") in capsys.readouterr().out
    assert cli.main(["study", "index", str(tmp_path)]) == 0
    assert (tmp_path / "README.md").exists() and Page(folder / "report.html").links


def test_parquet_is_the_frame(tmp_path, monkeypatch):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    result = saved(tmp_path, "toy")
    assert tmp_path / "rows.parquet" in result.save(tmp_path, parquet=True)
    found = pandas.read_parquet(tmp_path / "rows.parquet")
    pandas.testing.assert_frame_equal(found, result.frame())


def test_parquet_without_its_packages_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys
):
    result = saved(tmp_path / "a", "toy")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "pyarrow" else found(name, *rest),
    )
    with pytest.raises(ImportError, match="pyarrow is not installed: pip install pandas pyarrow"):
        result.save(tmp_path / "b", parquet=True)
    assert not (tmp_path / "b").exists()
    assert cli.main(["study", "redraw", str(tmp_path / "a"), "--parquet"]) == 1
    assert "pyarrow is not installed" in capsys.readouterr().err


def test_all_studies_of_the_page_are_commands_with_presets_and_figures(capsys):
    assert cli.main(["study", "--help"]) == 0
    said = capsys.readouterr().out
    for name in ABOUT:
        module = importlib.import_module(f"advfast.studies.{name.replace('-', '_')}")
        assert callable(module.draw) and set(module.PRESETS) >= set(presets.NAMES)
        assert hasattr(getattr(studies, name.replace("-", "_")), "__wrapped__")  # its call is kept
        assert f"  {name} " in said
