"""The study of the kernel along training."""

import sys

import numpy as np
import pytest
import torch

from advfast import cli
from advfast.data import load
from advfast.models import make
from advfast.ntk import Probe, balanced_probe, metrics, ntk
from advfast.studies import load_study, ntk_trace, preset
from advfast.studies.networks import conv_bn_net
from advfast.studies.ntk_trace import _points
from advfast.studies.result import StudyResult
from advfast.studies.runs import open_run
from advfast.studies.trace_expectations import expectations, notes
from advfast.studies.trace_rows import Trace, row_of
from advfast.training import train

SHORT = {"eps": 0.1, "steps": 1, "epochs": 2, "batch_size": 32, "lr": 0.1}
AT = (0, 0.4, 1, 2)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def parts():
    splits = load("digits")
    return {name: getattr(splits, name).batch(torch.arange(128)) for name in ("train", "test")}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("trace") / "out"
    return ntk_trace(parts(), at=AT, seeds=[0], probe=10, out=out, progress=False, **SHORT)


def kernel(study, method, step, kind, seed=0):
    with np.load(study.path / "kernels" / f"{method}-seed{seed}" / f"step-{step:06d}.npz") as found:
        return torch.from_numpy(found[kind])


STEPS = dict(
    zip(AT, (0, 2, 4, 8), strict=True)
)  # 109 images in batches of 32; 0.4 is the next whole step


def test_rows_against_the_kernels_that_were_kept(study):
    assert [(row["method"], row["epoch"]) for row in study.rows] == [
        (method, epoch) for method in ("standard", "pgd-at") for epoch in AT
    ]
    for row in study.rows:
        for kind in ("clean", "adversarial"):
            now, start, end = (
                kernel(study, row["method"], STEPS[epoch], kind) for epoch in (row["epoch"], 1, 2)
            )
            expected = {
                "effective_rank": metrics.effective_rank(now),
                "top_share": metrics.top_share(now),
                "distance": metrics.kernel_distance(start, now),
                "to_end": metrics.kernel_distance(now, end),
                "radius": float((now - start).norm() / (end - start).norm()),
            }
            if row["method"] == "standard":
                assert row[f"{kind}_between"] is None
            else:
                other = kernel(study, "standard", STEPS[row["epoch"]], kind)
                expected["between"] = metrics.kernel_distance(other, now)
            for name, value in expected.items():
                assert row[f"{kind}_{name}"] == pytest.approx(value, rel=1e-3, abs=1e-7), name
        pair = (
            kernel(study, row["method"], STEPS[row["epoch"]], k) for k in ("clean", "adversarial")
        )
        assert row["clean_adversarial_distance"] == pytest.approx(metrics.kernel_distance(*pair))  # fmt: skip
        drop = row["clean_specialization"] - row["adversarial_specialization"]
        assert row["specialization_drop"] == drop
        assert row["seconds"] > 0 and 0 < row["share"] < 1


def test_methods_begin_with_the_same_network(study):
    x, _ = parts()["test"]
    torch.manual_seed(0)
    net = conv_bn_net((1, 8, 8), 10)
    plain = metrics.matrix(ntk(net, x[balanced_probe(parts()["test"][1], 10)])).float()
    for method in ("standard", "pgd-at"):
        torch.testing.assert_close(kernel(study, method, 0, "clean"), plain)
    (first,) = study.select(method="pgd-at", epoch=0)
    assert first["clean_between"] == first["adversarial_between"] == 0
    (later,) = study.select(method="pgd-at", epoch=2)
    assert later["clean_between"] > 0


