"""The end of a run: the test, the pictures, the result."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn
from torch.utils.data import DataLoader

from advfast.data import as_source, ordered
from advfast.evaluation import EvalReport, evaluate
from advfast.evaluation.picture import PictureSkipped, draw
from advfast.files import write_json

from . import names
from .curves import draw_curves
from .result import Selected, TrainResult
from .run import Run
from .setup import RunData

TEST_ATTACKS = ("clean", "pgd-20")

_ELSEWHERE = nn.Identity()
"""In the place of the model where a result goes from rank to rank."""


def finish(run: Run, parts: RunData, progress: bool) -> TrainResult:
    """Test accuracy of the best and the last weights, pictures, results.json; by the first rank, for all of them."""
    content = run.ranks.alone(lambda: _finished(run, parts, progress))
    if not run.ranks.first:
        run.model.load_state_dict(run.best_state)
    # The same in all ranks, each with its own model.
    return replace(content, model=run.model.eval())


def _finished(run: Run, parts: RunData, progress: bool) -> TrainResult:
    """The result, without the model."""
    model, config, history, folder = run.model, run.state.config, run.state.history, run.folder

    def test(state: dict[str, Tensor]) -> EvalReport | None:
        model.load_state_dict(state)
        if parts.test is None:
            return None
        return evaluate(
            model,
            parts.test,
            attacks=TEST_ATTACKS,
            eps=config["eps"],
            norm=config["norm"],
            sanity=False,
            progress=progress,
        )

    with run.loop.interrupt.at_once():
        last, best = history[-1], run.best
        test_best = test_last = test(run.last_state)
        if best["epoch"] != last["epoch"]:
            test_best = test(run.best_state)
        model.eval()
        result = TrainResult(
            model=_ELSEWHERE,
            history=history,
            best=Selected(int(best["epoch"]), best, test_best, folder / names.BEST),
            last=Selected(int(last["epoch"]), last, test_last, folder / names.LAST),
            path=folder,
            picture=_pictures(run, parts, test_best, progress),
            config=config,
            environment=run.environment,
            seconds=run.seconds,
            clean_prefix=run.state.prefix.summary(history, run.seconds),
        )
        write_json(folder / names.RESULTS, result.to_dict())
        return result


def _pictures(run: Run, parts: RunData, final: EvalReport | None, progress: bool) -> Path | None:
    """Training curves, and adversarial images where there are images to show."""
    config, path = run.state.config, run.folder / names.PICTURE
    shown = parts.val if parts.test is None else parts.test
    if isinstance(shown, DataLoader):
        shown = as_source(next(iter(ordered(shown, 500, "cpu")))[:2])
    try:
        draw_curves(
            run.folder / names.CURVES,
            run.state.history,
            title=f"{config['method']}, {run.environment['data']}, {config['norm']} eps {config['eps']:.4g}",
            best_epoch=int(run.best["epoch"]),
            final=final,
        )
        draw(
            path,
            run.model,
            shown,
            eps=config["eps"],
            norm=config["norm"],
            class_names=parts.class_names,
        )
    except PictureSkipped as reason:
        if progress:
            print(reason, file=sys.stderr)
        return None
    return path
