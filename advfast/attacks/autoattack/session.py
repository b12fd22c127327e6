"""One evaluation from the checks to the result."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from advfast.attacks.sanity import Finding, compare

from .log import Bar, Log
from .loop import Loop, Part, Task, Watch
from .parts import Attack, Maker, names_of, settings_of
from .result import AutoAttackResult, share
from .samples import Samples, clean_pass
from .state import Run, Store, fingerprint, weights_of

if TYPE_CHECKING:
    from .autoattack import AutoAttack


class Session:
    """An evaluation under way.

    Args:
        of: its settings, checked.
        samples: checked.
        batch_size: samples that are attacked at once.
        attacks: to run, in this order.
        state_path: the file to write to and to go on from.
        log: is told how far it has come.
        shown: show a bar.
        watch: told how far it has come.
        findings: what is known already that makes the result doubtful.

    Attributes:
        result: what there is so far; None before the model has seen the clean images.
    """

    def __init__(
        self,
        of: AutoAttack,
        samples: Samples,
        batch_size: int,
        attacks: Sequence[Attack],
        state_path: str | Path | None,
        log: Log,
        shown: bool,
        watch: Watch | None = None,
        findings: Sequence[Finding] = (),
    ) -> None:
        self._of, self._samples, self._size = of, samples, batch_size
        self._attacks = dict(zip(names_of(attacks), attacks, strict=True))
        self._path, self._log, self._shown, self._watch = state_path, log, shown, watch
        self._findings = tuple(findings)
        self.result: AutoAttackResult | None = None
        self.nonfinite = 0

    def run(self) -> AutoAttackResult:
        """
        Raises:
            TypeError, ValueError: the samples, the settings of an attack or the state are wrong; before any attack.
        """
        of, samples, log = self._of, self._samples, self._log
        if self._attacks:
            log(f"using {of.version} version including {', '.join(self._attacks)}.")
        with ExitStack() as stack:
            judge = stack.enter_context(of.oracle(samples.example(self._size), plain=True))
            run, clean = clean_pass(samples, judge, self._size)
            make = Maker(of, clean.shape[1])
            parts = []
            if len(clean):
                parts = [make(name, attack) for name, attack in self._attacks.items()]
            store = Store(self._path, self._identity() if self._path is not None else {})
            if store.load(run):
                log(f"resumed from {self._path}, which has {', '.join(run.stages)} done")
            log(f"initial accuracy: {share(run.stages['clean']):.2%}")
            try:
                if of.eps > 0 and parts and bool(run.robust.any()):
                    oracle = stack.enter_context(of.oracle(samples.example(self._size)))
                    bar = Bar(self._shown)
                    stack.callback(bar.close)
                    task = Task(
                        samples.images, samples.labels, samples.ids, clean, samples.device, self._size
                    )  # fmt: skip
                    Loop(task, parts, oracle, judge, run, store, log, bar, self._watch)()
            except BaseException as stopped:
                self.result = self._result(run, make, parts, complete=False)
                store.save(run, now=True)
                kept = f"; resume from {self._path}" if self._path is not None else ""
                log(
                    f"stopped by {type(stopped).__name__}: robust accuracy so far {share(run.robust):.2%}{kept}"
                )
                raise
        for name in self._attacks:
            self._skipped(run, name)
        self.result = self._result(run, make, parts, complete=True)
        return self.result

    @staticmethod
    def _skipped(run: Run, name: str) -> None:
        """A part that had nothing to do."""
        run.stages.setdefault(name, run.robust.clone())
        for counts in (run.seconds, run.forwards, run.backwards):
            counts.setdefault(name, 0)

    def _result(
        self, run: Run, make: Maker, parts: Sequence[Part], complete: bool
    ) -> AutoAttackResult:
        stages = dict(run.stages)
        if not complete and run.done:
            running = next(part.name for part in parts if part.name not in stages)
            stages[running] = run.robust.clone()
        notes = list(make.notes)
        self.nonfinite = run.nonfinite
        if run.nonfinite:
            notes.append(
                f"{run.nonfinite} gradient entries were not finite and were taken for 0: the accuracy may be too high"
            )
        findings = self._findings
        if len(run.robust):
            accuracies = {name: share(right) for name, right in stages.items()}
            findings += compare(accuracies, samples=len(run.robust))
        return AutoAttackResult(
            images=run.images,
            labels=run.predicted,
            stages=stages,
            seconds=dict(run.seconds),
            forwards=dict(run.forwards),
            backwards=dict(run.backwards),
            cost=_cost(run, make, parts) if complete else None,
            notes=tuple(notes),
            findings=findings,
            complete=complete,
        )

    def _identity(self) -> dict[str, Any]:
        """What a state is tied to."""
        of, samples = self._of, self._samples
        found: dict[str, Any] = {
            "norm": of.norm.lower(),
            "eps": float(of.eps),
            **of.shared(),
            **{name: settings_of(of, attack) for name, attack in self._attacks.items()},
            "attacks": list(self._attacks),
            "data": fingerprint(samples.images, samples.labels, samples.ids),
            "weights": weights_of(of.model),
        }
        del found["output"], found["batch_size"], found["impl"]
        if of.rng == "upstream":
            found["bs"] = self._size  # its draws are those of a batch
        return found


def _cost(run: Run, make: Maker, parts: Sequence[Part]) -> tuple[int, int] | None:
    """Passes of a sample that nothing breaks; where a part's are not known, its mean over those that it attacked."""
    forwards, backwards = 0.0, 0.0
    attacked = int(run.stages["clean"].sum())
    for part in parts:
        passes: tuple[float, float] | None = make.costs[part.name]
        if passes is None:
            if not attacked:
                return None
            passes = run.forwards[part.name] / attacked, run.backwards[part.name] / attacked
        forwards, backwards = forwards + passes[0], backwards + passes[1]
        attacked = int(run.stages[part.name].sum())
    return (round(forwards), round(backwards)) if parts else None


def pushed(images: Tensor, originals: Tensor, norm: str) -> float:
    """The greatest distance of a pair, in the norm; NaN where there is a NaN, 0 without images."""
    if not len(images):
        return 0.0
    difference = (images.double() - originals.double()).flatten(1)
    lengths = {
        "linf": lambda: difference.abs().amax(1),
        "l2": lambda: difference.square().sum(1).sqrt(),
        "l1": lambda: difference.abs().sum(1),
    }[norm]()
    return float(lengths.max())