def test_velocity_is_over_the_epochs_between():
    def at(angle):
        v = torch.tensor([angle, angle + torch.pi / 2], dtype=torch.float64).cos()
        return torch.outer(v, v)

    def trace(angles):
        names = ("effective_rank", "top_share", "specialization")
        rows = [
            {"epoch": epoch, "clean_adversarial_distance": 0.0, "seconds": 1.0, "share": 0.5}
            | {f"{kind}_{name}": 1.0 for kind in ("clean", "adversarial") for name in names}
            for epoch in (0.0, 0.5, 2.5)
        ]
        return Trace(rows, [{"clean": at(a), "adversarial": at(2 * a)} for a in angles])

    found = row_of(trace([0.0, 0.1, 0.4]), 2, 1, trace([0.0, 0.1, 0.1]).kernels[2])
    distance = np.sin(0.3) ** 2
    assert found["clean_velocity"] == pytest.approx(distance / 2)
    assert found["clean_distance"] == found["clean_between"] == pytest.approx(distance)
    assert found["adversarial_distance"] == pytest.approx(np.sin(0.6) ** 2)
    assert found["clean_angle"] == pytest.approx(np.arccos(np.cos(0.3) ** 2))
    assert found["clean_radius"] == pytest.approx(1)
    first = row_of(trace([0.0, 0.1, 0.4]), 0, 1, None)
    assert first["clean_velocity"] is None and first["clean_between"] is None
    assert first["clean_distance"] == pytest.approx(np.sin(0.1) ** 2)
    still = row_of(trace([0.0, 0.1, 0.1]), 0, 1, None)
    assert still["clean_radius"] is None


def test_it_goes_on_with_more_seeds(study):
    files = {path.name for path in study.path.iterdir()}
    pictures = {f"{name}.{kind}" for name in ("trace", "polar") for kind in ("png", "svg")}
    assert files == {"study.json", "rows.csv", "summary.csv", "report.html", "kernels", *pictures}
    more = ntk_trace(
        parts(), at=AT, seeds=[0, 1], probe=10, out=study.path, resume=True, progress=False, **SHORT
    )
    assert more.rows[:8] == study.rows and len(more.rows) == 16
    assert load_study(study.path).settings["reference"] == 1


def test_points_are_dense_at_first_and_end_with_the_last_epoch():
    assert _points(None, 2) == [0, 0.125, 0.25, 0.375, 0.5, 0.75, 1, 1.5, 2]
    assert _points(None, 30)[9:] == [2.5, 3, 4, 6, 8, 12, 16, 24, 30]
    assert _points([2, 0, 1, 1], 2) == [0, 1, 2]


def test_what_makes_no_sense_is_refused():
    for arguments, message in (
        ({"at": [0]}, "two or more epochs"),
        ({"at": [0, 3]}, r"0 \.\. 2"),
        ({"at": [-1, 1]}, r"0 \.\. 2"),
        ({"methods": []}, "methods must be names"),
        ({"methods": ["pgd-at", "pgd-at"]}, "each once"),
        ({"methods": "pgd-at"}, "methods must be names"),
        ({"callbacks": []}, "callbacks is set by the study"),
        ({"model": "smal-cnn"}, "unknown model"),
    ):
        with pytest.raises(ValueError, match=message):
            ntk_trace(parts(), progress=False, **({"probe": 10, **SHORT} | arguments))


def made_up(wrong=None, **settings):
    """Rows that all hold but, where it is named, one measure of one method at one epoch."""
    end = {
        "clean_effective_rank": (2, 1), "clean_top_share": (1, 2), "clean_specialization": (2, 1),
        "specialization_drop": (0.6, -0.3), "clean_adversarial_distance": (0.06, 0.03), "clean_to_end": (0, 0),
        "adversarial_to_end": (0, 0), "clean_between": (None, 0.5), "clean_velocity": (0.01, 0.01),
    }  # fmt: skip
    early = {
        "clean_to_end": (2, 1), "adversarial_to_end": (2, 1), "clean_between": (None, 0.1),
        "clean_velocity": (0.011, 0.02),
    }  # fmt: skip
    rows = []
    for number, method in enumerate(("standard", "pgd-at")):
        for epoch in (2, 4, 12):
            # What is said of the end or of the beginning alone is turned round elsewhere.
            values = {name: -(pair[number] or 0) for name, pair in end.items()}
            values |= {name: pair[number] for name, pair in (end if epoch == 12 else early).items()}
            if epoch == 4 and method == "standard":
                values |= {"clean_velocity": 9.0}  # neither early nor late
            row = {"method": method, "epoch": epoch, "seed": 0, "seconds": 1.0, "share": epoch / 24}
            rows.append(row | values)
    if wrong is not None:
        method, epoch, name, value = wrong
        (row,) = [row for row in rows if (row["method"], row["epoch"]) == (method, epoch)]
        row[name] = value
    measures = tuple(name for name in rows[0] if name not in ("method", "epoch", "seed"))
    settings = {"data": "digits", "model": "conv-bn-net", **settings}
    return StudyResult("ntk-trace", settings, ("method", "epoch", "seed"), measures, rows)


