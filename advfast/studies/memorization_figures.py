"""Figures of `memorization`: convergence, gradients along training and along a step, complexity against the gap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from advfast.evaluation.canvas import new_figure

from .result import Row, StudyResult
from .style import colour, marker, plain_axes

_METHODS = {"standard": "clean", "pgd-at": "PGD-AT", "trades": "TRADES"}
_WORDS = {
    "log_spectral": "log product of spectral norms",
    "log_frobenius": "log product of Frobenius norms",
    "log_path": "log path norm",
    "margin": "margin (10th percentile)",
    "robust_margin": "margin under PGD-10",
    "sharpness": "sharpness of adversarial loss",
    "input_gradient": "input-gradient norm",
    "boundary_thickness": "boundary thickness",
}


def draw(result: StudyResult) -> Iterator[tuple[str, Any]]:
    """ "convergence", "gradient_norm", "stability" and "complexity", of those that there are numbers for.

    Raises:
        PictureSkipped: matplotlib is not installed.
    """
    curves = [row for row in result.tables.get("curves", []) if row["part"] == "convergence"]
    if curves:
        yield "convergence", _convergence(curves)
        yield "gradient_norm", _gradient_norm(curves)
    stability = result.tables.get("stability", [])
    if stability:
        yield "stability", _stability(stability)
    yield "complexity", _complexity(result)


def _word(method: str) -> str:
    return _METHODS.get(method, method)


def _panels(curves: Sequence[Row]) -> tuple[Any, dict[tuple[float, float], Any]]:
    """A panel for each noise rate and eps."""
    keys = list(dict.fromkeys((row["noise"], row["eps"]) for row in curves))
    figure = new_figure(0.7 + 2.9 * len(keys), 2.9)
    axes = figure.subplots(1, len(keys), squeeze=False)[0]
    for panel, (rate, eps) in zip(axes, keys, strict=True):
        labels = "random labels" if rate == 1 else f"noise rate {rate:g}"
        panel.set_title(f"{labels}, eps {eps:.3g}", fontsize=8)
        panel.set_xlabel("epoch", fontsize=8)
        panel.grid(linewidth=0.4, color="#dddddd")
        plain_axes(panel)
    return figure, dict(zip(keys, axes, strict=True))


def _averaged(rows: Sequence[Row], column: str) -> tuple[list[int], list[float]]:
    """Epochs, and the mean over the seeds of a column."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row[column] is not None:
            found.setdefault(row["epoch"], []).append(row[column])
    epochs = sorted(found)
    return epochs, [sum(found[epoch]) / len(found[epoch]) for epoch in epochs]


