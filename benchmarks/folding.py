"""What becomes of the layers of each network in the attacks: a table of BN layers folded, and why some run as they are.

    python benchmarks/folding.py --out benchmarks/results/folding.csv
    python benchmarks/folding.py --only resnet18                         # a part of it

The networks of this folder, those of advfast.models by name, every architecture of advfast.models.PUBLISHED, and well
known ones of torchvision and timm where these are installed; random weights. Each is attacked with one step on two
images, which is the engine's own trial; of those with more than 100 million weights only the operations are read.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import networks
import torch
from records import environment, package_version
from torch import nn

from advfast import PGDAttack, models
from advfast.attacks.network.network import engine_of
from advfast.attacks.network.segment import SegmentStep

LARGEST = 100_000_000
OWN = {"small-cnn": (1, 28), "resnet18-w64": (3, 32), "preact-resnet18-w64": (3, 32)}
LIBRARIES = {
    "torchvision": (
        "resnet18", "resnext50_32x4d", "densenet121", "vgg16_bn", "mobilenet_v2", "efficientnet_b0",
        "convnext_tiny", "googlenet", "vit_b_16", "swin_t",
    ),
    "timm": (
        "resnet18", "convnext_atto", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224",
        "mobilenetv3_small_100", "xcit_nano_12_p16_224", "levit_128s",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    date: str
    commit: str
    machine: str
    torch: str
    model: str
    source: (
        str  # benchmarks | advfast | published | torchvision | timm, with the version of a library
    )
    published: str  # checkpoints of this architecture
    weights: int
    bn_layers: int
    folded: int
    by_us: int  # layers without autograd
    stretches: int  # runs of layers by autograd
    tried: str  # yes | read: its operations were read and nothing was computed
    as_it_is: str  # why the whole network runs by autograd, or "no"


@dataclass(frozen=True)
class Entry:
    name: str
    source: str
    make: Callable[[], nn.Module]
    shape: tuple[int, int, int] = (3, 32, 32)
    published: str = "none"


def published() -> Iterator[Entry]:
    """One entry an architecture; normalisation and number of classes make none."""
    found: dict[str, list[str]] = {}
    for name, (network, settings) in models.PUBLISHED.items():
        rest = {k: v for k, v in settings.items() if k not in ("mean", "std", "classes")}
        title = " ".join([network, *(f"{k}={v}" for k, v in rest.items())])
        found.setdefault(title, []).append(name)
    for title, names in found.items():
        # One with a normalisation, if there is one: it has to be absorbed.
        chosen = max(names, key=lambda name: "mean" in models.PUBLISHED[name][1])
        side = 64 if title.startswith("resnet50") else 32
        shape = (1, 28, 28) if title.startswith("small-cnn") else (3, side, side)
        make = partial(models.make_published, chosen)
        yield Entry(title, "published", make, shape, "; ".join(names))


def entries() -> Iterator[Entry]:
    for name, (channels, side) in OWN.items():
        make = partial(networks.make, name, channels, side=side)
        yield Entry(name, "benchmarks", make, (channels, side, side))
    for name in models.MODELS:
        shape = (1, 28, 28) if name == "small-cnn" else (3, 32, 32)
        shape = (3, 64, 64) if name == "resnet50" else shape
        if name != "wide-resnet":  # wrn-* are its forms
            yield Entry(name, "advfast", partial(models.make, name), shape)
    yield from published()
    for library, names in LIBRARIES.items():
        if importlib.util.find_spec(library) is None:
            print(f"skipped: {library} is not installed", file=sys.stderr)
            continue
        source = f"{library} {package_version(library)}"
        for name in names:
            yield Entry(name, source, partial(models.make, f"{library}:{name}"), (3, 224, 224))


def examine(entry: Entry) -> dict[str, object]:
    """The columns that say what the engine makes of the network."""
    with torch.device("meta"):
        model = entry.make().eval()
    weights = sum(p.numel() for p in model.parameters())
    tried = weights <= LARGEST
    if tried:
        torch.manual_seed(0)
        model = entry.make().eval()
        attack = PGDAttack(model, steps=1, random_start=False)
        attack(torch.rand(2, *entry.shape), torch.tensor([0, 1]))
    engine = engine_of(model)
    program = engine.program
    norms = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    steps = [] if program is None else program.steps
    stretches = sum(isinstance(step, SegmentStep) for step in steps)
    return {
        "model": entry.name, "source": entry.source, "published": entry.published,
        "weights": weights, "bn_layers": norms, "folded": 0 if program is None else program.folded,
        "by_us": len(steps) - stretches, "stretches": stretches,
        "tried": "yes" if tried else "read",
        "as_it_is": "no" if program is not None else engine.reason,
    }  # fmt: skip


def table(rows: list[Row]) -> str:
    lines = [
        "| network | BN folded | layers without autograd | stretches by autograd | tried | as it is |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.model} | {row.folded} of {row.bn_layers} | {row.by_us} | {row.stretches} | {row.tried} "
            f"| {row.as_it_is} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", type=re.compile, metavar="REGEX", help="networks that it matches")
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own")
    parser.add_argument("--out", type=Path, help="CSV to write")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    shared = environment("cpu")
    rows = [
        Row(
            date=shared.date, commit=shared.commit, machine=shared.machine, torch=shared.torch,
            **examine(entry),  # type: ignore[arg-type]
        )
        for entry in entries()
        if options.only is None or options.only.search(entry.name)
    ]  # fmt: skip
    if options.out is not None and rows:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(asdict, rows))
    print(table(rows))
    return 0 if rows else 2


if __name__ == "__main__":
    sys.exit(main())
