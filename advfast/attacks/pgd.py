"""PGDAttack: projected gradient descent (Madry et al., ICLR 2018)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack, nullcontext

import torch
from torch import Tensor

from advfast import _backend
from advfast.kernels import project_, random_start
from advfast.kernels.pgd.api import L2_ORDERS, Bounds, Number, check_norm

from . import checks
from .engine import ascend
from .first_layer import fast_first_layer
from .losses import LOSSES, MIN_CLASSES, Loss, check_loss
from .state import BN_MODES, crafting, parameter_dtype

_STARTS = ("philox", "torch")
_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class PGDAttack:
    """Projected gradient descent in an linf, l2 or l1 ball. Call it: ``attack(images, labels)``.

    The first five arguments are those of ``torchattacks.PGD``: changing the import is the whole migration. All are
    plain attributes and may be changed between calls.

    Args:
        model: an nn.Module or any callable that maps images [B, ...] to logits [B, K]; normalisation belongs inside it.
            An nn.Module is left as it was found: modes of every submodule, .grad, requires_grad, buffers.
        eps: radius in pixel units of [0, 1]: a number, or a tensor that broadcasts over the images (one value a sample:
            [B, 1, 1, 1]).
        alpha: step size, in the same units; None is eps / 4.
        steps: number of steps, 0 or more.
        random_start: start from a random point of the ball (linf: of the cube).
        norm: "linf", "l2" or "l1"; see `advfast.kernels.pgd_step_` for the exact step of each.
        loss: "ce", "margin" (Carlini-Wagner), "dlr", "kl" (against the clean prediction: TRADES), or a function of
            (logits [B, K], labels [B]) that returns [B] or, without restarts, a scalar.
        targeted: labels are the classes to reach: the loss is lowered.
        restarts: number of runs from different starts; for each sample a misclassified result is preferred, then the
            higher loss (targeted: reached the target, then the lower loss), both on the final iterate.
        bounds: (lo, hi) of a pixel, each a number or one value a channel; None for no box.
        bn: "eval": crafts with the whole model in eval mode. "train": with the modes of a model in train mode, running
            statistics put back. "train-update": the same, and running statistics move.
        fold: permits the engine to change the arithmetic within rounding. False: exactly the bits of the plain loop. So
            far it changes one thing: on a CPU the input gradient of a first convolution (at most 4 channels, float32)
            is `advfast.kernels.conv2d_input_grad`, which sums in another order.
        precision: "fp32": the model runs in its own dtype, also under an outer autocast. "bf16", "fp16": it runs under
            autocast, with the iterate, the loss and the softmax in float32 and the logit gradient rescaled.
        capture: "auto" or "off"; CUDA-graph capture is not built yet and "required" raises.
        compile: "auto" or "off"; the loop is not compiled yet.
        impl: implementation of the fused step: "auto", "reference", "cpp", "cuda", "triton".
        seed: integer: starts are keyed by (seed, sample id, restart), independent of the batch split. None: a new seed
            for each call from torch's generator, so that torch.manual_seed governs it.
        start: "philox" as above, or "torch": drawn by torch's generator exactly as torchattacks draws it (linf, l2).
        l2_order: "ball-box" (torchattacks, foolbox) or "box-ball-box" (cleverhans, ART).
        check: check images and labels by value, with one synchronisation before the first gradient.

    Raises:
        TypeError, ValueError: bad settings, here or (when changed later) at the call.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: Number = 8 / 255,
        alpha: Number | None = 2 / 255,
        steps: int = 10,
        random_start: bool = True,
        *,
        norm: str = "linf",
        loss: str | Loss = "ce",
        targeted: bool = False,
        restarts: int = 1,
        bounds: Bounds = (0.0, 1.0),
        bn: str = "eval",
        fold: bool = True,
        precision: str = "fp32",
        capture: str = "auto",
        compile: str = "auto",
        impl: str = "auto",
        seed: int | None = None,
        start: str = "philox",
        l2_order: str = "ball-box",
        check: bool = True,
    ) -> None:
        self.model = model
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.random_start = random_start
        self.norm = norm
        self.loss = loss
        self.targeted = targeted
        self.restarts = restarts
        self.bounds = bounds
        self.bn = bn
        self.fold = fold
        self.precision = precision
        self.capture = capture
        self.compile = compile
        self.impl = impl
        self.seed = seed
        self.start = start
        self.l2_order = l2_order
        self.check = check
        self.nonfinite: Tensor | None = None
        """After a call: int64 [1], the number of gradient entries that were not finite."""
        self._validate()

    def __repr__(self) -> str:
        shown = {
            name: value for name, value in vars(self).items() if name not in ("model", "nonfinite")
        }
        settings = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"PGDAttack(model={type(self.model).__name__}, {settings})"

    def __call__(
        self, images: Tensor, labels: Tensor | None = None, *, sample_ids: Tensor | None = None
    ) -> Tensor:
        """Adversarial images.

        Args:
            images: [B, ...], float16, bfloat16, float32 or float64, inside `bounds`.
            labels: [B], integer classes (the targets if `targeted`). None: the model's predictions on `images`.
            sample_ids: [B] int64, numbers of the samples in the data set, so that the random start does not depend on
                the batch split; default 0 .. B-1.

        Returns:
            A new tensor, detached, with the shape, dtype, device and memory format of images; inside the ball and the
            box also after rounding to a 16-bit dtype.

        Raises:
            TypeError, ValueError: what was wrong, expected and got; the model is left as it was.
            RuntimeError: the model's output does not depend on its input, or `impl` cannot run here.
        """
        self._validate()
        checks.check_images(images, self.model)
        if labels is not None:
            labels = checks.check_labels(labels, images)
        elif self.targeted:
            raise ValueError("a targeted attack needs labels: the classes to reach")
        with ExitStack() as stack:
            # Works where the caller switched gradients off; what was made in inference mode is copied.
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(
                torch.autocast(
                    images.device.type, _PRECISIONS[self.precision], self.precision != "fp32"
                )
            )
            stack.enter_context(crafting(self.model, self.bn))
            return self._run(images, labels, sample_ids)

    def _validate(self) -> None:
        if not callable(self.model):
            raise TypeError(f"model must be callable, got {type(self.model).__name__}")
        checks.check_radius(self.eps)
        if self.alpha is not None:
            checks.check_step(self.alpha)
        checks.check_count("steps", self.steps, 0)
        checks.check_count("restarts", self.restarts, 1)
        norm = check_norm("PGDAttack", self.norm)
        check_loss(self.loss)
        checks.check_choice("bn", self.bn, BN_MODES)
        checks.check_choice("precision", self.precision, tuple(_PRECISIONS))
        checks.check_choice("compile", self.compile, ("auto", "off"))
        checks.check_choice("capture", self.capture, ("auto", "off", "required"))
        checks.check_choice("impl", self.impl, ("auto", *_backend.IMPLS))
        checks.check_choice("start", self.start, _STARTS)
        checks.check_choice("l2_order", self.l2_order, L2_ORDERS)
        if self.capture == "required":
            raise RuntimeError("capture='required': this version does not capture CUDA graphs")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                f"restarts={self.restarts} with random_start=False repeats the same run: "
                "set random_start=True or restarts=1"
            )
        if self.loss == "kl" and not self.random_start and self.steps:
            raise ValueError(
                "loss='kl' has no gradient at the clean image: it needs random_start=True"
            )
        if self.loss == "kl" and self.targeted:
            raise ValueError("loss='kl' does not use labels: targeted must be False")
        if self.start == "torch" and norm == "l1":
            raise ValueError("start='torch' is defined for linf and l2; for l1 use start='philox'")

    def _run(self, images: Tensor, labels: Tensor | None, sample_ids: Tensor | None) -> Tensor:
        own = parameter_dtype(self.model)
        wide = torch.float64 if torch.float64 in (images.dtype, own) else torch.float32
        input_dtype = wide if own is None else own
        if own is None and images.dtype != wide:
            input_dtype = images.dtype
        x0 = _dense_copy(images, wide)
        norm = check_norm("PGDAttack", self.norm)
        batch = x0.shape[0]
        clean: Tensor | None = None
        least = MIN_CLASSES.get(self.loss, 1) if isinstance(self.loss, str) else 1
        unchecked = self.check
        first_layer = fast_first_layer(self.model, x0) if self.fold else nullcontext()

        def forward(model_input: Tensor) -> Tensor:
            nonlocal unchecked
            logits = checks.check_logits(self.model(model_input), batch, least, self.loss)
            if unchecked:
                unchecked = False
                checks.check_values(x0, self.bounds, labels, logits.shape[1])
            if torch.is_grad_enabled():
                checks.check_differentiable(logits)
            return logits

        if batch == 0:
            return torch.empty_like(images)
        if labels is not None and labels.is_inference():
            labels = labels.clone()  # autograd cannot save a tensor made in inference mode
        if self.loss == "kl" or (labels is None and (self.steps or self.restarts > 1)):
            with torch.no_grad():
                clean = forward(x0 if input_dtype == wide else x0.to(input_dtype))
            if labels is None:
                labels = clean.argmax(1)
        reference = clean if self.loss == "kl" else labels
        loss = LOSSES[self.loss] if isinstance(self.loss, str) else self.loss

        def objective(logits: Tensor) -> Tensor:
            value = loss(logits, reference)  # type: ignore[arg-type]  # labels exist by now
            return -value if self.targeted else value

        self.nonfinite = torch.zeros(1, dtype=torch.int64, device=x0.device)
        eps = self._widened(self.eps, wide)
        alpha = eps / 4 if self.alpha is None else self._widened(self.alpha, wide)
        seed = self._seed(x0.device)
        best: Tensor | None = None
        rank: tuple[Tensor, Tensor] | None = None
        for restart in range(self.restarts):
            x = self._start(x0, eps, norm, seed, restart, sample_ids)
            if self.steps:
                # Also around the backward pass: a checkpointed network computes its layers there once more.
                with first_layer:
                    ascend(
                        forward,
                        x,
                        x0,
                        objective,
                        steps=self.steps,
                        alpha=alpha,
                        eps=eps,
                        norm=norm,
                        bounds=self.bounds,
                        l2_order=self.l2_order,
                        input_dtype=input_dtype,
                        sixteen_bit=self.precision != "fp32",
                        nonfinite=self.nonfinite,
                        impl=self.impl,
                    )
            if self.restarts == 1:
                best = x
                break
            found = self._rank(x, x0, eps, norm, input_dtype, forward, objective, labels)
            best, rank = (x, found) if best is None else _keep_best(best, rank, x, found)
        if unchecked:
            checks.check_values(x0, self.bounds, None, None)
        if x0.device.type == "cpu" and self.check and self.nonfinite.item():
            warnings.warn(
                f"{self.nonfinite.item()} gradient entries were not finite; those pixels (l2, l1: "
                "samples) did not move in that step",
                RuntimeWarning,
                stacklevel=3,
            )
        assert best is not None
        if best.dtype != images.dtype:
            best = self._narrow(best, x0, images.dtype, eps, norm)
        if best.stride() != images.stride():
            best = torch.empty_like(images).copy_(best)
        return best

    @staticmethod
    def _widened(value: Number, dtype: torch.dtype) -> Number:
        return value.detach().to(dtype) if isinstance(value, Tensor) else value

    def _seed(self, device: torch.device) -> Tensor | None:
        if not self.random_start or self.start == "torch":
            return None
        if self.seed is None:
            return torch.randint(2**63 - 1, (1,), device=device)
        return torch.full((1,), self.seed, dtype=torch.int64, device=device)

    def _start(
        self,
        x0: Tensor,
        eps: Number,
        norm: str,
        seed: Tensor | None,
        restart: int,
        sample_ids: Tensor | None,
    ) -> Tensor:
        if not self.random_start:
            return x0.clone()
        if seed is not None:
            return random_start(
                x0,
                eps=eps,
                norm=norm,
                bounds=self.bounds,
                seed=seed,
                offset=restart,
                sample_ids=sample_ids,
                impl=self.impl,
            )
        # The draws of torchattacks.PGD and PGDL2, in their order.
        if norm == "linf":
            if isinstance(eps, Tensor):
                start = x0 + torch.empty_like(x0).uniform_(-1, 1) * eps
            else:
                start = x0 + torch.empty_like(x0).uniform_(-eps, eps)
        else:
            delta = torch.empty_like(x0).normal_()
            size = delta.flatten(1).norm(p=2, dim=1).reshape(-1, *[1] * (x0.dim() - 1))
            radius = torch.zeros_like(size).uniform_(0, 1)
            start = x0 + delta * (radius / size * eps)
        return project_(start, x0, eps=eps, norm=norm, bounds=self.bounds, impl=self.impl)

    def _rank(
        self, x, x0, eps, norm, input_dtype, forward, objective, labels
    ) -> tuple[Tensor, Tensor]:
        """([B] attack succeeded, [B] objective) on the final iterate, as the model sees it."""
        seen = x if input_dtype == x.dtype else self._narrow(x, x0, input_dtype, eps, norm)
        with torch.no_grad():
            logits = forward(seen)
            value = objective(logits)
            predicted = logits.argmax(1)
        if value.shape != predicted.shape:
            raise ValueError(
                f"with restarts the loss must return one value a sample, shape "
                f"({predicted.shape[0]},), got {tuple(value.shape)}"
            )
        assert labels is not None
        return (predicted == labels) if self.targeted else (predicted != labels), value

    def _narrow(self, x: Tensor, x0: Tensor, dtype: torch.dtype, eps: Number, norm: str) -> Tensor:
        """x in another dtype, still inside the ball and the box."""
        result = torch.empty_like(x, dtype=dtype)
        project_(x, x0, eps=eps, norm=norm, bounds=self.bounds, out=result, impl=self.impl)
        return result


def _dense_copy(images: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in `dtype` that keeps NCHW or NHWC order; any other strides become NCHW."""
    images = images.detach()
    layout = torch.contiguous_format
    if images.dim() == 4 and not images.is_contiguous():
        if images.is_contiguous(memory_format=torch.channels_last):
            layout = torch.channels_last
    elif images.dim() == 5 and images.is_contiguous(memory_format=torch.channels_last_3d):
        layout = torch.channels_last_3d
    return images.to(dtype, memory_format=layout, copy=True)


def _keep_best(best, rank, x, found) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """For each sample the run that succeeded, then the one with the higher objective."""
    success, value = found
    old_success, old_value = rank
    better = (success & ~old_success) | ((success == old_success) & (value > old_value))
    pick = better.reshape(-1, *[1] * (x.dim() - 1))
    return (
        torch.where(pick, x, best),
        (torch.where(better, success, old_success), torch.where(better, value, old_value)),
    )
