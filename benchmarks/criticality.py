"""Criticality of all layers: kept prefixes against whole passes.

    python benchmarks/criticality.py                # -> results/criticality_cpu.csv, about 6 minutes
    python benchmarks/criticality.py --quick        # a trial, no result

"naive" is the loop as the paper has it (arXiv 2410.14470): in every trial a fresh network, and for every Conv2d and
Linear all weights put back, that layer's taken from the fresh network, and a whole pass over the images. "advfast" is
`advfast.studies.criticality_measure.measure` with the same fresh networks. Both in turn in every round, on one thread,
in batches of 50, 3 trials; a row has the medians over the rounds, and the largest difference of a layer's criticality
between the two. Rows come as they are made; those that the file has are not measured again.

The floor: a layer at place i of L costs what comes behind it, in naive the whole pass. Where all L layers cost the same
that is (L + 1) / 2 of L, so naive's time is at most 2 L / (L + 1) times as long, towards 2; it is more where the first
layers are the dear ones, as small channels on large images are, and less where the last are. Branches beside a layer
are not run again. Counted (convolutions and matrix products, multiplications and additions): "flop_ratio" of a row,
with the one pass over the unchanged network that both need. A ratio of times above it comes from what is not counted:
element-wise operations, and weights that are put back.

Expected, written down before the first run (2026-11-30):
 * at least 2 times as fast as naive on ResNet-18 of width 16 at 32x32 (flop_ratio 2.0; 2.4 to 2.7 in a trial of the
   idea on a busy machine);
 * at least 1.3 times on each of the small networks, of few layers;
 * every criticality the same to 1e-6.
The program says of each whether it held.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from records import ROOT, environment
from rows import as_text, held, read, write
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from advfast import models
from advfast.studies.criticality_measure import Layer, Maker, find_layers, measure
from advfast.studies.networks import conv_bn_net
from advfast.studies.resets import layer_tensors, network, tensors_of
from advfast.training import rng

OUT = ROOT / "benchmarks/results/criticality_cpu.csv"
TRIALS, BATCH, ROUNDS, SAME = 3, 50, 5, 1e-6
Found = dict[tuple[str, int], float]
"""(Layer, trial) -> criticality."""

RESNET = "resnet18, width 16, 3x32x32"

CASES: dict[str, tuple[tuple[int, int, int], int, Maker]] = {
    RESNET: (
        (3, 32, 32), 100, partial(models.make, "resnet18", in_shape=(3, 32, 32), classes=10, width=16),
    ),
    "resnet18, width 8, 1x28x28": (
        (1, 28, 28), 500, partial(models.make, "resnet18", in_shape=(1, 28, 28), classes=10, width=8),
    ),
    "small-cnn, 1x28x28": (
        (1, 28, 28), 1000, partial(models.make, "small-cnn", in_shape=(1, 28, 28), classes=10),
    ),
    "three convolutions, width 8, 1x8x8": ((1, 8, 8), 2000, partial(conv_bn_net, (1, 8, 8), 10)),
}  # fmt: skip
"""Name -> shape of an image, images, what makes the network."""


@dataclass(frozen=True)
class Row:
    date: str
    commit: str
    machine: str
    threads: int
    load: float
    torch: str
    network: str
    layers: int
    images: int
    trials: int
    rounds: int
    naive_s: float  # medians
    advfast_s: float
    ratio: float  # of these
    ratio_least: float  # of the rounds
    ratio_most: float
    flop_ratio: float
    most_different: float  # of a criticality


def prepared(maker: Maker, images: Tensor) -> nn.Module:
    """With running statistics of the images, and logits that tell them apart, as after a training."""
    with rng.seeded(0):
        net = maker()
    with torch.no_grad():
        for _ in range(20):
            net.train()(images[:BATCH])
        head = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
        head.weight *= 5 / net.eval()(images[:BATCH]).std(0).mean()
    return net.eval()


def naive(model: nn.Module, layers: list[Layer], images: Tensor, maker: Maker) -> Found:
    """The paper's loop."""
    net, backup = copy.deepcopy(model).eval(), copy.deepcopy(model.state_dict())
    found = {}
    with torch.no_grad():
        p = torch.cat([net(part).softmax(1) for part in images.split(BATCH)])
        for trial in range(TRIALS):
            with rng.seeded(zlib.crc32(f"{trial}:network".encode())):
                fresh = maker()
            for layer in layers:
                net.load_state_dict(backup)
                net.get_submodule(layer.name).load_state_dict(
                    fresh.get_submodule(layer.name).state_dict()
                )
                q = torch.cat([net(part).softmax(1) for part in images.split(BATCH)])
                cosine = nn.functional.cosine_similarity(p.double(), q.double())
                found[layer.name, trial] = 1 - float(cosine.mean())
    return found


