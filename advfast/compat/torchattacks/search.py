"""APGD, APGDT, FAB, Square and AutoAttack of torchattacks, with its signatures and defaults, on advfast's attacks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from advfast import attacks
from advfast.attacks.search.base import Points, SearchAttack
from advfast.attacks.search.fab import FAB as SearchFAB
from advfast.attacks.search.fab import Run
from advfast.attacks.state import bare_model
from advfast.models.normalise import Normalise

from .gradient import OnEngine
from .multiattack import MultiAttack

_EPS = 8 / 255


class OnSearch(OnEngine):
    """An attack that returns a misclassified image where it finds one, and the clean image elsewhere.

    Draws are torchattacks' (from a generator of this attack alone, seeded by `seed` at every call; torchattacks seeds
    torch's own), and so depend on the batch; ``rng="philox"`` keys them by seed and sample. With ``fold=False`` the
    arithmetic is that of the published implementations.

    Args:
        engine: settings that torchattacks does not have: rng, fold, precision, batch_size, output, impl.
    """

    _settings: ClassVar[set[str]] = {"rng", "fold", "precision", "batch_size", "output", "impl"}
    # As torchattacks' `__init__` sets them, in the order of its repr.
    eps: float
    norm: str
    seed: int
    verbose: bool

    def __init__(self, name: str, model: Callable[[Tensor], Tensor], engine: dict[str, Any]):
        super().__init__(name, model, engine)
        self.supported_mode = ["default"]

    def _search(
        self,
        kind: type[SearchAttack],
        images: Tensor,
        labels: Tensor | None,
        **settings: Any,
    ) -> Tensor:
        if self._model_training:
            raise ValueError(
                f"{self.attack} attacks models in eval mode only, got set_model_training_mode(True)"
            )
        images, labels = self._inputs(images, labels)
        attack = kind(
            self._model_of_pixels(), self.eps, norm=self.norm, seed=int(self.seed),
            **{"rng": "upstream", **self.engine}, **settings,
        )  # fmt: skip
        crafted = attack(images, labels)
        if self.verbose:
            self._tell(images, crafted, labels)
        return crafted

    def _tell(self, images: Tensor, crafted: Tensor, labels: Tensor | None) -> None:
        if labels is None:
            labels = self.get_output_with_eval_nograd(images).argmax(1)
        right = self.get_output_with_eval_nograd(crafted).argmax(1) == labels.to(crafted.device)
        print(f"{self.attack}: robust accuracy {100 * right.float().mean():.2f} %")


class APGD(OnSearch):
    """APGD. `norm` "Linf", "L2" or "L1"; `rho` is kept in `.thr_decr`."""

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        norm: str = "Linf",
        eps: float = _EPS,
        steps: int = 10,
        n_restarts: int = 1,
        seed: int = 0,
        loss: str = "ce",
        eot_iter: int = 1,
        rho: float = 0.75,
        verbose: bool = False,
        **engine: Any,
    ) -> None:
        super().__init__("APGD", model, engine)
        self.eps = eps
        self.steps = steps
        self.norm = norm
        self.n_restarts = n_restarts
        self.seed = seed
        self.loss = loss
        self.eot_iter = eot_iter
        self.thr_decr = rho
        self.verbose = verbose

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self._search(
            attacks.APGD, images, labels, steps=self.steps, restarts=self.n_restarts,
            loss=self.loss, eot=self.eot_iter, rho=self.thr_decr,
        )  # fmt: skip


class APGDT(OnSearch):
    """APGD towards each of the n_classes - 1 likeliest wrong classes.

    In L2 each image has its own step size; in torchattacks all take that of the first image of the batch.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        norm: str = "Linf",
        eps: float = _EPS,
        steps: int = 10,
        n_restarts: int = 1,
        seed: int = 0,
        eot_iter: int = 1,
        rho: float = 0.75,
        verbose: bool = False,
        n_classes: int = 10,
        **engine: Any,
    ) -> None:
        super().__init__("APGDT", model, engine)
        self.eps = eps
        self.steps = steps
        self.norm = norm
        self.n_restarts = n_restarts
        self.seed = seed
        self.eot_iter = eot_iter
        self.thr_decr = rho
        self.verbose = verbose
        self.target_class: int | None = None
        self.n_target_classes = n_classes - 1

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self._search(
            attacks.APGDT, images, labels, steps=self.steps, restarts=self.n_restarts,
            targets=self.n_target_classes, eot=self.eot_iter, rho=self.thr_decr,
        )  # fmt: skip


class _TowardsFAB(SearchFAB):
    """FAB toward one given class of each sample."""

    def __init__(self, *args: Any, towards: Tensor, **settings: Any) -> None:
        super().__init__(*args, targets=1, **settings)
        self.towards = towards  # [B], by the sample's place in the batch

    def _others(self, points: Points, group: list[Run]) -> list[Tensor]:
        return [self.towards.to(points.ids.device)[points.ids] for _ in group]


