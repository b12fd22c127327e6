"""ART's gradient attacks: ProjectedGradientDescent and the three that are special cases of it."""

from __future__ import annotations

import math
from typing import NoReturn

import numpy as np

from ..absent import missing
from ..batches import Batches, Settings
from ..labels import as_targets
from ..target import Target, open_target

Radius = int | float | np.ndarray


class EvasionAttack:
    """Parameters, their checks and `generate`; a subclass names its parameters in `attack_params`."""

    attack_params: tuple[str, ...] = ()
    norm: int | float | str
    eps: Radius
    eps_step: Radius
    targeted: bool
    num_random_init: int
    batch_size: int
    summary_writer: object

    def __init__(self, estimator: object, *, fold: bool, precision: str) -> None:
        self._estimator = estimator
        self._target: Target | None = open_target(estimator)
        self._batches = Batches(fold, precision)
        self._check_params()

    @property
    def estimator(self) -> object:
        """The classifier that is attacked."""
        return self._estimator

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.attack_params)
        return f"{type(self).__name__}({shown})"

    def __getstate__(self) -> dict:
        # The target is opened anew: it compares what it was made from by identity.
        return {**self.__dict__, "_target": None}

    def set_params(self, **kwargs: object) -> None:
        """Changes parameters; after an error they are what they were.

        Raises:
            ValueError, TypeError: an unknown name, or a bad value.
        """
        for name in kwargs:
            if name not in self.attack_params:
                raise ValueError(
                    f"{type(self).__name__} has no parameter {name!r}; "
                    f"it has {', '.join(self.attack_params)}"
                )
        before = {name: getattr(self, name) for name in kwargs}
        self.__dict__.update(kwargs)
        try:
            self._check_params()
        except (TypeError, ValueError, NotImplementedError):
            self.__dict__.update(before)
            raise

    def generate(
        self, x: np.ndarray, y: np.ndarray | None = None, *, mask: np.ndarray | None = None
    ) -> np.ndarray:
        """Adversarial inputs.

        Args:
            x: [N, ...], inside the estimator's clip_values.
            y: indices [N] or one row of nb_classes numbers a sample: the labels, or the classes to reach if
                `targeted`. None: the model's predictions.
            mask: bool or float, broadcasts over x; where it is 0 nothing changes, and the random start neither.

        Returns:
            float32, the shape of x.

        Raises:
            TypeError, ValueError: what was wrong, expected and got.
        """
        self._check_params()
        if not isinstance(x, np.ndarray) or x.ndim < 2:
            what = f"shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
            raise TypeError(f"x must be a numpy array [N, ...], got {what}")
        self._target = target = open_target(self._estimator, self._target)
        labels = None if y is None else as_targets(y, len(x), target.classes)
        if labels is None and self.targeted:
            raise ValueError("a targeted attack needs y: the classes to reach")
        if mask is not None:
            mask = _checked_mask(mask, x)
        return self._batches.run(target, self._settings(), x, labels, mask)

    def _settings(self) -> Settings:
        raise NotImplementedError

    def _check_params(self) -> None:
        if _order(self.norm) < 1:
            raise ValueError(f"norm must be 'inf', np.inf or a number >= 1, got {self.norm!r}")
        kinds = (int, float), np.ndarray
        if not any(isinstance(self.eps, k) and isinstance(self.eps_step, k) for k in kinds):
            raise TypeError(
                "eps and eps_step must both be numbers or both be numpy arrays, got "
                f"{type(self.eps).__name__} and {type(self.eps_step).__name__}"
            )
        if not np.all(np.asarray(self.eps) >= 0):
            raise ValueError(f"eps must be 0 or more, got {self.eps}")
        if not np.all(np.asarray(self.eps_step) > 0):
            raise ValueError(f"eps_step must be above 0, got {self.eps_step}")
        if np.shape(self.eps) != np.shape(self.eps_step):
            raise ValueError(
                "eps and eps_step must have the same shape, got "
                f"{np.shape(self.eps)} and {np.shape(self.eps_step)}"
            )
        if not isinstance(self.targeted, bool):
            raise ValueError(f"targeted must be True or False, got {self.targeted!r}")
        if not isinstance(self.num_random_init, int):
            raise TypeError(f"num_random_init must be an integer, got {self.num_random_init!r}")
        if self.num_random_init < 0:
            raise ValueError(f"num_random_init must be 0 or more, got {self.num_random_init}")
        if self.batch_size <= 0:
            raise ValueError(f"batch_size must be above 0, got {self.batch_size}")
        if self.summary_writer:
            raise NotImplementedError(
                "summary_writer is not built here: use art for a TensorBoard record of an attack"
            )


