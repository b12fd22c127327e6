"""The study of batch normalisation's estimators: what it rests on, its runs, and what it says of them."""

import itertools

import pytest
import torch
from torch import nn

import advfast
from advfast import cli
from advfast.attacks import PGDAttack
from advfast.data import as_source, load, pixel_statistics
from advfast.models.normalise import Normalised
from advfast.ntk import balanced_probe, metrics, ntk
from advfast.studies import bn_expectations, load_study
from advfast.studies.bn_estimators import FACTORS, bn_estimators
from advfast.studies.networks import conv_bn_net
from advfast.studies.result import StudyResult
from advfast.studies.subject import Subject
from advfast.training import train

SHORT = {"eps": 0.1, "steps": 1, "epochs": 1, "batch_size": 32, "lr": 0.1}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def parts(train_size=200, test_size=60):
    splits = load("digits")
    return {
        name: source.batch(torch.arange(size))
        for name, source, size in (
            ("train", splits.train, train_size),
            ("test", splits.test, test_size),
        )
    }


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = bn_estimators(
        parts(), seeds=[0], probe=20, autoattack=False, out=out, progress=False, **SHORT
    )
    torch.set_num_threads(threads)
    return found


# What the study rests on


def test_batch_normalisation_divides_by_m_and_keeps_what_is_divided_by_m_less_one():
    layer = nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5) * 2 + 1
    m = 4 * 5 * 5
    mean = x.mean((0, 2, 3))
    squares = (x - mean[:, None, None]).square().sum((0, 2, 3))
    expected = (x - mean[:, None, None]) / (squares / m + layer.eps).sqrt()[:, None, None]
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.running_var, 0.9 * torch.ones(3) + 0.1 * squares / (m - 1))
    torch.testing.assert_close(layer.running_mean, 0.1 * mean)


def test_an_input_normalisation_does_not_change_the_images_of_a_fixed_function():
    """The layer inside, and absorbed in the first convolution, which has no padding."""
    mean, std = [0.3, 0.5], [0.2, 0.4]
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
    )
    absorbed = nn.Sequential(nn.Conv2d(2, 4, 3), *list(net)[1:])
    with torch.no_grad():
        m, s = torch.tensor(mean).view(1, 2, 1, 1), torch.tensor(std).view(1, 2, 1, 1)
        absorbed[0].weight.copy_(net[0].weight / s)
        absorbed[0].bias.copy_(net[0].bias - (net[0].weight * m / s).sum((1, 2, 3)))
    inside, absorbed = Normalised(net, mean, std).double().eval(), absorbed.double().eval()
    x, y = torch.rand(16, 2, 8, 8, dtype=torch.float64), torch.arange(16) % 3
    torch.testing.assert_close(inside(x), absorbed(x))
    a, b = (PGDAttack(f, eps=0.1, steps=5, seed=0)(x, y) for f in (inside, absorbed))
    assert (a - x).abs().max() > 0.05
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_seed_has_the_same_weights_with_and_without_input_normalisation():
    subject = Subject(load("digits"), None, 10)
    before = torch.get_rng_state()
    off, on = (subject.network(3, normalised) for normalised in (False, True))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(next(subject.network(4, False).parameters()), next(off.parameters()))
    for a, b in zip(off.parameters(), on.parameters(), strict=True):
        assert torch.equal(a, b)
    assert on.normalise.mean.item() == pytest.approx(0.3, abs=0.02)
    pixels = torch.rand(4, 1, 8, 8)
    standardised = (pixels - on.normalise.mean) / on.normalise.std
    torch.testing.assert_close(off.eval()(standardised), on.eval()(pixels))


def test_crafting_in_train_mode_trains_the_weights_that_batch_statistics_train(tmp_path):
    x, y = parts()["train"]
    found = []
    for kind, bn in itertools.product(("batch", "batch-no-stats"), ("train", "eval")):
        torch.manual_seed(0)
        net = conv_bn_net((1, 8, 8), 10)
        result = train(
            net, (x, y), bn=bn, norm_layers=kind, out=tmp_path / f"{kind}-{bn}", progress=False,
            **(SHORT | {"steps": 2}),
        )  # fmt: skip
        saved = torch.load(result.last.checkpoint, weights_only=True)["state"]
        found.append([value for name, value in saved.items() if name.endswith(("weight", "bias"))])
    of_train, of_eval, without, without_eval = found
    assert all(map(torch.equal, of_train, without))
    assert all(map(torch.equal, without, without_eval))
    assert not all(map(torch.equal, of_train, of_eval))


# Its runs


