import csv
import json
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from advfast.evaluation import Accuracy, EvalReport
from advfast.training import sweep
from advfast.training.curves import draw_sweep
from advfast.training.loop import NonFiniteLoss
from advfast.training.result import Selected

module = sys.modules["advfast.training.sweep"]


class FakeTrain:
    """Stands for advfast.train: remembers its calls, writes what a complete run has, invents accuracies."""

    def __init__(self):
        self.calls = []
        self.fails = {}

    def __call__(
        self, model, data, *, eps=0.1, seed=0, steps=7, method="pgd-at", callbacks=(), test=None,
        schedule_options=None, threads=None, out=None, resume=False, overwrite=False, progress=True,
    ):  # fmt: skip
        self.calls.append(
            SimpleNamespace(
                model=model, data=data, eps=eps, seed=seed, out=out, resume=resume, method=method,
                overwrite=overwrite, noise=torch.rand(1).item(),
            )
        )  # fmt: skip
        failure = self.fails.get((eps, seed))
        if failure is not None and not failure[1]:
            raise failure[0]
        out.mkdir(parents=True, exist_ok=True)
        (out / "last.pt").write_text("")
        if failure is not None:
            raise failure[0]
        (out / "results.json").write_text("{}")
        return self.result(out, eps, seed)

    def result(self, out, eps, seed):
        def selected(epoch, robust):
            correct = {"clean": 90 + seed, "pgd-20": robust}
            report = EvalReport(
                {name: Accuracy(value, 100) for name, value in correct.items()}, eps, "linf", 1.0
            )
            row = {"epoch": epoch, "lr": 0.1, "val_clean": 0.9, "val_robust": robust / 100}
            return Selected(epoch, row, report, out / "best.pt")

        robust = round(80 - 100 * eps) + 2 * seed
        return SimpleNamespace(
            best=selected(3, robust), last=selected(5, robust - 10), seconds=2.0 + seed
        )

    @property
    def runs(self):
        return [(call.eps, call.seed) for call in self.calls]


@pytest.fixture
def fake(monkeypatch):
    train = FakeTrain()
    monkeypatch.setattr(module, "train", train)
    return train


def quiet(*args, **kwargs):
    return sweep(*args, progress=False, **kwargs)


def table(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_product_and_tables(fake, tmp_path):
    result = quiet("net", "digits", seeds=(0, 1), over={"eps": [0.1, 0.2]}, steps=3, out=tmp_path)
    assert fake.runs == [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)]
    assert [call.out.name for call in fake.calls] == [
        "eps=0.1,seed=0",
        "eps=0.1,seed=1",
        "eps=0.2,seed=0",
        "eps=0.2,seed=1",
    ]
    rows = table(tmp_path / "sweep.csv")
    assert [(row["eps"], row["seed"], row["status"]) for row in rows] == [
        ("0.1", "0", "complete"),
        ("0.1", "1", "complete"),
        ("0.2", "0", "complete"),
        ("0.2", "1", "complete"),
    ]
    second = {
        key: float(value)
        for key, value in rows[1].items()
        if key.startswith(("best", "last", "sec"))
    }
    assert second == {
        "best_epoch": 3, "best_val_clean": 0.9, "best_val_robust": 0.72,
        "best_test_clean": 0.91, "best_test_pgd-20": 0.72,
        "last_epoch": 5, "last_val_clean": 0.9, "last_val_robust": 0.62,
        "last_test_clean": 0.91, "last_test_pgd-20": 0.62, "seconds": 3.0,
    }  # fmt: skip
    summary = table(tmp_path / "summary.csv")
    assert [(row["eps"], row["runs"], row["failed"]) for row in summary] == [
        ("0.1", "2", "0"),
        ("0.2", "2", "0"),
    ]
    robust = [0.60, 0.62]
    assert float(summary[1]["best_test_pgd-20_mean"]) == pytest.approx(statistics.fmean(robust))
    # n - 1 in the denominator: |a - b| / sqrt(2) for two.
    assert float(summary[1]["best_test_pgd-20_std"]) == pytest.approx(0.02 / 2**0.5)
    saved = json.loads((tmp_path / "sweep.json").read_text())
    assert saved["runs"] == result.rows
    assert saved["summary"] == result.summary
    assert saved["arguments"] == {"model": "net", "data": "digits", "steps": 3}
    assert result.failed == []