class ProjectedGradientDescent(EvasionAttack):
    """Projected gradient descent (Madry et al., ICLR 2018) with ART's arguments, defaults and order of operations.

    Args:
        estimator: a `PyTorchClassifier`, from advfast.compat.art or from art.
        norm: "inf", np.inf, 2, 1 or another number above 1.
        eps, eps_step: radius and step in the units of x: two numbers, or two arrays that broadcast over x (one value a
            feature; norm inf: any shape, others: one value a sample).
        decay: momentum (Dong et al., CVPR 2018); None for none.
        max_iter: number of steps.
        targeted: y are the classes to reach.
        num_random_init: number of random starts; 0 starts at x. np.random.seed governs them.
        batch_size: samples that are on the device at a time; 32 as in ART is far too small for a GPU.
        random_eps: draws a new eps for each `generate`, as ART does, and eps_step with it.
        summary_writer: False.
        verbose: a progress bar over the batches.
        fold: permits a change of arithmetic within rounding; False for the bits of the plain loop.
        precision: "fp32", "bf16" or "fp16" for the network; norm inf and 2.

    Raises:
        TypeError, ValueError: as ART raises them, here, in `set_params` and in `generate`.
    """

    attack_params = (
        "norm", "eps", "eps_step", "decay", "targeted", "num_random_init", "batch_size", "max_iter",
        "random_eps", "summary_writer", "verbose",
    )  # fmt: skip

    def __init__(
        self,
        estimator: object,
        norm: int | float | str = np.inf,
        eps: Radius = 0.3,
        eps_step: Radius = 0.1,
        decay: float | None = None,
        max_iter: int = 100,
        targeted: bool = False,
        num_random_init: int = 0,
        batch_size: int = 32,
        random_eps: bool = False,
        summary_writer: object = False,
        verbose: bool = True,
        *,
        fold: bool = True,
        precision: str = "fp32",
    ) -> None:
        self.norm = norm
        self.eps = eps
        self.eps_step = eps_step
        self.decay = decay
        self.max_iter = max_iter
        self.targeted = targeted
        self.num_random_init = num_random_init
        self.batch_size = batch_size
        self.random_eps = random_eps
        self.summary_writer = summary_writer
        self.verbose = verbose
        super().__init__(estimator, fold=fold, precision=precision)

    def _check_params(self) -> None:
        super()._check_params()
        if (
            isinstance(self.max_iter, bool)
            or not isinstance(self.max_iter, int)
            or self.max_iter < 0
        ):
            raise ValueError(f"max_iter must be an integer >= 0, got {self.max_iter!r}")
        if self.decay is not None and not self.decay >= 0:
            raise ValueError(f"decay must be None or 0 or more, got {self.decay}")
        if not isinstance(self.verbose, bool):
            raise ValueError(f"verbose must be True or False, got {self.verbose!r}")

    def _settings(self) -> Settings:
        eps, step = self.eps, self.eps_step
        if self.random_eps:
            from scipy.stats import truncnorm  # slow to import, and seldom wanted

            # Half a normal distribution of standard deviation eps / 2, cut off at eps (Kurakin et al., 2017).
            size = eps.shape if isinstance(eps, np.ndarray) else None
            drawn = np.round(truncnorm(0, 2, loc=0, scale=np.asarray(eps) / 2).rvs(size), 10)
            step = step / eps * drawn
            eps = drawn
        return Settings(
            p=_order(self.norm),
            eps=eps,
            alpha=step,
            steps=self.max_iter,
            momentum=self.decay,
            targeted=self.targeted,
            starts=self.num_random_init,
            batch_size=self.batch_size,
            verbose=self.verbose,
        )


ProjectedGradientDescentPyTorch = ProjectedGradientDescent


