"""Several runs of a sample: towards which classes they go, and which result is kept."""

from __future__ import annotations

import torch
from torch import Tensor

STOPPED, SUCCEEDED, FAILED = 2, 1, 0
"""What a run came to: it stopped early with success; its last iterate succeeds; neither."""


def most_likely_wrong(logits: Tensor, classes: Tensor, count: int) -> Tensor:
    """[B, count] the wrong classes of highest logit, the highest first."""
    wrong = logits.scatter(1, classes[:, None], -torch.inf)
    return wrong.topk(count, 1).indices


def choose(outcome: Tensor, value: Tensor) -> Tensor:
    """[B] which of the runs is kept: the highest outcome, then the highest value, then the first; NaN counts as lowest.

    Of runs that stopped early the first is kept, whatever its value.

    Args:
        outcome: [R, B] one of the three above.
        value: [R, B].
    """
    value = torch.where(value.isnan(), -torch.inf, value)
    value = torch.where(outcome == STOPPED, 0.0, value)
    best = outcome == outcome.amax(0)
    highest = torch.where(best, value, -torch.inf).amax(0)
    number = torch.arange(outcome.shape[0], device=outcome.device)[:, None]
    return torch.where(best & (value == highest), number, outcome.shape[0]).amin(0)