def test_all_expectations_hold_together():
    told = expectations(made_up())
    assert [e.held for e in told] == [True] * 11, told
    assert "from epoch 4 to the end" in told[5].text and "until epoch 6" in told[8].text


@pytest.mark.parametrize(
    ("number", "wrong"),
    [
        ([0], ("standard", 12, "clean_effective_rank", 1)),
        ([1], ("pgd-at", 12, "clean_top_share", 1)),
        ([2], ("standard", 12, "clean_specialization", 1)),
        ([3], ("pgd-at", 12, "specialization_drop", 0.31)),
        ([3], ("pgd-at", 12, "specialization_drop", -0.31)),
        ([4, 7], ("standard", 12, "clean_adversarial_distance", 0.03)),
        ([7], ("standard", 12, "clean_adversarial_distance", 0.059)),
        ([5], ("standard", 4, "clean_to_end", 1)),
        ([6], ("standard", 4, "adversarial_to_end", 1)),
        ([8], ("pgd-at", 4, "clean_between", 0.11)),
        ([9], ("standard", 2, "clean_velocity", 0.01)),
        ([10], ("pgd-at", 12, "clean_velocity", 0.011)),
    ],
)
def test_each_expectation_can_fail_alone(number, wrong):
    held = [e.held for e in expectations(made_up(wrong))]
    assert [i for i, one in enumerate(held) if not one] == number


def test_expectations_are_of_what_was_run():
    one = made_up()
    one.rows = one.select(method="standard")
    assert expectations(one) == []
    assert len(expectations(made_up(data="cifar10"))) == len(expectations(made_up(model="x"))) == 7
    renamed = made_up(trained_by={"a": "standard", "b": "pgd-at"})
    for row in renamed.rows:
        row["method"] = {"standard": "a", "pgd-at": "b"}[row["method"]]
    told = expectations(renamed)
    assert [e.held for e in told[:7]] == [True] * 7 and "rank of a above that of b" in told[0].text
    apart = made_up()
    for row in apart.select(method="pgd-at"):
        row["epoch"] += 0.5
    assert expectations(apart) == []


