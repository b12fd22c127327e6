"""Figures of `co_features`: who collapses, accuracy against the amplitude, and the timeline of the runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from advfast.evaluation.canvas import new_figure

from .co_features_subject import TIMELINE, read_timeline
from .result import Row, StudyResult
from .style import colour, heat_map, marker, plain_axes

_SHOWN = 4
"""Runs in the timeline."""

_LINES: tuple[tuple[str, Any], ...] = (("PGD-50", "-"), ("FGSM", ":"))


def draw(result: StudyResult) -> Iterator[tuple[str, Any]]:
    """ "collapse", "accuracy" and, where the study has been written, "timeline".

    Raises:
        PictureSkipped: matplotlib is not installed.
    """
    yield "collapse", _map(result)
    yield "accuracy", _accuracy(result)
    timeline = [] if result.path is None else read_timeline(result.path / TIMELINE)
    if timeline:
        yield "timeline", _timeline(result, timeline)


def _values(result: StudyResult, name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in result.rows))


def pixels(value: float) -> str:
    """As 255ths where it is a whole number of them, and no short decimal such as 0.2."""
    whole = 0 if abs(value - round(value, 2)) < 1e-9 else round(value * 255)
    return f"{whole}/255" if whole and abs(value * 255 - whole) < 1e-6 else f"{value:g}"


def _map(result: StudyResult) -> Any:
    """Cells beta x eps for each method: PGD accuracy, and a cross where runs collapsed."""
    methods, betas, radii = (_values(result, name) for name in ("method", "beta", "eps"))
    single = len(radii) == 1
    # Of one radius a row a method is the whole map.
    panels = [None] if single else methods
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    rows_shown = len(methods) if single else len(radii)
    wide = 1.6 + 0.62 * len(betas) * columns + (0.9 if single else 0.3 * columns)
    figure = new_figure(max(wide, 3.6), 1.2 + lines * (0.5 + 0.36 * rows_shown))
    grid = figure.subplots(lines, columns, squeeze=False)
    image = None
    for number, axes in enumerate(grid.flat):
        if number >= len(panels):
            axes.set_axis_off()
            continue
        lines_of = (
            [(name, {"method": name, "eps": radii[0]}) for name in methods]
            if single
            else [(pixels(eps), {"method": panels[number], "eps": eps}) for eps in reversed(radii)]
        )
        table = [[_mean(result, "pgd", beta=beta, **where) for beta in betas] for _, where in lines_of]  # fmt: skip
        image = heat_map(
            axes, table, [label for label, _ in lines_of], [pixels(beta) for beta in betas]
        )
        for y, (_, where) in enumerate(lines_of):
            for x, beta in enumerate(betas):
                if (_mean(result, "collapsed", beta=beta, **where) or 0) > 0:
                    axes.plot(x, y + 0.33, "x", color="white", markersize=5, mew=1.4)
        axes.set_xlabel("β, amplitude of the feature", fontsize=8)
        if not single:
            axes.set_title(panels[number], fontsize=8)
            axes.set_ylabel("ε", fontsize=8)
    bar = figure.colorbar(image, ax=grid, fraction=0.04)
    bar.set_label("PGD-50 test accuracy", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    radius = f", ε = {pixels(radii[0])}" if single else ""
    figure.suptitle(f"{result.settings['data']}{radius}   (x: a run collapsed)", fontsize=9)
    return figure


def _mean(result: StudyResult, measure: str, **values: Any) -> float | None:
    try:
        return result.mean(measure, **values)
    except ValueError:
        return None


def _accuracy(result: StudyResult) -> Any:
    """Final FGSM and PGD accuracy against beta, a panel each radius; a dot a run, lines through the means."""
    methods, betas, radii = (_values(result, name) for name in ("method", "beta", "eps"))
    figure = new_figure(1.6 + 2.9 * min(len(radii), 3), 3.4)
    from matplotlib.lines import Line2D

    shown = radii if len(radii) <= 3 else [radii[0], radii[len(radii) // 2], radii[-1]]
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, eps in zip(panels, shown, strict=True):
        for number, method in enumerate(methods):
            style = {"color": colour(number), "marker": marker(number), "markersize": 4}
            for measure, line in (("pgd", "-"), ("fgsm", ":")):
                means = [_mean(result, measure, method=method, beta=b, eps=eps) for b in betas]
                known = [(b, m) for b, m in zip(betas, means, strict=True) if m is not None]
                if known:
                    axes.plot(*zip(*known, strict=True), line, linewidth=1.3, **style)
                runs = [r for r in result.select(method=method, eps=eps) if r[measure] is not None]
                if len(runs) > len(known):
                    dots = [r["beta"] for r in runs], [r[measure] for r in runs]
                    axes.plot(*dots, linestyle="", alpha=0.35, **style)
        plain_axes(axes)
        axes.set_xticks(betas, [pixels(b) for b in betas])
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("β, amplitude of the feature", fontsize=8)
        axes.set_title(f"ε = {pixels(eps)}", fontsize=8)
        axes.grid(linewidth=0.4, color="#dddddd")
    panels[0].set_ylabel("test accuracy under attack", fontsize=8)
    handles = [
        Line2D([], [], color=colour(n), marker=marker(n), markersize=4, label=name)
        for n, name in enumerate(methods)
    ]
    handles += [
        Line2D([], [], color="#555555", linestyle=line, label=name) for name, line in _LINES
    ]
    figure.legend(handles=handles, fontsize=7, frameon=False, loc="outside right upper")
    return figure


def _timeline(result: StudyResult, rows: Sequence[Row]) -> Any:
    """Of the first seed and radius: accuracies of the detector, by set, curvature and alignment, a column a run."""
    runs: dict[tuple[str, str], list[Row]] = {}
    first = str(result.rows[0]["seed"]), str(result.rows[0]["eps"])
    for row in rows:
        if (row["seed"], row["eps"]) == first:
            runs.setdefault((row["method"], row["beta"]), []).append(row)
    chosen = _chosen(result, list(runs))
    figure = new_figure(1.0 + 2.1 * len(chosen), 6.2)
    grid = figure.subplots(4, len(chosen), sharex=True, sharey="row", squeeze=False)
    panels: tuple[tuple[str, dict[str, str]], ...] = (
        ("accuracy,\ntraining images", {"fgsm": "FGSM", "pgd": "PGD-10"}),
        ("accuracy,\nno attack", {"injected": "injected", "original": "original", "carrier": "feature alone"}),
        ("cosine", {"cos1": "gradients", "cos2": "FGSM, PGD-10"}),
        ("curvature", {"curvature": "λmax"}),
    )  # fmt: skip
    for column, (method, beta) in enumerate(chosen):
        own = runs[method, beta]
        epochs = [int(row["epoch"]) for row in own]
        alarm = next((int(row["epoch"]) for row in own if int(row["fired"])), None)
        for line, (label, curves) in enumerate(panels):
            axes = grid[line][column]
            for number, (name, words) in enumerate(curves.items()):
                axes.plot(
                    epochs, [float(row[name]) for row in own], color=colour(number), marker=marker(number),
                    markersize=3, markevery=max(1, len(epochs) // 8), linewidth=1.1, label=words,
                )  # fmt: skip
            if alarm is not None:
                axes.axvline(alarm, color="black", linestyle="--", linewidth=0.9)
                if line == 0:
                    axes.annotate(
                        "alarm", (alarm, 0.5), xytext=(2, 0), textcoords="offset points", fontsize=6.5
                    )  # fmt: skip
            plain_axes(axes)
            axes.grid(linewidth=0.4, color="#dddddd")
            if column == 0:
                axes.set_ylabel(label, fontsize=8)
            if label == "curvature":
                axes.set_yscale("log")
                axes.set_xlabel("epoch", fontsize=8)
            elif line < 2:
                axes.set_ylim(-0.03, 1.03)
            if column == len(chosen) - 1 and label != "curvature":
                axes.legend(fontsize=6.5, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        grid[0][column].set_title(f"{method}\nβ = {pixels(float(beta))}", fontsize=8)
    return figure


def _chosen(result: StudyResult, runs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """At most four runs: of the first method at each beta, then other methods at the second beta."""
    methods = [str(name) for name in _values(result, "method")]
    betas = [str(beta) for beta in _values(result, "beta")]
    middle = betas[min(1, len(betas) - 1)]
    own = [(methods[0], beta) for beta in betas][: _SHOWN - 1 if len(methods) > 1 else _SHOWN]
    others = [(name, middle) for name in reversed(methods[1:])]
    return [run for run in [*own, *others] if run in runs][:_SHOWN]