def test_every_cell_has_its_row_and_those_that_coincide_are_equal(study):
    assert len(study.rows) == 8 and study.varied == (*(f.name for f in FACTORS), "seed")
    ignored = {"crafting", "seconds"}

    def plain(row):
        return {name: value for name, value in row.items() if name not in ignored}

    for norm in ("off", "on"):
        (a,) = study.select(input_norm=norm, statistics="batch", crafting="eval")
        (b,) = study.select(input_norm=norm, statistics="batch", crafting="train")
        assert plain(a) == plain(b)
        (c,) = study.select(input_norm=norm, statistics="running", crafting="train")
        (d,) = study.select(input_norm=norm, statistics="running", crafting="eval")
        # The same weights: alike in batches, and told apart by what is tested.
        assert (c["batch_clean"], c["batch_pgd20"]) == (a["batch_clean"], a["batch_pgd20"])
        assert c["effective_rank"] != a["effective_rank"]
        assert d["effective_rank"] != c["effective_rank"]
        assert c["init_effective_rank"] == d["init_effective_rank"] < a["init_effective_rank"]
    assert {e.text: e.held for e in study.expectations}[
        "batch statistics: crafting in eval and in train mode give the same rows"
    ]


def test_measures_against_a_plain_computation(study):
    """The kernel before training, which needs no training to know."""
    given = parts()
    torch.manual_seed(0)
    net = conv_bn_net((1, 8, 8), 10)
    x, y = (t[balanced_probe(given["test"][1], 20)] for t in given["test"])
    reference = given["train"][0][balanced_probe(given["train"][1], 200)]
    running = ntk(net, x)
    batch = ntk(net, x, bn="frozen", bn_batch=reference)
    (row,) = study.select(input_norm="off", statistics="running", crafting="eval")
    (other,) = study.select(input_norm="off", statistics="batch", crafting="eval")
    for found, kernel in ((row, running), (other, batch)):
        assert found["init_effective_rank"] == pytest.approx(
            metrics.effective_rank(kernel), rel=1e-4
        )
        assert found["init_top_share"] == pytest.approx(metrics.top_share(kernel), rel=1e-4)
        assert found["init_specialization"] == pytest.approx(
            metrics.specialization(kernel, y).value, rel=1e-4
        )
    (normalised,) = study.select(input_norm="on", statistics="running", crafting="eval")
    torch.manual_seed(0)
    net = conv_bn_net((1, 8, 8), 10, *pixel_statistics(as_source(given["train"])))
    assert normalised["init_effective_rank"] == pytest.approx(
        metrics.effective_rank(ntk(net, x)), rel=1e-4
    )
    distance = metrics.kernel_distance(running, batch)
    assert row["init_eval_batch_distance"] == pytest.approx(distance, rel=1e-3)
    assert other["init_eval_batch_distance"] is other["eval_batch_distance"] is None
    assert row["autoattack"] is None


def test_files_notes_and_resumption(study):
    files = {path.name for path in study.path.iterdir()}
    pictures = {f"{name}.{kind}" for name in ("measures", "initial") for kind in ("png", "svg")}
    assert files == {"study.json", "rows.csv", "summary.csv", "report.html", *pictures}
    text = str(study)
    assert "input_norm: off -> on" in text and "coincide in pairs" in text
    assert load_study(study.path).notes == study.notes
    again = bn_estimators(
        parts(), seeds=[0], probe=20, autoattack=False, out=study.path, resume=True, progress=False,
        **SHORT,
    )  # fmt: skip
    assert again.rows == study.rows
    with pytest.raises(ValueError, match="probe was 20 and is now 10"):
        bn_estimators(
            parts(), seeds=[0], probe=10, autoattack=False, out=study.path, resume=True, **SHORT
        )


def test_the_accuracies_are_those_of_evaluate(monkeypatch):
    """Fixed statistics are a function of one sample, moving ones are not; AutoAttack is of the former alone."""
    seen = []

    def evaluate(net, data, **arguments):
        seen.append((net, arguments))
        attacks = [name for name in arguments["attacks"] if name != "autoattack"]
        report = advfast.evaluate(net, data, **{**arguments, "attacks": attacks})
        if "autoattack" in arguments["attacks"]:
            report.results["autoattack"] = report["clean"]
        return report

    monkeypatch.setitem(bn_estimators.__wrapped__.__globals__, "evaluate", evaluate)
    result = bn_estimators(
        parts(), seeds=[1], probe=10, limit=30, progress=False,
        levels={"input_norm": ["on"], "statistics": ["batch"], "crafting": ["train"]}, **SHORT,
    )  # fmt: skip
    (row,) = result.rows
    (fixed, first), (moving, second) = seen
    assert first["attacks"] == ("clean", "pgd-20", "autoattack") and first["limit"] == 30
    assert second["attacks"] == ("clean", "pgd-20") and first["eps"] == second["eps"] == 0.1
    x = parts()["test"][0]
    with torch.no_grad():
        assert torch.allclose(fixed(x)[:3], fixed(x[:3]), atol=1e-5)
        assert not torch.allclose(moving.eval()(x)[:3], moving(x[:3]), atol=1e-3)
    assert row["autoattack"] == row["clean"]
    again = advfast.evaluate(moving, parts()["test"], attacks=("clean",), eps=0.1, limit=30)
    assert row["batch_clean"] == again["clean"].value


# What it refuses