def test_shown_tables(fake, tmp_path):
    result = quiet(seeds=(0, 1), over={"eps": [0.1, 8 / 255]}, out=tmp_path)
    lines = str(result).splitlines()
    assert lines[0].split()[:2] == ["eps", "seed"]
    assert "best: test pgd-20" in lines[0]
    assert "last: test clean" in lines[0]
    assert lines[2].split() == ["0.1", "1", "3", "91.00", "72.00", "91.00", "62.00", "3.0"]
    assert lines[3].split()[0] == "0.0313725"
    assert len({len(line) for line in lines[:5]}) == 1  # aligned
    assert "mean over seeds 0, 1, ± sample standard deviation" in lines
    assert "90.50 ± 0.71" in lines[8]
    assert lines[8].split()[:2] == ["0.1", "2"]


def test_one_seed_has_no_deviation(fake, tmp_path):
    result = quiet(seeds=[4], out=tmp_path)
    (row,) = table(tmp_path / "summary.csv")
    assert row["runs"] == "1"
    assert float(row["best_test_clean_mean"]) == pytest.approx(0.94)
    assert row["best_test_clean_std"] == ""
    assert result.summary[0]["best_test_clean_std"] is None
    assert "seed 4; no standard deviation" in str(result)
    assert "±" not in str(result)


def test_default_seeds_and_folders(fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert quiet().path == Path("runs/sweep")
    assert fake.runs == [(0.1, 0), (0.1, 1), (0.1, 2)]
    assert [call.out for call in fake.calls] == [Path(f"runs/sweep/seed={i}") for i in range(3)]
    assert quiet(over={"seed": [7]}).path == Path("runs/sweep-2")
    assert fake.runs[-1] == (0.1, 7)
    quiet(over={"seed": [8, 9], "eps": [0.2, 0.3]})
    assert fake.runs[-4:] == [(0.2, 8), (0.2, 9), (0.3, 8), (0.3, 9)]  # the seed varies fastest


def test_a_failed_run_is_recorded_and_the_others_go_on(fake, tmp_path, capsys):
    fake.fails[0.1, 1] = NonFiniteLoss("the loss became nan\nat step 3"), True
    result = sweep(out=tmp_path)
    assert fake.runs == [(0.1, 0), (0.1, 1), (0.1, 2)]
    (failed,) = result.failed
    assert failed["run"] == "seed=1"
    assert failed["error"] == "NonFiniteLoss: the loss became nan at step 3"
    row = table(tmp_path / "sweep.csv")[1]
    assert (row["status"], row["best_epoch"]) == ("failed", "")
    assert row["error"] == failed["error"]
    assert "Traceback" in (tmp_path / "seed=1" / "error.txt").read_text()
    (summary,) = result.summary
    assert (summary["runs"], summary["failed"]) == (2, 1)
    assert summary["best_test_clean_mean"] == pytest.approx((0.90 + 0.92) / 2)
    shown = str(result)
    assert "1 of 3 runs failed:\n  seed=1: NonFiniteLoss" in shown
    assert "run 2 of 3: seed=1: NonFiniteLoss: the loss became nan" in capsys.readouterr().err


def test_the_first_run_may_fail_too(fake, tmp_path):
    fake.fails[0.1, 0] = NonFiniteLoss("nan"), True
    result = quiet(out=tmp_path)
    assert [row["status"] for row in result.rows] == ["failed", "complete", "complete"]
    assert list(table(tmp_path / "sweep.csv")[0]) == list(table(tmp_path / "sweep.csv")[2])


def test_all_failed(fake, tmp_path):
    for seed in range(3):
        fake.fails[0.1, seed] = NonFiniteLoss("nan"), True
    result = quiet(out=tmp_path)
    assert len(result.failed) == 3
    assert "3 of 3 runs failed" in str(result)
    assert "mean" not in str(result)
    assert not (tmp_path / "sweep.png").exists()


def test_wrong_arguments_end_the_sweep_before_it_begins(fake, tmp_path):
    fake.fails[0.1, 0] = ValueError("unknown method"), False
    with pytest.raises(ValueError, match="unknown method"):
        quiet(out=tmp_path / "new")
    assert len(fake.calls) == 1
    assert not (tmp_path / "new").exists()


def test_table_is_there_after_each_run(fake, tmp_path):
    fake.fails[0.1, 2] = KeyboardInterrupt(), True
    with pytest.raises(KeyboardInterrupt):
        quiet(out=tmp_path)
    assert [row["seed"] for row in table(tmp_path / "sweep.csv")] == ["0", "1"]
    assert table(tmp_path / "summary.csv")[0]["runs"] == "2"


def test_resume_skips_what_is_complete(fake, tmp_path):
    fake.fails[0.1, 1] = NonFiniteLoss("nan"), True
    fake.fails[0.1, 2] = KeyboardInterrupt(), True
    with pytest.raises(KeyboardInterrupt):
        quiet(out=tmp_path, resume=True)
    fake.fails.clear()
    fake.calls.clear()
    (tmp_path / "seed=1" / "results.json").write_text("{}")  # failed all the same
    result = quiet(out=tmp_path, resume=True)
    assert [(call.seed, call.resume) for call in fake.calls] == [(1, True), (2, True)]
    assert not (tmp_path / "seed=1" / "error.txt").exists()
    assert [row["status"] for row in result.rows] == ["complete"] * 3
    assert [row["seed"] for row in table(tmp_path / "sweep.csv")] == ["0", "1", "2"]
    fake.calls.clear()
    again = quiet(out=tmp_path, resume=True)
    assert not fake.calls
    assert again.rows == result.rows
    # Its files are gone: nothing to skip.
    (tmp_path / "seed=1" / "results.json").unlink()
    quiet(out=tmp_path, resume=True)
    assert fake.runs == [(0.1, 1)]


def test_values_may_be_added(fake, tmp_path):
    quiet(seeds=(0, 1), out=tmp_path)
    fake.calls.clear()
    result = quiet(seeds=(2,), out=tmp_path, resume=True)
    assert fake.runs == [(0.1, 2)]
    assert [row["seed"] for row in result.rows] == [0, 1, 2]
    assert result.summary[0]["runs"] == 3


def test_resume_refuses_other_arguments(fake, tmp_path):
    quiet("net", out=tmp_path, steps=3, seeds=[0])
    for change, message in (
        ({"steps": 4}, "steps was 3 and is now 4"),
        ({"over": {"eps": [0.1]}}, "varied was"),
        ({"eps": 0.2}, "eps was None and is now 0.2"),
    ):
        with pytest.raises(ValueError, match=message):
            quiet("net", out=tmp_path, resume=True, **({"steps": 3} | change))
    quiet("net", out=tmp_path, resume=True, steps=3, seeds=[0], threads=2, callbacks=[object()])
    assert len(fake.calls) == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "else"}', '{"runs": 3}'])
