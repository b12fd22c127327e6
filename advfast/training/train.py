"""advfast.train."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from advfast.attacks.state import model_device
from advfast.evaluation import evaluate
from advfast.evaluation.report import versions
from advfast.files import clean_temporaries
from advfast.kernels.pgd.api import check_norm

from . import checkpoint, methods, names, optim, rng, schedules, setup
from .callbacks import Callbacks, TrainState
from .config import check_same, plain, write_config
from .finish import finish
from .interrupt import Interrupt, Stopped
from .loop import Batches, Loop, NonFiniteLoss
from .modifiers import EMA, Modifier
from .precision import arithmetic, make_scaler, resolve_precision
from .profiling import Profiler
from .progress import Progress
from .result import TrainResult, read_result
from .run import Run
from .tensorboard import TensorBoard

VAL_ATTACK = "pgd-10"
"""Robust accuracy on the held-out split, each epoch."""

_NOT_CONFIG = ("out", "overwrite", "resume", "progress", "callbacks")
"""Arguments that are no part of what a run is."""


def train(
    model: nn.Module | str = "small-cnn",
    data: object = "digits",
    *,
    method: str | methods.Maker = "pgd-at",
    eps: float = 8 / 255,
    alpha: float | None = None,
    steps: int = 10,
    norm: str = "linf",
    bn: str = "eval",
    method_options: Mapping[str, Any] | None = None,
    modifiers: Sequence[Modifier] = (),
    clean_prefix: int = 0,
    label_smoothing: float = 0.0,
    ema: float | None = None,
    epochs: int = 30,
    batch_size: int = 128,
    lr: float = 0.1,
    schedule: str | Callable[[int], float] = "one-cycle",
    schedule_options: Mapping[str, Any] | None = None,
    optimizer: str | optim.Maker = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    optimizer_options: Mapping[str, Any] | None = None,
    clip_grad: float | None = None,
    augment: Sequence[str] = (),
    val: object = None,
    test: object = None,
    data_root: str | Path | None = None,
    weights: str | Path | None = None,
    precision: str = "auto",
    channels_last: bool | None = None,
    deterministic: bool = False,
    seed: int = 0,
    threads: int | None = None,
    callbacks: Iterable[object] = (),
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    save_every: int | None = None,
    tensorboard: bool = False,
    profile: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Adversarial training of a classifier, with the best epoch chosen on held-out data.

    "pgd-at" trains on PGD adversarial images alone (Madry et al., ICLR 2018); "standard" on clean ones. After each
    epoch the held-out split is attacked with PGD-10; best.pt is the epoch with the highest robust accuracy there
    ("standard": highest clean accuracy), ties broken by the other. The test set is read once, after training: clean and
    PGD-20, of the best and of the last epoch.

    Everything is saved after each epoch. The same arguments give the same weights on the same machine with the same
    thread count (on a GPU: with `deterministic`), whether or not the run was killed and resumed in between. The random
    states of torch, NumPy and Python are left as they were.

    Args:
        model: an nn.Module, images [B, C, H, W] in [0, 1] -> logits [B, K], trained in place where it is; or a name:
            one of advfast's, "timm:NAME" or "torchvision:NAME", made for the data with a normalisation layer inside;
            or "file.py:make", a function of yours.
        data: the name of a built-in set, a file or a folder (see `advfast.data.load`), or "file.py:make"; a pair
            (images [N, C, H, W] uint8 or float in [0, 1], labels [N]); a torch Dataset of (image tensor, label); or a
            DataLoader, which needs `val`.
        method: "pgd-at", "standard", or your own subclass of `advfast.training.methods.Method`.
        eps: radius of the attack in training and evaluation, pixel units of [0, 1].
        alpha: step size in training; None is eps/4.
        steps: PGD steps in training.
        norm: "linf", "l2" or "l1".
        bn: batch normalisation while the attack crafts: "eval" (running statistics), "train" (batch statistics, running
            ones put back) or "train-update". The step on the weights is always in train mode.
        method_options: further settings of the method.
        modifiers: objects that go with any method, in order; see `advfast.training.modifiers.Modifier`.
        clean_prefix: epochs at the beginning that train on clean images.
        label_smoothing: 0 .. 1, in the loss on the weights, not in the attack.
        ema: decay of an exponential moving average of the weights, such as 0.999; the average is then what is evaluated
            and saved.
        epochs: passes over the training data.
        batch_size: samples a step.
        lr: highest learning rate.
        schedule: "one-cycle", "piecewise", "cosine", "triangular", "constant", or a function of the step of the whole
            run (from 0) that returns the learning rate. Stepped in every iteration.
        schedule_options: keyword arguments of the schedule, such as {"milestones": [100, 150]} in epochs; see
            `advfast.training.schedules`.
        optimizer: "sgd", "adamw", or a function of the list of parameters that makes one. The schedule sets the rate of
            every parameter group, times the group's "lr_scale" if it has one.
        momentum: of SGD.
        weight_decay: of either.
        optimizer_options: further keyword arguments of torch's class, such as {"nesterov": True}.
        clip_grad: greatest l2 norm of the gradient of all weights together.
        augment: of the training images, on the device, in order: "crop", "crop:4", "crop-reflect:4", "flip", "cutout",
            "cutout:16"; see `advfast.data.augment`.
        val: held-out data, as `data` but no name. None takes the data set's own, or sets a stratified 15 % of `data`
            aside, at most 2,000 samples; which ones depends on `seed`.
        test: test data, in the same forms. None takes that of a built-in data set, if it is one.
        data_root: folder of a built-in data set's files.
        weights: checkpoint to start from: one of advfast's, or a published one (see `advfast.load`).
        precision: "fp32", "bf16", "fp16" (with loss scaling) or "auto": bf16 on a GPU from Ampere on, fp16 before,
            fp32 on a CPU. Weights, the iterate of the attack and losses are float32 in all of them.
        channels_last: NHWC memory format; None where it is faster and the model takes it.
        deterministic: only algorithms that give the same bits again; an error where there is none.
        seed: of the held-out split, the weights of a named model, the order of the data, its augmentation and the
            random starts.
        threads: of torch on a CPU; None leaves them.
        callbacks: objects with on_train_begin, on_step_end, on_epoch_end or on_train_end, each called with a
            `TrainState`.
        out: folder to write to; None makes runs/<data>-<method>-seed<seed>, with a number behind it if that exists.
        overwrite: replace a run that is in `out`.
        resume: go on with the run that is in `out`: start if there is none, return at once if it is complete.
        save_every: steps after which last.pt is also saved, besides after every epoch.
        tensorboard: write event files to <out>/tensorboard.
        profile: write a trace of a few steps, and what took their time, to <out>/profile.
        progress: show progress on standard error.

    Returns:
        The model with the best weights, in eval mode; history; files. See `TrainResult`.

    Raises:
        ValueError, TypeError: bad argument or data, before training; `resume` with other arguments.
        FileNotFoundError: the files of a built-in data set are not there.
        FileExistsError: `out` holds a run, and neither `overwrite` nor `resume` is set.
        OSError: a file cannot be written; what was saved stays.
        NonFiniteLoss: the loss became NaN or infinite; says at which step; what was saved stays, and `model` has those
            weights.
        SystemExit: code 143, on SIGTERM, after the run was saved. KeyboardInterrupt: on Ctrl-C, likewise.
    """
    a = SimpleNamespace(**locals())
    _check(a)
    parts = setup.run_data(data, val, test, data_root, seed)
    with _threads(threads), rng.seeded(seed):
        model = setup.make_model(model, parts.train)
        device = model_device(model) or torch.device("cpu")
        sample = setup.check_model(model, device, parts)
        if weights is not None:
            checkpoint.load(weights, model)
        a.precision = resolve_precision(precision, device)
        with arithmetic(deterministic, device):
            a.channels_last = setup.use_channels_last(model, sample, channels_last, a.precision)
        a.threads = torch.get_num_threads()
        loader = setup.make_loader(
            parts,
            batch_size,
            device=device,
            seed=seed,
            augment=tuple(augment),
            channels_last=a.channels_last,
        )
        own = methods.make(method, model, _settings(a))
        made = _optimizer(a, model)
        config = {name: plain(value) for name, value in vars(a).items() if name not in _NOT_CONFIG}
        environment = {
            "data": parts.name,
            "samples": parts.samples(),
            "fingerprint": parts.fingerprint(),
            "model": checkpoint.describe(model),
            "device": str(device),
            "threads": a.threads,
            "precision": a.precision,
            "versions": versions(),
        }
        name = f"{parts.name}-{method if isinstance(method, str) else 'own'}-seed{seed}"
        folder = names.run_folder(out, name, overwrite=overwrite, resume=resume)
        saved = _saved(folder, config, environment) if resume else None
        if saved is not None and saved["run"]["finished"] and (folder / names.RESULTS).exists():
            checkpoint.fill(model, checkpoint.read(folder / names.BEST), folder / names.BEST)
            return read_result(folder, model, saved["run"]["history"])
        if saved is None:
            write_config(folder / names.CONFIG, config)
        interrupt = Interrupt()
        state = TrainState(model, made, config, folder, epochs, len(loader))
        run = _make_run(a, own, state, parts, loader, environment, interrupt, saved)
        with interrupt, _explained(run), arithmetic(deterministic, device):
            run.train()
            with interrupt.at_once():
                return finish(run, parts, progress)


