"""The gradient attacks of torchattacks, each a setting of PGDAttack with torchattacks' defaults and random starts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advfast.attacks import PGDAttack
from advfast.attacks.losses import widen
from advfast.attacks.state import bare_model, parameter_dtype
from advfast.models.normalise import Normalise

from .attack import Attack

# What each attack here fixes itself, or `set_model_training_mode` does.
_FIXED = {"norm", "loss", "targeted", "random_start", "bounds", "bn", "momentum", "l2_order"}
_SETTINGS = {
    name
    for name, parameter in inspect.signature(PGDAttack.__init__).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
} - _FIXED


def _published_kl(logits: Tensor, clean: Tensor) -> Tensor:
    """KL(clean || softmax(logits)), [B], in the operations of torchattacks: its bits, for fold=False."""
    log_q = torch.log_softmax(widen(logits), 1)
    return nn.functional.kl_div(log_q, clean, reduction="none").sum(1)


class OnEngine(Attack):
    """An attack on advfast's engine; those of this file in PGDAttack's inner loop.

    Args:
        engine: settings of it that torchattacks does not have: fold, precision, seed, batch_size, early_stop and so on;
            kept in `.engine`, to be changed between calls like the other attributes.

    Raises:
        TypeError: a name in `engine` that is not a setting of the engine, or one that the attack fixes.
    """

    _settings: ClassVar[set[str]] = _SETTINGS

    def __init__(self, name: str, model: Callable[[Tensor], Tensor], engine: dict[str, Any]):
        super().__init__(name, model)
        unknown = sorted(set(engine) - self._settings)
        if unknown:
            raise TypeError(
                f"{name}() got an unexpected keyword argument {unknown[0]!r}; beside torchattacks' own it takes "
                f"{', '.join(sorted(self._settings))}"
            )
        self.engine = engine
        self.supported_mode = ["default", "targeted"]
        self._pgd: PGDAttack | None = None
        self._pgd_engine: dict[str, Any] = {}
        self._pixel_model: tuple[Any, Any, nn.Module] | None = None

    def __repr__(self) -> str:
        # Without settings of our own it reads as in torchattacks.
        return super().__repr__().replace(", engine={}", "")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_pgd": None, "_pixel_model": None}

    def _inputs(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """On the attack's device, images clamped to the box, targets for labels."""
        images = images.detach()
        if self.device is not None:
            images = images.to(self.device)
            labels = None if labels is None else labels.detach().to(self.device)
        if self.targeted:
            labels = self.get_target_label(images, labels)
        return images.clamp(0, 1), labels

    def _model_of_pixels(self) -> Callable[[Tensor], Tensor]:
        """What takes the iterate: get_logits, as a module where that says the same."""
        own = type(self).get_logits is not Attack.get_logits or "get_logits" in vars(self)
        if own or not isinstance(self.model, nn.Module):
            return self.get_logits
        if self._normalization_applied is not False:
            return self.model
        used = self.normalization_used
        kept = self._pixel_model
        if kept is None or kept[0] is not self.model or kept[1] is not used:
            inner = bare_model(self.model)
            assert used is not None and isinstance(inner, nn.Module)
            layer = Normalise(used["mean"].flatten().tolist(), used["std"].flatten().tolist())
            dtype = parameter_dtype(inner)
            if dtype in (torch.float16, torch.bfloat16):
                layer = layer.to(dtype)
            kept = self._pixel_model = (
                self.model, used, nn.Sequential(layer, inner),
            )  # fmt: skip
        return kept[2].to(self.device) if self.device is not None else kept[2]

    def _craft(
        self,
        images: Tensor,
        labels: Tensor | None,
        *,
        eps: float,
        alpha: float,
        steps: int,
        init: Tensor | None = None,
        random_start: bool = False,
        norm: str = "linf",
        loss: str | Callable = "ce",
        momentum: float = 0.0,
    ) -> Tensor:
        """The inner loop on what `_inputs` gave."""
        if self._pgd is None or self._pgd_engine != self.engine:
            self._pgd = PGDAttack(self._model_of_pixels(), **self.engine)
            self._pgd_engine = dict(self.engine)
        seeded = self.engine.get("seed") is not None
        still = not isinstance(alpha, Tensor) and alpha == 0
        settings = {
            "model": self._model_of_pixels(),
            "eps": eps,
            "alpha": 1.0 if still else alpha,
            "steps": 0 if still else steps,
            "random_start": random_start or init is not None,
            "norm": norm,
            "loss": loss,
            "momentum": momentum,
            "targeted": self.targeted,
            # The modes are set by now, and what the passes do to running statistics is put back.
            "bn": "train-update" if self._model_training else "eval",
            "start": self.engine.get("start", "philox" if seeded else "torch"),
        }
        for name, value in settings.items():
            # It checks its settings again after a change.
            if getattr(self._pgd, name) is not value:
                setattr(self._pgd, name, value)
        return self._pgd(images, labels) if init is None else self._pgd(images, labels, init=init)

    def _noise(self, images: Tensor) -> tuple[Tensor, torch.Generator | None]:
        """Standard normal noise, and the generator that drew it: torch's, or a new one if `seed` is set."""
        seed, generator = self.engine.get("seed"), None
        if seed is not None:
            generator = torch.Generator(images.device).manual_seed(seed)
        return torch.empty_like(images).normal_(generator=generator), generator


