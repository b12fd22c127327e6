"""What a study looks at: folders, checkpoints, networks and recipes; what it costs; its page."""

import re

import pytest
import torch
from torch import nn

import advfast
from advfast.models import make
from advfast.studies import cost, preset
from advfast.studies.networks import conv_net
from advfast.studies.result import Expectation, StudyResult
from advfast.studies.runs import check_kept, obtain, open_run

SHORT = {"data": "digits", "method": "standard", "epochs": 2, "batch_size": 256, "lr": 0.05}


def net():
    return conv_net((1, 8, 8), 10, (4,), (2,))


def test_a_recipe_is_trained_once_and_its_checkpoints_are_found(tmp_path):
    recipe = SHORT | {"model": "small-cnn"}
    run = obtain(recipe, tmp_path / "run", name="one", keep_every=1, progress=False)
    assert (run.name, run.epochs) == ("one", (0, 1, 2))
    assert run.config["method"] == "standard" and len(run.splits().test) == 500
    before = (tmp_path / "run" / "last.pt").stat().st_mtime_ns
    again = obtain(
        recipe | {"keep_every": 7, "out": "x"}, tmp_path / "run", keep_every=1, progress=False
    )
    assert (tmp_path / "run" / "last.pt").stat().st_mtime_ns == before
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(run.model()(x), again.model(2)(x))
        assert not torch.equal(run.model(1)(x), run.model(2)(x))
    opened = open_run(tmp_path / "run")
    assert opened.epochs == run.epochs and opened.name == "run"
    assert open_run(tmp_path / "run" / "best.pt").points[0][1].name == "best.pt"
    assert not run.model().training


def test_a_run_without_kept_checkpoints_is_its_last(tmp_path):
    advfast.train("small-cnn", **SHORT, out=tmp_path / "run", progress=False)
    run = obtain(tmp_path / "run", tmp_path / "unused")
    assert run.epochs == (2,) and run.points[0][1].name == "last.pt"
    assert not (tmp_path / "unused").exists()


def test_networks_that_have_no_name(tmp_path):
    run = obtain(SHORT | {"model": net}, tmp_path / "run", keep_every=2, progress=False)
    assert run.epochs == (0, 2)
    same = obtain(SHORT | {"model": net}, tmp_path / "other", keep_every=2, progress=False)
    for name, value in run.model().state_dict().items():
        assert torch.equal(value, same.model().state_dict()[name])  # weights come from the seed
    with pytest.raises(ValueError, match=r"cannot make by name: give `model`"):
        open_run(tmp_path / "run")
    assert open_run(tmp_path / "run", net).model(0) is not None


def test_a_network_is_its_own_run(tmp_path):
    model = make("small-cnn", in_shape=(1, 8, 8), classes=10).train()
    run = obtain(model, tmp_path)
    copy = run.model()
    assert run.epochs == () and not copy.training and model.training
    nn.init.zeros_(next(copy.parameters()))
    assert not torch.equal(next(copy.parameters()), next(model.parameters()))
    with pytest.raises(ValueError, match="does not say on which data"):
        run.splits()
    assert run.splits("digits").name == "digits"


def test_what_is_neither_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a run's folder nor a checkpoint"):
        obtain(tmp_path, tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        obtain(tmp_path / "none.pt", tmp_path / "run")
    with pytest.raises(ValueError, match=r"no recipe; .*did you mean 'rice2020'"):
        obtain("rice202", tmp_path / "run")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="must hold arguments"):
        obtain(tmp_path / "list.yaml", tmp_path / "run")
    with pytest.raises(ValueError, match="which overwrite deletes"):
        check_kept([make, tmp_path / "runs" / "a"], tmp_path / "runs")
    check_kept([tmp_path / "runs2", nn.Identity()], tmp_path / "runs")
    with pytest.raises(ValueError, match="preset must be one of small, published, got 'smal'"):
        preset("ntk-trace", "smal")


def test_cost_counts_the_operations_of_a_pass():
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Flatten(), nn.Linear(3 * 64, 10))
    found = cost.estimate(model, torch.rand(5, 1, 8, 8), passes=1000)
    assert found.flops == 2 * (64 * 3 * 9 + 192 * 10)
    assert found.seconds > 0 and "1,000 passes" in str(found) and "on this" in str(found)


def test_page_holds_everything_and_needs_nothing(tmp_path):
    def draw(result):
        from advfast.evaluation.canvas import new_figure

        figure = new_figure(2, 2)
        figure.subplots().plot([row["gap"] for row in result.rows])
        yield "gaps", figure

    rows = [{"lr": 0.1, "seed": seed, "gap": 0.5 + seed} for seed in (0, 1)]
    result = StudyResult(
        "noise-scale", {"eps": 0.1}, ("lr", "seed"), ("gap",), rows,
        [Expectation("<b>less</b>", "1", True), Expectation("more", "2", False)], draw,
    )  # fmt: skip
    files = {path.name for path in result.save(tmp_path)}
    assert {"gaps.png", "gaps.svg", "report.html"} <= files
    page = (tmp_path / "report.html").read_text()
    assert "1 of 2 expectations held" in page and "&lt;b&gt;less&lt;/b&gt;" in page
    assert "1.00 ± 0.71" in page
    assert re.findall(r'(?:src|href)="(?!data:image/png;base64,)', page) == []
    first = (tmp_path / "gaps.svg").read_bytes()
    result.save(tmp_path)
    assert (tmp_path / "gaps.svg").read_bytes() == first and b"<svg" in first
