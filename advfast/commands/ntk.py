"""advfast ntk."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    Config,
    DataRoot,
    Debug,
    Eps,
    Norm,
    Quiet,
    Split,
    Threads,
    set_threads,
)

if TYPE_CHECKING:
    from advfast.evaluation.inputs import Inputs
    from advfast.ntk.report import KernelReport

FILES = ("kernel.npz", "metrics.json", "kernel.png", "spectrum.png")
_BYTES = re.compile(r"([0-9.]+) *(|[KMGT]i?B?|B)", re.IGNORECASE)


def _bytes(text: str) -> int:
    """2GB, 512MiB or a number of bytes."""
    match = _BYTES.fullmatch(str(text).strip())
    try:
        if match is None:
            raise ValueError
        unit = match[2].upper()
        power = "BKMGT".index(unit[0]) if unit else 0
        return int(float(match[1]) * (1024 if "I" in unit else 1000) ** power)
    except ValueError:
        raise typer.BadParameter(f"expected a size such as 2GB or 512MiB, got {text!r}") from None


def ntk(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder of a run (its best.pt) or a .pt file.")
    ],
    data: Annotated[
        str | None,
        typer.Option(help="Name, path, or file.py:make. [default: the data of the run]"),
    ] = None,
    n: Annotated[int, typer.Option(help="Images, as many of each class as can be.")] = 100,
    readout: Annotated[
        str,
        typer.Option(
            help="full (every output), sum, trace, margin, loss, or the number of a class."
        ),
    ] = "full",
    adversarial: Annotated[
        str | None,
        typer.Option(help="Also the kernel of images made by this attack, such as pgd-10 or fgsm."),
    ] = None,
    eps: Eps = None,
    norm: Norm = None,
    of: Annotated[
        str,
        typer.Option(
            help="Of which matrix the spectrum is: trace (mean over the outputs, N x N) or full (NR x NR)."
        ),
    ] = "trace",
    params: Annotated[
        str | None,
        typer.Option(help="Parameters or modules, with commas. [default: all that are trained]"),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of the products: auto, fp64, fp32, tf32, bf16x3 or bf16.")
    ] = "auto",
    method: Annotated[str, typer.Option(help="Order of the products: auto, M, C or G.")] = "auto",
    tile: Annotated[
        int | None, typer.Option(help="Images held at once. [default: what fits]")
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory for it, such as 2GB. [default: half the free]"),
    ] = None,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Also a line for each layer's part.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show how it would be computed, and stop.")
    ] = False,
    split: Split = "test",
    seed: Annotated[int, typer.Option(help="Of the choice of images and of the attack.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results. [default: a new ntk/ beside the checkpoint]"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results in --out.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="file.py:make of a network that is not advfast's own, or a published one's name."
        ),
    ] = None,
    data_root: DataRoot = None,
    threads: Threads = None,
    quiet: Quiet = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Neural tangent kernel of a trained network: metrics, kernel, heat map and spectrum.

    Writes kernel.npz (clean, and the attack's name: [N, N, R, R] float32; labels, indices, settings), metrics.json,
    kernel.png and spectrum.png.
    """
    from advfast.attacks.checks import check_choice, check_count
    from advfast.evaluation.inputs import SPLITS
    from advfast.ntk import metrics
    from advfast.ntk import plan as plan_of
    from advfast.ntk.report import KernelReport

    from .checkpoints import defaults, open_checkpoint

    set_threads(threads)
    check_choice("split", split, SPLITS)
    check_count("n", n, 1)
    metrics.check_of(of)
    if out is not None and not overwrite:
        for file in (out / name for name in FILES):
            if file.exists():
                raise FileExistsError(
                    f"{file} is there already; choose another folder or --overwrite"
                )
    arguments: dict[str, Any] = {
        "readout": int(readout) if re.fullmatch(r"-?[0-9]+", readout) else readout,
        "params": None if params is None else [p.strip() for p in params.split(",") if p.strip()],
        "precision": precision,
        "method": method,
        "tile": tile,
        "max_bytes": None if max_bytes is None else _bytes(max_bytes),
    }
    trained = open_checkpoint(checkpoint, model)
    asked: dict[str, Any] = {"data": data, "data_root": data_root}
    fallback: dict[str, Any] = {}
    if adversarial is not None:
        asked |= {"eps": eps, "norm": norm}
        fallback = {"eps": 8 / 255, "norm": "linf"}
    settings = defaults(trained, asked, quiet=quiet, fallback=fallback)
    attack = None
    if adversarial is not None:
        attack = _attack(adversarial, trained.model, settings, seed)
    images, labels, indices, of_data = _probe(settings, split, n, seed, trained.model)
    if plan:
        y = labels if readout in ("margin", "loss") else None
        print(plan_of(trained.model, images, y1=y, per_layer=per_layer, **arguments))
        return
    told: Callable[[str], None] = lambda text: None  # noqa: E731
    if not quiet:
        told = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    shown = {name: str(value) for name, value in settings.items() if value is not None}
    shown |= {"checkpoint": str(trained.file), "split": split, "seed": str(seed)}
    shown |= {name: str(value) for name, value in arguments.items() if value is not None}
    report = KernelReport(labels.cpu(), indices, of, shown)
    with _Bar(quiet) as bar:
        report.add(
            "clean", trained.model, images, say=told, progress=bar, per_layer=per_layer, **arguments
        )
    if attack is not None and adversarial is not None:
        told(f"{adversarial}: crafting")
        changed = attack(images, labels)
        with _Bar(quiet) as bar:
            report.add(
                adversarial, trained.model, changed, say=told, progress=bar, per_layer=per_layer, **arguments
            )  # fmt: skip
    folder = trained.results_folder("ntk") if out is None else out
    written = report.save(folder)
    written += _pictures(folder, report, of_data)
    print(f"{of_data.words}: {len(labels)} images; readout {readout}")
    if attack is not None:
        print(f"{adversarial}: {settings['norm']} eps {float(settings['eps']):.6g}")
    print(report.table())
    if not quiet:
        print(f"wrote {', '.join(str(file) for file in written)}", file=sys.stderr)


