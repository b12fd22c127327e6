"""AutoAttack against pyautoattack, sample by sample, on adversarially trained networks.

    .venv-peers/bin/python benchmarks/autoattack_parity.py --models FOLDER --threads 2
    .venv-peers/bin/python benchmarks/autoattack_parity.py --models FOLDER --quick       # a trial, no result

pyautoattack's standard version and ours in three modes on the same images: "upstream" and "upstream-fold" have its
draws and its batches (the latter lets the engine change the arithmetic within rounding), "default" is what a user
gets. Each row is of the samples after an attack; "all" is after the last. `agreement` is the share of the samples that
both have right or both have wrong; those on which ours is more robust are named. FOLDER keeps the networks: see
robust_models.py.

Expected, written down before the first run (2026-11-30): upstream agrees on at least 99.9 % of the samples after every
attack, default is within 0.3 points of the robust accuracy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import robust_models
import torch
from autoattack_peer import Outcome, by_advfast, by_pyautoattack, peer_version
from records import ROOT, environment
from robust_models import Recipe

from advfast.files import write_csv

OUT = ROOT / "benchmarks/results/autoattack_parity.csv"
NETWORKS = ("fashion-linf", "fashion-l2", "digits-linf", "digits-l2")
MODES = {
    "upstream": {"rng": "upstream", "fold": False},
    "upstream-fold": {"rng": "upstream", "fold": True},
    "default": {"rng": "philox", "fold": True},
}
AGREEMENT, POINTS = 0.999, 0.003
BATCH = 250


@dataclass(frozen=True)
class Row:
    date: str  # UTC, start of the run
    commit: str
    machine: str
    threads: int
    load: float  # average of the last minute before the run
    torch: str
    peer_version: str
    network: str  # of robust_models
    norm: str
    eps: float
    samples: int
    batch_size: int
    mode: str
    attack: str  # after this one; "all": after the last
    peer_accuracy: float
    accuracy: float
    agreement: float
    more_robust: int  # samples that are right by ours and wrong by the peer
    less_robust: int
    more_robust_samples: str  # their numbers
    seconds: float  # of this attack, or of all
    peer_seconds: float


def rows(network: str, recipe: Recipe, mode: str, peer: Outcome, ours: Outcome) -> Iterator[dict]:
    """The last columns of the rows of one mode."""
    for attack in (*peer.stages, "all"):
        last = attack if attack != "all" else list(peer.stages)[-1]
        theirs, own = peer.stages[last], ours.stages[last]
        more = (own & ~theirs).nonzero()[:, 0].tolist()
        yield {
            "network": network, "norm": recipe.norm, "eps": recipe.eps, "samples": len(own),
            "mode": mode, "attack": attack, "peer_accuracy": float(theirs.float().mean()),
            "accuracy": float(own.float().mean()),
            "agreement": float((own == theirs).float().mean()), "more_robust": len(more),
            "less_robust": int((theirs & ~own).sum()),
            "more_robust_samples": " ".join(map(str, more)) or "none",
            "seconds": ours.total if attack == "all" else ours.seconds[attack],
            "peer_seconds": peer.total if attack == "all" else peer.seconds[attack],
        }  # fmt: skip


def held(found: list[Row]) -> Iterator[tuple[bool, str]]:
    """Whether what was expected came true."""
    for row in found:
        head = f"{row.network} {row.mode} after {row.attack}"
        if row.mode == "upstream":
            yield row.agreement >= AGREEMENT, f"{head}: agreement {row.agreement:.2%}"
        if row.mode == "default" and row.attack == "all":
            gap = row.accuracy - row.peer_accuracy
            yield abs(gap) <= POINTS, f"{head}: {100 * gap:+.2f} points"


def text(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of the networks")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="which, with commas")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own")
    parser.add_argument("--quick", action="store_true", help="few samples, 50 queries, digits")
    parser.add_argument("--out", type=Path, help=f"CSV to write; default {OUT}, with --quick none")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    shared = environment("cpu")
    samples, queries, names = options.samples, None, options.networks.split(",")
    if options.quick:
        samples, queries, names = 40, 50, ["digits-linf", "digits-l2"]
    out = options.out or (None if options.quick else OUT)
    found: list[Row] = []
    for name in names:
        recipe = robust_models.RECIPES[name]
        if options.quick:
            recipe = robust_models.quick(recipe)
        model, (images, labels) = robust_models.obtain(recipe, options.models)
        images, labels = images[:samples], labels[:samples]
        run = {"norm": recipe.norm, "eps": recipe.eps, "batch_size": BATCH, "queries": queries}
        peer = by_pyautoattack(model, images, labels, **run)
        print(f"{name}: pyautoattack {peer.total:.0f} s", flush=True)
        for mode, settings in MODES.items():
            ours = by_advfast(model, images, labels, **run, **settings)
            for last in rows(name, recipe, mode, peer, ours):
                row = Row(
                    date=shared.date, commit=shared.commit, machine=shared.machine,
                    threads=shared.threads, load=shared.load or 0.0, torch=shared.torch,
                    peer_version=peer_version(), batch_size=BATCH, **last,
                )  # fmt: skip
                found.append(row)
                print(
                    f"{name} {mode:<13} {row.attack:<8} {row.peer_accuracy:.2%} {row.accuracy:.2%} "
                    f"agreement {row.agreement:.2%}, more robust {row.more_robust}, less "
                    f"{row.less_robust}, {row.peer_seconds:.1f} s / {row.seconds:.1f} s", flush=True,
                )  # fmt: skip
            if out is not None:
                table = [{f.name: text(asdict(row)[f.name]) for f in fields(Row)} for row in found]
                write_csv(out, table)
    verdicts = list(held(found))
    for good, words in verdicts:
        if not good:
            print(f"NOT AS EXPECTED: {words}")
    failed = sum(not good for good, _ in verdicts)
    print(f"{len(verdicts) - failed} of {len(verdicts)} expectations held")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
