"""Findings about the mode in which a model is handed in."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .borrowed import borrowed, kept
from .finding import Finding, Value

_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_DROPOUT = nn.modules.dropout._DropoutNd


def train_mode(
    model: object, right: Callable[[], int] | None = None, samples: int = 0
) -> tuple[Finding, ...]:
    """ "train-mode", if a layer whose function depends on the mode is in train mode.

    Call it on the model as it is handed in: evaluation and attacks put it into eval mode, where this does not show.

    Args:
        model: anything; only an nn.Module has modes.
        right: how many of `samples` images the model has right as it is. Its modes and buffers are put back.
    """
    if not isinstance(model, nn.Module):
        return ()
    norms = sum(isinstance(m, _BATCH_NORM) and m.training for m in model.modules())
    drops = sum(isinstance(m, _DROPOUT) and m.training and m.p > 0 for m in model.modules())
    if not norms + drops:
        return ()
    layers = " and ".join(
        f"{count} {name} layer{'s' if count > 1 else ''}"
        for count, name in ((norms, "BN"), (drops, "dropout"))
        if count
    )
    values: dict[str, Value] = {"batch_norms": norms, "dropouts": drops}
    measured = ""
    if right is not None and samples:
        given, evaluated = _in_modes(model, right)
        values |= {"samples": samples, "right_as_given": given, "right_in_eval": evaluated}
        measured = (
            f"; of {samples} clean images {given} are right as it is, {evaluated} in eval mode"
        )
    return (
        Finding(
            "train-mode",
            f"the model was handed in with {layers} in train mode, and is evaluated in eval mode{measured}",
            "call model.eval(); a number that was measured in train mode is of another function, whose BN sees the "
            "whole batch",
            values,
        ),
    )


def _in_modes(model: nn.Module, right: Callable[[], int]) -> tuple[int, int]:
    """(as the model is, in eval mode)"""
    with kept(model):
        given = right()
    with borrowed(model):
        return given, right()
