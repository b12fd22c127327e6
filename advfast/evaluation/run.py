"""An evaluation, batch by batch."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advfast.attacks.sanity import examine, sweep
from advfast.attacks.state import model_device

from .attacks import Entry, entries
from .batch import AttackFailed, Batch, failure
from .inputs import Inputs, batches, describe, inputs
from .progress import Progress
from .report import PAGE, EvalReport
from .request import Request
from .saved import Chain, Saved, check_folder, weights_digest
from .summary import summarise
from .tally import Tally
from .words import versions

_TARGETED = re.compile(r"\b(apgd|fab)-?t", re.IGNORECASE)
"""In the words of an attack that goes for one class after another."""


def run(request: Request) -> EvalReport:
    """See `advfast.evaluate`."""
    request = request.checked()
    made = entries(
        request.attacks,
        request.model,
        eps=request.eps,
        norm=request.norm,
        seed=request.seed,
        precision=request.precision,
    )
    folder = None if request.out is None else Path(request.out)
    if folder is not None:
        check_folder(folder, overwrite=request.overwrite, resume=request.resume)
    of = inputs(request.data, request.split, request.data_root, request.limit, request.shard)
    if folder is None:
        return _Run(request, made, of, None).result()
    saved = Saved(folder, _fingerprint(request, made, of), _environment(request))
    going_on = _Run(request, made, of, saved)
    if request.resume and not going_on.restore():
        report = saved.complete()
        if report is not None:
            return _complete(report, request, of, saved)
    return going_on.result()


class _Run:
    def __init__(
        self, request: Request, made: list[Entry], of: Inputs, saved: Saved | None
    ) -> None:
        self.request, self.of, self.saved = request, of, saved
        self.tally = Tally(made)
        self.chain = Chain()
        self.began = time.perf_counter()
        self.before = 0.0
        """Seconds until the interruption."""
        self.pixels = ""
        """The digest of the batches until the interruption."""
        self.moved = False
        """Whether there is more than there was when it began."""

    def restore(self) -> bool:
        """Whether there was a state to go on with.

        Raises:
            ValueError: it is of another evaluation.
        """
        assert self.saved is not None
        found = self.saved.load()
        if found is None:
            return False
        state, notes = found
        self.tally.restore(state["tally"])
        self.tally.notes += [note for note in notes if note not in self.tally.notes]
        self.before, self.pixels = state["seconds"], state["pixels"]
        return True

    def result(self) -> EvalReport:
        tally = self.tally
        try:
            with torch.no_grad():
                self._all_batches()
        except BaseException as stopped:
            if self.saved is not None and self.moved:
                tally.stopped = (
                    f"ended early ({type(stopped).__name__} after {tally.samples} samples); the "
                    "numbers are of those; go on with resume=True (--resume)"
                )
                self._report().save(self.saved.folder, page=self.request.report)
            raise
        report = self._report()
        if self.saved is not None:
            try:
                report.save(self.saved.folder, page=self.request.report)
            except OSError as error:
                error.report = report  # type: ignore[attr-defined]
                raise
            self.saved.remove()
        return _unless_failed(report, tally.raised)

    def _all_batches(self) -> None:
        request, tally, saved = self.request, self.tally, self.saved
        done, number = tally.batches, 0
        stream = batches(self.of, request.batch_size, request.limit, request.model)
        with Progress(self.of.samples, tally.entries, tally, request.progress) as progress:
            for number, (images, labels, numbers) in enumerate(stream, 1):
                if saved is not None:
                    self.chain.add(images, labels, numbers)
                if number <= done:
                    if saved is not None and number == done:
                        saved.check_pixels(self.pixels, self.chain)
                    continue
                self._one_batch(images, labels, numbers, progress)
                self.moved = True
                if saved is not None:
                    saved.write(tally.state(), self.chain, self._seconds())
        if saved is not None and number < done:
            saved.check_pixels(self.pixels, self.chain)
        if not number:
            raise ValueError("data holds no samples")

    def _one_batch(
        self, images: Tensor, labels: Tensor, numbers: Tensor, progress: Progress
    ) -> None:
        request, tally = self.request, self.tally
        # All labels are looked at before the first attack, where they can be.
        known = None if tally.samples else self.of.labels(request.limit)
        batch = Batch(request.model, images, labels, numbers, labels if known is None else known)
        if not tally.samples:
            self._examine(images, labels)
        tally.add(batch.attacked(tally, request.eps, request.norm, progress))

    def _examine(self, images: Tensor, labels: Tensor) -> None:
        """The sanity checks, with the model in the modes that it came in."""
        request, tally = self.request, self.tally
        attacks = any(entry.craft is not None for entry in tally.entries)
        if request.sanity is False or not (attacks or request.sanity is True):
            return
        settings: dict[str, Any] = {
            "eps": request.eps,
            "norm": request.norm,
            "seed": request.seed,
        }
        try:
            found = examine(request.model, images, labels, **settings)
            targeted = any(_TARGETED.search(entry.words) for entry in tally.entries)
            # That there are few classes is of no concern to other attacks.
            tally.findings = tuple(one for one in found if targeted or one.code != "few-classes")
            if request.sanity is True:
                tally.curves = sweep(request.model, images, labels, **settings)
        except Exception as error:
            # The attacks may well work, and their numbers are what was asked for.
            tally.notes.append(
                f"the sanity checks could not be finished: {type(error).__name__}: {error}"
            )

    def _seconds(self) -> float:
        return self.before + time.perf_counter() - self.began

    def _report(self) -> EvalReport:
        request, fingerprint = self.request, {}
        if self.saved is not None:
            fingerprint = dict(self.saved.fingerprint)
            if not self.tally.stopped:
                fingerprint["pixels"] = self.chain.value
        reproduce = {"call": request.call()}
        if request.command:
            reproduce["command"] = request.command
        return summarise(
            self.tally,
            eps=request.eps,
            norm=request.norm,
            seconds=self._seconds(),
            model=describe(request.model),
            data=self.of.words,
            class_names=self.of.class_names,
            settings={
                "batch_size": request.batch_size,
                "seed": request.seed,
                "precision": request.precision,
                "limit": request.limit,
            },
            reproduce=reproduce,
            fingerprint=fingerprint,
        )


def _fingerprint(request: Request, made: list[Entry], of: Inputs) -> dict[str, Any]:
    """Name -> value of all that the numbers depend on, but the samples themselves."""
    return {
        # Not the addresses of objects, which are new in every process.
        "attacks": {entry.name: re.sub(" at 0x[0-9a-f]+", "", entry.words) for entry in made},
        "eps": request.eps,
        "norm": request.norm,
        "batch_size": request.batch_size,
        "seed": request.seed,
        "precision": request.precision,
        "limit": request.limit,
        "shard": request.shard,
        "sanity": request.sanity,
        "model": describe(request.model),
        "weights": weights_digest(request.model),
        "data": of.words,
        "samples": of.samples,
    }


def _environment(request: Request) -> dict[str, str]:
    """Name -> value of what the numbers depend on by rounding."""
    device = model_device(request.model) or torch.device("cpu")
    return {**versions(), "device": device.type}


def _complete(report: EvalReport, request: Request, of: Inputs, saved: Saved) -> EvalReport:
    """A report that was there already, of the same samples."""
    chain = Chain()
    for images, labels, numbers in batches(of, request.batch_size, request.limit, request.model):
        chain.add(images, labels, numbers)
    saved.check_pixels(report.fingerprint["pixels"], chain)
    if request.report and not (saved.folder / PAGE).exists():
        report.save(saved.folder, page=True)
    return _unless_failed(report, None)


def _unless_failed(report: EvalReport, raised: Exception | None) -> EvalReport:
    """
    Raises:
        AttackFailed: an attack has no result.
    """
    if report.errors:
        name, reason = next(iter(report.errors.items()))
        raise AttackFailed(failure(name, reason), report) from raised
    return report
