"""What of the network's outputs the kernel is taken of: R readouts, each a combination of the O logits.

A readout is given by cotangents C [n, R, O]: row r of sample i is the combination of logits whose gradient is wanted.
Where C depends on the logits ("margin", "loss", a callable) it is the derivative at the present logits, held fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NAMES = ("full", "sum", "trace", "margin", "loss")
Readout = str | int | Tensor | Callable[[Tensor], Tensor]


def check_readout(readout: object, name: str = "readout") -> None:
    """Raises what can be said without the network."""
    if isinstance(readout, str):
        if readout not in NAMES:
            raise ValueError(
                f"{name} must be one of {', '.join(NAMES)}, a class index, a matrix [R, O] or [N, R, O], or a "
                f"callable, got {readout!r}"
            )
    elif isinstance(readout, bool) or not (isinstance(readout, (int, Tensor)) or callable(readout)):
        raise TypeError(
            f"{name} must be a name ({', '.join(NAMES)}), a class index, a matrix [R, O] or [N, R, O], or a "
            f"callable, got {type(readout).__name__}"
        )
    elif isinstance(readout, Tensor) and (
        readout.dim() not in (2, 3) or not readout.is_floating_point()
    ):
        raise ValueError(
            f"{name}: a tensor must be float [R, O] or [N, R, O], got {readout.dtype} of shape {tuple(readout.shape)}"
        )


@dataclass(frozen=True)
class Cotangents:
    """A readout, made ready for a network of `outputs` logits.

    `trace`: the kernel wanted is the sum over r of Theta[r, r], so the R readouts end as one.
    """

    readout: Readout
    outputs: int

    def __post_init__(self) -> None:
        check_readout(self.readout)
        r, o = self.readout, self.outputs
        if isinstance(r, int) and not -o <= r < o:
            raise ValueError(f"readout: class {r} is not one of the network's {o} outputs")
        if isinstance(r, Tensor) and r.shape[-1] != o:
            raise ValueError(
                f"readout must have O={o} columns like the network's outputs, got shape {tuple(r.shape)}"
            )

    @property
    def trace(self) -> bool:
        return isinstance(self.readout, str) and self.readout == "trace"

    @property
    def needs_labels(self) -> bool:
        return isinstance(self.readout, str) and self.readout in ("margin", "loss")

    @property
    def per_sample(self) -> bool:
        """Whether the readout is a tensor with a row block for each sample ([N, R, O])."""
        return isinstance(self.readout, Tensor) and self.readout.dim() == 3

    def check_labels(self, y: Tensor | None, n: int, name: str) -> None:
        """Labels int64 [n] in 0 .. O-1, where the readout needs them."""
        if not self.needs_labels:
            return
        if y is None:
            raise ValueError(f"readout={self.readout!r} needs the labels {name}, got none")
        if y.dtype.is_floating_point or y.dtype == torch.bool or tuple(y.shape) != (n,):
            raise ValueError(
                f"{name} must be {n} class indices, one a sample, got {y.dtype} of shape {tuple(y.shape)}"
            )
        if n and (int(y.min()) < 0 or int(y.max()) >= self.outputs):
            raise ValueError(
                f"{name} must be class indices 0 .. {self.outputs - 1}, got {int(y.min())} .. {int(y.max())}"
            )

    def __call__(self, logits: Tensor, y: Tensor | None, rows: Tensor | None = None) -> Tensor:
        """C [n, R, O], detached, the dtype and device of `logits` [n, O].

        Args:
            y: labels [n] for "margin" and "loss".
            rows: int64 [n], which rows of a per-sample readout these samples are.
        """
        logits = logits.detach()
        n, o = logits.shape
        readout = self.readout
        if isinstance(readout, Tensor):
            c = readout.to(device=logits.device, dtype=logits.dtype)
            if readout.dim() == 2:
                return c.expand(n, *c.shape)
            return c if rows is None else c[rows.to(c.device)]
        eye = torch.eye(o, dtype=logits.dtype, device=logits.device)
        if isinstance(readout, int):
            return eye[readout].expand(n, 1, o)
        if not isinstance(readout, str):
            return _derivative(readout, logits)
        if readout in ("full", "trace"):
            return eye.expand(n, o, o)
        if readout == "sum":
            return logits.new_ones(1, 1, o).expand(n, 1, o)
        assert y is not None  # check_labels
        own = eye[y.to(logits.device)]
        if readout == "loss":  # gradient of the cross-entropy
            return (logits.softmax(1) - own).unsqueeze(1)
        best_other = logits.masked_fill(own.bool(), -torch.inf).argmax(1)
        return (own - eye[best_other]).unsqueeze(1)


def _derivative(readout: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """d readout(logits)[:, r] / d logits, [n, R, O]."""
    with torch.enable_grad():
        leaf = logits.clone().requires_grad_()
        values = readout(leaf)
        if not isinstance(values, Tensor) or values.dim() not in (1, 2) or len(values) != len(leaf):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"readout: the callable must map logits [n, O] to [n] or [n, R], got {got} for {tuple(leaf.shape)}"
            )
        values = values.reshape(len(leaf), -1)
        if not values.requires_grad:
            raise ValueError("readout: the callable's result does not depend on the logits")
        rows = [
            torch.autograd.grad(values[:, r].sum(), leaf, retain_graph=True)[0]
            for r in range(values.shape[1])
        ]
    return torch.stack(rows, 1)
