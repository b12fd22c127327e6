"""What an AutoAttack evaluation came to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from advfast.attacks.sanity import Finding


@dataclass(frozen=True)
class AutoAttackResult:
    """What an evaluation came to, sample by sample.

    Attributes:
        images: [N, ...] like the images that went in: an adversarial image where one was found, the image itself
            elsewhere.
        labels: [N] int64, the model's predictions on `images`.
        stages: part -> [N] bool, still right after it; "clean" first. An attack that was not needed, because no sample
            was left, has a stage too.
        seconds: part -> time it took, "clean" included.
        forwards, backwards: part -> images that went through the model, images whose gradient was taken.
        cost: (forward, backward) passes that a sample takes which no part breaks, of FAB and of attacks of the user's
            the mean over the samples that they attacked; None where one of these had none to attack.
        notes: what was done otherwise than asked, such as fewer targets than classes allow.
        findings: reasons to doubt the result.
        complete: False: it was interrupted, and this is what there was by then.
    """

    images: Tensor
    labels: Tensor
    stages: dict[str, Tensor]
    seconds: dict[str, float]
    forwards: dict[str, int]
    backwards: dict[str, int]
    cost: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = field(default=())
    complete: bool = True

    @property
    def accuracies(self) -> dict[str, float]:
        """Part -> share of the samples that are still right after it; NaN without samples."""
        return {name: share(right) for name, right in self.stages.items()}

    @property
    def robust(self) -> Tensor:
        """[N] bool: right after everything that was run."""
        return list(self.stages.values())[-1]

    @property
    def robust_accuracy(self) -> float:
        return share(self.robust)

    def to_dict(self) -> dict[str, Any]:
        """All but the tensors, as JSON takes it."""
        return {
            "samples": len(self.robust),
            "right": {name: int(right.sum()) for name, right in self.stages.items()},
            "seconds": dict(self.seconds),
            "forwards": dict(self.forwards),
            "backwards": dict(self.backwards),
            "cost_per_robust_sample": None
            if self.cost is None
            else {"forwards": self.cost[0], "backwards": self.cost[1]},
            "notes": list(self.notes),
            "findings": [finding.to_dict() for finding in self.findings],
            "complete": self.complete,
        }

    def __str__(self) -> str:
        lines = [
            f"{'attack':<12} {'accuracy':>9} {'right':>12} {'seconds':>9} {'forwards':>12} {'backwards':>12}"
        ]
        for name, right in self.stages.items():
            counts = f"{int(right.sum())}/{len(right)}"
            lines.append(
                f"{name:<12} {share(right):>9.2%} {counts:>12} {self.seconds.get(name, 0.0):>9.1f} "
                f"{self.forwards.get(name, 0):>12} {self.backwards.get(name, 0):>12}"
            )
        if self.cost is not None:
            lines.append(
                f"a fully robust sample: {self.cost[0]} forward and {self.cost[1]} backward passes"
            )
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"warning: {finding}" for finding in self.findings]
        if not self.complete:
            lines.append("interrupted: attacks that are not in the table were not run to their end")
        return "\n".join(lines)


def share(right: Tensor) -> float:
    return int(right.sum()) / len(right) if len(right) else math.nan
