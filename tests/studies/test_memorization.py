"""The study of random labels: its runs, what it measures of them, what it expects, and runs that it looks at."""

import importlib
import math

import pytest
import torch

import advfast
from advfast import cli, evaluate
from advfast.data import LabelNoise, load, stratified_split
from advfast.studies import load_study, memorization, preset
from advfast.studies.complexity import MEASURES, complexity
from advfast.studies.memorization_expectations import correlations, expectations, groups_of
from advfast.studies.networks import conv_net
from advfast.studies.objective import Objective, gradient_changes
from advfast.studies.rank_correlation import p_value, spearman
from advfast.studies.result import StudyResult
from advfast.studies.runs import open_run
from advfast.training import finish

module = importlib.import_module("advfast.studies.memorization")  # the function has its name

SHORT = {
    "samples": 30, "limit": 25, "epochs": 2, "complexity_epochs": 1, "every": 1, "at": (0, 2), "steps": 1,
    "lambdas": (0.1,), "batch_size": 15, "eps": 0.1, "progress": False,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _quick():
    threads, pictures = torch.get_num_threads(), finish._pictures
    torch.set_num_threads(1)
    finish._pictures = lambda *arguments, **named: None  # of the runs; seconds each
    yield
    torch.set_num_threads(threads)
    finish._pictures = pictures


def network():
    return conv_net((1, 8, 8), 10, (4,), (2,), batch_norm=False)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("memorization") / "out"
    return memorization(
        "digits", network, out=out, complexity_noise=(0.0, 0.5, 1.0), seeds=[3], **SHORT
    )


def place(study, method, part="convergence", noise="1"):
    return study.path / "runs" / f"{part}-{method}-noise{noise}-eps0.1-seed3"


def test_runs_are_those_of_the_grid(study):
    assert [(row["part"], row["method"], row["noise"], row["eps"], row["seed"]) for row in study.rows] == [
        ("convergence", method, 1.0, 0.1, 3) for method in ("pgd-at", "trades")
    ] + [
        ("complexity", method, noise, 0.1, 3)
        for noise in (0.0, 0.5, 1.0) for method in ("pgd-at", "trades")
    ]  # fmt: skip
    files = {path.name for path in study.path.iterdir()}
    figures = ("convergence", "gradient_norm", "stability", "complexity")
    assert files >= {"curves.csv", "stability.csv", "correlations.csv", "report.html"}
    assert files >= {f"{name}.{ending}" for name in figures for ending in ("png", "svg")}
    chosen = stratified_split(load("digits").train.labels, 30, seed=0)[1]
    for noise in ("0", "0.5", "1"):
        labels = LabelNoise.read(study.path / f"labels-noise{noise}-seed3.npy")
        drawn = LabelNoise.draw(load("digits").train, float(noise), numbers=chosen, seed=3)
        assert torch.equal(labels.numbers, chosen) and torch.equal(labels.labels, drawn.labels)
        (row,) = study.select(part="complexity", method="trades", noise=float(noise))
        assert row["labels_kept"] == labels.kept


def test_a_run_is_the_training_on_these_labels(study, tmp_path):
    labels = LabelNoise.read(study.path / "labels-noise1-seed3.npy")
    source = labels.of(load("digits").train)
    torch.manual_seed(3)
    result = advfast.train(
        network(), source, val=source, method="trades", eps=0.1, epochs=2, steps=1, batch_size=15, lr=0.05,
        schedule="constant", weight_decay=0.0, augment=(), seed=3, out=tmp_path, progress=False,
    )  # fmt: skip
    run = open_run(place(study, "trades"), network)
    assert run.epochs == (0, 1, 2)
    last = torch.load(result.last.checkpoint, weights_only=True)["state"]
    assert all(torch.equal(v, last[k]) for k, v in run.model().state_dict().items())
    curve = [row for row in study.tables["curves"] if row["method"] == "trades"][:2]
    for row, own in zip(curve, result.history, strict=True):
        assert row["loss"] == own["train_loss"]
        assert (row["train_clean"], row["train_robust"]) == (own["val_clean"], own["val_robust"])
        test = evaluate(
            run.model(row["epoch"]), load("digits").test, attacks=("clean", "pgd-10"), eps=0.1,
            limit=25, sanity=False,
        )  # fmt: skip
        assert (row["test_clean"], row["test_robust"]) == (
            test["clean"].value,
            test["pgd-10"].value,
        )
        assert row["gradient_norm2"] > 0


def test_measures_are_of_the_last_epoch(study):
    for part, noise in (("convergence", "1"), ("complexity", "0")):
        (row,) = study.select(part=part, method="pgd-at", noise=float(noise))
        labels = LabelNoise.read(study.path / f"labels-noise{noise}-seed3.npy")
        source = labels.of(load("digits").train)
        model = open_run(place(study, "pgd-at", part, noise), network).model()
        chosen = torch.linspace(0, 29, 25).long()
        expected = complexity(model, *source.batch(chosen), eps=0.1)
        assert {name: row[name] for name in MEASURES} == expected
        assert row["robust_gap"] == row["train_robust"] - row["test_robust"]
        key = (part, "pgd-at", float(noise))
        history = [r for r in study.tables["curves"] if (r["part"], r["method"], r["noise"]) == key]
        assert row["gradient_norm2"] == history[-1]["gradient_norm2"]
        report = evaluate(
            model, source, attacks=("clean", "pgd-10"), eps=0.1, limit=25, sanity=False
        )
        assert row["train_clean"] == report["clean"].value
        assert row["train_robust"] == report["pgd-10"].value


def test_gradients_are_those_around_the_kept_weights(study):
    rows = study.tables["stability"]
    assert [(r["method"], r["epoch"], r["loss"]) for r in rows] == [
        (method, epoch, loss)
        for method in ("pgd-at", "trades") for epoch in (0, 2) for loss in ("standard", "pgd-at", "trades")
    ]  # fmt: skip
    source = LabelNoise.read(study.path / "labels-noise1-seed3.npy").of(load("digits").train)
    x, y = source.batch(torch.linspace(0, 29, 25).long())
    for row in rows[:6]:
        model = open_run(place(study, "pgd-at"), network).model(row["epoch"])
        objective = Objective(model, row["loss"], x, y, eps=0.1, steps=1)
        (expected,) = gradient_changes(objective, [0.1])
        assert {name: row[name] for name in expected} == expected


def test_it_is_read_back_drawn_again_and_gone_on_with(study, monkeypatch):
    loaded = load_study(study.path)
    assert loaded.tables == study.tables and loaded.rows == study.rows
    drawn = [name for name, _ in loaded.draw(loaded)]
    assert drawn == ["convergence", "gradient_norm", "stability", "complexity"]
    module_runs = importlib.import_module("advfast.studies.memorization_runs")
    monkeypatch.setattr(module_runs, "train", None)  # nothing is left to run
    again = memorization(
        "digits", network, out=study.path, complexity_noise=(0.0, 0.5, 1.0), seeds=[3], resume=True, **SHORT
    )  # fmt: skip
    assert again.tables == study.tables
    with pytest.raises(ValueError, match="epochs was 2 and is now 3"):
        memorization(
            "digits", network, out=study.path, complexity_noise=(0.0, 0.5, 1.0), seeds=[3], resume=True,
            **SHORT | {"epochs": 3},
        )  # fmt: skip


def test_correlations_are_of_the_complexity_part_in_the_direction_of_the_measure(study):
    part = study.select(part="complexity")
    rows = {(r["group"], r["measure"]): r for r in study.tables["correlations"]}
    assert len(rows) == 3 * len(MEASURES)
    for group, networks in (
        ("trades", [r for r in part if r["method"] == "trades"]),
        ("all", part),
    ):
        gap = [r["robust_gap"] for r in networks]
        row = rows[group, "log_frobenius"]
        values = [r["log_frobenius"] for r in networks]
        assert row["networks"] == len(networks)
        assert row["rank_correlation"] == spearman(values, gap)
        assert row["p_value"] == p_value(values, gap)
    made = [{"robust_gap": g, **dict.fromkeys(MEASURES, g)} for g in (0.1, 0.2, 0.3)]
    made.append({"robust_gap": 0.0, **dict.fromkeys(MEASURES)})
    told = {r["measure"]: (r["rank_correlation"], r["networks"]) for r in correlations({"a": made})}
    assert told["sharpness"] == (pytest.approx(1), 3)
    assert told["margin"] == (pytest.approx(-1), 3)
    assert groups_of([{"method": "a"}]).keys() == {"a"}


def made(
    *, pgd=0.1, trades=0.95, small=(0.95, 0.7), pgd_gradient=0.02, change=2.0, anew=3.0, rank=0.5
):
    """A result with these numbers at the end, and others before."""
    curves = []
    for eps in (0.2, 0.1):
        for method in ("pgd-at", "trades"):
            for epoch in (1, 2):
                clean = trades if epoch == 2 else 0.3
                if eps == 0.1:
                    clean = small[0]
                elif method == "pgd-at":
                    clean = pgd
                curves.append({
                    "part": "convergence", "noise": 1.0, "eps": eps, "method": method, "epoch": epoch,
                    "train_clean": clean, "train_robust": small[1] if eps == 0.1 else 0.1,
                    "gradient_norm2": pgd_gradient if method == "pgd-at" and eps == 0.2 else 1.0,
                })  # fmt: skip
    stability = []
    for value in (0.1, 1.0):
        stability.append({"loss": "standard", "lambda": value, "regenerated": 0.5, "fixed": 0.5})
        up = anew if value == 0.1 else 0.5 * change
        stability.append({"loss": "pgd-at", "lambda": value, "regenerated": up, "fixed": 2.0})
    ranks = [
        {"group": group, "measure": measure, "rank_correlation": value}
        for group in ("pgd-at", "all")
        for measure, value in (("margin", rank), ("sharpness", 0.9 if group == "all" else -0.3))
    ]
    tables = {"curves": curves, "stability": stability, "correlations": ranks}
    return StudyResult("memorization", {"classes": 10}, ("part",), (), [], tables=tables)


@pytest.mark.parametrize(
    ("numbers", "failed"),
    [
        ({}, None), ({"pgd": 0.25}, 0), ({"trades": 0.85}, 1), ({"pgd_gradient": 0.2}, 2), ({"small": (0.85, 0.7)}, 3),
        ({"small": (0.95, 0.5)}, 3), ({"change": 0.9}, 4), ({"anew": 1.9}, 5), ({"rank": 0.9}, 6),
    ],
)  # fmt: skip
def test_expectations_are_told_by_the_numbers(numbers, failed):
    held = [one.held for one in expectations(made(**numbers))]
    assert held == [number != failed for number in range(7)]


def test_one_radius_or_no_random_labels_tell_less():
    result = made()
    result.tables["curves"] = [r for r in result.tables["curves"] if r["eps"] == 0.2]
    assert len(expectations(result)) == 6
    for row in result.tables["curves"]:
        row["noise"] = 0.5
    assert len(expectations(result)) == 3


def test_a_run_is_looked_at(tmp_path, capsys):
    run = advfast.train(
        "small-cnn", "digits-noisy:1", method="pgd-at", eps=0.1, steps=1, epochs=2, batch_size=256, lr=0.05,
        keep_every=1, out=tmp_path / "run", progress=False,
    )  # fmt: skip
    out = tmp_path / "out"
    words = ["study", "memorization", str(run.path), "--limit", "20", "--lambdas", "0.1"]
    assert cli.main([*words, "--out", str(out), "--quiet"]) == 0
    assert "boundary_thickness" in capsys.readouterr().out
    found = load_study(out)
    assert [(row["run"], row["epoch"]) for row in found.rows] == [("run", e) for e in (0, 1, 2)]
    assert {r["loss"] for r in found.tables["stability"]} == {"standard", "pgd-at", "trades"}
    assert {r["group"] for r in found.tables["correlations"]} == {"run"}
    source = load("digits-noisy:1").train
    model = open_run(run.path).model(1)
    x, y = source.batch(torch.linspace(0, len(source) - 1, 20).long())
    expected = complexity(model, x, y, eps=0.1)
    assert {name: found.rows[1][name] for name in MEASURES} == expected
    assert found.settings["eps"] == 0.1
    one = memorization(
        source=model, data="digits", eps=0.2, limit=10, lambdas=[0.1], progress=False
    )
    assert one.rows[0]["epoch"] is None and len(one.tables["stability"]) == 3
    assert [name for name, _ in one.draw(one)] == ["stability", "complexity"]
    with pytest.raises(ValueError, match="one eps, a number: got None"):
        memorization(source=model, data="digits", progress=False)


def test_a_run_of_the_study_is_looked_at_with_its_labels(study):
    labels = study.path / "labels-noise1-seed3.npy"
    found = memorization(
        "digits", network, source=place(study, "trades"), labels=labels, limit=25, lambdas=[0.1], progress=False
    )  # fmt: skip
    (own,) = study.select(part="convergence", method="trades")
    assert found.rows[-1]["epoch"] == 2
    assert {name: found.rows[-1][name] for name in MEASURES} == {
        name: own[name] for name in MEASURES
    }
    assert found.rows[-1]["train_clean"] == own["train_clean"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"methods": ["trade"]}, ValueError, "did you mean 'trades'"),
        ({"methods": []}, ValueError, "methods must be names"),
        ({"noise": [1.5]}, ValueError, "noise must be numbers from 0 on and at most 1, got 1.5"),
        ({"complexity_noise": [-0.1]}, ValueError, "complexity_noise must be numbers from 0 on"),
        ({"noise": []}, ValueError, "noise must be different values, at least one"),
        ({"eps": [0.1, 0.1]}, ValueError, "eps must be different values"),
        ({"eps": [0]}, ValueError, "eps must be numbers above 0"),
        ({"complexity_eps": 0}, ValueError, "complexity_eps must be numbers above 0"),
        ({"lambdas": [math.nan]}, ValueError, "lambdas must be numbers above 0"),
        ({"samples": 5000}, ValueError, r"samples must be 1 \.\. 1297 or None, got 5000"),
        ({"epochs": 0}, ValueError, "epochs must be integers >= 1"),
        ({"seeds": [-1]}, ValueError, "seeds must be integers >= 0"),
        ({"at": [-1]}, ValueError, "at must be integers >= 0"),
        ({"limit": 0}, ValueError, "limit must be integers >= 1"),
        ({"ema": 0.9}, ValueError, "ema is set by the study"),
        ({"labels": "x.npy"}, ValueError, "labels are of a source"),
        ({"model": "smal-cnn"}, ValueError, "unknown model"),
        ({"source": "rice202"}, ValueError, "no recipe"),
    ],
)
def test_bad_arguments_are_said_before_any_run(tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.setattr(importlib.import_module("advfast.studies.memorization_runs"), "train", None)
    with pytest.raises(error, match=message):
        memorization(**{"progress": False, "out": tmp_path / "out", **arguments})
    assert not (tmp_path / "out").exists()


def test_a_source_is_checked_before_it_is_trained(tmp_path, monkeypatch):
    recipe = {"data": "digits", "model": network, "epochs": 1}
    (tmp_path / "study.json").write_text("{}")
    monkeypatch.setattr(module, "obtain", None)
    with pytest.raises(FileExistsError, match="already holds a study"):
        memorization(source=recipe, out=tmp_path, progress=False)
    with pytest.raises(ValueError, match="one eps, a number"):
        memorization(source=recipe, eps=[0.1, 0.2], progress=False)
    with pytest.raises(ValueError, match="a recipe is trained on its own"):
        memorization(source=recipe, labels=tmp_path / "labels.npy", progress=False)


def test_a_run_that_diverges_does_not_end_the_study(tmp_path):
    short = SHORT | {"noise": 1.0, "complexity_noise": (), "every": 2}
    result = memorization("digits", network, out=tmp_path, seeds=0, lr=1e12, **short)
    assert [row["train_clean"] for row in result.rows] == [None, None]
    assert result.tables["curves"] == [] and (tmp_path / "report.html").exists()


def test_measures_of_networks_without_weight_are_none():
    net = network()
    torch.nn.init.zeros_(net[0].weight)
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    found = complexity(net, x, y, eps=0.1)
    assert found["log_spectral"] is None and found["log_frobenius"] is None
    assert found["margin"] is not None
    rows = [{"method": "a", "robust_gap": 0.1 * i, **dict.fromkeys(MEASURES, float(i))} for i in range(3)]  # fmt: skip
    rows.append({"method": "a", "robust_gap": 0.5, **dict.fromkeys(MEASURES, math.inf)})
    assert all(row["networks"] == 3 for row in correlations(groups_of(rows)))


def test_costs_and_presets(capsys, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(module, "announce", lambda name, cost: said.append((name, cost.passes)))
    arguments = SHORT | {"complexity_noise": [0.0], "dry_run": True}
    assert memorization("digits", network, out=tmp_path / "out", **arguments).rows == []
    # 30 images; PGD-AT 2 * 1 + 3 passes of a step, TRADES 2 * 1 + 7, and 21 for the accuracies.
    assert said == [("memorization", 30 * (2 + 1) * ((5 + 21) + (9 + 21)))]
    with pytest.raises(ValueError, match="dry_run is of training"):
        memorization(source="x.pt", dry_run=True)
    monkeypatch.undo()
    words = ["study", "memorization", "--dry-run", "--epochs", "3", "--out", str(tmp_path / "out")]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert "passes of an image" in said.err and said.out == "" and not (tmp_path / "out").exists()
    assert cli.main(["study", "memorization", "x.pt", "--seeds", "1"]) == 1
    assert (
        "--seeds is of training on random labels, and x.pt is looked at" in capsys.readouterr().err
    )
    published = preset("memorization", "published")
    assert published["model"] == "wrn-28-10" and published["epochs"] == 300
