"""What each of two processes does for test_parallel.py."""

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from pytest import MonkeyPatch
from torch import nn

from advfast import files
from advfast.training import CatastrophicOverfitting, KernelMonitor, names, parallel, sweep, train


class Double(nn.Module):
    """float64 inside, so that only the order of sums differs, by 1e-16."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers).double()

    def forward(self, images):
        return self.layers(images.double())


def network(bn=False):
    torch.manual_seed(3)
    norm = [nn.BatchNorm2d(4)] if bn else []
    layers = nn.Conv2d(1, 4, 3, padding=1), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
    return Double(*layers)


def data():
    """51 training images after the split: the last batch of 16 has 3, all of them on rank 0."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(60, 1, 8, 8, generator=generator), torch.arange(60) % 3


RUNS = {
    "standard": {"method": "standard", "momentum": 0.5},
    "pgd-at": {"method": "pgd-at", "clip_grad": 0.5, "augment": ["crop", "flip"]},
    "trades": {"method": "trades", "micro_batch": 5},
    "sync-bn": {"bn": True, "sync_bn": True},
    "yopo": {"method": "yopo", "bn": True, "sync_bn": True},
    "gradalign": {"method": "gradalign", "bn": True, "sync_bn": True},
    "at-bsl": {"method": "at-bsl"},
    "robal": {"method": "robal", "micro_batch": 5},
    "reat": {"method": "reat", "epochs": 2, "method_options": {"rbl": "logit-adjust"}},
    "reat-pairwise": {
        "method": "reat",
        "bn": True,
        "sync_bn": True,
        "method_options": {"tail": "pairwise", "rbl": "step-scale", "tail_weight": 0.1},
    },
    "reat-parts": {"method": "reat", "micro_batch": 5, "method_options": {"tail": "off"}},
    "modified": {"modifiers": ["awp", "gradient-norm"], "ema": 0.9, "bn": True, "sync_bn": True},
    "swa": {"modifiers": ["swa:start=1"], "bn": True, "sync_bn": True},
    "te": {
        "modifiers": ["te:start=1,end=2"],
        "epochs": 2,
        "augment": ["flip"],
        "bn": True,
        "sync_bn": True,
    },
    "te-trades": {"modifiers": ["te:start=1,end=2"], "method": "trades", "epochs": 2},
    "dataloader": {"method": "fgsm-rs", "loader": True},
    "lognormal": {"method": "n-fgsm", "method_options": {"noise": "lognormal"}},
    # One check, after the first of 8 epochs; the rule lets two be clean.
    "prefix": {
        "clean_prefix": "auto:distance=1,velocity=0,samples=9",
        "epochs": 8,
        "bn": True,
        "sync_bn": True,
    },
}
"""Runs that must be those of one process."""

KEPT = {
    "bn": True,
    "ema": 0.9,
    "sync_bn": True,
    "augment": ["flip"],
    "epochs": 2,
    "modifiers": ["te:start=1,end=2"],
}
"""A run that is stopped and goes on with another number of ranks."""


def course(folder, bn=False, loader=False, crafting="eval", **changes):
    settings = {
        "eps": 0.1,
        "steps": 2,
        "epochs": 1,
        "batch_size": 16,
        "lr": 0.1,
        "schedule": "constant",
    }
    given, more = data(), {"bn": crafting}
    if loader:
        given = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(*given), batch_size=16, shuffle=True
        )
        more["val"] = data()
    return train(
        network(bn), given, out=folder, progress=False, seed=4, **settings | more | changes
    )  # fmt: skip


def outcome(result):
    times = ("seconds", "images_per_second")
    table = result.path / names.AE_PREDICTIONS
    return {
        "table": table.read_text() if table.exists() else "",
        "state": dict(result.model.state_dict()),
        "history": [{k: v for k, v in row.items() if k not in times} for row in result.history],
        "test": result.best.test and [r.correct for r in result.best.test.results.values()],
    }


class At:
    """A callback that does something once a rank has done so many steps."""

    every_rank = True

    def __init__(self, step, rank, do):
        self.step, self.rank, self.do = step, rank, do

    def on_step_end(self, state):
        if state.global_step == self.step and dist.get_rank() == self.rank:
            self.do(state)


def raised(work):
    try:
        work()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def full_disk(folder, rank):
    """The second last.pt of the run cannot be written."""
    course(folder, epochs=1, method="standard")
    write, error = files.os.fsync, OSError(28, "No space left on device")

    def fsync(descriptor):
        if (folder / names.LAST).exists():
            raise error
        write(descriptor)

    if rank == 0:
        files.os.fsync = fsync
    try:
        return raised(
            lambda: course(folder, epochs=3, method="standard", save_every=2, overwrite=True)
        )
    finally:
        files.os.fsync = write


