"""The study of the kernel along training."""

import numpy as np
import pytest
import torch

from advfast import cli
from advfast.data import load
from advfast.ntk import balanced_probe, metrics, ntk
from advfast.studies import load_study, ntk_trace
from advfast.studies.networks import conv_bn_net
from advfast.studies.ntk_trace import Trace, _points, expectations, row_of
from advfast.studies.result import StudyResult

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
            {"epoch": epoch, "clean_adversarial_distance": 0.0}
            | {f"{kind}_{name}": 1.0 for kind in ("clean", "adversarial") for name in names}
            for epoch in (0.0, 0.5, 2.5)
        ]
        return Trace(rows, [{"clean": at(a), "adversarial": at(2 * a)} for a in angles])

    found = row_of(trace([0.0, 0.1, 0.4]), 2, 1, trace([0.0, 0.1, 0.1]))
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
    assert files == {"study.json", "rows.csv", "summary.csv", "trace.png", "polar.png", "kernels"}
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


def test_expectations_are_of_the_last_epoch_and_can_fail():
    measures = {
        "clean_effective_rank": (2, 1), "clean_top_share": (1, 2), "clean_specialization": (2, 1),
        "clean_adversarial_distance": (2, 1),
    }  # fmt: skip

    def result(turned=None):
        rows = []
        for number, method in enumerate(("standard", "pgd-at")):
            for epoch, sign in ((1, -1), (2, 1)):
                values = {
                    m: sign * v[number] * (-1 if m == turned else 1) for m, v in measures.items()
                }
                rows.append({"method": method, "epoch": epoch, "seed": 0} | values)
        return StudyResult("ntk-trace", {}, ("method", "epoch", "seed"), tuple(measures), rows)

    assert [e.held for e in expectations(result(), 2)] == [True] * 4
    for number, measure in enumerate(measures):
        assert [e.held for e in expectations(result(measure), 2)].index(False) == number
    one = result()
    one.rows = one.select(method="standard")
    assert expectations(one, 2) == []


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