def _check(a: SimpleNamespace) -> None:
    """Everything that can be checked without data; resolves `norm`, `eps` and `alpha`."""
    a.norm = check_norm("train", a.norm)
    setup.check_numbers(
        eps=a.eps,
        norm=a.norm,
        epochs=a.epochs,
        batch_size=a.batch_size,
        seed=a.seed,
        label_smoothing=a.label_smoothing,
        clip_grad=a.clip_grad,
        clean_prefix=a.clean_prefix,
        save_every=a.save_every,
        threads=a.threads,
    )
    # Each checks its own when it is made; the user's may ask for the model, and are made with it.
    if not callable(a.method):
        methods.make(a.method, nn.Identity(), _settings(a))
    a.eps = float(a.eps)
    a.alpha = a.eps / 4 if a.alpha is None else float(a.alpha)
    if not callable(a.optimizer):
        _optimizer(a, nn.LayerNorm(1))  # any that draws no random weights
    if not callable(a.schedule):
        schedules.make(a.schedule, a.lr, epochs=a.epochs, steps=1, options=a.schedule_options)
    resolve_precision(a.precision, torch.device("cpu"))
    _modifiers(a)
    a.callbacks = tuple(a.callbacks)
    Callbacks(a.callbacks)
    if not isinstance(a.model, (str, nn.Module)):
        raise TypeError(f"model must be an nn.Module or a name, got {type(a.model).__name__}")
    if a.resume and a.overwrite:
        raise ValueError(
            "resume and overwrite exclude each other: go on with the run, or replace it"
        )
    if a.resume and a.out is None:
        raise ValueError("resume needs `out`, the folder of the run to go on with")


