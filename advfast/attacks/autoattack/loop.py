"""The loop over parts and batches: each part attacks the samples that those before it left right."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from advfast.attacks.search.base import Points, SearchAttack
from advfast.attacks.search.oracle import Oracle

from .log import Bar, Clock, Log, spoken
from .state import Run, Store

Watch = Callable[[float, int], None]
"""Called with the share of the evaluation's work that is done, 0 to 1, and the number of samples still right."""


@dataclass(frozen=True)
class Part:
    """One attack of the evaluation.

    Attributes:
        name: as in `PARTS`.
        attack: made with all its settings.
        passes: forward and backward passes of a sample that it does not break; for estimates of time.
    """

    name: str
    attack: SearchAttack
    passes: int


@dataclass(frozen=True)
class Task:
    """What is evaluated.

    Attributes:
        images: [N, ...] in [0, 1], on any device.
        labels: [N] int64, where the images are.
        ids: [N] int64, numbers of the samples, where the images are.
        clean: [N, K] logits of the images, where the images are.
        device: of the model.
        batch_size: samples that a part attacks at once.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    clean: Tensor
    device: torch.device
    batch_size: int


class Loop:
    """Runs the parts on a task.

    Args:
        oracle: open, as the attacks want it.
        judge: open, without any change of arithmetic: whether a sample is broken is for it to say.
        run: is moved on, in place; parts that it has done are not done again.
        store: is given the run after every batch.
        watch: told how far it has come.
    """

    def __init__(
        self,
        task: Task,
        parts: Sequence[Part],
        oracle: Oracle,
        judge: Oracle,
        run: Run,
        store: Store,
        log: Log,
        bar: Bar,
        watch: Watch | None = None,
    ) -> None:
        self._task, self._parts, self._oracle, self._judge = task, parts, oracle, judge
        self._run, self._store, self._log, self._bar = run, store, log, bar
        self._watch = watch
        self._clock = Clock([part.passes for part in parts])

    def __call__(self) -> None:
        run = self._run
        for number, part in enumerate(self._parts):
            if part.name in run.stages:
                continue
            left = run.left
            for counts in (run.seconds, run.forwards, run.backwards):
                counts.setdefault(part.name, 0)
            while run.done < len(left):
                self._batch(number, part, left)
            run.stages[part.name] = run.robust.clone()
            run.done = 0
            self._store.save(run, now=True)
            self._say(number, part, len(left))

    def _batch(self, number: int, part: Part, left: Tensor) -> None:
        run, size = self._run, self._task.batch_size
        index = left[run.done : run.done + size]
        later = len(left) - run.done - len(index)
        robust = int(run.robust.sum())

        def watch(share: float) -> None:
            within = share * len(index)
            waiting = later + len(index) - within
            whole, seconds = self._clock.state(number, within, waiting, robust)
            done = (run.done + within) / len(left)
            self._bar.show(part.name, done, robust / len(run.robust), seconds)
            if self._watch is not None:
                self._watch(whole, robust)

        watch(0.0)
        began = time.perf_counter()
        before = self._forwards, self._oracle.backwards
        broken = self._attack(part, index, watch)
        run.done += len(index)
        run.seconds[part.name] += time.perf_counter() - began
        run.forwards[part.name] += self._forwards - before[0]
        run.backwards[part.name] += self._oracle.backwards - before[1]
        self._clock.worked(number, len(index))
        batches = -(-len(left) // size)
        self._log(
            f"{part.name} - {-(-run.done // size)}/{batches} - {broken} out of {len(index)} "
            "successfully perturbed"
        )
        self._store.save(run)

    @property
    def _forwards(self) -> int:
        return self._oracle.forwards + self._judge.forwards

    def _attack(self, part: Part, index: Tensor, watch: Callable[[float], None]) -> int:
        """Attacks these samples and notes which are broken; how many are."""
        task, run, oracle = self._task, self._run, self._oracle
        x0 = oracle.iterate(task.images[index].to(task.device))
        labels = task.labels[index].to(task.device)
        clean = task.clean[index].to(task.device, oracle.wide)
        points = Points(x0, labels, task.ids[index].to(task.device), clean)
        found = part.attack.attack(oracle, points, task.images.dtype, watch)
        hit = found.success.nonzero()[:, 0]
        if not len(hit):
            return 0
        images = found.x[hit].to(task.images.dtype)
        predicted = self._judge.logits(images.to(self._judge.wide)).argmax(1)
        wrong = (predicted != labels[hit]).nonzero()[:, 0]
        where = index[hit[wrong].to(index.device)]
        # In this order: an interruption in between leaves no flag without its image.
        run.images[where] = images[wrong].to(run.images.device)
        run.predicted[where] = predicted[wrong].to(run.images.device)
        run.robust[where] = False
        return len(where)

    def _say(self, number: int, part: Part, attacked: int) -> None:
        run = self._run
        robust = int(run.robust.sum())
        total = sum(run.seconds.values())
        text = f"robust accuracy after {part.name.upper()}: {robust / len(run.robust):.2%} (total time {total:.1f} s"
        _, seconds = self._clock.state(number, 0.0, 0.0, robust)
        if seconds is not None and number + 1 < len(self._parts):
            text += f", about {spoken(seconds)} left"
        self._log(f"{text})" if attacked else f"{text}; no samples were left to attack)")