def test_damaged_record(fake, tmp_path, content):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"sweep\.json is not the record of a sweep, or is damaged"
    ):
        quiet(out=tmp_path, resume=True)


def test_existing_sweep_is_not_overwritten_by_accident(fake, tmp_path):
    quiet(out=tmp_path)
    with pytest.raises(FileExistsError, match=r"already holds a sweep.*--resume"):
        quiet(out=tmp_path)
    (tmp_path / "sweep.json").unlink()
    with pytest.raises(FileExistsError, match="seed=0 already holds a run"):
        quiet(out=tmp_path)
    assert len(fake.calls) == 3
    quiet(out=tmp_path, overwrite=True)
    assert len(fake.calls) == 6
    assert all(call.overwrite for call in fake.calls[3:])


def test_each_run_has_a_model_of_its_own(fake, tmp_path):
    given = nn.Linear(2, 2)
    quiet(given, out=tmp_path / "a")
    models = [call.model for call in fake.calls]
    assert len({id(model) for model in [given, *models]}) == 4
    assert all(torch.equal(model.weight, given.weight) for model in models)

    fake.calls.clear()
    quiet(lambda: nn.Linear(2, 2), out=tmp_path / "b", seeds=(0, 1))
    quiet(lambda: nn.Linear(2, 2), out=tmp_path / "c", seeds=(1,))
    first, second, again = (call.model.weight for call in fake.calls)
    assert not torch.equal(first, second)
    assert torch.equal(second, again)  # by the run's seed alone


def test_making_models_leaves_the_random_state(fake, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1).item()
    torch.manual_seed(5)
    quiet(lambda: nn.Linear(2, 2), out=tmp_path, seeds=(0,))
    assert fake.calls[0].noise == expected


