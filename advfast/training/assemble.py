"""The parts of a run from the arguments of `train`."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from advfast.attacks.checks import check_choice
from advfast.data import count
from advfast.evaluation import evaluate
from advfast.kernels.pgd.api import check_norm
from advfast.models.norm import NORM_LAYERS

from . import methods, optim, schedules, setup
from .callbacks import Callbacks, TrainState, of_rank
from .captured import check_capture, make_step
from .catastrophic import CatastrophicOverfitting
from .clean_prefix import parsed
from .early_stopping import EarlyStopping
from .interrupt import Interrupt
from .kernel_monitor import KernelMonitor
from .loop import Batches, Loop
from .modifiers import EMA, Modifier, RunInfo
from .modifiers import make as make_modifier
from .parallel import Ranks
from .precision import make_scaler, resolve_precision
from .profiling import Profiler
from .progress import Progress
from .resume import note
from .run import Run
from .tensorboard import TensorBoard

VAL_ATTACK = "pgd-10"
"""Robust accuracy on the held-out split, each epoch."""


def check(a: SimpleNamespace) -> None:
    """Everything that can be checked without data; resolves `norm`, `eps` and `lr`."""
    a.norm = check_norm("train", a.norm)
    setup.check_numbers(
        eps=a.eps,
        norm=a.norm,
        epochs=a.epochs,
        batch_size=a.batch_size,
        seed=a.seed,
        label_smoothing=a.label_smoothing,
        clip_grad=a.clip_grad,
        save_every=a.save_every,
        keep_every=a.keep_every,
        threads=a.threads,
        micro_batch=a.micro_batch,
    )
    prefix = parsed(a.clean_prefix)
    a.clean_prefix = prefix if isinstance(prefix, int) else str(prefix)
    check_choice("norm_layers", a.norm_layers, NORM_LAYERS)
    # Each checks its own when it is made; the user's may ask for the model, and are made with it.
    if methods.own_maker(a.method) is None:
        methods.make(a.method, nn.Identity(), settings(a))
    a.eps = float(a.eps)
    a.lr = optim.rate(a.lr, a.optimizer)
    if not callable(a.optimizer):
        make_optimizer(a, nn.LayerNorm(1))  # any that draws no random weights
    if not callable(a.schedule):
        schedules.make(a.schedule, a.lr, epochs=a.epochs, steps=1, options=a.schedule_options)
    resolve_precision(a.precision, torch.device("cpu"))
    check_capture(a.capture)
    make_modifiers(a)
    a.callbacks = tuple(a.callbacks)
    Callbacks([*a.callbacks, *watching(a)])
    if not isinstance(a.model, (str, nn.Module)):
        raise TypeError(f"model must be an nn.Module or a name, got {type(a.model).__name__}")
    if a.sync_bn and a.micro_batch is not None:
        raise ValueError(
            "sync_bn needs the whole batch in one pass: micro_batch must be None, got "
            f"{a.micro_batch}"
        )
    if a.resume and a.overwrite:
        raise ValueError(
            "resume and overwrite exclude each other: go on with the run, or replace it"
        )
    if a.resume not in (False, True, "auto"):
        raise ValueError(f"resume must be True, False or 'auto', got {a.resume!r}")
    if a.resume is True and a.out is None:
        raise ValueError(
            "resume needs `out`, the folder of the run to go on with; or give resume='auto'"
        )


def settings(a: SimpleNamespace) -> methods.Settings:
    precision = "fp32" if a.precision == "auto" else a.precision
    options = dict(a.method_options or {})
    return methods.Settings(
        a.eps,
        a.alpha,
        a.steps,
        a.norm,
        a.bn,
        precision,
        a.label_smoothing,
        a.micro_batch,
        options,
        capture="off" if a.capture == "off" else "auto",
    )


def make_optimizer(a: SimpleNamespace, model: nn.Module) -> torch.optim.Optimizer:
    return optim.make(
        a.optimizer,
        model,
        lr=a.lr,
        momentum=a.momentum,
        weight_decay=a.weight_decay,
        norm_decay=a.norm_decay,
        options=a.optimizer_options,
    )


def make_modifiers(a: SimpleNamespace) -> list[Modifier]:
    made = [make_modifier(modifier) for modifier in a.modifiers]
    made += [] if a.ema is None else [EMA(a.ema)]
    averages = [modifier.name for modifier in made if modifier.averages]
    if len(averages) > 1:
        raise ValueError(
            f"{' and '.join(averages)} each say which weights are evaluated: choose one of them"
        )
    return made


def watching(a: SimpleNamespace, own: methods.Method | None = None) -> list[object]:
    """The callbacks that arguments of `train` stand for."""
    found: list[object] = []
    if a.on_collapse is not None:
        found.append(
            CatastrophicOverfitting(action=a.on_collapse)
            if a.collapse_kernel is None
            else KernelMonitor(action=a.on_collapse, probe=a.collapse_kernel)
        )
    elif a.collapse_kernel is not None:
        raise ValueError(
            "collapse_kernel is of the checks for catastrophic overfitting: give on_collapse too"
        )
    if a.patience is not None:
        clean = own is not None and own.trains_on == "clean"
        found.append(EarlyStopping(a.patience, "val_clean" if clean else "val_robust"))
    return found


def check_remedy(a: SimpleNamespace, own: methods.Method) -> None:
    """
    Raises:
        ValueError: a monitor has no noise to switch on, or a method's noise has no monitor.
    """
    switches = any(
        isinstance(found, CatastrophicOverfitting) and found.action == "noise"
        for found in (*a.callbacks, *watching(a))
    )
    if switches and not own.waits:
        raise ValueError(
            f"action 'noise' at catastrophic overfitting needs a method whose noise waits for it, such as 'n-fgsm' "
            f"with start='monitor' in method_options, got {a.method!r} without"
        )
    if own.waits and not switches:
        raise ValueError(
            "the noise of the method waits for a monitor: give on_collapse='noise' (--on-collapse noise), or a "
            "callback CatastrophicOverfitting(action='noise')"
        )


def _has_samples(data: object, ranks: Ranks) -> bool:
    """Whether this rank's part of them, see `evaluate`, is not empty."""
    samples = count(data)
    if samples is None:
        return True
    return samples * ranks.rank // ranks.world < samples * (ranks.rank + 1) // ranks.world


