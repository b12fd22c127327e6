"""Probes what PGD attacks do to a model and its inputs, for advfast and each peer that is installed.

python benchmarks/contract.py [--out docs/contract.md]    exits with 1 if a cell of advfast is not good
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from advfast import PGDAttack  # noqa: E402
from benchmarks import peers  # noqa: E402

EPS, ALPHA, STEPS = 8 / 255, 2 / 255, 10
L2_EPS, L2_ALPHA = 0.5, 0.1


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
        nn.Linear(8 * 64, 10),
    )  # fmt: skip
    return net.to(dtype).eval()


def data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(8, 3, 8, 8, generator=generator).to(dtype)
    return images, torch.arange(8) % 10


def ours(model: nn.Module, s: peers.Settings) -> peers.Attack:
    return PGDAttack(model, s.eps, s.alpha, s.steps, False, norm=s.norm)


Build = Callable[..., peers.Attack]


def build(make: Build, model: nn.Module, images: Tensor, norm: str = "linf") -> peers.Attack:
    eps, alpha = (EPS, ALPHA) if norm == "linf" else (L2_EPS, L2_ALPHA)
    return make(model, peers.Settings(norm, eps, alpha, STEPS, tuple(images.shape)))


def run(make: Build, model=None, images=None, labels=None, norm: str = "linf") -> Tensor:
    model = network() if model is None else model
    default_images, default_labels = data()
    images = default_images if images is None else images
    labels = default_labels if labels is None else labels
    return build(make, model, images, norm)(images, labels)


# Each probe returns (what was seen, whether that is good).
Seen = tuple[str, bool]


def forwards(make: Build) -> Seen:
    model, calls = network(), []
    images, labels = data()
    attack = build(make, model, images)
    model.register_forward_hook(lambda *_: calls.append(1))
    attack(images, labels)
    # ART calls the layers itself: no hook of the model sees it.
    return (str(len(calls)) if calls else "not seen"), len(calls) == STEPS


def pollutes_gradients(make: Build) -> Seen:
    model = network()
    run(make, model)
    touched = any(p.grad is not None for p in model.parameters())
    return ("**yes**" if touched else "no"), not touched


def moves_statistics(make: Build) -> Seen:
    model, (images, labels) = network(), data()
    attack = build(make, model, images)
    model.train()
    before = model[1].running_mean.clone()
    attack(images, labels)
    moved = not torch.equal(before, model[1].running_mean)
    return ("**yes**" if moved else "no"), not moved


def mode_afterwards(make: Build) -> Seen:
    model, (images, labels) = network(), data()
    attack = build(make, model, images)
    model.train()
    attack(images, labels)
    return ("train" if model.training else "**eval**"), model.training


def frozen_bn_afterwards(make: Build) -> Seen:
    model, (images, labels) = network(), data()
    attack = build(make, model, images)
    model.train()
    model[1].eval()
    attack(images, labels)
    frozen = not model[1].training
    return ("eval" if frozen else "**train**"), frozen


def requires_grad(make: Build) -> Seen:
    got = run(make)
    return ("**yes**" if got.requires_grad else "no"), not got.requires_grad


def of_dtype(dtype: torch.dtype) -> Callable[[Build], Seen]:
    def probe(make: Build) -> Seen:
        images, labels = data(dtype)
        got = run(make, network(dtype), images, labels)
        over = (got.double() - images.double()).abs().max().item() * 255
        good = got.dtype == dtype and over <= 8 * (1 + 1e-6) and over > 7
        return f"{over:.3f}" if good else f"**{over:.3f}** {str(got.dtype)[6:]}", good

    return probe


def channels_last(norm: str) -> Callable[[Build], Seen]:
    def probe(make: Build) -> Seen:
        images, labels = data()
        got = run(
            make,
            images=images.contiguous(memory_format=torch.channels_last),
            labels=labels,
            norm=norm,
        )
        kept = got.is_contiguous(memory_format=torch.channels_last)
        return ("kept" if kept else "**lost**"), kept

    return probe


def out_of_range(make: Build) -> Seen:
    images, labels = data()
    try:
        run(make, images=images * 3 - 1, labels=labels)
    except (ValueError, AssertionError) as error:
        return type(error).__name__, True
    return "**accepted**", False


def under(context: Callable) -> Callable[[Build], Seen]:
    def probe(make: Build) -> Seen:
        model, (images, labels) = network(), data()
        attack = build(make, model, images)
        with context():
            attack(images.clone(), labels.clone())
        return "works", True

    return probe


def zero_gradient(make: Build) -> Seen:
    model = network()
    with torch.no_grad():
        model[-1].weight.zero_()
    got = run(make, model, norm="l2")
    return ("works" if got.isfinite().all() else "**NaN**"), bool(got.isfinite().all())


def two_dimensional(norm: str) -> Callable[[Build], Seen]:
    def probe(make: Build) -> Seen:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 10)).eval()
        got = run(make, model, torch.rand(8, 20), norm=norm)
        return "works", got.shape == (8, 20)

    return probe


PROBES: dict[str, Callable[[Build], Seen]] = {
    "forwards for 10 steps": forwards,
    "writes param.grad": pollutes_gradients,
    "moves BN statistics of a model in train mode": moves_statistics,
    "mode afterwards, from train": mode_afterwards,
    "frozen BN afterwards": frozen_bn_afterwards,
    "result requires grad": requires_grad,
    "float64 model and images, 255·max δ": of_dtype(torch.float64),
    "bfloat16, 255·max δ (eps = 8/255)": of_dtype(torch.bfloat16),
    "float16, 255·max δ (eps = 8/255)": of_dtype(torch.float16),
    "channels_last, linf": channels_last("linf"),
    "channels_last, l2": channels_last("l2"),
    "images in [-1, 2]": out_of_range,
    "under no_grad": under(torch.no_grad),
    "under inference_mode": under(torch.inference_mode),
    "under autocast(bfloat16)": under(lambda: torch.autocast("cpu", torch.bfloat16)),
    "sample with zero gradient, l2": zero_gradient,
    "2-D images, linf": two_dimensional("linf"),
    "2-D images, l2": two_dimensional("l2"),
}


def look(probe: Callable[[Build], Seen], make: Build) -> Seen:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return probe(make)
    except Exception as error:  # any failure of a peer is a result
        return f"**{type(error).__name__}**", False


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="markdown file to write")
    out = parser.parse_args().out
    columns: dict[str, Build] = {"advfast": ours}
    for name, make in peers.PEERS.items():
        if importlib.util.find_spec(name) is not None:
            columns[name] = make
    lines = [
        "# What an attack leaves behind",
        "",
        "Written by `python benchmarks/contract.py --out docs/contract.md`; bold cells are failings. PGD-10, linf",
        f"eps = 8/255 (l2: {L2_EPS}), on a small network with BN and dropout, CPU, torch {torch.__version__}.",
        "",
        "| | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    failed = []
    for title, probe in PROBES.items():
        cells = []
        for name, make in columns.items():
            if "l2" in title and "l2" not in peers.NORMS.get(name, ("l2",)):
                cells.append("-")
                continue
            seen, good = look(probe, make)
            cells.append(seen)
            if name == "advfast" and not good:
                failed.append(title)
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    print(text)
    if out is not None:
        out.write_text(text)
    if failed:
        print("not good for advfast:", ", ".join(failed), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
