"""Watches the kernel along with the accuracies that tell catastrophic overfitting."""

from __future__ import annotations

import math
import time
from typing import Any

from torch import Tensor

from .callbacks import TrainState
from .catastrophic import CatastrophicOverfitting
from .probe_kernel import attacked, trace_kernel


class KernelMonitor(CatastrophicOverfitting):
    """`CatastrophicOverfitting` that also records the kernel of some of its images at each check.

    It fires by the accuracies alone. K is the trace kernel of `probe` images, K' that of the same images under PGD-10,
    with the network in eval mode and without averaged weights. More columns of `history` and catastrophic.csv:

    * top_share: lambda_1 / tr K'.
    * effective_rank: exp of the entropy of the eigenvalues of K' over their sum.
    * clean_distance: 1 - <K, K'> / (|K| |K'|).
    * velocity: the same distance from the K' of the check before, an epoch; nan at the first check.
    * seconds: what these columns took; share: what all of them took of the time since training began in this process.

    Args:
        probe: images, as many of each class as can be, 2 or more and at most `samples`. 64 suit a CPU.
        settings: of `CatastrophicOverfitting`.

    Raises:
        ValueError: an argument out of range; or, when training begins, a network without a kernel (see
            `advfast.ntk.ntk`).
    """

    def __init__(self, every: int | None = None, *, probe: int = 64, **settings: Any) -> None:
        super().__init__(every, **settings)
        if isinstance(probe, bool) or not isinstance(probe, int) or not 2 <= probe <= self.samples:
            raise ValueError(
                f"probe must be an integer of 2 .. {self.samples}, the samples that are looked at, got {probe!r}"
            )
        self.probe = probe
        self._kernel: Tensor | None = None
        self._begun = self._spent = 0.0

    def on_train_begin(self, state: TrainState) -> None:
        from advfast.ntk import balanced_probe

        super().on_train_begin(state)
        if not state.global_step:
            self._kernel = None
        chosen = balanced_probe(self._labels, min(self.probe, len(self._labels)))
        chosen = chosen.to(self._labels.device)
        self._some = self._images[chosen], self._labels[chosen]
        # Before any work: is there a kernel at all?
        state.ranks.alone(lambda: trace_kernel(state.model, self._some[0][:2], check=True))
        self._begun, self._spent = time.perf_counter(), 0.0

    def more(self, state: TrainState, eps: float, norm: str) -> dict[str, float]:
        from advfast.ntk import metrics

        begun = time.perf_counter()
        images, labels = self._some
        clean = trace_kernel(state.model, images)
        # Rounded as it is saved, so that a resumed run compares with the same numbers.
        kernel = trace_kernel(state.model, attacked(state.model, images, labels, eps, norm))
        kernel = kernel.float().cpu()
        values = metrics.spectrum(kernel)
        velocity = math.nan
        if self._kernel is not None:
            epochs = (state.global_step - self.history[-1]["step"]) / state.steps_per_epoch
            velocity = metrics.kernel_velocity(self._kernel, kernel, epochs)
        found = {
            "top_share": float(values[0] / values.sum()),
            "effective_rank": metrics.entropy_rank(values),
            "clean_distance": metrics.kernel_distance(clean.float().cpu(), kernel),
            "velocity": velocity,
        }
        self._kernel = kernel
        now = time.perf_counter()
        self._spent += now - begun
        return found | {"seconds": now - begun, "share": self._spent / (now - self._begun)}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"kernel": self._kernel}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._kernel = state["kernel"]
