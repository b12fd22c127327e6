"""What 16-bit arithmetic and folding change: signs of the first gradient, final images, robust accuracy.

    python benchmarks/precision.py --threads 2 --out benchmarks/results/precision_cpu.csv
    python benchmarks/precision.py --quick                                                # a trial, no result

PGD-20 on Fashion-MNIST test images, eps 0.1, from the images themselves. The measure of all is the plain loop in
float32 (fold=False). Networks are trained first (a few minutes). Each is also attacked with its logits times 100,
where nearly all samples are so confident that a loss in 16 bits has no gradient; "by hand" is torch.autocast around
the plain loop. Accuracy is that of the float32 network, so that only the images differ. Exits with 1 if an arithmetic
of advfast leaves more samples unbroken than the plain loop does, beyond --margin.
"""

from __future__ import annotations

import argparse
import csv
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import trained
from records import environment
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from advfast import PGDAttack

EPS = trained.EPS
ALPHA = EPS / 4
SCALES = (1, 100)
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
Attack = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    date: str
    commit: str
    machine: str
    threads: int
    torch: str
    network: str
    logit_scale: int
    arithmetic: str  # plain | fp32 | bf16 | fp16 | bf16 by hand | fp16 by hand
    samples: int
    eps: float
    steps: int
    # Shares of the entries of the first gradient: of the other sign than in the plain loop; zero, where it is not in
    # the plain loop; not finite (that pixel does not move).
    sign_flips: float
    zero_signs: float
    not_finite: float
    pixels_differ: float  # share of the pixels of the final images, in their bits
    largest_difference: float  # of a pixel of the final images
    clean: float  # accuracy
    robust: float
    over_plain: float  # robust accuracy less the plain loop's


class Scaled(nn.Module):
    def __init__(self, model: nn.Module, scale: float) -> None:
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) * self.scale


def by_hand(model: nn.Module, precision: str, steps: int, *, box: bool) -> Attack:
    """The plain loop inside torch.autocast, which takes the loss in float32."""

    def attack(images: Tensor, labels: Tensor) -> Tensor:
        x = images
        for _ in range(steps):
            x = x.detach().requires_grad_()
            with torch.autocast("cpu", _AUTOCAST[precision]):
                loss = cross_entropy(model(x), labels)
            (grad,) = torch.autograd.grad(loss, x)
            x = images + (x.detach() + ALPHA * grad.sign() - images).clamp(-EPS, EPS)
            x = x.clamp(0, 1) if box else x
        return x.detach()

    return attack


def attack_of(arithmetic: str, model: nn.Module, steps: int, *, box: bool = True) -> Attack:
    """From the images themselves. Without the box the first step shows the sign of every gradient entry."""
    precision, _, hand = arithmetic.partition(" ")
    if hand:
        return by_hand(model, precision, steps, box=box)
    plain = arithmetic == "plain"
    return PGDAttack(
        model, EPS, ALPHA, steps, False, bounds=(0.0, 1.0) if box else None, fold=not plain,
        precision="fp32" if plain else precision,
    )  # fmt: skip


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())


def measure(
    model: nn.Module, images: Tensor, labels: Tensor, arithmetics: list[str], steps: int
) -> list[dict[str, object]]:
    """The measured columns, one row for "plain" and one for each arithmetic."""
    rows: list[dict[str, object]] = []
    signs: Tensor | None = None
    final, robust = images, 0.0
    for arithmetic in ["plain", *arithmetics]:
        one_step = attack_of(arithmetic, model, 1, box=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*not finite", RuntimeWarning)  # they are counted
            first = one_step(images, labels)
            own_final = attack_of(arithmetic, model, steps)(images, labels)
        own_signs = (first - images).sign()
        lost = int(first.isnan().sum())
        if isinstance(one_step, PGDAttack) and one_step.nonfinite is not None:
            lost = int(one_step.nonfinite)
        own_robust = accuracy(model, own_final, labels)
        if signs is None:
            signs, final, robust = own_signs, own_final, own_robust
        difference = (own_final - final).abs()
        rows.append({
            "arithmetic": arithmetic, "samples": len(images), "steps": steps,
            "sign_flips": float((own_signs * signs < 0).double().mean()),
            "zero_signs": float(((own_signs == 0) & (signs != 0)).double().mean()),
            "not_finite": lost / images.numel(),
            "pixels_differ": float((difference > 0).double().mean()),
            "largest_difference": float(difference.max()),
            "clean": accuracy(model, images, labels), "robust": own_robust,
            "over_plain": own_robust - robust,
        })  # fmt: skip
    return rows


def text(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def table(rows: list[Row]) -> str:
    lines = [
        "| network | logits | by | signs flipped | signs lost | not finite | pixels differ | robust | over plain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.network} | x {row.logit_scale} | {row.arithmetic} | {row.sign_flips:.3%} | {row.zero_signs:.3%} "
            f"| {row.not_finite:.3%} | {row.pixels_differ:.2%} | {row.robust:.1%} | {row.over_plain:+.1%} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small and on made-up images")
    parser.add_argument("--samples", type=int, default=512, help="of the small network")
    parser.add_argument("--margin", type=float, default=0.01, help="of robust accuracy")
    parser.add_argument("--checkpoint", type=Path, help="of mnist-cnn, in place of training it")
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own")
    parser.add_argument("--out", type=Path, help="CSV to write")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    shared = environment("cpu")
    samples, steps = options.samples, 20
    recipes = [trained.SMALL, trained.RESNET]
    if options.quick:
        recipes, samples, steps = list(trained.QUICK.values()), 32, 3
        train, test = trained.prototypes(max(map(trained.needed, recipes)), samples)
    else:
        train, test = trained.fashion_mnist(max(map(trained.needed, recipes)), samples)
    rows: list[Row] = []
    for recipe in recipes:
        checkpoint = options.checkpoint if recipe is recipes[0] else None
        model = trained.obtain(recipe, train, checkpoint)
        few = samples if recipe is recipes[0] else samples // 4  # half precision on a CPU is slow
        for scale in SCALES:
            found = measure(
                Scaled(model, scale).eval(), test[0][:few], test[1][:few],
                ["fp32", "bf16", "bf16 by hand", "fp16", "fp16 by hand"], steps,
            )  # fmt: skip
            rows += [
                Row(
                    date=shared.date, commit=shared.commit, machine=shared.machine,
                    threads=shared.threads, torch=shared.torch, network=recipe.network,
                    logit_scale=scale, eps=EPS, **measured,  # type: ignore[arg-type]
                )
                for measured in found
            ]  # fmt: skip
    if options.out is not None:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: text(v) for name, v in asdict(row).items()} for row in rows)
    print(table(rows))
    false = [
        row for row in rows if row.over_plain > options.margin and "hand" not in row.arithmetic
    ]
    for row in false:
        print(
            f"false robustness: {row.network}, logits x {row.logit_scale}, {row.arithmetic}: "
            f"{row.over_plain:+.1%}",
            file=sys.stderr,
        )
    return 1 if false else 0


if __name__ == "__main__":
    sys.exit(main())
