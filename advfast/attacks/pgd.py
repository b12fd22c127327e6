"""PGDAttack: projected gradient descent (Madry et al., ICLR 2018)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor

from advfast.kernels import random_start
from advfast.kernels.pgd.api import Bounds, Number

from . import checks, starts
from .call import Call
from .losses import Loss
from .outputs import Output
from .settings import check_settings
from .state import bare_model, crafting, parameter_dtype

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_RESULTS = ("nonfinite", "capture_note", "launches")


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
            (logits, labels) of the rows at hand that returns one value a row or, in a single run, a scalar.
        targeted: labels are the classes to reach: the loss is lowered.
        restarts: number of runs from different starts; for each sample a misclassified result is preferred, then the
            higher loss (targeted: reached the target, then the lower loss), both on the final iterate. All runs are
            one batch where `batch_size` and `fold` permit it; the result is that of one after another.
        bounds: (lo, hi) of a pixel, each a number or one value a channel; None for no box.
        bn: "eval": crafts with the whole model in eval mode. "train": with the modes of a model in train mode, running
            statistics put back. "train-update": the same, and running statistics move.
        fold: permits the engine to change the arithmetic within rounding: BN folded into convolutions, a network that
            runs without autograd and in NHWC where it can be followed (`advfast.attacks.explain(model)` says whether),
            several runs in one batch, finished samples that leave it. False: exactly the bits of the plain loop.
        precision: "fp32": the model runs in its own dtype, also under an outer autocast. "bf16", "fp16": it runs under
            autocast, with the iterate, the loss and the softmax in float32 and the logit gradient rescaled.
        capture: on CUDA, "auto": from the second call of a kind on, the whole attack is one CUDA graph; a later call
            copies its inputs in and replays it, with the weights as they are then. "required": at the first call, and
            RuntimeError if it cannot be. "off": never. `capture_note` says why a call was not.
        compile: "on": the network runs by torch.compile, whose first calls take tens of seconds. "auto", "off": it does
            not; the engine's own steps are faster wherever both were measured.
        impl: implementation of the fused step: "auto", "reference", "cpp", "cuda", "triton".
        seed: integer: starts are keyed by (seed, sample id, restart), independent of the batch split. None: a new seed
            for each call from torch's generator, so that torch.manual_seed governs it.
        start: "philox" as above, or "torch": drawn by torch's generator exactly as torchattacks draws it (linf, l2).
        l2_order: "ball-box" (torchattacks, foolbox) or "box-ball-box" (cleverhans, ART).
        check: check images and labels by value, with one synchronisation before the first gradient.
        momentum: decay of MI-FGSM's velocity (Dong et al., CVPR 2018): the step follows
            ``g <- momentum * g + grad / mean(|grad|)`` of each sample; 0 for none.
        eot: the gradient is the mean over so many passes of a model that draws random numbers (Athalye et al., ICML
            2018), and logits that decide on success are too. In 16-bit precision each pass weighs alike, as its
            gradient is rescaled.
        early_stop: a sample whose iterate is found to succeed (misclassified; targeted: the class is reached) keeps
            that iterate. The forward pass of a step is what tells, so that the last iterate is not looked at. Of
            several runs of a sample the first that stopped is kept, in the order of the restarts and, in each, of the
            targets.
        targets: so many runs for each start, each towards one of the wrong classes that are most likely on the clean
            image, with the targeted form of the loss; "margin" and "dlr" compare that class with the label (Croce &
            Hein, ICML 2020, eq. 7). A misclassified result is preferred, then the larger margin. 0: none of it.
        cycles: "auto": a run of 32 or more deterministic sign steps ends for a sample whose iterate repeats an earlier
            one, with the iterate that the full run ends with. What draws from torch's generators is not taken for
            deterministic; "off" is for a model that draws from others.
        compact_every: steps after which finished samples leave the batch (bn="eval" only), the one synchronisation of
            the loop; without `early_stop` and cycles there is none. The result does not depend on it.
        batch_size: most rows (samples x runs) of a pass; larger inputs are run in pieces. None: all samples at once.
        max_bytes: the same by memory: pieces that are estimated to take so many bytes, weights not counted. The
            estimate is made from what one sample's forward pass keeps.
        output: where the logits are in what the model returns: a key or attribute, an index, or a function of it.

    Raises:
        TypeError, ValueError: bad settings, here or (when changed later) at the call.
    """

    STEP_OF_EPS: ClassVar[float] = 0.25
    """The step size in units of eps where alpha is None."""

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
        momentum: float = 0.0,
        eot: int = 1,
        early_stop: bool = False,
        targets: int = 0,
        cycles: str = "auto",
        compact_every: int = 5,
        batch_size: int | None = None,
        max_bytes: int | None = None,
        output: Output = None,
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
        self.momentum = momentum
        self.eot = eot
        self.early_stop = early_stop
        self.targets = targets
        self.cycles = cycles
        self.compact_every = compact_every
        self.batch_size = batch_size
        self.max_bytes = max_bytes
        self.output = output
        self.nonfinite: Tensor | None = None
        """After a call: int64 [1], the number of gradient entries that were not finite, in the steps that were made."""
        self.capture_note = ""
        """After a call: why it was not captured, if that was asked for."""
        self.launches = 0
        """Replays of captured graphs so far."""
        self._prepared: tuple[tuple, Call] | None = None
        self._validate()
        self._checked = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _RESULTS and not name.startswith("_"):
            self.__dict__["_checked"], self.__dict__["_prepared"] = False, None
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}

    def __repr__(self) -> str:
        shown = {
            name: value
            for name, value in vars(self).items()
            if name != "model" and name not in _RESULTS and not name.startswith("_")
        }
        settings = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"{type(self).__name__}(model={type(self.model).__name__}, {settings})"

    def __call__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        sample_ids: Tensor | None = None,
        mask: Tensor | None = None,
        init: Tensor | None = None,
    ) -> Tensor:
        """Adversarial images.

        Args:
            images: [B, ...], float16, bfloat16, float32 or float64, inside `bounds`.
            labels: [B], integer classes (the targets if `targeted`), or probabilities of the classes, [B, K]. None: the
                model's predictions on `images`.
            sample_ids: [B] int64, numbers of the samples in the data set, so that the random start does not depend on
                the batch split; default 0 .. B-1.
            mask: bool or 0 and 1, broadcasts over images: which entries may change, by start and steps.
            init: like images, the iterate to start from in place of a random start; projected onto ball and box.

        Returns:
            A new tensor, detached, with the shape, dtype, device and memory format of images; inside the ball and the
            box also after rounding to a 16-bit dtype.

        Raises:
            TypeError, ValueError: what was wrong, expected and got; the model is left as it was.
            RuntimeError: the model's output does not depend on its input, or `impl` cannot run here.
        """
        if not self._checked:
            self._validate()
            self._checked = True
        model = bare_model(self.model)
        checks.check_images(images, model)
        if labels is not None:
            labels = checks.check_labels(labels, images)
            checks.check_soft(self.loss, labels)
        elif self.targeted:
            raise ValueError("a targeted attack needs labels: the classes to reach")
        if len(images) == 0:
            self.nonfinite = torch.zeros(1, dtype=torch.int64, device=images.device)
            return torch.empty_like(images)
        with ExitStack() as stack:
            # Works where the caller switched gradients off; what was made in inference mode is copied.
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(
                torch.autocast(
                    images.device.type, _AUTOCAST[self.precision], self.precision != "fp32"
                )
            )
            stack.enter_context(crafting(model, self.bn))
            call = self._call_for(model, images)
            result, self.nonfinite = call(images, labels, sample_ids, mask, init)
        if result.device.type == "cpu" and self.check and self.nonfinite.item():
            warnings.warn(
                f"{self.nonfinite.item()} gradient entries were not finite; those pixels (l2, l1: "
                "samples) did not move in that step",
                RuntimeWarning,
                stacklevel=2,
            )
        return result

    def _validate(self) -> None:
        check_settings(self)

    def _call_for(self, model: Callable[[Tensor], Tensor], images: Tensor) -> Call:
        """The prepared call of this kind of input, made anew when that or a setting changed."""
        key = (images.shape, images.dtype, images.device, parameter_dtype(model))
        if (
            self._prepared is None
            or self._prepared[0] != key
            or self._prepared[1].model is not model
        ):
            self._prepared = key, Call(self, model, images)
        return self._prepared[1]

    def _start(
        self,
        x0: Tensor,
        eps: Number,
        norm: str,
        seed: Tensor | None,
        restart: int,
        sample_ids: Tensor | None,
    ) -> Tensor:
        """A random start, [B, ...] like x0: by the seed, or where that is None by torch's generator."""
        if seed is None:
            return starts.of_torchattacks(
                x0, eps=eps, norm=norm, bounds=self.bounds, impl=self.impl
            )
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