def test_what_makes_no_sense_is_refused_before_any_run(monkeypatch):
    monkeypatch.setitem(bn_estimators.__wrapped__.__globals__, "train", None)
    for arguments, message in (
        ({"model": "small-cnn"}, "small-cnn has no batch normalisation"),
        ({"model": lambda: nn.Flatten()}, "has no batch normalisation"),
        ({"model": lambda: conv_bn_net((1, 8, 8), 10, [0.5], [0.5])}, "normalisation of its own"),
        ({"method": "standard"}, "crafts no images"),
        ({"levels": {"mode": ["eval"]}}, "levels must be of input_norm"),
        ({"levels": {"crafting": ["test"]}}, "levels of crafting must be a list of eval and train"),
        ({"levels": {"crafting": "eval"}}, "levels of crafting must be a list"),
        ({"bn": "train"}, "bn is set by the study"),
        ({"probe": 61}, "n must be 1 .. 60"),
        ({"data": {"train": parts()["train"]}}, "needs test images"),
        ({"seeds": []}, "nothing to run"),
    ):
        with pytest.raises(ValueError, match=message):
            bn_estimators(
                **({"data": parts(), "probe": 20, "progress": False, **SHORT} | arguments)
            )
    with pytest.raises(TypeError, match=r"must make an nn\.Module"):
        bn_estimators(parts(), lambda: 3, probe=20)


# What it says


def made_up(value):
    """`value(cell)`: the measures of a cell."""
    names = [f.name for f in FACTORS]
    rows = []
    for levels in itertools.product(*((f.low, f.high) for f in FACTORS)):
        cell = dict(zip(names, levels, strict=True))
        rows.append({**cell, "seed": 0, **value(**cell)})
    measures = tuple(name for name in rows[0] if name not in (*names, "seed"))
    return StudyResult("bn-estimators", {}, (*names, "seed"), measures, rows)


def as_expected(input_norm, statistics, crafting):
    running = statistics == "running"
    on = input_norm == "on"
    return {
        "pgd20": 0.66 if crafting == "eval" and running else 0.65,
        "batch_pgd20": 0.65,
        "eval_batch_distance": 0.01 if running else None,
        "init_eval_batch_distance": 0.06 if running else None,
        "init_effective_rank": (2.8 if on else 1.5) if running else 20.0,
        "init_top_share": (0.83 if on else 0.95) if running else 0.35,
        "seconds": 1.0,
    }


def test_expectations_hold_where_all_comes_as_written():
    found = bn_expectations.of_digits(made_up(as_expected))
    assert len(found) == 8 and all(e.held for e in found)


@pytest.mark.parametrize(
    ("levels", "measure", "value", "text"),
    [
        (("on", "running"), "init_effective_rank", 1.4, "effective rank of raw images below"),
        (("on", "running"), "init_top_share", 0.96, "lambda_1 / trace of raw images above"),
        (("off", "batch"), "init_effective_rank", 14.0, "ten times"),
        (("off", "batch"), "init_top_share", 0.84, "lambda_1 / trace of batch statistics below"),
        (("off", "running", "eval"), "pgd20", 0.63, "not below that in train mode"),
        (("on", "running"), "batch_pgd20", 0.62, "within 1 point"),
        (("on", "running"), "eval_batch_distance", 0.2, "brings the kernels"),
        (("on", "batch", "train"), "init_top_share", 0.2, "give the same rows"),
    ],
)
def test_each_expectation_can_fail(levels, measure, value, text):
    result = made_up(as_expected)
    where = {factor.name: level for factor, level in zip(FACTORS, levels, strict=False)}
    for row in result.select(**where):
        row[measure] = value
    failed = [e.text for e in bn_expectations.of_digits(result) if not e.held]
    assert len(failed) == 1 and text in failed[0]


def test_without_the_rows_nothing_is_said():
    result = made_up(as_expected)
    result.rows = result.select(statistics="batch", crafting="eval")
    assert all(e.held is None and "not run" in e.found for e in bn_expectations.of_digits(result))


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def data():\n"
        "    y = torch.arange(64) % 2\n"
        "    x = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) / 2\n"
        "    x[:, 0, 0, 0] += y / 2\n"
        "    return {'train': (x, y), 'test': (x, y)}\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))\n"
    )
    words = [
        "study", "bn-estimators", "--data", "own.py:data", "--model", "own.py:net", "--eps", "1/10", "--steps", "1",
        "--epochs", "1", "--batch-size", "32", "--lr", "0.1", "--probe", "10", "--no-autoattack", "--quiet",
    ]  # fmt: skip
    assert cli.main([*words, "--seeds", "0"]) == 0
    assert "8 of 8" not in capsys.readouterr().err
    assert cli.main([*words, "--seeds", "0"]) == 1
    assert "already holds a study" in capsys.readouterr().err
    assert cli.main([*words, "--seeds", "0,1", "--resume"]) == 0
    assert "crafting: eval -> train" in capsys.readouterr().out
    found = load_study("studies/bn-estimators")
    assert len(found.rows) == 16 and found.settings["eps"] == 0.1
    assert found.settings["model"] == "own.py:net"
    assert {row["statistics"] for row in found.rows} == {"running", "batch"}
    assert cli.main(["study", "bn-estimators", "--model", "small-cnn", "--out", "b"]) == 1
    assert "has no batch normalisation" in capsys.readouterr().err