def _settings(a: SimpleNamespace) -> methods.Settings:
    precision = "fp32" if a.precision == "auto" else a.precision
    options = dict(a.method_options or {})
    return methods.Settings(
        a.eps, a.alpha, a.steps, a.norm, a.bn, precision, a.label_smoothing, options
    )


def _optimizer(a: SimpleNamespace, model: nn.Module) -> torch.optim.Optimizer:
    return optim.make(
        a.optimizer,
        model,
        lr=a.lr,
        momentum=a.momentum,
        weight_decay=a.weight_decay,
        options=a.optimizer_options,
    )


def _modifiers(a: SimpleNamespace) -> list[Modifier]:
    for modifier in a.modifiers:
        if not isinstance(modifier, Modifier):
            raise TypeError(
                "modifiers must be instances of advfast.training.modifiers.Modifier, got "
                f"{modifier!r}"
            )
    return [*a.modifiers, *([] if a.ema is None else [EMA(a.ema)])]


def _make_run(
    a: SimpleNamespace,
    own: methods.Method,
    state: TrainState,
    parts: setup.RunData,
    loader: Batches,
    environment: dict[str, Any],
    interrupt: Interrupt,
    saved: dict[str, Any] | None,
) -> Run:
    """A run ready to train, from the beginning or from what was saved."""
    device, model, folder = torch.device(environment["device"]), state.model, state.folder
    clean = methods.Standard(model, replace(_settings(a), options={}))
    modifiers = _modifiers(a)
    for modifier in modifiers:
        modifier.begin(model)
    schedule = a.schedule
    if not callable(schedule):
        schedule = schedules.make(
            schedule, a.lr, epochs=a.epochs, steps=len(loader), options=a.schedule_options
        )
    shown: list[object] = []
    if a.progress:
        shown.append(Progress(environment, own.trains_on, _note(saved, environment, loader)))
    if a.tensorboard:
        shown.append(TensorBoard(folder / "tensorboard"))
    if a.profile:
        shown.append(Profiler(folder / "profile", shown=a.progress))
    callbacks = Callbacks([*shown, *a.callbacks])

    def validate() -> tuple[float, float]:
        report = evaluate(
            model,
            parts.val,
            attacks=("clean", VAL_ATTACK),
            eps=a.eps,
            norm=a.norm,
            seed=a.seed,
        )
        return report["clean"].value, report[VAL_ATTACK].value

    loop = Loop(
        state,
        method=lambda epoch: clean if epoch <= a.clean_prefix else own,
        loader=loader,
        schedule=schedule,
        modifiers=modifiers,
        scaler=make_scaler(a.precision, device),
        clip_grad=a.clip_grad,
        callbacks=callbacks,
        interrupt=interrupt,
        device=device,
    )
    run = Run(
        loop,
        method=own,
        validate=validate,
        environment=environment,
        save_every=a.save_every,
    )
    if saved is not None:
        run.restore(saved)
    return run


