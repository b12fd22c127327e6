"""J^T v and J w for the samples of one batch, J [n R, P] the Jacobian of the readouts by the parameters.

J^T v is a backward pass. J w is a forward pass that carries derivatives along (`method` "forward"); where an operation
of the network has no such rule, it is the derivative of J^T u by u ("double_backward"), which is linear in u, so that
its value does not matter: Townsend, "A new trick for calculating Jacobian vector products", 2017.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from .batches import Batch
from .readouts import Cotangents
from .subject import Subject

METHODS = ("auto", "forward", "double_backward")
_ADJOINT = {torch.float32: 1e-4, torch.float64: 1e-10}
_TRIED = 8  # samples that the methods are tried on


class Products:
    """
    Args:
        subject: the network; every call is made under `subject.running()`.
        cotangents: the readouts.
        method: "forward", "double_backward", or "auto" for the first of them that works, found by `settle`.
    """

    def __init__(self, subject: Subject, cotangents: Cotangents, method: str):
        self.subject, self.cotangents = subject, cotangents
        self.names = tuple(subject.parameters)
        self.parameters = tuple(subject.parameters.values())
        self.settled = False
        self.method = method
        self.reason = ""
        self._together = True  # several columns in one pass, by vmap
        self._keep = False
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def zeros(self, k: int) -> list[Tensor]:
        """k vectors of the parameters' space, [k, *shape] for each parameter."""
        return [p.new_zeros(k, *p.shape, requires_grad=False) for p in self.parameters]

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """Within, the graph of a batch is kept for its next J^T v (one that is asked for one batch only)."""
        self._keep = True
        try:
            yield
        finally:
            self._keep = False
            self._kept.clear()

    def readout(self, logits: Tensor, batch: Batch) -> Tensor:
        """C [n, R, O]."""
        rows = torch.arange(batch.start, batch.stop) if self.cotangents.per_sample else None
        return self.cotangents(logits, batch.y, rows)

    def pull(self, batch: Batch, v: Tensor, into: list[Tensor]) -> None:
        """Adds J^T v, v [k, n, R], to `into`."""
        logits, c = self._kept.get(batch.start) or self._graph(batch)
        if self._keep:
            self._kept[batch.start] = logits, c
        seeds = torch.einsum("knr,nro->kno", v, c)
        for i, seed in enumerate(seeds):
            retain = self._keep or i + 1 < len(seeds)
            grads = torch.autograd.grad(
                logits, self.parameters, seed, retain_graph=retain, allow_unused=True
            )
            for total, grad in zip(into, grads, strict=True):
                if grad is not None:
                    total[i] += grad

    def push(self, batch: Batch, w: list[Tensor]) -> Tensor:
        """J w [k, n, R] for w [k, *shape] of each parameter."""
        logits, tangents = self.derivative(batch.x, w)
        return torch.einsum("kno,nro->knr", tangents, self.readout(logits, batch))

    def derivative(self, x: Tensor, w: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [n, O] and their derivatives along w, [k, n, O]."""
        if self.method == "double_backward":
            return self._double_backward(x, w)
        return self._forward(x, w)

    def settle(self, batch: Batch) -> None:
        """Finds the method that works, by a product for the first samples and its adjoint.

        Raises:
            RuntimeError: none does.
        """
        if self.settled:
            return
        stop = min(len(batch.x), _TRIED)
        few = Batch(
            batch.x[:stop],
            None if batch.y is None else batch.y[:stop],
            batch.start,
            batch.start + stop,
        )
        reasons: list[str] = []
        for method in ("forward", "double_backward") if self.method == "auto" else (self.method,):
            self.method, self._together = method, True
            try:
                reason = self._differs(few)
            except torch.OutOfMemoryError:
                raise
            except (
                RuntimeError
            ) as error:  # also NotImplementedError, of an operation without a rule
                reason = str(error).splitlines()[0]
            if not reason:
                self.settled, self.reason = True, "; ".join(reasons)
                return
            reasons.append(f"{method}: {reason}")
        raise RuntimeError(
            "the network has no derivative along its parameters (J w) that can be used. "
            + "; ".join(reasons)
        )

    def _differs(self, batch: Batch) -> str:
        """<u, J w> must be <J^T u, w>: a rule that drops a part would otherwise go unnoticed."""
        draw = torch.Generator().manual_seed(0)

        def normal(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=draw, dtype=like.dtype).to(like.device)

        w = [normal(t) for t in self.zeros(1)]
        product = self.push(batch, w)
        u = normal(product)
        pulled = self.zeros(1)
        self.pull(batch, u, pulled)
        left = float((u.double() * product.double()).sum())
        right = sum(float((a.double() * b.double()).sum()) for a, b in zip(pulled, w, strict=True))
        size = float(u.double().norm() * product.double().norm())
        if abs(left - right) > _ADJOINT[product.dtype] * max(size, abs(right)):
            return f"<u, J w> = {left:.6g}, but <J^T u, w> = {right:.6g}"
        return ""

    def _graph(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            logits = self.subject.logits(batch.x)
        if not logits.requires_grad:
            raise ValueError(
                "the outputs depend on none of the parameters that the kernel is taken over "
                f"({', '.join(self.names[:3])}{', ...' if len(self.names) > 3 else ''})"
            )
        check_finite(logits.detach(), "outputs", batch.start)
        return logits, self.readout(logits, batch)

    def _forward(self, x: Tensor, w: list[Tensor]) -> tuple[Tensor, Tensor]:
        values = {n: p.detach() for n, p in zip(self.names, self.parameters, strict=True)}

        def logits(parameters: dict[str, Tensor]) -> Tensor:
            return self.subject.logits(x, parameters)

        def along(*column: Tensor) -> tuple[Tensor, Tensor]:
            tangents = dict(zip(self.names, column, strict=True))
            out, tangent = torch.func.jvp(logits, (values,), (tangents,))[:2]
            return out, tangent

        k = len(w[0])
        with torch.no_grad(), _no_fused_attention(), warnings.catch_warnings():
            # torch compiles its rules at the first use by a function it has deprecated.
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
            # Of an operation that vmap takes one by one it tells so: then the loop below is better.
            warnings.filterwarnings("error", "There is a performance drop")
            if k > 1 and self._together:
                try:
                    out, tangents = torch.func.vmap(along)(*w)
                    return out[0], tangents
                except torch.OutOfMemoryError:
                    raise
                except (RuntimeError, UserWarning):  # an operation that vmap cannot take
                    self._together = False
            parts = [along(*(t[i] for t in w)) for i in range(k)]
        return parts[0][0], torch.stack([tangent for _, tangent in parts])

    def _double_backward(self, x: Tensor, w: list[Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            logits = self.subject.logits(x)
            u = torch.zeros_like(logits, requires_grad=True)
            grads = torch.autograd.grad(
                logits, self.parameters, u, create_graph=True, allow_unused=True
            )
        used = [i for i, g in enumerate(grads) if g is not None and g.requires_grad]
        k = len(w[0])
        columns = [
            torch.autograd.grad(
                [grads[i] for i in used],
                u,
                [w[i][column] for i in used],
                retain_graph=column + 1 < k,
                allow_unused=True,
            )[0]
            for column in range(k)
        ]
        zero = torch.zeros_like(logits)
        return logits.detach(), torch.stack([zero if t is None else t.detach() for t in columns])


def check_finite(values: Tensor, what: str, start: int = 0) -> None:
    """values [n, ...] of the samples from `start` on."""
    bad = ~values.isfinite().flatten(1).all(1)
    if bad.any():
        sample = start + int(bad.nonzero()[0])
        raise ValueError(f"the network's {what} are not finite, first at sample {sample}")


@contextlib.contextmanager
def _no_fused_attention() -> Iterator[None]:
    """torch.nn's attention otherwise takes a fused path where nothing requires grad, one without derivatives."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
