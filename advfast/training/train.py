"""advfast.train."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advfast.attacks.state import model_device
from advfast.evaluation import EvalReport, evaluate
from advfast.kernels.pgd.api import check_norm

from . import checkpoint, files, methods
from .loop import NonFiniteLoss, run_epochs, steps_of
from .picture import PictureSkipped, draw
from .progress import Progress
from .result import Selected, TrainResult
from .schedules import one_cycle
from .setup import RunData, check_model, check_numbers, make_model, run_data

VAL_ATTACK = "pgd-10"
"""Robust accuracy on the held-out split, each epoch."""

TEST_ATTACKS = ("clean", "pgd-20")


def train(
    model: nn.Module | str = "small-cnn",
    data: object = "digits",
    *,
    method: str = "pgd-at",
    eps: float = 8 / 255,
    alpha: float | None = None,
    steps: int = 10,
    norm: str = "linf",
    epochs: int = 30,
    val: object = None,
    test: object = None,
    batch_size: int = 128,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    bn: str = "eval",
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    data_root: str | Path | None = None,
    progress: bool = True,
) -> TrainResult:
    """Adversarial training of a classifier, with the best epoch chosen on held-out data.

    "pgd-at" trains on PGD adversarial images alone (Madry et al., ICLR 2018); "standard" on clean ones. SGD with one
    learning-rate cycle (see `schedules.one_cycle`) stepped in every iteration. After each epoch the held-out split is
    attacked with PGD-10; best.pt is the epoch with the highest robust accuracy there ("standard": highest clean
    accuracy), ties broken by the other. The test set is read once, after training: clean and PGD-20, of the best and of
    the last epoch.

    The same arguments give the same weights on the same machine with the same thread count. torch's global random state
    is left as it was.

    Args:
        model: an nn.Module, images [B, C, H, W] in [0, 1] -> logits [B, K], trained in place where it is; or the name
            of one of advfast's, which is made for the data with a normalisation layer inside.
        data: "digits" or "fashion-mnist"; a pair (images [N, C, H, W] uint8 or float in [0, 1], labels [N]); or a torch
            Dataset of (image tensor, label).
        method: "pgd-at" or "standard".
        eps: radius of the attack in training and evaluation, pixel units of [0, 1].
        alpha: step size in training; None is eps/4.
        steps: PGD steps in training.
        norm: "linf", "l2" or "l1".
        epochs: passes over the training data.
        val: held-out data, as a pair or a Dataset. None sets a stratified 15 % of `data` aside, at most 2,000 samples;
            which ones depends on `seed`.
        test: test data, as a pair or a Dataset. None takes that of a built-in data set, if it is one.
        batch_size: samples a step.
        lr: highest learning rate.
        momentum, weight_decay: of SGD.
        bn: batch normalisation while the attack crafts: "eval" (running statistics), "train" (batch statistics, running
            ones put back) or "train-update". The step on the weights is always in train mode.
        seed: of the held-out split, the weights of a named model, the order of the data and the random starts.
        out: folder to write to; None makes runs/<data>-<method>-seed<seed>, with a number behind it if that exists.
        overwrite: replace a run that is in `out`.
        data_root: folder of a built-in data set's files.
        progress: show progress on standard error.

    Returns:
        The model with the best weights, in eval mode; history; files. See `TrainResult`.

    Raises:
        ValueError, TypeError: bad argument or data, before training.
        FileNotFoundError: the files of a built-in data set are not there.
        FileExistsError: `out` holds a run and `overwrite` is False.
        NonFiniteLoss: the loss became NaN or infinite; says at which step; what was saved stays.
    """
    started = time.perf_counter()
    norm = check_norm("train", norm)
    check_numbers(
        eps=eps,
        norm=norm,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        seed=seed,
    )
    settings = methods.Settings(eps, alpha, steps, norm, bn)
    # A method checks its name and its settings when it is made: do that before data are read.
    methods.make(method, nn.Identity(), settings)
    if not isinstance(model, (str, nn.Module)):
        raise TypeError(f"model must be an nn.Module or a name, got {type(model).__name__}")
    parts = run_data(data, val, test, data_root, seed)
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(cuda):
        torch.manual_seed(seed)
        if isinstance(model, str):
            model = make_model(model, parts.train)
        device = model_device(model) or torch.device("cpu")
        check_model(model, device, parts)
        folder = files.run_folder(out, f"{parts.name}-{method}-seed{seed}", overwrite)
        config: dict[str, Any] = {
            "data": parts.name,
            "model": checkpoint.describe(model),
            "method": method,
            "eps": float(eps),
            "alpha": float(eps / 4 if alpha is None else alpha),
            "steps": steps,
            "norm": norm,
            "bn": bn,
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "seed": seed,
            "samples": {
                "train": len(parts.train),
                "val": len(parts.val),
                "test": 0 if parts.test is None else len(parts.test),
            },
            "device": str(device),
            "threads": torch.get_num_threads(),
            "versions": checkpoint.versions(),
        }
        files.write_json(folder / files.CONFIG, config)
        trainer = methods.make(method, model, settings)
        history, best, best_state = _fit(model, trainer, parts, folder, config, device, progress)
        last = history[-1]
        test_best = test_last = _test(model, parts, eps, norm, progress)
        if best is not last:
            model.load_state_dict(best_state)
            test_best = _test(model, parts, eps, norm, progress)
    model.eval()
    result = TrainResult(
        model=model,
        history=history,
        best=Selected(int(best["epoch"]), best, test_best, folder / files.BEST),
        last=Selected(int(last["epoch"]), last, test_last, folder / files.LAST),
        path=folder,
        picture=_picture(model, parts, folder / files.PICTURE, eps, norm, progress),
        config=config,
        seconds=time.perf_counter() - started,
    )
    files.write_json(folder / files.RESULTS, result.to_dict())
    return result


def _fit(
    model: nn.Module,
    trainer: methods.Method,
    parts: RunData,
    folder: Path,
    config: dict[str, Any],
    device: torch.device,
    progress: bool,
) -> tuple[list[dict[str, float]], dict[str, float], dict[str, Tensor]]:
    """Runs the epochs and saves each: (history, row of the best epoch, its weights)."""
    epochs, batch_size, lr = config["epochs"], config["batch_size"], config["lr"]
    steps = steps_of(len(parts.train), batch_size)

    def validate() -> tuple[float, float]:
        report = evaluate(
            model,
            parts.val,
            attacks=("clean", VAL_ATTACK),
            eps=config["eps"],
            norm=config["norm"],
            seed=config["seed"],
        )
        return report["clean"].value, report[VAL_ATTACK].value

    bar = Progress(config, steps, trainer.trains_on, folder, progress)
    rows = run_epochs(
        model,
        trainer,
        parts.train,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=torch.optim.SGD(
            model.parameters(),
            lr=lr,
            momentum=config["momentum"],
            weight_decay=config["weight_decay"],
        ),
        learning_rate=lambda step: one_cycle(step, epochs * steps, lr),
        order=torch.Generator().manual_seed(config["seed"]),
        device=device,
        validate=validate,
        callbacks=(bar,),
    )
    history: list[dict[str, float]] = []
    best: dict[str, float] = {}
    best_state: dict[str, Tensor] = {}
    try:
        for row in rows:
            history.append(row)
            files.write_csv(folder / files.HISTORY, history)
            state = checkpoint.state_of(model)
            kept = [files.LAST]
            if not best or _rank(row, trainer) > _rank(best, trainer):
                best, best_state = row, state
                kept.append(files.BEST)
            epoch = int(row["epoch"])
            for file in kept:
                checkpoint.save(
                    folder / file, model, state, epoch=epoch, metrics=row, config=config
                )
    except NonFiniteLoss as error:
        saved = f"epochs up to {len(history)} are" if history else "no epoch is"
        raise NonFiniteLoss(f"{error}; {saved} saved in {folder}") from None
    except KeyboardInterrupt:
        if progress and history:
            print(
                f"stopped after epoch {len(history)}, which is saved in {folder}", file=sys.stderr
            )
        raise
    finally:
        bar.close()
    return history, best, best_state


def _rank(row: dict[str, float], trainer: methods.Method) -> tuple[float, float]:
    pair = row["val_robust"], row["val_clean"]
    return pair if trainer.trains_on == "adversarial" else pair[::-1]


def _test(
    model: nn.Module, parts: RunData, eps: float, norm: str, progress: bool
) -> EvalReport | None:
    if parts.test is None:
        return None
    return evaluate(model, parts.test, attacks=TEST_ATTACKS, eps=eps, norm=norm, progress=progress)


def _picture(
    model: nn.Module, parts: RunData, path: Path, eps: float, norm: str, progress: bool
) -> Path | None:
    shown = parts.val if parts.test is None else parts.test
    try:
        draw(path, model, shown, eps=eps, norm=norm, class_names=parts.class_names)
    except PictureSkipped as reason:
        if progress:
            print(reason, file=sys.stderr)
        return None
    return path
