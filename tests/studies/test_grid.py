"""A study's runs: saved as they come, gone on with, summed up."""

import pytest

from advfast.studies import load_study
from advfast.studies.grid import run_grid
from advfast.studies.result import Expectation

CELLS = [{"lr": lr, "seed": seed} for lr in (0.1, 0.2) for seed in (0, 1)]


class Measure:
    """10 lr + seed; counts its calls and fails at one of them."""

    def __init__(self, fails_at=None):
        self.calls, self.fails_at = [], fails_at

    def __call__(self, lr, seed):
        if len(self.calls) == self.fails_at:
            raise RuntimeError("killed")
        self.calls.append((lr, seed))
        return {"gap": 10 * lr + seed, "note": None}


def study(measure, out=None, cells=CELLS, **arguments):
    return run_grid(
        "toy", cells, measure, settings=arguments.pop("settings", {"eps": 0.1}), out=out,
        progress=False, **arguments,
    )  # fmt: skip


def test_summary_is_over_the_seeds():
    result = study(Measure())
    assert result.varied == ("lr", "seed") and result.measures == ("gap", "note")
    first, second = result.summary
    assert first["gap_mean"] == pytest.approx(1.5) and second["gap_mean"] == pytest.approx(2.5)
    assert first["gap_std"] == pytest.approx(0.5**0.5) and first["runs"] == 2
    assert first["note_mean"] is None and first["note_std"] is None
    assert result.mean("gap", lr=0.2) == pytest.approx(2.5)
    assert result.mean("gap", lr=0.2, seed=1) == pytest.approx(3)
    with pytest.raises(ValueError, match="no row with"):
        result.mean("gap", lr=0.3)
    with pytest.raises(KeyError):
        result.mean("gap", rate=0.1)


def test_a_killed_study_goes_on_where_it_was(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        study(Measure(fails_at=3), tmp_path)
    assert len(load_study(tmp_path).rows) == 3
    measure = Measure()
    result = study(measure, tmp_path, resume=True)
    assert measure.calls == [(0.2, 1)]
    assert result.rows == study(Measure()).rows
    assert load_study(tmp_path).rows == result.rows
    files = {"study.json", "rows.csv", "summary.csv", "report.html"}
    assert {path.name for path in tmp_path.iterdir()} == files


def test_cells_may_be_added_in_front_and_a_kill_then_loses_none(tmp_path):
    study(Measure(), tmp_path)
    more = [{"lr": 0.05, "seed": 0}, {"lr": 0.07, "seed": 0}, *CELLS]
    with pytest.raises(RuntimeError):
        study(Measure(fails_at=1), tmp_path, more, resume=True)
    assert len(load_study(tmp_path).rows) == 5
    measure = Measure()
    result = study(measure, tmp_path, more, resume=True)
    assert measure.calls == [(0.07, 0)]
    assert [(row["lr"], row["seed"]) for row in result.rows] == [tuple(c.values()) for c in more]


def test_a_study_is_not_replaced_or_mixed_with_another(tmp_path):
    study(Measure(), tmp_path)
    with pytest.raises(FileExistsError, match="already holds a study"):
        study(Measure(), tmp_path)
    with pytest.raises(ValueError, match=r"eps was 0\.1 and is now 0\.2"):
        study(Measure(), tmp_path, settings={"eps": 0.2}, resume=True)
    with pytest.raises(ValueError, match="resume needs `out`"):
        study(Measure(), resume=True)
    measure = Measure()
    study(measure, tmp_path, overwrite=True)
    assert len(measure.calls) == 4


def test_expectations_and_figures_are_kept(tmp_path):
    def draw(result):
        from advfast.evaluation.canvas import new_figure

        figure = new_figure(2, 2)
        figure.subplots().plot([row["gap"] for row in result.rows])
        yield "gaps", figure

    result = study(
        Measure(), tmp_path, draw=draw, notes=lambda r: [f"{len(r.rows)} runs in all"],
        expect=lambda r: [
            Expectation("more at 0.2", f"{r.mean('gap', lr=0.2):.1f}", r.mean("gap", lr=0.2) > 2),
            Expectation("none at all", "2.5", False),
        ],
    )  # fmt: skip
    assert (tmp_path / "gaps.png").read_bytes().startswith(b"\x89PNG")
    again = load_study(tmp_path)
    assert again.expectations == result.expectations
    assert again.notes == result.notes == ["4 runs in all"]
    assert "\n4 runs in all\n" in str(again)
    text = str(result)
    assert "held: more at 0.2 (2.5)" in text and "FAILED: none at all" in text
    assert "1.50 ± 0.71" in text
    frame = result.frame()
    assert list(frame.columns) == ["lr", "seed", "gap", "note"] and len(frame) == 4


def test_what_is_no_study_is_refused(tmp_path):
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(ValueError, match="not a study's record"):
        load_study(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_study(tmp_path / "none")
    with pytest.raises(ValueError, match="nothing to run"):
        study(Measure(), cells=[])