def validated(folder):
    """Samples that this rank has evaluated."""
    module, totals = sys.modules["advfast.training.assemble"], []
    evaluate = module.evaluate

    def spy(*args, **settings):
        report = evaluate(*args, **settings)
        totals.append(report["clean"].total)
        return report

    with MonkeyPatch.context() as patch:
        patch.setattr(module, "evaluate", spy)
        course(folder, method="standard")
    return totals


class Stop:
    """On the first rank alone."""

    def on_step_end(self, state):
        state.stop = state.global_step == 3


class Counts:
    def __init__(self):
        self.calls = 0

    def on_epoch_end(self, state):
        self.calls += 1


def spoil(state):
    with torch.no_grad():
        next(state.model.parameters()).add_(1)


def poison(state):
    """Of this rank's images alone."""
    state.model.register_forward_pre_hook(
        lambda module, inputs: (inputs[0] * float("nan"),) if module.training else None
    )


def main(rank, folder):
    folder = Path(folder)
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    found = {}
    for name, settings in RUNS.items():
        test = {"test": data()} if name == "pgd-at" else {}
        found[name] = outcome(course(folder / name, **settings, **test))

    # Rank 1 is told to end: all save after the same step. One process goes on (in the test), and the other way round.
    stop = At(3, 1, lambda state: os.kill(os.getpid(), signal.SIGTERM))
    found["sigterm"] = raised(lambda: course(folder / "stopped", **KEPT, callbacks=[stop]))
    found["resumed"] = outcome(course(folder / "one", **KEPT, resume=True))
    found["complete"] = outcome(course(folder / "one", **KEPT, resume=True))

    found["validated"] = validated(folder / "validated")

    # Without sync_bn, running statistics are the same in all ranks all the same.
    found["local-bn"] = outcome(
        course(folder / "local", bn=True, crafting="train-update", epochs=2)
    )
    found["free"] = outcome(course(folder / "free", method="free", method_options={"m": 2}))
    counts = Counts()
    found["stop"] = outcome(course(folder / "stop", epochs=3, callbacks=[Stop(), counts]))
    found["calls"] = counts.calls
    found["collapse"] = outcome(
        course(folder / "co", method="fgsm", callbacks=[CatastrophicOverfitting(every=2, gap=0.01)])
    )
    # The first check fires: K is looked at by rank 0, and so is the saliency of the noise.
    monitor = KernelMonitor(every=2, samples=20, probe=6, gap=0.01, action="noise")
    options = {"noise": "saliency", "start": "monitor"}
    found["noise"] = outcome(
        course(folder / "noise", epochs=2, method="n-fgsm", method_options=options, callbacks=[monitor])
    )  # fmt: skip
    found["noise"]["fired"] = [row["fired"] for row in monitor.history]
    found["disk"] = full_disk(folder / "disk", rank)
    found["nan"] = raised(
        lambda: course(folder / "nan", method="standard", epochs=2, callbacks=[At(5, 1, poison)])
    )
    found["apart"] = raised(lambda: course(folder / "apart", callbacks=[At(2, 1, spoil)]))
    found["micro"] = raised(lambda: course(folder / "micro", sync_bn=True, micro_batch=4))
    found["small"] = raised(lambda: course(folder / "small", batch_size=3))
    found["other"] = raised(lambda: course(folder / "other", lr=0.1 * (1 + rank)))
    found["model"] = raised(lambda: course(folder / "model", bn=rank == 1))
    found["sweep"] = raised(lambda: sweep(network(), data(), out=folder / "sweep"))
    found["atta"] = raised(lambda: course(folder / "atta", method="atta"))
    found["averaged"] = outcome(
        course(folder / "averaged", bn=True, epochs=2, modifiers=["swa", "cutmix", "steps-ramp"])
    )

    # A rank that does not answer.
    with MonkeyPatch.context() as patch:
        patch.setattr(parallel, "PROMPT", timedelta(seconds=2))
        late = At(2, 1, lambda state: time.sleep(5))
        found["late"] = raised(lambda: course(folder / "late", callbacks=[late]))

    torch.save(found, folder / f"found{rank}.pt")
    # At last one dies in the middle of a step.
    die = At(6, 1, lambda state: os.kill(os.getpid(), signal.SIGKILL))
    found["killed"] = raised(lambda: course(folder / "killed", epochs=3, callbacks=[die]))
    torch.save(found, folder / f"found{rank}.pt")
