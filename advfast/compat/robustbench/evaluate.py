"""The evaluation that a leaderboard of RobustBench asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from advfast.evaluation import EvalReport
from advfast.evaluation import evaluate as _evaluate

from .load import load
from .names import EPS, SAMPLES, check_benchmark, parse_name


def evaluate(
    model: str | Callable[[Tensor], Tensor],
    *,
    dataset: str = "cifar10",
    threat_model: str = "Linf",
    eps: float | None = None,
    n_examples: int | None = None,
    attacks: Sequence[str] = ("clean", "autoattack"),
    data: object = None,
    data_dir: str | Path | None = None,
    model_dir: str | Path = "./models",
    download: bool = False,
    batch_size: int = 500,
    seed: int = 0,
    progress: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
) -> EvalReport:
    """AutoAttack, version standard, at the eps of the leaderboard, on the first `n_examples` clean test images.

    Args:
        model: a network, images [B, 3, H, W] in [0, 1] -> logits [B, K], on the device that it is to run on; or a name:
            "robustbench:cifar10/Linf/Wong2020Fast", which says data set and threat model too, or "Wong2020Fast".
        dataset, threat_model: "cifar10", "cifar100" or "imagenet"; "Linf" or "L2".
        eps: None takes that of the leaderboard.
        n_examples: None takes all of the leaderboard's: 10,000, ImageNet 5,000.
        attacks: as for `advfast.evaluate`.
        data: what to evaluate on, in place of the data set by its name. ImageNet needs it: the 5,000 images of
            RobustBench's list, each preprocessed as its network wants it.
        data_dir: folder of the data set's files.
        model_dir, download: of the weights; see `load`.
        batch_size, seed, progress, out, resume: as for `advfast.evaluate`.

    Raises:
        ImportError, FileNotFoundError, RuntimeError: see `load`.
        ValueError, TypeError: bad argument or data, before any work.
    """
    if isinstance(model, str):
        asked = parse_name(model if "/" in model else f"{dataset}/{threat_model}/{model}")
        dataset, threat_model = asked.dataset, asked.threat_model
    check_benchmark(dataset, threat_model)
    count = SAMPLES[dataset] if n_examples is None else n_examples
    if data is None and dataset == "imagenet":
        raise ValueError(
            "imagenet needs data=: the images of RobustBench's list, preprocessed for this network"
        )
    if isinstance(model, str):
        model = load(asked.model, dataset, threat_model, model_dir=model_dir, download=download)
    return _evaluate(
        model,
        dataset if data is None else data,
        attacks=attacks,
        eps=EPS[dataset, threat_model] if eps is None else eps,
        norm=threat_model.lower(),
        limit=count,
        data_root=data_dir,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
        out=out,
        resume=resume,
    )
