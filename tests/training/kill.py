"""Starts `advfast train --resume`, kills it with SIGKILL at a random time, and again, until it is done; then compares
the weights with those of a run that nobody killed.

    python -m tests.training.kill --kills 50
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from advfast.training import checkpoint, names

ALL = os.environ.get("ADVFAST_TEST_KILLS") == "all"
"""Whether the fault injection tries every boundary, not a share of them."""


def command(folder: Path, epochs: int) -> list[str]:
    return [
        sys.executable, "-m", "advfast", "train", "--epochs", str(epochs), "--steps", "2",
        "--augment", "crop", "--ema", "0.9", "--deterministic", "--save-every", "4", "--quiet",
        "--threads", "1", "--out", str(folder), "--resume",
    ]  # fmt: skip


def finish(folder: Path, epochs: int) -> None:
    process = subprocess.run(command(folder, epochs), capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"the run ended with code {process.returncode}: {process.stderr}")


def stamp(folder: Path) -> int:
    """Of last.pt; changes when it is replaced."""
    path = folder / names.LAST
    return path.stat().st_mtime_ns if path.exists() else 0


def where(folder: Path) -> tuple[int, int]:
    """(epoch, step) of last.pt; (0, 0) before it is there."""
    if not (folder / names.LAST).exists():
        return 0, 0
    loop = checkpoint.read(folder / names.LAST)["run"]["loop"]
    return loop["epoch"], loop["step"]


def killed_until_done(folder: Path, epochs: int, kills: int, chance: random.Random) -> int:
    """Number of processes that were killed while they were saving and training."""
    done = 0
    while done < kills:
        before = stamp(folder)
        process = subprocess.Popen(
            command(folder, epochs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # A kill while Python is still importing shows little: wait until the run moves, then a moment more.
        while process.poll() is None and stamp(folder) == before:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.25))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        done += 1
        print(f"killed {done}: last.pt is at epoch, step {where(folder)}", flush=True)
    finish(folder, epochs)
    return done


def differences(one: Path, other: Path) -> list[str]:
    found = []
    for name in (names.LAST, names.BEST):
        first, second = (checkpoint.read(folder / name) for folder in (one, other))
        if first["epoch"] != second["epoch"]:
            found.append(f"{name}: epoch {first['epoch']} and {second['epoch']}")
        found += [
            f"{name}: {key}"
            for key, value in first["state"].items()
            if not torch.equal(value, second["state"][key])
        ]
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None, help="of the times; default: new")
    parser.add_argument("--out", type=Path, default=None, help="folder; default: a temporary one")
    options = parser.parse_args(arguments)
    seed = random.randrange(2**31) if options.seed is None else options.seed
    folder = options.out or Path(tempfile.mkdtemp())
    # An epoch is 9 steps and takes about a tenth of a second; a run must outlast its kills.
    epochs = max(12, 6 * options.kills)
    print(
        f"{options.kills} kills of a run of {epochs} epochs, seed {seed}, in {folder}", flush=True
    )
    finish(folder / "whole", epochs)
    done = killed_until_done(folder / "killed", epochs, options.kills, random.Random(seed))
    found = differences(folder / "whole", folder / "killed")
    print(f"{done} kills; {'the same bits' if not found else 'DIFFERENT: ' + ', '.join(found)}")
    if options.out is None:
        shutil.rmtree(folder)
    return 1 if found or done < options.kills else 0


if __name__ == "__main__":
    sys.exit(main())
