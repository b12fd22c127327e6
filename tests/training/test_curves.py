import math
import sys

import pytest

from advfast.evaluation import Accuracy, EvalReport
from advfast.evaluation.picture import PictureSkipped
from advfast.training import curves
from advfast.training.curves import draw_curves, draw_sweep
from advfast.training.sweep_result import SweepResult


def history(epochs):
    return [
        {
            "epoch": epoch,
            "lr": 0.1 * math.sin(math.pi * epoch / (epochs + 1)),
            "train_loss": 2 * math.exp(-epoch / epochs),
            "train_accuracy": 0.4 + 0.4 * epoch / epochs,
            "val_clean": 0.5 + 0.3 * epoch / epochs,
            "val_robust": 0.3 + 0.3 * epoch / epochs,
        }
        for epoch in range(1, epochs + 1)
    ]


def row(seed, robust, **more):
    accuracies = {"best_test_clean": 0.9, "best_test_pgd-20": robust}
    return {"run": f"{seed}", "seed": seed, "status": "complete", **accuracies, **more}


def sweep(tmp_path, rows, varied=("seed",)):
    return SweepResult(tmp_path, varied, rows, {})


@pytest.fixture
def drawn(monkeypatch):
    """The figures, to look at what is in them."""
    figures = []
    make = curves._figure

    def remember(size):
        figures.append(make(size))
        return figures[-1]

    monkeypatch.setattr(curves, "_figure", remember)
    return figures


def points(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return list(zip(*line.get_data(), strict=True))


def panels(figure):
    return {axes.get_ylabel(): axes for axes in figure.axes}


@pytest.mark.parametrize("epochs", [1, 5, 200])
def test_curves_hold_the_history(drawn, tmp_path, epochs):
    rows = history(epochs)
    draw_curves(tmp_path / "a.png", rows, title="a run", best_epoch=epochs)
    (figure,) = drawn
    shown = panels(figure)
    assert list(shown) == ["accuracy, %", "training loss", "learning rate"]
    for label, key in (
        ("held out, clean", "val_clean"),
        ("held out, attacked", "val_robust"),
        ("train (images trained on)", "train_accuracy"),
    ):
        assert points(shown["accuracy, %"], label) == [(r["epoch"], 100 * r[key]) for r in rows]
    for panel, key in (("training loss", "train_loss"), ("learning rate", "lr")):
        assert list(shown[panel].lines[0].get_ydata()) == [r[key] for r in rows]
    for axes in shown.values():
        assert list(axes.lines[-1].get_xdata()) == [epochs, epochs]  # the best epoch
        low, high = axes.get_xlim()
        assert low < 1 <= epochs < high
        assert all(tick == round(tick) for tick in axes.get_xticks())
    assert f"best epoch: {epochs}" in [line.get_label() for line in shown["accuracy, %"].lines]
    assert shown["training loss"].lines[0].get_marker() == ("None" if epochs == 200 else "o")
    assert figure.get_suptitle() == "a run"


def test_the_file_is_a_picture(tmp_path):
    from matplotlib.image import imread

    draw_curves(tmp_path / "a.png", history(7), title="a run", best_epoch=3)
    pixels = imread(tmp_path / "a.png")[..., :3]
    assert pixels.shape[0] > 400
    assert pixels.shape[1] > 1000
    red, blue, green = (
        (pixels.argmax(2) == i) & (pixels.max(2) - pixels.min(2) > 0.4) for i in (0, 2, 1)
    )
    assert min(colour.sum() for colour in (red, blue, green)) > 300
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("as_report", [True, False])
def test_test_accuracies_are_points_at_the_best_epoch(drawn, tmp_path, as_report):
    final = {"clean": 0.875, "pgd-20": 0.625}
    if as_report:
        results = {name: Accuracy(int(8 * value), 8) for name, value in final.items()}
        final = EvalReport(results, 0.1, "linf", 1.0)
    draw_curves(tmp_path / "a.png", history(5), title="", best_epoch=4, final=final)
    axes = panels(drawn[0])["accuracy, %"]
    assert points(axes, "test, clean: 87.5 %") == [(4, 87.5)]
    assert points(axes, "test, pgd-20: 62.5 %") == [(4, 62.5)]


def test_gaps(drawn, tmp_path):
    rows = history(3)
    del rows[1]["val_robust"]
    rows[2]["val_clean"] = None
    rows[1]["train_loss"] = math.nan
    draw_curves(tmp_path / "a.png", rows, title="", best_epoch=1)
    axes = panels(drawn[0])["accuracy, %"]
    assert math.isnan(points(axes, "held out, attacked")[1][1])
    assert math.isnan(points(axes, "held out, clean")[2][1])


def test_sweep_shows_means_and_deviations(drawn, tmp_path):
    rows = [
        row(seed, robust, eps=eps)
        for eps, pair in ((0.1, (0.6, 0.7)), (0.2, (0.3, 0.4)))
        for seed, robust in enumerate(pair)
    ]
    rows.append(row(2, None, eps=0.3) | {"status": "failed", "error": "nan"})
    draw_sweep(tmp_path / "a.png", sweep(tmp_path, rows, ("eps", "seed")))
    (axes,) = drawn[0].axes
    heights = [[bar.get_height() for bar in group] for group in axes.containers if len(group) == 2]
    assert heights == [pytest.approx([90, 90]), pytest.approx([65, 35])]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["eps=0.1", "eps=0.2"]
    (whiskers,) = axes.collections[0].get_segments()[:1]
    assert whiskers[1][1] - whiskers[0][1] == pytest.approx(2 * 100 * 0.1 / 2**0.5)
    assert axes.get_title() == "mean over seeds 0, 1, 2; whiskers: sample standard deviation"
    assert {"65.0", "35.0"} <= {text.get_text() for text in axes.texts}


def test_one_seed_has_no_whiskers(drawn, tmp_path):
    draw_sweep(tmp_path / "a.png", sweep(tmp_path, [row(3, 0.5)]))
    (axes,) = drawn[0].axes
    assert not axes.collections
    assert axes.get_title() == "seed 3"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["all"]


def test_many_and_long_settings(tmp_path):
    rows = [row(0, 0.5, method="m" * 90 + str(i)) for i in range(40)]
    draw_sweep(tmp_path / "a.png", sweep(tmp_path, rows, ("method", "seed")))
    assert (tmp_path / "a.png").stat().st_size > 5000
    with pytest.raises(PictureSkipped, match="41 settings do not fit"):
        more = [*rows, row(0, 0.5, method="n")]
        draw_sweep(tmp_path / "b.png", sweep(tmp_path, more, ("method", "seed")))


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="at least one epoch"):
        draw_curves(tmp_path / "a.png", [], title="", best_epoch=1)
    failed = {"run": "0", "seed": 0, "status": "failed", "error": "nan"}
    with pytest.raises(PictureSkipped, match="no run of the sweep is complete"):
        draw_sweep(tmp_path / "a.png", sweep(tmp_path, [failed]))


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PictureSkipped, match="pip install matplotlib"):
        draw_curves(tmp_path / "a.png", history(2), title="", best_epoch=1)
    with pytest.raises(PictureSkipped, match="pip install matplotlib"):
        draw_sweep(tmp_path / "a.png", sweep(tmp_path, [row(0, 0.5)]))
