"""advfast.train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from advfast import models
from advfast.attacks.state import model_device
from advfast.evaluation.report import versions

from . import checkpoint, methods, names, optim, parallel, rng, setup
from .assemble import (
    begin_modifiers,
    check,
    check_remedy,
    make_optimizer,
    make_run,
    settings,
)
from .callbacks import TrainState
from .captured import check_capture
from .clean_prefix import CleanPrefix
from .config import plain, write_config
from .finish import finish
from .interrupt import Interrupt
from .loop import Batches
from .modifiers import Modifier, RunInfo
from .precision import arithmetic, resolve_precision
from .prefix import make_prefix
from .recipes import with_recipe
from .repeated import Repeated
from .result import TrainResult, to_result
from .resume import complete_run, explained, saved_run

_NOT_CONFIG = ("capture", "out", "overwrite", "resume", "progress", "callbacks")
"""Arguments that are no part of what a run is."""


@with_recipe
def train(
    model: nn.Module | str = "small-cnn",
    data: object = "digits",
    *,
    recipe: str | None = None,
    method: str | methods.Maker = "pgd-at",
    eps: float = 8 / 255,
    alpha: float | None = None,
    steps: int | None = None,
    norm: str = "linf",
    bn: str = "eval",
    norm_layers: str = "batch",
    method_options: Mapping[str, Any] | None = None,
    modifiers: Sequence[str | Modifier] = (),
    clean_prefix: int | str | CleanPrefix = 0,
    label_smoothing: float = 0.0,
    ema: float | None = None,
    epochs: int = 30,
    batch_size: int = 128,
    micro_batch: int | None = None,
    lr: float | None = None,
    schedule: str | Callable[[int], float] = "one-cycle",
    schedule_options: Mapping[str, Any] | None = None,
    optimizer: str | optim.Maker = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    norm_decay: bool = True,
    optimizer_options: Mapping[str, Any] | None = None,
    clip_grad: float | None = None,
    augment: Sequence[str] = (),
    extra: object = None,
    extra_share: float = 0.7,
    val: object = None,
    test: object = None,
    data_root: str | Path | None = None,
    weights: str | Path | None = None,
    sync_bn: bool = False,
    precision: str = "auto",
    channels_last: bool | None = None,
    capture: str = "auto",
    deterministic: bool = False,
    seed: int = 0,
    threads: int | None = None,
    patience: int | None = None,
    on_collapse: str | None = None,
    collapse_kernel: int | None = None,
    callbacks: Iterable[object] = (),
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool | str = False,
    save_every: int | None = None,
    keep_every: int | None = None,
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
        recipe: the name of a published one, such as "rice2020" or "wong2020" (see `advfast.training.recipes`), whose
            values take the place of the arguments that are not given; it prints all that it sets.
        method: one of `advfast.training.methods.METHODS`, such as "pgd-at", "trades" or "fgsm-rs"; or your own subclass
            of `advfast.training.methods.Method`, or "file.py:MyMethod" for one in a file.
        eps: radius of the attack in training and evaluation, pixel units of [0, 1].
        alpha: step size in training; None is the method's own (eps/4 for most).
        steps: PGD steps in training; None is the method's own (10 for most).
        norm: "linf", "l2" or "l1".
        bn: batch normalisation while the attack crafts: "eval" (running statistics), "train" (batch statistics, running
            ones put back) or "train-update". The step on the weights is always in train mode.
        norm_layers: "batch": the model's own. "batch-no-stats": its batch normalisation without running statistics.
            "dual-batch": one for clean and one for adversarial images (AdvProp); methods with clean images in the loss
            (TRADES, MART) use both, evaluation the adversarial one. See `advfast.models.use_norm_layers`.
        method_options: further settings of the method.
        modifiers: what goes with any method, in order: names with options, such as "awp:gamma=0.01" (see
            `advfast.training.modifiers`), or objects of your own.
        clean_prefix: epochs at the beginning that train on clean images. "auto", also with options as in
            "auto:distance=0.03": as many as the network's kernel allows, found while training; see
            `advfast.training.CleanPrefix`.
        label_smoothing: 0 .. 1, in the loss on the weights, not in the attack.
        ema: decay of an exponential moving average of the weights, such as 0.999; the average is then what is evaluated
            and saved.
        epochs: passes over the training data.
        batch_size: samples a step.
        micro_batch: most samples of one pass through the network: a step's gradient is then added up from such parts,
            in less memory; it is that of the whole batch where no layer looks at the batch.
        lr: highest learning rate; None is 0.1 for "sgd" and "adamw", 1.0 for "pnm", whose steps at the same rate are
            22 times shorter than those of SGD with momentum 0.9, and 0.001 for "adapnm".
        schedule: "one-cycle", "piecewise", "cosine", "triangular", "constant", or a function of the step of the whole
            run (from 0) that returns the learning rate. Stepped in every iteration.
        schedule_options: keyword arguments of the schedule, such as {"milestones": [100, 150]} in epochs; see
            `advfast.training.schedules`.
        optimizer: "sgd", "adamw", "pnm" or "adapnm" (positive-negative momentum, see `advfast.training.PNM`: with
            "pgd-at" that is DEAT), or a function of the list of parameters that makes one. The schedule sets the rate
            of every parameter group, times the group's "lr_scale" if it has one.
        momentum: of SGD.
        weight_decay: of each of them; of "sgd" it is a part of the gradient, of the others decoupled.
        norm_decay: False for no weight decay on the parameters of normalisation layers.
        optimizer_options: further keyword arguments of the class, such as {"nesterov": True} or, of "pnm",
            {"betas": (0.9, 1.0), "decoupled": False}.
        clip_grad: greatest l2 norm of the gradient of all weights together.
        augment: of the training images, on the device, in order: "crop", "crop:4", "crop-reflect:4", "flip", "cutout",
            "cutout:16"; see `advfast.data.augment`.
        extra: more data to train on, such as generated images, in the forms of `data` but no DataLoader: every batch
            has `extra_share` of it, drawn with replacement; an epoch is as long as without. See `advfast.data.Mixed`.
        extra_share: above 0 and below 1: 0.7 is that of Gowal et al. (2020) and Wang et al. (ICML 2023).
        val: held-out data, as `data` but no name. None takes the data set's own, or sets a stratified 15 % of `data`
            aside, at most 2,000 samples; which ones depends on `seed`.
        test: test data, in the same forms. None takes that of a built-in data set, if it is one.
        data_root: folder of a built-in data set's files.
        weights: checkpoint to start from: one of advfast's, or a published one (see `advfast.load`).
        sync_bn: batch normalisation by the samples of all ranks of a run, in the step on the weights; without it each
            rank normalises by its own, and running statistics are averaged over the ranks. See docs/distributed.md.
        precision: "fp32", "bf16", "fp16" (with loss scaling) or "auto": bf16 on a GPU from Ampere on, fp16 before,
            fp32 on a CPU. Weights, the iterate of the attack and losses are float32 in all of them.
        channels_last: NHWC memory format; None where it is faster and the model takes it.
        capture: on CUDA, "auto": a step is one CUDA graph from the second of its kind on; where it cannot be, a line
            on standard error says once why. "required": RuntimeError there. "off": never; for a model whose forward
            pass depends on something that changes outside of its tensors.
        deterministic: only algorithms that give the same bits again; an error where there is none.
        seed: of the held-out split, the weights of a named model, the order of the data, its augmentation and the
            random starts.
        threads: of torch on a CPU; None leaves them.
        patience: stop after so many epochs in a row without a better held-out accuracy: robust, of "standard" clean.
        on_collapse: look for catastrophic overfitting after every epoch, and what to do at it: "stop" with the weights
            before it, "report", or "noise": go on from them with the noise of the method (n-fgsm with
            start="monitor"). See `advfast.training.CatastrophicOverfitting`.
        collapse_kernel: training images whose kernel is recorded at each of these checks, such as 64. See
            `advfast.training.KernelMonitor`.
        callbacks: objects with on_train_begin, on_step_end, on_epoch_end or on_train_end, each called with a
            `TrainState`.
        out: folder to write to; None makes runs/<data>-<method>-seed<seed>, with a number behind it if that exists.
        overwrite: replace a run that is in `out`.
        resume: go on with the run that is in `out`: start if there is none, return at once if it is complete. "auto" is
            for jobs that are started again after an interruption: it needs no `out`, and takes
            runs/<data>-<method>-seed<seed> itself.
        save_every: steps after which last.pt is also saved, besides after every epoch.
        keep_every: epochs after which a checkpoint stays, in <out>/checkpoints/epoch-0010.pt and so on: the weights
            before training, after each so many epochs, and after the last one. What the studies of `advfast.studies`
            that follow a run look at.
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
    check(a)
    parts = setup.run_data(data, val, test, data_root, seed)
    parts = setup.extra_data(extra, parts, data_root)
    with (
        _threads(threads),
        rng.seeded(seed),
        parallel.ranks(model, sync_bn=sync_bn) as ranks_of,
    ):
        model = setup.make_model(model, parts.train)
        device = model_device(model) or torch.device("cpu")
        check_capture(capture, device)
        sample, classes = setup.check_model(model, device, parts)
        if weights is not None:
            checkpoint.load(weights, model)
        models.use_norm_layers(model, norm_layers)
        ranks = ranks_of(model)
        a.precision = resolve_precision(precision, device)
        with arithmetic(deterministic, device):
            a.channels_last = setup.use_channels_last(model, sample, channels_last, a.precision)
        a.threads = torch.get_num_threads()
        loader: Batches = setup.make_loader(
            parts,
            batch_size,
            device=device,
            seed=seed,
            augment=tuple(augment),
            channels_last=a.channels_last,
            share=ranks.share,
            extra_share=extra_share,
        )
        own = methods.make(method, model, settings(a))
        check_remedy(a, own)
        a.alpha, a.steps, own.ranks = own.alpha, own.steps, ranks
        own.begin(
            loader, sample.to(memory_format=torch.channels_last) if a.channels_last else sample
        )
        if own.repeats > 1:
            loader = Repeated(loader, own.repeats)
        # The numbers that a DataLoader may give are its own: there need not be so many samples.
        samples = getattr(loader, "samples", None) if loader.stateful else None
        run_info = RunInfo(classes, batch_size, epochs, len(loader), seed, samples, ranks)
        going_with = begin_modifiers(a, own, model, run_info)
        prefix = make_prefix(
            clean_prefix,
            vars(a),
            own,
            parts.train,
            extra=sum(modifier.extra_passes() for modifier in going_with),
            ranks=ranks,
            shown=progress,
        )
        made = make_optimizer(a, model)
        config = {name: plain(value) for name, value in vars(a).items() if name not in _NOT_CONFIG}
        environment = {
            "data": parts.name,
            "samples": parts.samples(),
            "fingerprint": parts.fingerprint(),
            "model": checkpoint.describe(model),
            "classes": classes,
            "device": str(device),
            "threads": a.threads,
            "precision": a.precision,
            "versions": versions(),
            "ranks": ranks.world,
        }
        ranks.same("arguments", config)
        ranks.same("data", {"the training data": environment["fingerprint"]})
        own_name = method.rpartition(":")[2] if isinstance(method, str) else "own"
        name = f"{parts.name}-{own_name}-seed{seed}"
        folder = ranks.alone(
            lambda: names.run_folder(out, name, overwrite=overwrite, resume=resume)
        )
        saved = ranks.alone(lambda: saved_run(folder, config, environment) if resume else None)
        if saved is not None and saved["run"]["finished"]:
            content = ranks.alone(lambda: complete_run(folder))
            if content is not None:
                best, results = content
                checkpoint.fill(model, best, folder / names.BEST)
                return to_result(results, folder, model, saved["run"]["history"])
        if saved is None:
            ranks.alone(lambda: write_config(folder / names.CONFIG, config))
        interrupt = Interrupt()
        state = TrainState(model, made, config, folder, epochs, len(loader), prefix=prefix)
        run = make_run(
            a, own, state, parts, loader, environment, interrupt, saved, ranks, going_with
        )
        with interrupt, explained(run), arithmetic(deterministic, device):
            run.train()
            return finish(run, parts, progress)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
