"""The penalty of REAT on features of rare classes, and where features come from."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def tail_penalty(
    features: Tensor,
    labels: Tensor,
    is_tail: Tensor,
    rarity: Tensor,
    *,
    pairwise: bool,
    anchors: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """TAIL of Li et al. (arXiv 2307.10205), a 0-d tensor; 0 where no sample is of a tail class.

    With k_ij = KL(softmax h_i || softmax h_j), anchors i (samples of tail classes, no gradient) and samples j of the
    batch, s_ij = -1 for two of one class, else 1, and W_ij = v_{y_i} + v_{y_j}, v_c = sqrt(sum n / n_c):

    * pairwise: mean over anchors of the mean over j of s_ij W_ij k_ij: samples of a tail class spread, and others are
      drawn to them. Not bounded below.
    * released: k_i, the mean of k_ij over j divided by D, in place of k_ij. This is what the authors' code computes,
      whose loss reduces to the mean over all B x D entries: everything is drawn to every anchor.

    Args:
        features: h, [B, D]; 16 bits are widened.
        labels: [B] classes.
        is_tail: bool [C].
        rarity: v, [C].
        anchors: (features [A, D], labels [A]) of all samples of the batch, where `features` are those of one process:
            the mean over j is then that of this process, and its mean over the processes is the penalty of the batch.
    """
    of, classes = (features, labels) if anchors is None else anchors
    log_q = torch.log_softmax(_wide(features), 1)
    log_p = torch.log_softmax(_wide(of.detach()), 1)
    p = log_p.exp()
    kl = (p * log_p).sum(1)[:, None] - p @ log_q.T  # [A, B]
    # As a mask, so that no shape depends on the data.
    chosen = is_tail[classes].to(kl.dtype)
    share = chosen / chosen.sum().clamp(min=1)
    others = labels if pairwise else classes
    sign = torch.where(classes[:, None] == others, -1.0, 1.0).to(kl.dtype)
    factor = sign * (rarity[classes][:, None] + rarity[others]).to(kl.dtype)
    if pairwise:
        return (share * (factor * kl).mean(1)).sum()
    return (share * factor.mean(1) * kl.mean(1)).sum() / features.shape[1]


class Features:
    """A context in which the input of a module is kept; nothing stays in the model."""

    def __init__(self, layer: tuple[str, nn.Module]) -> None:
        self.name, self._module = layer
        self._seen: list[object] = []

    def __enter__(self) -> Features:
        self._handle = self._module.register_forward_pre_hook(
            lambda module, inputs: self._seen.append(inputs[0] if inputs else None)
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()

    @property
    def input(self) -> Tensor:
        """Of the module's last call."""
        seen = self._seen[-1]
        assert isinstance(seen, Tensor)
        return seen

    def check(self, rows: int) -> None:
        """
        Raises:
            ValueError: the module was not called with features [rows, D].
        """
        if not self._seen:
            raise ValueError(f"module {self.name!r} is not called by the model: give features")
        shape = getattr(self._seen[-1], "shape", None)
        if shape is None or len(shape) != 2 or shape[0] != rows:
            got = "no tensor" if shape is None else f"shape {tuple(shape)}"
            raise ValueError(
                f"the input of module {self.name!r} must be features [B, D] = [{rows}, D], got {got}"
            )


def linear_layer(model: nn.Module, name: object) -> tuple[str, nn.Module]:
    """(name, module) of the module of this name, or where it is None of the last nn.Linear.

    Raises:
        ValueError: there is none.
    """
    found = dict(model.named_modules())
    if name is None:
        linear = [name for name, module in found.items() if isinstance(module, nn.Linear)]
        if not linear:
            raise ValueError(
                f"{type(model).__name__} has no nn.Linear whose input would be its features: give features, the name "
                "of a module"
            )
        name = linear[-1]
    if not isinstance(name, str) or name not in found:
        raise ValueError(
            f"features must be the name of a module of {type(model).__name__}, such as "
            f"{list(found)[-1]!r}, got {name!r}"
        )
    return name, found[name]


def _wide(features: Tensor) -> Tensor:
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