class FastGradientMethod(EvasionAttack):
    """One step of eps (Goodfellow et al., ICLR 2015). Arguments as `ProjectedGradientDescent`; eps_step is not used.

    Raises:
        NotImplementedError: minimal=True, the search for the smallest step.
    """

    attack_params = (
        "norm", "eps", "eps_step", "targeted", "num_random_init", "batch_size", "minimal",
        "summary_writer",
    )  # fmt: skip

    def __init__(
        self,
        estimator: object,
        norm: int | float | str = np.inf,
        eps: Radius = 0.3,
        eps_step: Radius = 0.1,
        targeted: bool = False,
        num_random_init: int = 0,
        batch_size: int = 32,
        minimal: bool = False,
        summary_writer: object = False,
        *,
        fold: bool = True,
        precision: str = "fp32",
    ) -> None:
        self.norm = norm
        self.eps = eps
        self.eps_step = eps_step
        self.targeted = targeted
        self.num_random_init = num_random_init
        self.batch_size = batch_size
        self.minimal = minimal
        self.summary_writer = summary_writer
        super().__init__(estimator, fold=fold, precision=precision)

    def _check_params(self) -> None:
        super()._check_params()
        if not isinstance(self.minimal, bool):
            raise ValueError(f"minimal must be True or False, got {self.minimal!r}")
        if self.minimal:
            raise NotImplementedError(
                "minimal=True, the smallest step that succeeds, is not built here: use art for it"
            )

    def _settings(self) -> Settings:
        return Settings(
            p=_order(self.norm),
            eps=self.eps,
            alpha=self.eps,
            steps=1,
            momentum=None,
            targeted=self.targeted,
            starts=self.num_random_init,
            batch_size=self.batch_size,
            verbose=False,
        )


class BasicIterativeMethod(ProjectedGradientDescent):
    """Kurakin et al., 2017: norm inf without a random start. Arguments as `ProjectedGradientDescent`."""

    def __init__(
        self,
        estimator: object,
        eps: Radius = 0.3,
        eps_step: Radius = 0.1,
        max_iter: int = 100,
        targeted: bool = False,
        batch_size: int = 32,
        verbose: bool = True,
        *,
        fold: bool = True,
        precision: str = "fp32",
    ) -> None:
        super().__init__(
            estimator, np.inf, eps, eps_step, None, max_iter, targeted, 0, batch_size,
            verbose=verbose, fold=fold, precision=precision,
        )  # fmt: skip


class MomentumIterativeMethod(ProjectedGradientDescent):
    """MI-FGSM (Dong et al., CVPR 2018). Arguments as `ProjectedGradientDescent`."""

    def __init__(
        self,
        estimator: object,
        norm: int | float | str = np.inf,
        eps: Radius = 0.3,
        eps_step: Radius = 0.1,
        decay: float = 1.0,
        max_iter: int = 100,
        targeted: bool = False,
        batch_size: int = 32,
        verbose: bool = True,
        *,
        fold: bool = True,
        precision: str = "fp32",
    ) -> None:
        super().__init__(
            estimator, norm, eps, eps_step, decay, max_iter, targeted, 0, batch_size,
            verbose=verbose, fold=fold, precision=precision,
        )  # fmt: skip


def _order(norm: object) -> float:
    return math.inf if norm == "inf" else float(norm)  # type: ignore[arg-type]


def _checked_mask(mask: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The mask as bool, with x's number of dimensions."""
    if not isinstance(mask, np.ndarray):
        raise TypeError(f"mask must be a numpy array, got {type(mask).__name__}")
    if not (mask.dtype == bool or np.issubdtype(mask.dtype, np.floating)):
        raise ValueError(f"mask must be bool or float, got {mask.dtype}")
    if np.issubdtype(mask.dtype, np.floating) and mask.size and mask.min() < 0:
        raise ValueError(f"mask must hold 0 or positive numbers, got {mask.min()}")
    mask = mask.reshape((1,) * (x.ndim - mask.ndim) + mask.shape) != 0
    if mask.ndim != x.ndim or any(
        m not in (1, n) for m, n in zip(mask.shape, x.shape, strict=True)
    ):
        raise ValueError(f"mask of shape {mask.shape} does not broadcast over x of {x.shape}")
    return mask


def __getattr__(name: str) -> NoReturn:
    raise missing(name)