def _convergence(curves: Sequence[Row]) -> Any:
    figure, panels = _panels(curves)
    methods = list(dict.fromkeys(row["method"] for row in curves))
    styles = (
        ("train_clean", "-", "train, clean"),
        ("train_robust", "--", "train, PGD-10"),
        ("test_robust", ":", "test, PGD-10"),
    )
    for (rate, eps), axes in panels.items():
        for number, method in enumerate(methods):
            rows = [r for r in curves if (r["method"], r["noise"], r["eps"]) == (method, rate, eps)]
            for column, line, words in styles:
                epochs, values = _averaged(rows, column)
                axes.plot(
                    epochs, values, line, color=colour(number), marker=marker(number), markersize=3.5,
                    markevery=max(1, len(epochs) // 8), linewidth=1.2, label=f"{_word(method)}: {words}",
                )  # fmt: skip
        axes.set_ylim(-0.02, 1.02)
    _outside(figure, next(iter(panels.values())), "accuracy", 2)
    return figure


def _gradient_norm(curves: Sequence[Row]) -> Any:
    figure, panels = _panels(curves)
    methods = list(dict.fromkeys(row["method"] for row in curves))
    for (rate, eps), axes in panels.items():
        for number, method in enumerate(methods):
            rows = [r for r in curves if (r["method"], r["noise"], r["eps"]) == (method, rate, eps)]
            epochs, values = _averaged(rows, "gradient_norm2")
            axes.plot(
                epochs, values, color=colour(number), marker=marker(number), markersize=3.5,
                markevery=max(1, len(epochs) // 8), linewidth=1.0, label=_word(method),
            )  # fmt: skip
        axes.set_yscale("log")
    _outside(figure, next(iter(panels.values())), "mean squared gradient norm", 2)
    return figure


def _stability(rows: Sequence[Row]) -> Any:
    """A row of panels for each run, a column for each epoch."""

    def of(row: Row) -> str:
        if "method" not in row:
            return str(row["run"])
        rate = "" if row["noise"] == 1 else f", noise {row['noise']:g}"
        return f"{_word(row['method'])}, eps {row['eps']:.3g}{rate}"

    runs = list(dict.fromkeys(of(row) for row in rows))
    epochs = list(dict.fromkeys(row["epoch"] for row in rows))
    losses = list(dict.fromkeys(row["loss"] for row in rows))
    figure = new_figure(0.8 + 2.3 * len(epochs), 0.9 + 1.8 * len(runs))
    grid = figure.subplots(len(runs), len(epochs), squeeze=False, sharex=True, sharey="row")
    for y, run in enumerate(runs):
        for x, epoch in enumerate(epochs):
            axes = grid[y][x]
            for number, loss in enumerate(losses):
                part = [r for r in rows if (of(r), r["epoch"], r["loss"]) == (run, epoch, loss)]
                for column, line, words in (("regenerated", "-", "made anew"), ("fixed", "--", "held")):  # fmt: skip
                    if loss == "standard" and column == "fixed":
                        continue  # there is nothing to make anew
                    points = _mean_by(part, "lambda", column)
                    # Large and empty: that of the clean loss is often below another one.
                    clean = {"markerfacecolor": "none", "zorder": 5} if loss == "standard" else {}
                    axes.plot(
                        points.keys(), points.values(), line, color=colour(number), marker=marker(number),
                        markersize=6 if clean else 3.5, linewidth=1.1, **clean,
                        label=_word(loss) if clean else f"{_word(loss)}, x' {words}",
                    )  # fmt: skip
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.grid(linewidth=0.4, color="#dddddd")
            plain_axes(axes)
            if y == 0:
                axes.set_title("the network" if epoch is None else f"epoch {epoch}", fontsize=8)
            if y == len(runs) - 1:
                axes.set_xlabel("step along the gradient, lambda", fontsize=7)
        grid[y][0].set_ylabel(f"{run}\nchange of gradient", fontsize=7)
    _outside(figure, grid[0][0], None, 3)
    return figure


def _mean_by(rows: Sequence[Row], key: str, column: str) -> dict[float, float]:
    found: dict[float, list[float]] = {}
    for row in rows:
        if row[column] > 0:
            found.setdefault(row[key], []).append(row[column])
    return {value: sum(of) / len(of) for value, of in sorted(found.items())}


def _complexity(result: StudyResult) -> Any:
    rows = result.rows
    key = "method" if "method" in result.varied else "run"
    if key == "method":
        rows = result.select(part="complexity") or rows
    names = list(dict.fromkeys(row[key] for row in rows))
    rho = {(r["group"], r["measure"]): r["rank_correlation"] for r in result.tables["correlations"]}
    columns = 4
    figure = new_figure(2.3 * columns, 5.2)
    grid = [axes for line in figure.subplots(2, columns, sharey=True) for axes in line]
    for number, (axes, (measure, head)) in enumerate(zip(grid, _WORDS.items(), strict=True)):
        told = []
        for place, name in enumerate(names):
            part = [r for r in rows if r[key] == name and r[measure] is not None]
            axes.plot(
                [r[measure] for r in part], [r["robust_gap"] for r in part], marker(place),
                color=colour(place), markersize=5, alpha=0.8, label=_word(name),
            )  # fmt: skip
            told.append(f"{_word(name)} {_rho(rho, name, measure)}")
        axes.set_title(", ".join(told), fontsize=7)
        axes.set_xlabel(head, fontsize=7.5)
        axes.grid(linewidth=0.4, color="#dddddd")
        axes.locator_params(axis="x", nbins=4)
        plain_axes(axes)
        if number % columns == 0:
            axes.set_ylabel("robust gap (training - test)", fontsize=7.5)
    figure.suptitle(
        "robust gap against measures of complexity; Spearman's correlation in the direction that each is said to have",
        fontsize=8,
    )
    _outside(figure, grid[0], None, len(names))
    return figure


def _rho(found: Mapping[tuple[str, str], float | None], group: str, measure: str) -> str:
    value = found.get((group, measure))
    return "none" if value is None else f"{value:+.2f}"


def _outside(figure: Any, axes: Any, ylabel: str | None, columns: int) -> None:
    """The legend below all panels."""
    if ylabel:
        axes.set_ylabel(ylabel, fontsize=8)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=7, frameon=False
    )
