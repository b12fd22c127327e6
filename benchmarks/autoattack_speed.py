"""AutoAttack's standard version by pyautoattack and by advfast: seconds, passes, robust accuracy, in one run.

    .venv-peers/bin/python benchmarks/autoattack_speed.py --models FOLDER --threads 2
    .venv-peers/bin/python benchmarks/autoattack_speed.py --models FOLDER --quick        # a trial, no result

Both attack the same images of Fashion-MNIST (linf, eps 0.1) on the same adversarially trained network, one after the
other, with their defaults but for the seed; eight images go through both before the clock starts. A row is one attack
by one provider, "all" the whole evaluation with everything around the attacks. Passes are counted by images: `forwards`
of all, `backwards` of those with a gradient. `ratio` is pyautoattack's seconds over ours in this run. It is one only at
the same robust accuracy: where they differ by more than 0.3 points the status says so. FOLDER keeps the networks: see
robust_models.py.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import robust_models
import torch
from autoattack_peer import Outcome, by_advfast, by_pyautoattack, peer_version
from records import ROOT, environment
from torch import Tensor

from advfast.files import write_csv

OUT = ROOT / "benchmarks/results/autoattack_cpu.csv"
SAMPLES = {"fashion-resnet": 430, "fashion-linf": 300}
"""Networks, and how many images: so many that batches are full."""
BATCH = 250
POINTS = 0.003


@dataclass(frozen=True)
class Row:
    date: str  # UTC, start of the run
    commit: str
    device: str
    machine: str
    threads: int
    load: float  # average of the last minute before the network's turn
    torch: str
    network: str  # of robust_models
    layers: str  # what it is
    norm: str
    eps: float
    samples: int
    batch_size: int
    provider: str  # pyautoattack | advfast
    peer_version: str
    attack: str  # "all": the whole evaluation
    accuracy: float  # after it
    seconds: float
    ratio: float  # pyautoattack's seconds / these
    forwards: int
    backwards: int
    point_forwards: int | None  # of "all", advfast: what a fully robust sample takes
    point_backwards: int | None
    seconds_a_robust_point: float | None  # of "all": seconds / samples that stayed right
    status: str


def measure(name: str, folder: Path, samples: int, quick: bool, device: str) -> list[dict]:
    """The last columns of a network's rows."""
    recipe = robust_models.RECIPES[name]
    if quick:
        recipe = robust_models.quick(recipe)
    model, (images, labels) = robust_models.obtain(recipe, folder)
    model.to(device)
    images, labels = images[:samples].to(device), labels[:samples].to(device)
    run = {"norm": recipe.norm, "eps": recipe.eps, "batch_size": BATCH}
    queries = 50 if quick else None

    def theirs(x: Tensor, y: Tensor, count: int | None) -> Outcome:
        return by_pyautoattack(model, x, y, queries=count, **run)

    def own(x: Tensor, y: Tensor, count: int | None) -> Outcome:
        return by_advfast(model, x, y, queries=count, rng="philox", fold=True, **run)

    load = os.getloadavg()[0]
    calls = {"pyautoattack": theirs, "advfast": own}
    for call in calls.values():
        call(images[:8], labels[:8], 5)
    found = {which: call(images, labels, queries) for which, call in calls.items()}
    peer = found["pyautoattack"]
    robust = {which: int(list(one.stages.values())[-1].sum()) for which, one in found.items()}
    same = abs(robust["advfast"] - robust["pyautoattack"]) <= POINTS * samples
    gap = (robust["advfast"] - robust["pyautoattack"]) / samples
    status = "ok" if same else f"wrong: robust accuracy differs by {100 * gap:+.2f} points"
    made = []
    for which, one in found.items():
        for attack in (*one.stages, "all"):
            whole = attack == "all"
            seconds = one.total if whole else one.seconds[attack]
            base = peer.total if whole else peer.seconds[attack]
            last = list(one.stages)[-1] if whole else attack
            cost = one.cost if whole else None
            made.append(
                {
                    "load": load, "network": name, "layers": recipe.network, "norm": recipe.norm,
                    "eps": recipe.eps, "samples": samples, "batch_size": BATCH, "provider": which,
                    "peer_version": peer_version() if which == "pyautoattack" else "",
                    "attack": attack, "accuracy": float(one.stages[last].float().mean()),
                    "seconds": seconds, "ratio": base / seconds if seconds else float("nan"),
                    "forwards": sum(one.forwards.values()) if whole else one.forwards[attack],
                    "backwards": sum(one.backwards.values()) if whole else one.backwards[attack],
                    "point_forwards": cost[0] if cost else None,
                    "point_backwards": cost[1] if cost else None,
                    "seconds_a_robust_point": one.total / max(1, robust[which]) if whole else None,
                    "status": status,
                }
            )  # fmt: skip
    return made


def text(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else "none" if value in (None, "") else value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of the networks")
    parser.add_argument("--networks", default=",".join(SAMPLES), help="which, with commas")
    parser.add_argument("--samples", type=int, help="of each; default: by network")
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="few samples, 50 queries")
    parser.add_argument("--out", type=Path, help=f"CSV to write; default {OUT}, with --quick none")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    shared = environment(options.device)
    machine = shared.machine if options.device == "cpu" else f"{shared.gpu}, {shared.machine}"
    out = options.out or (None if options.quick else OUT)
    found: list[Row] = []
    for name in options.networks.split(","):
        samples = options.samples or (8 if options.quick else SAMPLES[name])
        for last in measure(name, options.models, samples, options.quick, options.device):
            row = Row(
                date=shared.date, commit=shared.commit, device=options.device, machine=machine,
                threads=shared.threads, torch=shared.torch, **last,
            )  # fmt: skip
            found.append(row)
            print(
                f"{name} {row.provider:<12} {row.attack:<8} {row.accuracy:.2%} {row.seconds:8.1f} s "
                f"{row.ratio:5.2f}x {row.forwards:>9} forward {row.backwards:>9} backward {row.status}",
                flush=True,
            )
        if out is not None:
            write_csv(
                out, [{f.name: text(asdict(row)[f.name]) for f in fields(Row)} for row in found]
            )
    return 0 if found and all(row.status == "ok" for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