def ours(model: nn.Module, layers: list[Layer], images: Tensor, maker: Maker) -> Found:
    def batches() -> Iterator[tuple[Tensor, None]]:
        return ((part, None) for part in images.split(BATCH))

    moved, reason = measure(model, layers, batches, range(TRIALS), init="network", maker=maker)
    assert not reason, reason
    return {key: float(one.criticality or 0.0) for key, one in moved.items()}


def flop_ratio(model: nn.Module, layers: list[Layer], image: Tensor) -> float:
    """Of the one pass and `TRIALS` passes a layer, naive over ours."""
    program = network(model, image, [layer.name for layer in layers])
    _, kept = program.original(image)
    tensors = tensors_of(model)

    def count(layer: str | None) -> int:
        with FlopCounterMode(display=False) as counter:
            if layer is None:
                program.original(image)
            else:
                names = layer_tensors(model, layer).values()
                program.changed(kept, layer, {name: tensors[name] for name in names})
        return counter.get_total_flops()

    whole, parts = count(None), sum(count(layer.name) for layer in layers)
    return whole * (1 + TRIALS * len(layers)) / (whole + TRIALS * parts)


def run(name: str, rounds: int, limit: int | None) -> Row:
    shape, count, maker = CASES[name]
    images = torch.rand(limit or count, *shape, generator=torch.Generator().manual_seed(0))
    net = prepared(maker, images)
    layers = find_layers(net, ("conv", "linear"))
    shared = environment("cpu")
    times: dict[str, list[float]] = {"naive": [], "ours": []}
    different = 0.0
    ours(net, layers, images[:BATCH], maker)  # what is imported and compiled once
    for _ in range(rounds):
        found = []
        for kind, function in (("naive", naive), ("ours", ours)):
            started = time.perf_counter()
            found.append(function(net, layers, images, maker))
            times[kind].append(time.perf_counter() - started)
        different = max(different, *(abs(found[0][key] - found[1][key]) for key in found[0]))
    ratios = [a / b for a, b in zip(times["naive"], times["ours"], strict=True)]
    slow, fast = (statistics.median(times[kind]) for kind in ("naive", "ours"))
    return Row(
        shared.date, shared.commit, shared.machine, shared.threads, shared.load or 0.0, shared.torch, name, len(layers),
        len(images), TRIALS, rounds, slow, fast, slow / fast, min(ratios), max(ratios),
        flop_ratio(net, layers, images[:1]), different,
    )  # fmt: skip


def report(rows: list[dict[str, str]]) -> str:
    lines = [
        "| network | layers | naive, s | advfast, s | times as fast | by FLOPs | largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['network']} | {row['layers']} | {float(row['naive_s']):.2f} | {float(row['advfast_s']):.2f} | "
            f"{float(row['ratio']):.2f} ({float(row['ratio_least']):.2f} to {float(row['ratio_most']):.2f}) | "
            f"{float(row['flop_ratio']):.2f} | {float(row['most_different']):.1e} |"
        )
    by_name = {row["network"]: float(row["ratio"]) for row in rows}
    small = [ratio for name, ratio in by_name.items() if not name.startswith("resnet18")]
    lines.append("")
    if RESNET in by_name:
        lines.append(f"{held(by_name[RESNET] >= 2)}: 2 times as fast on ResNet-18 of width 16")
    if small:
        lines.append(f"{held(min(small) >= 1.3)}: 1.3 times as fast on the small networks")
    same = all(float(row["most_different"]) <= SAME for row in rows)
    lines.append(f"{held(same)}: every criticality the same to 1e-6")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a trial without result")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    out = None if args.quick else args.out
    rows = read(out)
    for name in CASES:
        if any(row["network"] == name for row in rows):
            continue
        row = run(name, 1 if args.quick else args.rounds, 2 * BATCH if args.quick else None)
        rows.append(as_text(row))
        print(f"{name}: {row.ratio:.2f} times as fast", file=sys.stderr)
        if out is not None:
            write(rows, out)
    print(report(rows))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
