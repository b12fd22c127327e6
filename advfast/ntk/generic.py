"""The exact gradient of any parameters, sample by sample, for those that no rule covers."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .subject import Subject

_BYTES = 256 << 20  # of rows that vmap makes at once
_GRADIENTS = 64  # samples times readouts that it has under way at once


class Generic:
    """Rows J [n, R, elements of all parameters named], each sample run as a batch of one.

    torch.func's vmap of vjp where it gives what autograd gives for a sample, else autograd for one sample and readout
    after another (custom functions, recurrent layers, compiled modules). Under `subject.running()`.
    """

    def __init__(
        self, subject: Subject, names: tuple[str, ...], example: Tensor, cotangents: Tensor
    ):
        """example [m, ...] and cotangents [m, R, O]: for the choice."""
        self._subject, self.names = subject, names
        self.columns = sum(subject.parameters[name].numel() for name in names)
        self._rows: Callable[[Tensor, Tensor], Tensor] = self._looped
        if any(isinstance(module, torch.jit.ScriptModule) for module in subject.model.modules()):
            return  # what it is compiled to changes after some runs
        expected = self._looped(example[:1], cotangents[:1])
        try:
            got = self._mapped(example[:1], cotangents[:1])
        except Exception:  # whatever torch.func has no rule for
            return
        scale = expected.abs().amax().clamp_min(1e-30)
        tolerance = 1e-3 if got.dtype == torch.float32 else 1e-9
        if bool((got - expected).abs().amax() <= tolerance * scale):
            self._rows = self._mapped

    @property
    def mapped(self) -> bool:
        """Whether torch.func does it."""
        return self._rows == self._mapped

    def __call__(self, x: Tensor, cotangents: Tensor) -> Tensor:
        """J [n, R, columns] of x [n, ...] and cotangents [n, R, O]."""
        return self._rows(x, cotangents)

    def _mapped(self, x: Tensor, cotangents: Tensor) -> Tensor:
        subject = self._subject
        values = {name: subject.parameters[name].detach() for name in self.names}

        def sample(one: Tensor, c: Tensor) -> Tensor:
            def logits(stand_ins: dict[str, Tensor]) -> Tensor:
                return subject.logits(one.unsqueeze(0), stand_ins).squeeze(0)

            pull = torch.func.vjp(logits, values)[1]
            (rows,) = torch.func.vmap(pull)(c)
            return torch.cat([rows[name].flatten(1) for name in self.names], 1)

        row = self.columns * cotangents.shape[1] * x.new_empty((), dtype=cotangents.dtype).itemsize
        chunk = max(1, min(_BYTES // max(1, row), _GRADIENTS // cotangents.shape[1]))
        with torch.no_grad(), warnings.catch_warnings():  # of what is around the transforms
            warnings.filterwarnings("ignore", "There is a performance drop")
            return torch.func.vmap(sample, chunk_size=chunk)(x, cotangents).contiguous()

    def _looped(self, x: Tensor, cotangents: Tensor) -> Tensor:
        parameters = [self._subject.parameters[name] for name in self.names]
        out = cotangents.new_empty(*cotangents.shape[:2], self.columns)
        for i in range(len(x)):
            logits = self._subject.logits(x[i : i + 1])[0]
            for r, c in enumerate(cotangents[i]):
                grads = torch.autograd.grad(
                    logits,
                    parameters,
                    c,
                    retain_graph=True,
                    materialize_grads=True,
                    allow_unused=True,
                )
                torch.cat([g.flatten() for g in grads], out=out[i, r])
        return out