class FGSM(OnEngine):
    """One step of size eps along the sign of the gradient (Goodfellow et al., ICLR 2015); linf."""

    def __init__(self, model: Callable[[Tensor], Tensor], eps: float = 8 / 255, **engine: Any):
        super().__init__("FGSM", model, engine)
        self.eps = eps

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        x, y = self._inputs(images, labels)
        return self._craft(x, y, eps=self.eps, alpha=self.eps, steps=1)


class BIM(OnEngine):
    """FGSM in small steps from the image itself (Kurakin et al., ICLR workshop 2017); linf.

    steps=0 is the paper's rule: min(255 eps + 4, 1.25 * 255 eps).
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        **engine: Any,
    ):
        super().__init__("BIM", model, engine)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps if steps else int(min(eps * 255 + 4, 1.25 * eps * 255))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        x, y = self._inputs(images, labels)
        return self._craft(x, y, eps=self.eps, alpha=self.alpha, steps=self.steps)


class RFGSM(OnEngine):
    """Steps from a random corner alpha away from the image (R+FGSM, Tramer et al., ICLR 2018); linf."""

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        **engine: Any,
    ):
        super().__init__("RFGSM", model, engine)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        x, y = self._inputs(images, labels)
        noise, _ = self._noise(x)
        start = (x + self.alpha * noise.sign_()).clamp_(0, 1)
        return self._craft(x, y, eps=self.eps, alpha=self.alpha, steps=self.steps, init=start)


class FFGSM(OnEngine):
    """One step from a uniform random start (Fast, FGSM-RS: Wong et al., ICLR 2020); linf."""

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float = 8 / 255,
        alpha: float = 10 / 255,
        **engine: Any,
    ):
        super().__init__("FFGSM", model, engine)
        self.eps = eps
        self.alpha = alpha

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        x, y = self._inputs(images, labels)
        # The normal draw is thrown away: torchattacks makes one, and the same seed gives the same start.
        noise, generator = self._noise(x)
        noise.uniform_(-self.eps, self.eps, generator=generator)
        start = noise.add_(x).clamp_(0, 1)
        return self._craft(x, y, eps=self.eps, alpha=self.alpha, steps=1, init=start)


class PGD(OnEngine):
    """Projected gradient descent (Madry et al., ICLR 2018); linf."""

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        random_start: bool = True,
        **engine: Any,
    ):
        super().__init__("PGD", model, engine)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.random_start = random_start

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        x, y = self._inputs(images, labels)
        return self._craft(
            x, y, eps=self.eps, alpha=self.alpha, steps=self.steps, random_start=self.random_start
        )


class PGDL2(OnEngine):
    """Projected gradient descent in an l2 ball (Madry et al., ICLR 2018).

    eps_for_division is there for the signature: a gradient of zero needs no such floor here.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float = 1.0,
        alpha: float = 0.2,
        steps: int = 10,
        random_start: bool = True,
        eps_for_division: float = 1e-10,
        **engine: Any,
    ):
        super().__init__("PGDL2", model, engine)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.random_start = random_start
        self.eps_for_division = eps_for_division

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        if not 0 <= self.eps_for_division <= 1e-6:
            raise ValueError(
                f"eps_for_division must be 0 .. 1e-6, got {self.eps_for_division}: steps have length alpha here "
                "however small the gradient is, and a larger floor would shorten them"
            )
        x, y = self._inputs(images, labels)
        return self._craft(
            x, y, eps=self.eps, alpha=self.alpha, steps=self.steps, norm="l2",
            random_start=self.random_start,
        )  # fmt: skip


class TPGD(OnEngine):
    """PGD on KL(clean || adversarial), the inner attack of TRADES (Zhang et al., ICML 2019); linf. Uses no labels."""

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        **engine: Any,
    ):
        super().__init__("TPGD", model, engine)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.supported_mode = ["default"]

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        x, _ = self._inputs(images, None)
        noise, _ = self._noise(x)
        start = noise.mul_(0.001).add_(x).clamp_(0, 1)
        y, loss = None, "kl"  # type: Tensor | None, str | Callable
        if not self.engine.get("fold", True):
            with torch.no_grad():
                y = torch.softmax(widen(self.get_logits(x)), 1)
            loss = _published_kl
        return self._craft(
            x, y, eps=self.eps, alpha=self.alpha, steps=self.steps, init=start, loss=loss
        )


class MIFGSM(OnEngine):
    """Iterated FGSM with momentum (Dong et al., CVPR 2018); linf."""

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 1.0,
        **engine: Any,
    ):
        super().__init__("MIFGSM", model, engine)
        self.eps = eps
        self.steps = steps
        self.decay = decay
        self.alpha = alpha

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        x, y = self._inputs(images, labels)
        return self._craft(
            x, y, eps=self.eps, alpha=self.alpha, steps=self.steps, momentum=self.decay
        )
