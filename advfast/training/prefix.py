"""The clean epochs at the beginning of one run: finds their number while training."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from advfast.attacks.state import model_device
from advfast.data import as_source, ordered

from . import rng
from .clean_prefix import CleanPrefix, latest, parsed, saved_share
from .parallel import Ranks

if TYPE_CHECKING:
    from .methods import Method

_TRIAL = 8
"""Images of the kernel that is taken before training, to see that it can be."""


class Prefix:
    """The clean epochs of one run.

    Collective: all ranks call every method at the same place; the first one measures.

    Args:
        given: what `parsed` returns.
        run: arguments of `train`: epochs, schedule, schedule_options, eps, norm, seed.
        model: that is trained.
        data: the training data, a Source or a DataLoader.
        units: pass-units of a clean step and of one of the method.
        ranks: the processes of the run.
        shown: whether the decision is told on standard error.

    Attributes:
        epochs: on clean images, as far as is known: while that is being found, those done and one more.
        reason: for that number; "" while it is being found.
        checks: a dictionary each: epoch, distance, velocity (nan after the first epoch), seconds.

    Raises:
        ValueError: the kernel of the network cannot be taken.
    """

    def __init__(
        self,
        given: int | CleanPrefix = 0,
        run: Mapping[str, Any] | None = None,
        model: nn.Module | None = None,
        data: object = None,
        *,
        units: tuple[float, float] = (3.0, 3.0),
        ranks: Ranks | None = None,
        shown: bool = False,
    ) -> None:
        self.units, self.ranks, self.shown = units, ranks or Ranks(), shown
        self.checks: list[dict[str, float]] = []
        self._last: Tensor | None = None
        self.rule = given if isinstance(given, CleanPrefix) else None
        self.epochs, self.reason = (0, "") if isinstance(given, CleanPrefix) else (given, "given")
        if self.rule is None:
            return
        assert run is not None and model is not None
        self.model, self.eps, self.norm = model, float(run["eps"]), str(run["norm"])
        self.latest, self.bound = latest(
            self.rule, run["epochs"], run["schedule"], run["schedule_options"]
        )
        self._decide()
        if not self.reason:
            self.ranks.alone(lambda: self._try(data, run["seed"]))

    @property
    def seconds(self) -> float:
        """That the checks took."""
        return sum(check["seconds"] for check in self.checks)

    def begin(self) -> None:
        """Tells what is known before training."""
        if self.rule is not None and self.reason and not self.checks:
            self._tell()

    def after_epoch(self, epoch: int, elapsed: Callable[[], float]) -> None:
        """Between the last step of an epoch and the saving of it: finds out whether the next one is clean too.

        Args:
            epoch: from 1.
            elapsed: () -> seconds of the run so far.
        """
        if self.reason:
            return
        self.checks.append(self.ranks.alone(lambda: self._check(epoch)))
        self._decide()
        if self.reason:
            self._tell(elapsed())

    def _try(self, data: object, seed: int) -> None:
        """The probe images, on the device, and a kernel of a few of them to see that there is one."""
        from advfast.ntk.probe import Probe

        assert self.rule is not None
        device = model_device(self.model) or torch.device("cpu")
        x, y = _images(data, self.rule.samples, seed, device)
        few = Probe(x[:_TRIAL], y[:_TRIAL], attack=None, readout=self.rule.readout)
        try:
            few.kernels(self.model, self.eps, self.norm, check=True)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"clean_prefix='auto' needs the kernel of the network, which cannot be taken: {error}"
            ) from error
        self._probe = Probe(x, y, attack=self.rule.attack, readout=self.rule.readout)

    def _decide(self) -> None:
        assert self.rule is not None
        distances = [check["distance"] for check in self.checks]
        velocities = [check["velocity"] for check in self.checks]
        chosen = self.rule.choose(distances, velocities, self.latest, self.bound)
        self.epochs, self.reason = chosen or (len(self.checks) + 1, "")

    def _tell(self, elapsed: float = 0.0) -> None:
        text = f"clean prefix ends after epoch {self.epochs}: {self.reason}"
        if not self.epochs:
            text = f"no clean prefix: at most {self.reason}"
        if self.checks:
            share = f"{self.seconds / elapsed:.1%} of training so far"
            text += f"; the checks took {self.seconds:.1f} s, {share}"
        if self.shown and self.ranks.first:
            print(text, file=sys.stderr, flush=True)

    def _check(self, epoch: int) -> dict[str, float]:
        from advfast.ntk import metrics

        begun = time.perf_counter()
        found = self._probe.kernels(self.model, self.eps, self.norm, check=False)
        clean, adversarial = (
            metrics.matrix(found[kind]).float().cpu() for kind in ("clean", "adversarial")
        )
        velocity = math.nan
        if self._last is not None:
            velocity = metrics.kernel_distance(self._last, clean)
        self._last = clean
        return {
            "epoch": epoch,
            "distance": metrics.kernel_distance(clean, adversarial),
            "velocity": velocity,
            "seconds": time.perf_counter() - begun,
        }

    def summary(self, history: Sequence[Mapping[str, float]], seconds: float) -> dict[str, Any]:
        """For results.json, of a run with this history and so many seconds; empty without a clean epoch and a rule.

        epochs; reason; saved: the share of the cost that the clean epochs save, by pass-units; saved_seconds: by the
        seconds of the epochs against adversarial ones alone, the checks counted as cost (None without both kinds of
        epochs); and of a rule checks, seconds (of the checks) and share (of those of the run).
        """
        total = len(history)
        epochs = min(self.epochs, total)
        if self.rule is None and not epochs:
            return {}
        clean, full = self.units
        found: dict[str, Any] = {
            "epochs": epochs,
            "reason": self.reason or "training ended",
            "saved": saved_share([clean] * epochs + [full] * (total - epochs), full),
            "saved_seconds": None,
        }
        if 0 < epochs < total:
            spent = [row["seconds"] for row in history]
            later = sum(spent[epochs:]) / (total - epochs)
            found["saved_seconds"] = 1 - (sum(spent) + self.seconds) / (total * later)
        if self.rule is not None:
            checks = [
                {name: None if math.isnan(value) else value for name, value in check.items()}
                for check in self.checks
            ]
            found |= {"checks": checks, "seconds": self.seconds, "share": self.seconds / seconds}
        return found

    def state_dict(self) -> dict[str, Any]:
        """Saved with the run."""
        return {
            "epochs": self.epochs,
            "reason": self.reason,
            "checks": self.checks,
            "kernel": self._last,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epochs, self.reason = int(state["epochs"]), str(state["reason"])
        self.checks, self._last = list(state["checks"]), state["kernel"]


def make_prefix(
    given: int | str | CleanPrefix,
    run: Mapping[str, Any],
    own: Method,
    data: object,
    *,
    extra: float,
    ranks: Ranks,
    shown: bool,
) -> Prefix:
    """The prefix of a run.

    Args:
        given: `clean_prefix` of `train`.
        run: its other arguments.
        own: the method of the run.
        data: the training data.
        extra: pass-units of the modifiers, see `Modifier.extra_passes`.
        ranks, shown: as for `Prefix`.

    Raises:
        ValueError: the method trains on clean images; the kernel of the network cannot be taken.
    """
    rule = parsed(given)
    if isinstance(rule, CleanPrefix) and own.trains_on == "clean":
        raise ValueError(
            f"clean_prefix={given!r} finds out when to go over to adversarial images, and method "
            f"{run['method']!r} trains on clean ones"
        )
    units = 3 + extra, own.passes() + extra
    return Prefix(rule, run, own.model, data, units=units, ranks=ranks, shown=shown)


def _images(data: object, count: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images [count, ...] and classes, balanced; of a DataLoader its first."""
    from advfast.ntk.probe import balanced_probe

    # An iterator of a DataLoader draws its seed, and a Dataset may draw what it likes.
    before = rng.state()
    try:
        if isinstance(data, DataLoader):
            parts: list[tuple[Tensor, Tensor]] = []
            for batch in ordered(data, count, device):
                parts.append((batch.images, batch.labels))
                if sum(len(labels) for _, labels in parts) >= count:
                    break
            x, y = (torch.cat(part)[:count] for part in zip(*parts, strict=True))
        else:
            source = as_source(data)
            x, y = source.batch(balanced_probe(source.labels, min(count, len(source)), seed))
        return x.to(device), y.to(device)
    finally:
        rng.set_state(before)