def test_models_data_and_objects_can_vary(fake, tmp_path):
    class Wide(nn.Linear):
        def __init__(self):
            super().__init__(2, 9)

    images = torch.rand(4, 1, 8, 8), torch.zeros(4).long()
    result = quiet(
        over={
            "model": {"wide": Wide, "b/c": "small-cnn"},
            "data": {"mine": images},
            "method": ["pgd-at", "standard"],
            "schedule_options": [{"milestones": [1, 2]}, {}],
        },
        seeds=[0],
        out=tmp_path,
    )
    assert len(fake.calls) == 8
    assert isinstance(fake.calls[0].model, Wide)
    assert fake.calls[0].data is images
    assert fake.calls[0].out.name == (
        "model=wide,data=mine,method=pgd-at,schedule_options=milestones-1+2,seed=0"
    )
    assert fake.calls[-1].out.name.startswith("model=b-c,data=mine,method=standard,schedule_")
    assert result.rows[0]["model"] == "wide"
    assert len({call.out for call in fake.calls}) == 8


def test_long_names_are_cut(fake, tmp_path):
    result = quiet(over={"method": ["m" * 300, "m" * 300 + "n"]}, seeds=[0], out=tmp_path)
    names = [row["run"] for row in result.rows]
    assert len(set(names)) == 2
    assert max(len(name) for name in names) < 100


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"epsilon": 1}, TypeError, "'epsilon' is no argument of train"),
        ({"over": {"stps": [1]}}, TypeError, "did you mean 'steps'"),
        ({"over": {"out": ["a"]}}, TypeError, "'out' is no argument"),
        ({"over": {"eps": []}}, ValueError, "no values of eps"),
        ({"over": {"eps": 0.1}}, TypeError, "values of eps must be a list"),
        ({"over": {"method": "pgd-at"}}, TypeError, "values of method must be a list"),
        ({"over": {"eps": [0.1, 0.1]}}, ValueError, "two values of eps are both named '0.1'"),
        ({"over": {"eps": [0.1]}, "eps": 0.2}, ValueError, "eps is given twice"),
        ({"over": {"seed": [1]}, "seeds": [2]}, ValueError, "seeds must be given once"),
        ({"seed": 1}, ValueError, "seeds must be given once"),
        ({"seeds": 3}, TypeError, "values of seed must be a list"),
        ({"seeds": [1, 1]}, ValueError, "two values of seed"),
        ({"resume": True, "overwrite": True}, ValueError, "no overwrite"),
        ({"resume": True, "out": None}, ValueError, "resume needs `out`"),
    ],
)
def test_bad_input(fake, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        quiet(**({"out": tmp_path / "run"} | change))
    assert not fake.calls
    assert not (tmp_path / "run").exists()


def test_progress(fake, tmp_path, capsys):
    sweep(seeds=[0, 1], out=tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert lines[:3] == [
        f"sweep of 2 runs; writes to {tmp_path}",
        "run 1 of 2: seed=0",
        "run 1 of 2: seed=0: complete",
    ]
    quiet(seeds=[0, 1], out=tmp_path, resume=True)
    assert capsys.readouterr().err == ""


def test_a_real_sweep(tmp_path, tiny):
    test = tiny[0][:40], tiny[1][:40]
    result = quiet(
        "small-cnn", tiny, test=test, seeds=(0, 1), over={"eps": [0.05, 0.2]}, out=tmp_path,
        epochs=1, steps=1, batch_size=64, lr=0.05,
    )  # fmt: skip
    assert [row["status"] for row in result.rows] == ["complete"] * 4
    for row in result.rows:
        saved = json.loads((tmp_path / row["run"] / "results.json").read_text())
        assert saved["best"]["test"]["results"]["pgd-20"]["accuracy"] == row["best_test_pgd-20"]
        assert (saved["config"]["eps"], saved["config"]["seed"]) == (row["eps"], row["seed"])
        assert row["seconds"] > 0
    assert (tmp_path / "sweep.png").stat().st_size > 2000
    before = (tmp_path / "sweep.csv").read_bytes()
    quiet(
        "small-cnn", tiny, test=test, seeds=(0, 1), over={"eps": [0.05, 0.2]}, out=tmp_path,
        epochs=1, steps=1, batch_size=64, lr=0.05, resume=True,
    )  # fmt: skip
    assert (tmp_path / "sweep.csv").read_bytes() == before


def test_without_test_data_the_held_out_ones_are_shown(tmp_path, tiny):
    result = quiet("small-cnn", tiny, seeds=[0], out=tmp_path, epochs=1, steps=1, eps=0.1)
    assert list(result.accuracies("best")) == ["best_val_clean", "best_val_robust"]
    assert "best: held out robust" in str(result)
    draw_sweep(tmp_path / "again.png", result)
    assert (tmp_path / "again.png").exists()