class FAB(OnSearch):
    """FAB; with multi_targeted=True towards each of the n_classes - 1 likeliest wrong classes.

    In a targeted mode it goes towards the targets; as in torchattacks what counts is a misclassification. eps None is
    0.3 in Linf, 1 in L2 and 5 in L1.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        norm: str = "Linf",
        eps: float | None = _EPS,
        steps: int = 10,
        n_restarts: int = 1,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        verbose: bool = False,
        seed: int = 0,
        multi_targeted: bool = False,
        n_classes: int = 10,
        **engine: Any,
    ) -> None:
        super().__init__("FAB", model, engine)
        self.norm = norm
        self.n_restarts = n_restarts
        self.eps = {"Linf": 0.3, "L2": 1.0, "L1": 5.0}[norm] if eps is None else eps
        self.alpha_max = alpha_max
        self.eta = eta
        self.beta = beta
        self.steps = steps
        self.verbose = verbose
        self.seed = seed
        self.target_class: int | None = None
        self.multi_targeted = multi_targeted
        self.n_target_classes = n_classes - 1
        self.supported_mode = ["default", "targeted"]

    def _inputs(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        # The labels stay: targets are where it goes, not what it compares with.
        targeted, self.targeted = self.targeted, False
        try:
            return super()._inputs(images, labels)
        finally:
            self.targeted = targeted

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        settings: dict[str, Any] = {
            "steps": self.steps,
            "restarts": self.n_restarts,
            "alpha_max": self.alpha_max,
            "eta": self.eta,
            "beta": self.beta,
        }
        if self.multi_targeted or not self.targeted:
            settings["targets"] = self.n_target_classes if self.multi_targeted else 0
            return self._search(SearchFAB, images, labels, **settings)
        inputs, known = self._inputs(images, labels)
        towards = self.get_target_label(inputs, known)
        return self._search(_TowardsFAB, images, labels, towards=towards, **settings)


class Square(OnSearch):
    """Square. There is no targeted mode."""

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        norm: str = "Linf",
        eps: float = _EPS,
        n_queries: int = 5000,
        n_restarts: int = 1,
        p_init: float = 0.8,
        loss: str = "margin",
        resc_schedule: bool = True,
        seed: int = 0,
        verbose: bool = False,
        **engine: Any,
    ) -> None:
        super().__init__("Square", model, engine)
        self.norm = norm
        self.n_queries = n_queries
        self.eps = eps
        self.p_init = p_init
        self.n_restarts = n_restarts
        self.seed = seed
        self.verbose = verbose
        self.loss = loss
        self.rescale_schedule = resc_schedule

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self._search(
            attacks.Square, images, labels, queries=self.n_queries, restarts=self.n_restarts,
            p_init=self.p_init, loss=self.loss, rescale_schedule=self.rescale_schedule,
        )  # fmt: skip


class AutoAttack(OnSearch):
    """torchattacks' AutoAttack: its parts one after another, each on what the ones before left right.

    This is not the AutoAttack of Croce and Hein that papers and RobustBench report: torchattacks leaves APGD, APGDT and
    FAB at their default of 10 steps instead of 100, and lets Square's windows shrink by a schedule for 10,000 queries,
    so that it says more is robust. `standard()` gives the published one for the same model, as `advfast.AutoAttack` is.

    Args:
        version: "standard" (apgd-ce, apgd-t, fab-t, square), "plus" or "rand".
        n_classes: APGDT and FAB go towards n_classes - 1 classes; at most the number of logits.
        seed: of all parts; None: the time, as an integer, at construction.
        engine: settings for all parts, as for APGD.

    Raises:
        ValueError: another version.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        norm: str = "Linf",
        eps: float = _EPS,
        version: str = "standard",
        n_classes: int = 10,
        seed: int | None = None,
        verbose: bool = False,
        **engine: Any,
    ) -> None:
        super().__init__("AutoAttack", model, engine)
        self.norm = norm
        self.eps = eps
        self.version = version
        self.n_classes = n_classes
        self.seed = seed  # type: ignore[assignment]
        self.verbose = verbose
        self._autoattack = MultiAttack(self._parts())

    def _parts(self) -> list[OnSearch]:
        shared = {
            "norm": self.norm, "eps": self.eps, "seed": self.get_seed(), "verbose": self.verbose,
            **self.engine,
        }  # fmt: skip
        model, classes = self.model, self.n_classes

        def apgd(loss: str, restarts: int = 1, eot: int = 1) -> OnSearch:
            return APGD(model, loss=loss, n_restarts=restarts, eot_iter=eot, **shared)

        if self.version == "rand":
            return [apgd("ce", eot=20), apgd("dlr", eot=20)]
        targeted = APGDT(model, n_classes=classes, **shared)
        fab_t = FAB(model, multi_targeted=True, n_classes=classes, **shared)
        square = Square(model, **shared)
        if self.version == "standard":
            return [apgd("ce"), targeted, fab_t, square]
        if self.version == "plus":
            fab = FAB(model, n_restarts=5, n_classes=classes, **shared)
            return [apgd("ce", 5), apgd("dlr", 5), fab, square, targeted, fab_t]
        raise ValueError(f"version must be standard, plus or rand, got {self.version!r}")

    def get_seed(self) -> int:
        return int(time.time()) if self.seed is None else self.seed

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        images, labels = self._inputs(images, labels)
        return self._autoattack(images, labels)

    def standard(self, **settings: Any) -> attacks.AutoAttack:
        """`advfast.AutoAttack`, version "standard", with this model, norm, eps and seed; it takes pixels.

        Where `set_normalization_used` was called, the model stands behind a layer that normalises.
        """
        model, used = self.model, self.normalization_used
        if used is not None:
            inner = bare_model(self.model)
            layer = Normalise(used["mean"].flatten().tolist(), used["std"].flatten().tolist())
            layer = layer.to(self.device)
            model = (
                nn.Sequential(layer, inner)
                if isinstance(inner, nn.Module)
                else lambda x: inner(layer(x))
            )
        return attacks.AutoAttack(model, norm=self.norm, eps=self.eps, seed=self.seed, **settings)
