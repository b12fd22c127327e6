"""The kernel as an operator: Theta v = J (J^T v) by one backward and one forward pass, Theta itself is never formed."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from . import eigen, estimators, exact, operands, quadrature, solve
from .batches import Batch, Batches
from .estimators import Estimate
from .products import METHODS, Products, check_finite
from .quadrature import Density, Function
from .readouts import Cotangents, Readout, check_readout
from .solve import Solution
from .subject import Subject

_COLUMNS = 16  # vectors in one pass; more of them gain little and take activations of their own


class NTKOperator:
    """Theta [N R, N R] of a network at the samples x, row i R + r for readout r of sample i.

    Every product reads the data twice, batch after batch: a backward pass for w = J^T v summed over the batches, then a
    forward pass that carries the derivative along w. `method` says how the second is made (see `products`); it is tried
    at the start, and <u, J w> = <J^T u, w> checked.

    The network is run as for `advfast.ntk.ntk`: in eval mode, without TF32, and left as it was found. It must not
    change while the operator is used.

    Args:
        model: maps [n, ...] to logits [n, O]; float32 or float64.
        x: tensor [N, ...], a pair (x, y), a Dataset of (image, label), or a DataLoader that does not shuffle.
        y: int64 [N] labels, in place of those of the data. "margin" and "loss" need them.
        readout: as for `advfast.ntk.ntk`, but for "trace". Where it depends on the logits ("margin", "loss", a
            callable) it is its derivative at the present logits, held fixed.
        params: names of parameters or modules, or parameters; None for all that require grad.
        bn, bn_batch: "eval", or "frozen" with the images whose statistics are used.
        batch_size: samples a pass, 128 by default.
        method: "auto", "forward" or "double_backward".
        max_bytes: of vectors of the parameters' length that are held at once.

    Raises:
        TypeError, ValueError: a bad argument, before any product.
        RuntimeError: the network cannot be differentiated along its parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        x: object,
        *,
        y: Tensor | None = None,
        readout: Readout = "full",
        params: Iterable[str | nn.Parameter] | None = None,
        bn: str = "eval",
        bn_batch: Tensor | None = None,
        batch_size: int | None = None,
        method: str = "auto",
        max_bytes: int = 1 << 30,
    ):
        check_readout(readout)
        if isinstance(readout, str) and readout == "trace":
            raise ValueError(
                "readout='trace' is a sum of R kernels, so that it is no J J^T of one J and has no operator; use "
                "'full' (its trace is the same) or 'sum'"
            )
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        self.subject = Subject(model, params=params, bn=bn, bn_batch=bn_batch)
        self.bn_batch = bn_batch
        self.device, self.dtype = self.subject.device, self.subject.dtype
        self.batches = Batches(x, y, batch_size, self.device, self.dtype)
        self.n, self.labels = self.batches.n, self.batches.labels
        self.centre = False
        first = next(iter(self.batches))
        self._one_batch = first.stop == self.n
        with self.subject.running():
            logits = self.subject.logits(first.x[:1]).detach()
            self.cotangents = Cotangents(readout, logits.shape[1])
            self.cotangents.check_labels(self.labels, self.n, "y")
            if isinstance(readout, Tensor) and readout.dim() == 3 and len(readout) != self.n:
                raise ValueError(
                    f"readout as [N, R, O] must have a row for each of the {self.n} samples, got {len(readout)}"
                )
            self.products = Products(self.subject, self.cotangents, method)
            one = Batch(first.x[:1], None if first.y is None else first.y[:1], 0, 1)
            self.readouts = self.products.readout(logits, one).shape[1]
            self.products.settle(first)
        length = sum(p.numel() for p in self.subject.parameters.values())
        size = length * torch.empty((), dtype=self.dtype).element_size()
        if max_bytes < size:
            raise ValueError(
                f"max_bytes={max_bytes} is too small for one vector of {length} parameters: at least {size}"
            )
        self.vectors = max_bytes // size  # of the parameters' length

    @property
    def shape(self) -> tuple[int, int]:
        return self.n * self.readouts, self.n * self.readouts

    @property
    def method(self) -> str:
        """How J w is made: "forward" or "double_backward"."""
        return self.products.method

    def centred(self) -> NTKOperator:
        """H Theta H with H = I - 1 1^T / N over the samples: the kernel of the Jacobian less its mean."""
        other = copy.copy(self)
        other.centre = True
        return other

    def uncentred(self) -> NTKOperator:
        """Theta itself, of `centred()`."""
        other = copy.copy(self)
        other.centre = False
        return other

    # Products.

    def vjp(self, v: Tensor) -> dict[str, Tensor]:
        """J^T v for v [N, R] or [N R]: a tensor for each parameter, by name."""
        columns, _ = operands.vector(self, v, "v")
        pulled = self._pull(columns)
        return {name: t[0] for name, t in zip(self.products.names, pulled, strict=True)}

    def jvp(self, w: Mapping[str, Tensor]) -> Tensor:
        """J w [N, R] for a tensor of each parameter, by name."""
        return self._push(operands.weights(self, w))[0]

    def matvec(self, v: Tensor) -> Tensor:
        """Theta v for v [N, R] or [N R], in the shape of v and the operator's dtype.

        Raises:
            ValueError: v of another length, or not finite.
        """
        columns, shape = operands.vector(self, v, "v")
        return self._theta(columns)[0].reshape(shape)

    def matmat(self, v: Tensor) -> Tensor:
        """Theta V for V [N R, k]."""
        columns = operands.matrix(self, v, "V")
        out = columns.new_empty(columns.shape)
        for part in torch.arange(len(columns)).split(self.width):
            out[part] = self._theta(columns[part])
        return out.flatten(1).T

    def __matmul__(self, v: Tensor) -> Tensor:
        """`matvec` for [N R] or [N, R], `matmat` for [N R, k]."""
        if isinstance(v, Tensor) and v.dim() == 2 and tuple(v.shape) != (self.n, self.readouts):
            return self.matmat(v)
        return self.matvec(v)

    @property
    def width(self) -> int:
        """Columns that are multiplied at once."""
        return max(1, min(_COLUMNS, self.vectors // 2))

    # What is exact.

    def diagonal_blocks(self) -> Tensor:
        """Theta_ii [N, R, R], exact: from the engine's blocks on the diagonal."""
        return exact.diagonal_blocks(self)

    def trace(self) -> float:
        """Exact, at the cost of `diagonal_blocks`."""
        return float(self.diagonal_blocks().double().diagonal(dim1=1, dim2=2).sum())

    def fro(self) -> float:
        """|Theta|_F, exact: from all blocks of the engine, none of which is kept. Else see `frobenius`."""
        return exact.frobenius(self)

    def dense(self) -> Tensor:
        """Theta [N R, N R] by the engine of `advfast.ntk.ntk`."""
        return exact.dense(self)

    def label_alignment(self, y: Tensor | None = None) -> float:
        """y^T Theta y = |J^T y|^2, by one backward pass over the data.

        Args:
            y: targets [N, R], or classes [N] that are made one-hot; the labels of the data by default. (On `centred()`
                they are centred too: with |Theta|_F and |y|^2 below it that is Baratin et al., AISTATS 2021.)
        """
        pulled = self._pull(operands.targets(self, y)[None])
        return sum(float(t.double().square().sum()) for t in pulled)

    # Estimates. `samples` are random vectors of signs, the same for the same seed.

    def hutchinson_trace(
        self, samples: int = 32, *, per_sample: bool = False, seed: int = 0
    ) -> Estimate:
        """tr Theta = E |J^T z|^2; `per_sample`: = E sum_i |J_i^T z_i|^2, which has no variance between samples.

        Both are one-sided, a backward pass each; `per_sample` also takes the engine's products of each sample with
        itself.
        """
        return estimators.trace(self, samples, per_sample, seed)

    def frobenius(self, samples: int = 32, *, seed: int = 0) -> Estimate:
        """|Theta|_F from E |Theta z|^2 = |Theta|_F^2. (The square of the value is without bias, not the value.)"""
        return estimators.frobenius(self, samples, seed)

    def slq(
        self,
        function: Function | Sequence[str] = "effective_rank",
        *,
        probes: int = 16,
        steps: int = 32,
        ridge: float = 0.0,
        seed: int = 0,
    ) -> Estimate | dict[str, Estimate]:
        """tr f(Theta) by stochastic Lanczos quadrature; see `quadrature.Quadrature` for the names.

        Args:
            function: "trace", "frobenius", "logdet" (of Theta + ridge I), "effective_rank", several of them, or a
                callable of a tensor of eigenvalues.
            probes: random vectors, at least 2.
            steps: Lanczos steps, that is products with Theta, of each.
        """
        return quadrature.run(self, probes, steps, seed).functional(function, ridge)

    def spectral_density(
        self,
        grid: Tensor | None = None,
        *,
        width: float | None = None,
        probes: int = 16,
        steps: int = 32,
        seed: int = 0,
    ) -> Density:
        """Density of the eigenvalues (integral 1), each smoothed to a Gaussian of standard deviation `width`."""
        return quadrature.run(self, probes, steps, seed).density(grid, width)

    # Linear algebra.

    def eigsh(
        self,
        k: int,
        *,
        method: str = "lobpcg",
        start: str | Tensor | None = None,
        tol: float | None = None,
        maxiter: int = 500,
        seed: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The k largest eigenvalues.

        Args:
            k: how many.
            method: "lobpcg" (blocks of vectors) or "lanczos" (thick restarts, full reorthogonalisation).
            start: "labels" (centred one-hot, where the large ones of a classifier's kernel lie), "random", or a tensor
                [N R, m]; by default the labels where there are some.
            tol: |Theta v - lambda v| at most tol x the largest eigenvalue; by default 1e-9, and 1e-5 for float32, whose
                products are no better than about 1e-6.
            maxiter: iterations; for Lanczos restarts.

        Returns:
            (values [k] descending, vectors [N R, k], |Theta v - lambda v| [k]), in float64.

        Raises:
            ValueError: k not in 1 .. N R, or a bad start.
            NotConverged: with what was reached.
        """
        return eigen.eigsh(self, k, method, start, tol, maxiter, seed)

    def solve(
        self,
        b: Tensor,
        *,
        ridge: float,
        tol: float | None = None,
        method: str = "auto",
        maxiter: int = 1000,
        rank: int | None = None,
        seed: int = 0,
    ) -> Solution:
        """x with (Theta + ridge I) x = b.

        Args:
            b: [N, R], [N R] or [N R, k].
            ridge: 0 or more.
            tol: relative residual of the conjugate gradients; by default 1e-10, and 1e-5 for float32.
            method: "cholesky" (Theta is formed, float64), "cg", or "auto": Cholesky up to 4096 rows.
            rank: of the preconditioner, so many products; 0 for none.

        Raises:
            ValueError: b of another shape, or a negative ridge.
            NotConverged: with the residual and what to try.
        """
        return solve.solve(self, b, ridge, tol, method, maxiter, rank, seed)

    def predict(
        self,
        x_test: Tensor,
        *,
        alpha: Tensor | None = None,
        targets: Tensor | None = None,
        ridge: float = 0.0,
        tol: float | None = None,
    ) -> Tensor:
        """f0(x*) + J(x*) J^T alpha [n, R]: kernel regression without a kernel between x* and x.

        Args:
            x_test: [n, ...].
            alpha: [N, R], the solution; or
            targets: [N, R] or classes [N]: alpha is `solve(targets - f0(x), ridge=ridge, tol=tol)`.
        """
        return solve.predict(self, x_test, alpha, targets, ridge, tol)

    # Shared by the algorithms.

    def outputs(self) -> Tensor:
        """The readouts of the network itself, f0(x) [N, R]; for readouts that are combinations of the logits."""
        with self.subject.running(), torch.no_grad():
            parts = [self._readout(self.subject.logits(batch.x)) for batch in self.batches]
        out = torch.cat(parts)
        check_finite(out, "outputs")
        return out

    def _readout(self, logits: Tensor) -> Tensor:
        return torch.einsum("no,nro->nr", logits, self.cotangents(logits, None))

    def _linearised(self, x: Tensor, alpha: Tensor) -> Tensor:
        """f0(x) + J(x) J^T alpha."""
        w = self._pull(operands.vector(self, alpha, "alpha")[0])
        parts = []
        with self.subject.running():
            for batch in Batches(x, None, None, self.device, self.dtype):
                logits, tangents = self.products.derivative(batch.x, w)
                parts.append(self._readout(logits + tangents[0]))
        out = torch.cat(parts)
        check_finite(out, "outputs")
        return out

    def apply(self, v: Tensor) -> Tensor:
        """`matmat` for the algorithms: float64 to float64."""
        return self.matmat(v).double()

    @contextlib.contextmanager
    def repeated(self) -> Iterator[None]:
        """For several products in turn: data of one batch keep their graph meanwhile."""
        with self.products.keeping() if self._one_batch else contextlib.nullcontext():
            yield

    def _centred(self, columns: Tensor) -> Tensor:
        return columns - columns.mean(1, keepdim=True) if self.centre else columns

    def _theta(self, columns: Tensor) -> Tensor:
        return self._push(self._pull(columns))

    def _pull(self, columns: Tensor) -> list[Tensor]:
        """J^T of [k, N, R]."""
        columns = self._centred(columns)
        into = self.products.zeros(len(columns))
        with self.subject.running():
            for batch in self.batches:
                self.products.pull(batch, columns[:, batch.start : batch.stop], into)
        return into

    def _push(self, w: list[Tensor]) -> Tensor:
        """J of k vectors: [k, N, R]."""
        with self.subject.running():
            parts = [self.products.push(batch, w) for batch in self.batches]
        out = torch.cat(parts, 1)
        check_finite(out.transpose(0, 1), "derivatives")
        return self._centred(out)