def _attack(name: str, model: Any, settings: dict[str, Any], seed: int) -> Any:
    from advfast.attacks.checks import check_pixels
    from advfast.evaluation.named import named
    from advfast.kernels.pgd.api import check_norm

    norm = check_norm("ntk", settings["norm"])
    eps = float(settings["eps"])
    check_pixels(eps, norm)
    attack, _ = named(name, model, eps=eps, norm=norm, seed=seed, precision="fp32")
    if attack is None:
        raise ValueError(f"--adversarial must be an attack such as pgd-10, got {name!r}")
    return attack


def _probe(settings: dict[str, Any], split: str, n: int, seed: int, model: Any) -> tuple:
    """(images, labels, sample numbers, the data), balanced over the classes, sorted by class."""
    from torch.utils.data import DataLoader

    from advfast.attacks.state import model_device, parameter_dtype
    from advfast.evaluation.inputs import inputs
    from advfast.ntk import balanced_probe

    of = inputs(settings["data"], split, settings["data_root"], None)
    if isinstance(of.data, DataLoader):
        raise ValueError(
            "the images are chosen by their labels, so the data must be a data set, not a DataLoader"
        )
    indices = balanced_probe(of.data.labels, n, seed)
    images, labels = of.data.batch(indices)
    device, dtype = model_device(model), parameter_dtype(model)
    return images.to(device, dtype), labels.to(device), indices, of


class _Bar:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self._off = quiet or not sys.stderr.isatty()
        self._bar: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._off:
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="block", leave=False)
        self._bar.update(done - self._bar.n)

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _pictures(folder: Path, report: KernelReport, of_data: Inputs) -> list[Path]:
    """The heat map and the spectrum, if they can be drawn."""
    from advfast.evaluation.picture import PictureSkipped
    from advfast.ntk.pictures import draw_heat, draw_spectrum

    heat, spectrum = folder / "kernel.png", folder / "spectrum.png"
    title = f"neural tangent kernel, {of_data.words}, {len(report.labels)} images"
    try:
        thetas = {name: part.theta for name, part in report.parts.items()}
        draw_heat(
            heat,
            thetas,
            report.labels,
            title=f"{title}, sorted by class",
            class_names=of_data.class_names,
        )
        values = {name: part.eigenvalues for name, part in report.parts.items()}
        draw_spectrum(spectrum, values, title=f"{title}, {report.of} kernel")
    except PictureSkipped as reason:
        print(f"advfast: {reason}", file=sys.stderr)
        return []
    return [heat, spectrum]
