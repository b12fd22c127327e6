"""advfast.AutoAttack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advfast import _backend
from advfast.attacks import checks
from advfast.attacks.outputs import Output, check_output
from advfast.attacks.sanity import Finding, examine
from advfast.attacks.search.base import RNGS
from advfast.attacks.search.oracle import Oracle
from advfast.attacks.state import bare_model, model_device
from advfast.kernels.pgd.api import check_norm

from .log import Log
from .loop import Watch
from .parts import Attack, names_of
from .result import AutoAttackResult
from .samples import Samples, check_samples
from .session import Session, pushed
from .versions import VERSIONS, Knobs, knobs

_EXAMINED = 64
_NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class AutoAttack:
    """AutoAttack, the standard evaluation of robustness (Croce and Hein, ICML 2020), with the original's interface.

    Attacks run one after another, each on the samples that are still right, and a sample counts as robust when all have
    failed. Versions: "standard": APGD-CE, targeted APGD-DLR, targeted FAB, Square; "plus": with untargeted APGD-DLR and
    FAB and more restarts; "rand": APGD-CE and APGD-DLR with 20 gradients averaged, for randomised defences; "custom":
    what `attacks_to_run` says. Settings of the attacks are those of the original, and can be changed as there, by its
    names or ours: ``.apgd.n_restarts``, ``.apgd_targeted.n_target_classes``, ``.fab.n_restarts``,
    ``.square.n_queries``, ``.apgd.eot_iter``, ``.apgd.n_iter``.

    Unlike the original: any number of classes from 2 and any image shape; soft and one-hot labels; the model is left as
    it was found and runs in eval mode; whether a sample is broken is judged on the plain model, also where attacks use
    a faster one; a seed of None is 0, not the clock; a setting that an attack does not have is an error.

    Args:
        model: images [B, ...] in [0, 1] -> logits [B, K], K >= 2; normalisation belongs inside it.
        norm: "Linf", "L2" or "L1", in any case.
        eps: radius in pixel units of [0, 1]; 0 gives the clean accuracy.
        version: "standard", "plus", "rand" or "custom".
        seed: integer of the random draws; None is 0, so that a rerun gives the same (the original takes the clock).
        attacks_to_run: with version="custom": any of "apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square", and
            instances of `SearchAttack`, which keep their own settings.
        verbose: print how far it has come.
        device: of the model; None finds it. Images may be elsewhere: batches are taken to it.
        log_path: a file that the same lines are appended to, also where they are not printed.
        is_tf_model: not supported.
        rng: "philox": draws are keyed by (seed, sample number), and the result does not depend on batches, order or
            split. "upstream": the draws and the batches of the original, on a CPU.
        fold: permits the engine to change the arithmetic within rounding.
        precision: "fp32" (the model's own dtype), or "bf16", "fp16": attacks run the model under autocast; whether a
            sample is broken is decided in its own dtype.
        batch_size: most rows of a pass through the model. None: what keeps the device busy.
        output: where the logits are in what the model returns.
        impl: implementation of the fused steps.
        progress: show a bar where standard error is a terminal.
        sanity: `run_standard_evaluation` looks at the first 64 samples for what makes a robust accuracy too high (see
            `advfast.attacks.sanity.examine`; about 15 passes of these), and at Square beating the others, and warns.

    Attributes:
        result: `AutoAttackResult` of the last evaluation, also of one that was interrupted; None before.
        results: part -> `AutoAttackResult`, of the last individual evaluation.

    Raises:
        TypeError, ValueError: bad settings, here or (when changed later) at the evaluation.
    """

    apgd: Knobs
    apgd_targeted: Knobs
    fab: Knobs
    square: Knobs

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        norm: str = "Linf",
        eps: float = 8 / 255,
        *,
        version: str = "standard",
        seed: int | None = None,
        attacks_to_run: Sequence[Attack] | None = None,
        verbose: bool = True,
        device: torch.device | str | None = None,
        log_path: str | Path | None = None,
        is_tf_model: bool = False,
        rng: str = "philox",
        fold: bool = True,
        precision: str = "fp32",
        batch_size: int | None = None,
        output: Output = None,
        impl: str = "auto",
        progress: bool = True,
        sanity: bool = True,
    ) -> None:
        if is_tf_model:
            raise TypeError(
                "is_tf_model=True: TensorFlow models are not supported; give a torch module, or a function of torch "
                "tensors that autograd can differentiate"
            )
        self.model, self.norm, self.eps = model, norm, eps
        self.seed = 0 if seed is None else seed
        self.verbose, self.device, self.log_path = verbose, device, log_path
        self.rng, self.fold, self.precision = rng, fold, precision
        self.batch_size, self.output, self.impl = batch_size, output, impl
        self.progress, self.sanity = progress, sanity
        self.result: AutoAttackResult | None = None
        self.results: dict[str, AutoAttackResult] = {}
        self.nonfinite = 0
        """After an evaluation: gradient entries that were not finite; they were taken for 0."""
        checks.check_choice("version", version, (*VERSIONS, "custom"))
        if attacks_to_run and version != "custom":
            raise ValueError(
                f"attacks_to_run is for version='custom', got version={version!r}, which runs "
                f"{', '.join(VERSIONS[version])}; add version='custom', or leave attacks_to_run out"
            )
        check_norm("AutoAttack", norm)
        self.attacks_to_run: list[Attack] = []
        self.set_version(version)
        if attacks_to_run is not None and version == "custom":
            names_of(attacks_to_run)  # a text would come apart
            self.attacks_to_run = list(attacks_to_run)
        self.check()

    def __repr__(self) -> str:
        attacks = [a if isinstance(a, str) else repr(a) for a in self.attacks_to_run]
        shared = {k: v for k, v in self.shared().items() if k != "norm"}
        settings = ", ".join(f"{name}={value!r}" for name, value in shared.items())
        return (
            f"AutoAttack(model={type(self.model).__name__}, norm={self.norm!r}, eps={self.eps!r}, "
            f"version={self.version!r}, {settings}; {', '.join(attacks)})"
        )

    def set_version(self, version: str = "standard") -> None:
        """Sets all attacks up as this version has them; "custom" leaves `attacks_to_run` as it is."""
        checks.check_choice("version", version, (*VERSIONS, "custom"))
        self.version = version
        for name, made in knobs(version, self.norm.lower()).items():
            setattr(self, name, made)
        if version != "custom":
            self.attacks_to_run = list(VERSIONS[version])

    @property
    def epsilon(self) -> float:
        """The original's name of eps."""
        return self.eps

    @epsilon.setter
    def epsilon(self, eps: float) -> None:
        self.eps = eps

    def check(self) -> None:
        """
        Raises:
            TypeError, ValueError: a bad setting.
        """
        if not callable(self.model):
            raise TypeError(f"model must be callable, got {type(self.model).__name__}")
        check_norm("AutoAttack", self.norm)
        if isinstance(self.eps, Tensor):
            raise TypeError("AutoAttack: eps must be a number, got a tensor")
        checks.check_radius(self.eps)
        checks.check_count("seed", self.seed, 0)
        checks.check_choice("rng", self.rng, RNGS)
        checks.check_choice("precision", self.precision, ("fp32", "bf16", "fp16"))
        checks.check_choice("impl", self.impl, ("auto", *_backend.IMPLS))
        if self.batch_size is not None:
            checks.check_count("batch_size", self.batch_size, 1)
        check_output(self.output)
        own = model_device(bare_model(self.model))
        if self.device is not None and own is not None:
            wanted = torch.device(self.device)
            if wanted.type != own.type or wanted.index not in (None, own.index):
                raise ValueError(f"device is {wanted} but the model is on {own}; move the model")
        names_of(self.attacks_to_run)

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: str | Path | None = None,
        *,
        sample_ids: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Runs the attacks; `result` then has what they came to, sample by sample.

        Args:
            x_orig: [N, ...] float, in [0, 1], on any device.
            y_orig: [N] integer classes, or [N, K] one-hot or probabilities, of which the largest counts.
            bs: samples that are attacked at once.
            return_labels: return the model's predictions on the result too.
            state_path: a file that the evaluation is written to after each attack and, every half minute, in between;
                where it exists, the evaluation goes on from it, and gives what one without interruption would have
                given, adversarial images of the earlier run included (the original loses those). It is tied to
                settings, data and weights; of a model that is no module only the name is looked at.
            sample_ids: [N] int64, numbers of the samples in the data set; default 0 .. N-1.

        Returns:
            x_adv like x_orig: an adversarial image where one was found, the image itself elsewhere; or (x_adv, y_adv)
            with y_adv int64 [N].

        Raises:
            TypeError, ValueError: what was wrong, expected and got, before any attack; or the state is of another
                evaluation.
        """
        self._check_attacks()
        log = Log(self.verbose, self.log_path)
        result = self._keep(
            self._session(
                x_orig,
                y_orig,
                sample_ids,
                bs,
                self.attacks_to_run,
                state_path,
                log,
                self.progress,
                examined=self.sanity,
            )
        )
        self._say_end(x_orig, result, log)
        return (result.images, result.labels) if return_labels else result.images

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Tensor] | dict[str, tuple[Tensor, Tensor]]:
        """Each attack by itself on all samples that are right when clean; `results` has what each came to.

        Args, raises: as `run_standard_evaluation`.

        Returns:
            part -> x_adv, or (x_adv, y_adv).
        """
        self._check_attacks()
        self.results = {}
        log = Log(self.verbose, self.log_path)
        for attack in list(self.attacks_to_run):
            (name,) = names_of([attack])
            session = self._session(
                x_orig, y_orig, None, bs, [attack], None, Log(False, None), self.progress
            )
            self.results[name] = result = session.run()
            log(
                f"robust accuracy by {name.upper()}: {result.robust_accuracy:.2%} "
                f"(time attack: {result.seconds[name]:.1f} s)"
            )
        if return_labels:
            return {name: (found.images, found.labels) for name, found in self.results.items()}
        return {name: found.images for name, found in self.results.items()}

    def clean_accuracy(self, x_orig: Tensor, y_orig: Tensor, bs: int = 250) -> float:
        """Share of the samples that the model has right, in eval mode; NaN without samples."""
        result = self._session(x_orig, y_orig, None, bs, [], None, Log(False, None), False).run()
        Log(self.verbose, self.log_path)(f"clean accuracy: {result.robust_accuracy:.2%}")
        return result.robust_accuracy

    def get_logits(self, x: Tensor) -> Tensor:
        """[B, K]: of the plain model in eval mode, without gradients."""
        with self.oracle(x, plain=True) as judge:
            return judge.logits(x.to(judge.wide))

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        sample_ids: Tensor | None = None,
        bs: int = 250,
        watch: Watch | None = None,
    ) -> Tensor:
        """The adversarial images, without a word and without the examination of the model; sets `result`.

        Args, raises: as `run_standard_evaluation`, and
            watch: called with the share of the work that is done, 0 to 1, and the number of samples still right.
        """
        self._check_attacks()
        quiet = Log(False, None)
        return self._keep(
            self._session(
                images, labels, sample_ids, bs, self.attacks_to_run, None, quiet, False, watch
            )
        ).images

    def oracle(self, example: Tensor, plain: bool = False) -> Oracle:
        """The model, to be opened with `with`: as the attacks ask it, or as it stands."""
        return Oracle(
            self.model,
            example,
            output=self.output,
            fold=self.fold and not plain,
            precision="fp32" if plain else self.precision,
            batch_size=self.batch_size,
        )

    def shared(self) -> dict[str, Any]:
        """The settings that all attacks have."""
        names = ("seed", "rng", "fold", "precision", "batch_size", "output", "impl")
        return {"norm": self.norm.lower(), **{name: getattr(self, name) for name in names}}

    @property
    def knobs(self) -> dict[str, Knobs]:
        """Those of the attacks, by attribute."""
        return {name: getattr(self, name) for name in ("apgd", "apgd_targeted", "fab", "square")}

    def _check_attacks(self) -> None:
        if not self.attacks_to_run:
            raise ValueError(
                "attacks_to_run is empty: version='custom' needs some, such as "
                "attacks_to_run=['apgd-ce', 'square']"
            )

    def _session(
        self,
        x: Tensor,
        y: Tensor,
        ids: Tensor | None,
        bs: int,
        attacks: Sequence[Attack],
        state_path: str | Path | None,
        log: Log,
        shown: bool,
        watch: Watch | None = None,
        examined: bool = False,
    ) -> Session:
        self.check()
        checks.check_count("bs", bs, 1)
        samples = check_samples(x, y, ids, self.model, self.device)
        found = self._examine(samples, log) if examined else ()
        return Session(self, samples, bs, attacks, state_path, log, shown, watch, found)

    def _examine(self, samples: Samples, log: Log) -> tuple[Finding, ...]:
        """Of the first samples. That a version for randomised models meets one is no finding."""
        first = samples.example(_EXAMINED)
        labels = samples.given[: len(first)].to(first.device)
        found = examine(
            self.model, first, labels, eps=self.eps, norm=self.norm.lower(), seed=self.seed,
            output=self.output, samples=_EXAMINED, targets=1,
        )  # fmt: skip
        if self.version == "rand":
            found = tuple(finding for finding in found if finding.code != "randomised")
        for finding in found:
            log(f"warning: {finding}")
        return found

    def _keep(self, session: Session) -> AutoAttackResult:
        """Runs it; what it came to is kept also where it was stopped."""
        self.result = None
        try:
            return session.run()
        finally:
            self.result, self.nonfinite = session.result, session.nonfinite

    def _say_end(self, x: Tensor, result: AutoAttackResult, log: Log) -> None:
        images = result.images
        if len(images):
            low, high = torch.aminmax(images)
            log(
                f"max {_NAMES[self.norm.lower()]} perturbation: "
                f"{pushed(images, x, self.norm.lower()):.5f}, nan in tensor: {int(images.isnan().sum())}, "
                f"max: {float(high):.5f}, min: {float(low):.5f}"
            )
        if result.cost is not None:
            log(
                f"a fully robust sample took {result.cost[0]} forward and {result.cost[1]} backward passes"
            )
        for note in result.notes:
            log(f"note: {note}")
        for finding in result.findings:
            if finding.code == "square-wins":  # the others were told at the beginning
                log(f"warning: {finding}")
        log(f"robust accuracy: {result.robust_accuracy:.2%}")