def _saved(
    folder: Path, config: dict[str, Any], environment: dict[str, Any]
) -> dict[str, Any] | None:
    """last.pt of the run to go on with; None if nothing was saved yet.

    Raises:
        ValueError: it is not a run's checkpoint, or of a run with other arguments, data or model.
    """
    clean_temporaries(folder)
    path = folder / names.LAST
    if not path.exists():
        return None
    saved = checkpoint.read(path)
    if "run" not in saved:
        raise ValueError(f"{path} holds weights alone, without the state of a run to go on with")
    check_same(saved["config"], config, folder)
    before = saved["run"]["environment"]
    for name, what in (("fingerprint", "training data"), ("model", "model")):
        if before[name] != environment[name]:
            raise ValueError(
                f"{folder} holds a run with another {what}: it was {before[name]} and is now "
                f"{environment[name]}"
            )
    return saved


def _note(saved: dict[str, Any] | None, environment: dict[str, Any], loader: Batches) -> str:
    """What a resumed run says at the beginning."""
    if saved is None:
        return ""
    at = saved["run"]["loop"]
    notes = [f"resumed in epoch {at['epoch']} after {at['step']} steps of it"]
    if saved["run"]["finished"]:
        notes = ["resumed after the last epoch: what is left is the test"]
    before = saved["run"]["environment"]
    for name in ("device", "threads", "versions"):
        if before[name] != environment[name]:
            notes.append(
                f"{name} was {before[name]} and is {environment[name]}: not the same bits as without "
                "the interruption"
            )
    if not loader.stateful:
        notes.append("the order of a DataLoader's samples is not restored")
    return "; ".join(notes)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _explained(run: Run) -> Iterator[None]:
    """Saves on a signal, and adds to an error what is there to go on with."""
    try:
        yield
    except Stopped as stopped:
        if not run.finished:
            run.save()
        loop = run.loop
        where = (
            f"in epoch {loop.epoch} after {loop.step} steps"
            if not run.finished
            else "after training"
        )
        print(
            f"{stopped} {where}: saved in {run.folder}; go on with resume=True (--resume)",
            file=sys.stderr,
        )
        if stopped.signum == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + stopped.signum) from None
    except NonFiniteLoss as error:
        count = len(run.state.history)
        if count:
            path = run.folder / names.LAST
            checkpoint.fill(run.model, checkpoint.read(path), path)
        there = f"epochs up to {count} are" if count else "no epoch is"
        raise NonFiniteLoss(f"{error}; {there} saved in {run.folder}") from None
    except OSError as error:
        last = run.folder / names.LAST
        if not last.exists():
            raise
        explained = type(error)(
            f"{error}; {last} is as it was: go on with resume=True (--resume) when this is put right"
        )
        explained.errno = error.errno
        raise explained from error