def begin_modifiers(
    a: SimpleNamespace, own: methods.Method, model: nn.Module, run: RunInfo
) -> list[Modifier]:
    """The modifiers of a run, begun.

    Raises:
        ValueError: one does not go with the method or the run.
    """
    modifiers = make_modifiers(a)
    for modifier in modifiers:
        if modifier.needs_separable and not own.separable:
            raise ValueError(
                f"modifier {modifier.name!r} needs the loss of the same images at other weights, "
                f"which method {a.method!r} does not have"
            )
        if modifier.makes_soft_labels and not own.soft_labels:
            raise ValueError(
                f"modifier {modifier.name!r} mixes labels, and method {a.method!r} needs classes"
            )
        if modifier.guides and not own.guided:
            raise ValueError(
                f"modifier {modifier.name!r} draws predictions to ensembled ones, which method {a.method!r} does "
                "not do"
            )
        if modifier.guides and any(other.makes_soft_labels for other in modifiers):
            raise ValueError(
                f"modifier {modifier.name!r} follows the predictions on each image, and another one mixes images"
            )
        modifier.begin(model, run)
    return modifiers


def make_run(
    a: SimpleNamespace,
    own: methods.Method,
    state: TrainState,
    parts: setup.RunData,
    loader: Batches,
    environment: dict[str, Any],
    interrupt: Interrupt,
    saved: dict[str, Any] | None,
    ranks: Ranks,
    modifiers: list[Modifier],
) -> Run:
    """A run ready to train, from the beginning or from what was saved."""
    device, model, folder = torch.device(environment["device"]), state.model, state.folder
    clean = methods.Standard(model, replace(settings(a), options={}))
    schedule = a.schedule
    if not callable(schedule):
        schedule = schedules.make(
            schedule, a.lr, epochs=a.epochs, steps=len(loader), options=a.schedule_options
        )
    shown: list[object] = []
    if a.progress and ranks.first:
        notes = optim.told(state.optimizer, a.momentum), note(saved, environment, loader)
        shown.append(Progress(environment, own.trains_on, "\n".join(filter(None, notes))))
    if a.tensorboard and ranks.first:
        shown.append(TensorBoard(folder / "tensorboard"))
    if a.profile and ranks.first:
        shown.append(Profiler(folder / "profile", shown=a.progress))
    state.data, state.modifiers, state.ranks = parts.train, modifiers, ranks
    state.method = own
    made = [*a.callbacks, *watching(a, own)]
    callbacks = Callbacks([*shown, *of_rank(made, ranks.rank)])

    def validate() -> tuple[float, float]:
        right: list[float] = [0, 0, 0]
        if _has_samples(parts.val, ranks):
            report = evaluate(
                model,
                parts.val,
                attacks=("clean", VAL_ATTACK),
                eps=a.eps,
                norm=a.norm,
                seed=a.seed,
                shard=(ranks.rank, ranks.world),
                sanity=False,
            )
            clean = report["clean"]
            right = [clean.correct, report[VAL_ATTACK].correct, clean.total]
        clean_right, robust_right, total = ranks.total(right)
        return clean_right / total, robust_right / total

    loop = Loop(
        state,
        method=lambda epoch: clean if epoch <= state.prefix.epochs else own,
        loader=loader,
        schedule=schedule,
        step=make_step(
            a.capture,
            model,
            state.optimizer,
            modifiers,
            make_scaler(a.precision, device),
            a.clip_grad,
            a.micro_batch,
            ranks=ranks,
        ),
        callbacks=callbacks,
        interrupt=interrupt,
        device=device,
        seed=a.seed,
    )
    run = Run(
        loop,
        method=own,
        validate=validate,
        environment=environment,
        save_every=a.save_every,
        keep_every=a.keep_every,
    )
    if saved is not None:
        run.restore(saved)
    return run