def test_notes_say_what_the_kernels_took():
    line = "pgd-at: the kernels of an epoch took 1 s, 50 % of the time of its training"
    assert notes(made_up())[1] == line
    result = made_up()
    for row in result.rows:
        row["share"] = None
    assert notes(result)[1] == "pgd-at: the kernels of an epoch took 1 s"


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "def data():\n"
        "    y = torch.arange(64) % 2\n"
        "    x = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) / 2\n"
        "    x[:, 0, 0, 0] += y / 2\n"
        "    return {'train': (x, y), 'test': (x, y)}\n"
    )
    words = [
        "study", "ntk-trace", "--data", "own.py:data", "--eps", "1/10", "--steps", "1", "--epochs", "1", "--at",
        "0,1/2,1", "--methods", "fgsm-rs", "--batch-size", "32", "--lr", "0.1", "--probe", "10", "--quiet", "--seeds",
        "0", "--schedule", "constant", "--input-norm",
    ]  # fmt: skip
    assert cli.main(words) == 0
    assert "clean_effective_rank" in capsys.readouterr().out
    found = load_study("studies/ntk-trace")
    assert [row["epoch"] for row in found.rows] == [0, 0.5, 1]
    assert found.settings["schedule"] == "constant" and found.settings["input_norm"] is True
    assert cli.main(words) == 1
    assert "already holds a study" in capsys.readouterr().err


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of runs with a checkpoint an epoch, by method and seed."""
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    for method, seed, epochs in (("standard", 0, 2), ("pgd-at", 0, 2), ("pgd-at", 1, 1)):
        made[method, seed] = folder / f"{method}-{seed}"
        train(
            conv_bn_net((1, 8, 8), 10), "digits", method=method, seed=seed, keep_every=1, progress=False,
            out=made[method, seed], **SHORT | {"epochs": epochs, "batch_size": 256},
        )  # fmt: skip
    return made


def net():
    return conv_bn_net((1, 8, 8), 10)


def test_checkpoints_of_runs_are_overlaid_by_label(runs, tmp_path, capsys):
    sources = {"clean": runs["standard", 0], "robust": [runs["pgd-at", 0], runs["pgd-at", 1]]}
    found = ntk_trace(None, net, sources=sources, probe=20, out=tmp_path / "a", progress=False)
    cells = [(row["method"], row["epoch"], row["seed"]) for row in found.rows]
    assert cells == [
        *(("clean", e, 0) for e in (0, 1, 2)), *(("robust", e, 0) for e in (0, 1, 2)),
        *(("robust", e, 1) for e in (0, 1)),
    ]  # fmt: skip
    splits = load("digits")
    x, y = splits.test.batch(balanced_probe(splits.test.labels, 20))
    own = {}
    for name, key in (("clean", ("standard", 0)), ("robust", ("pgd-at", 0))):
        for epoch in (1, 2):
            run = open_run(runs[key], net)
            own[name, epoch] = Probe(x, y).measured(run.model(epoch), 0.1, "linf")
    for (name, epoch), by_kind in own.items():
        (row,) = found.select(method=name, epoch=epoch, seed=0)
        for kind, (values, kernel) in by_kind.items():
            assert row[f"{kind}_effective_rank"] == values["effective_rank"]
            start = own[name, 1][kind][1]
            assert row[f"{kind}_distance"] == metrics.kernel_distance(start, kernel)
            end = own[name, 2][kind][1]
            assert row[f"{kind}_to_end"] == metrics.kernel_distance(kernel, end)
            if name == "robust":
                other = metrics.kernel_distance(own["clean", epoch][kind][1], kernel)
                assert row[f"{kind}_between"] == other
        assert row["seconds"] > 0 and row["share"] is None
    assert found.select(method="robust", seed=1)[0]["clean_between"] is None  # of its seed alone
    assert found.settings["trained_by"] == {"clean": "standard", "robust": "pgd-at"}
    assert found.settings["eps"] == 0.1 and len(found.expectations) == 7
    with np.load(tmp_path / "a/kernels/robust-seed0/epoch-0002.npz") as kept:
        assert np.array_equal(kept["clean"], own["robust", 2]["clean"][1].numpy())
    again = ntk_trace(
        None, net, sources=sources, probe=20, out=tmp_path / "a", resume=True, progress=False
    )
    assert again.rows == found.rows
    assert ntk_trace(None, net, sources=sources, probe=20, dry_run=True).rows == []
    assert "ntk-trace: " in capsys.readouterr().err


def test_a_recipe_and_a_network_are_sources(tmp_path):
    recipe = SHORT | {
        "data": "digits",
        "model": "small-cnn",
        "method": "standard",
        "batch_size": 256,
    }
    recipe |= {"seed": 3}
    network = make("small-cnn", in_shape=(1, 8, 8), classes=10)
    found = ntk_trace(
        sources={"run": recipe, "net": network}, probe=10, at=None, keep_every=2, out=tmp_path, progress=False
    )  # fmt: skip
    assert [(r["method"], r["epoch"], r["seed"]) for r in found.rows] == [
        ("run", 0, 3), ("run", 2, 3), ("net", 0, 0)
    ]  # fmt: skip
    assert open_run(tmp_path / "runs/run-seed3").epochs == (0, 2)
    assert found.select(method="net")[0]["clean_radius"] is None


def test_nothing_is_deleted_or_trained_before_the_arguments_are_checked(tmp_path, monkeypatch):
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    (kernels / "kept").write_text("")
    inside = tmp_path / "runs" / "a"
    train(
        "small-cnn", "digits", method="standard", epochs=1, out=inside, keep_every=1, progress=False
    )
    monkeypatch.setattr(sys.modules["advfast.studies.ntk_trace"], "train", None)
    again = {"out": tmp_path, "overwrite": True, "progress": False}
    with pytest.raises(ValueError, match="pgd-att"):
        ntk_trace(methods=("standard", "pgd-att"), **again)
    with pytest.raises(ValueError, match="which overwrite deletes"):
        ntk_trace(sources=[inside], **again)
    ntk_trace(dry_run=True, **again)
    assert (kernels / "kept").exists() and (inside / "last.pt").exists()


def test_another_run_of_the_same_name_is_another_study(tmp_path):
    settings = {
        "method": "standard",
        "epochs": 1,
        "overwrite": True,
        "keep_every": 1,
        "progress": False,
    }
    for seed in (0, 1):
        train("small-cnn", "digits", seed=seed, out=tmp_path / "run", **settings)
        again = {"out": tmp_path / "out", "probe": 10, "attack": "fgsm", "progress": False}
        if seed == 0:
            ntk_trace(sources={"a": tmp_path / "run"}, **again)
        else:
            with pytest.raises(ValueError, match="other settings: runs was"):
                ntk_trace(sources={"a": tmp_path / "run"}, resume=True, **again)


def test_sources_that_do_not_go_together_are_refused(runs, tmp_path):
    one, other = runs["standard", 0], runs["pgd-at", 0]
    for arguments, message in (
        (
            {"sources": [one, other], "at": [0, 3]},
            "run 1 has no checkpoint of epoch 3; it has 0, 1, 2",
        ),
        ({"sources": {"a": [one, other]}}, "two runs of the label 'a' have the seed 0"),
        ({"sources": {}}, "sources must be one or more"),
        ({"sources": one, "epochs": 3}, "epochs is of a training"),
        ({"sources": net()}, "does not say on which data"),
        ({"sources": net(), "data": "digits"}, "do not agree on eps"),
    ):
        with pytest.raises(ValueError, match=message):
            ntk_trace(model=net, probe=10, progress=False, **arguments)
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(FileExistsError, match="already holds a study"):
        ntk_trace(sources=one, model=net, out=tmp_path)


def test_sources_from_the_command_line_with_a_config_file(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "from advfast.studies.networks import conv_bn_net\n\ndef net():\n    return conv_bn_net((1, 8, 8), 10)\n"
    )
    (tmp_path / "run.yaml").write_text("model: own.py:net\nprobe: 10\nat: 0,2\nquiet: true\n")
    words = [
        "study", "ntk-trace", f"clean={runs['standard', 0]}", f"robust={runs['pgd-at', 0]}", "--config", "run.yaml",
    ]  # fmt: skip
    assert cli.main([*words, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "passes of an image" in said.err and said.out == ""
    assert cli.main([*words, "--probe", "12"]) == 0
    found = load_study("studies/ntk-trace")
    assert [(r["method"], r["epoch"]) for r in found.rows] == [
        ("clean", 0), ("clean", 2), ("robust", 0), ("robust", 2)
    ]  # fmt: skip
    assert found.settings["probe"] == 12 and found.settings["at"] == [0, 2]
    assert found.reproduce.endswith("--config run.yaml --probe 12") and "clean=" in found.reproduce
    assert cli.main([*words[:3], str(runs["pgd-at", 0])]) == 2
    assert "label=source or none" in capsys.readouterr().err


def test_presets_say_what_they_cost(monkeypatch, capsys):
    assert cli.main(["study", "ntk-trace", "--dry-run"]) == 0
    assert capsys.readouterr().err.startswith("ntk-trace: ")
    # CIFAR-10 in shape alone.
    x, y = torch.rand(500, 3, 32, 32), torch.arange(500) % 10
    arguments = preset("ntk-trace", "published") | {"data": {"train": (x, y), "test": (x, y)}}
    arguments |= {"model": "small-cnn", "schedule_options": None}
    assert ntk_trace(**arguments, dry_run=True, progress=False).rows == []
    small = _passes(capsys.readouterr().err)
    assert ntk_trace(**arguments | {"seeds": (0, 1)}, dry_run=True).rows == []
    assert _passes(capsys.readouterr().err) == pytest.approx(2 * small, rel=0.01)


def _passes(said):
    count, word = said.split(": ")[1].split(" passes")[0].partition(" million")[:2]
    return float(count.replace(",", "")) * (1e6 if word else 1)
