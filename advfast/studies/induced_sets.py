"""Data sets that a checkpoint induces: every image perturbed by it, kept as float32 on disk."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from advfast.attacks import PGDAttack
from advfast.data import Source, TensorSource, ordered
from advfast.evaluation import evaluate
from advfast.files import clean_temporaries, write_json

from .dispersion import dispersion
from .room import Room

ROWS = 1024
"""Images of a pass."""


@dataclass(frozen=True)
class Crafting:
    """How a checkpoint perturbs.

    Attributes:
        eps, alpha: radius and step size, pixel units of [0, 1].
        steps: of PGD.
        norm: "linf", "l2" or "l1".
        clip: hold results to [0, 1], besides the ball.
        pairs: of starts, for the dispersion.
    """

    eps: float
    alpha: float
    steps: int
    norm: str
    clip: bool
    pairs: int

    def attack(self, model: nn.Module, seed: int, *, clip: bool | None = None) -> PGDAttack:
        box = self.clip if clip is None else clip
        return PGDAttack(
            model, self.eps, self.alpha, self.steps, norm=self.norm, seed=seed, bounds=(0.0, 1.0) if box else None,
            bn="eval", batch_size=ROWS,
        )  # fmt: skip

    @property
    def room(self) -> Room:
        """What the perturbed images need around [0, 1]; no pixel moves by more than eps in any of the norms."""
        return Room(0.0 if self.clip else self.eps)


@dataclass(frozen=True)
class Part:
    """One perturbed set.

    Attributes:
        images, labels: .npy files, [N, C, H, W] float32 and [N] int64, in the order of the data.
        measures: see `Store.part`.
    """

    images: Path
    labels: Path
    measures: dict[str, float]

    def source(self, room: Room) -> TensorSource:
        """In memory, with room around the values."""
        images = torch.from_numpy(np.load(self.images, mmap_mode="c"))
        return TensorSource(room.put(images), torch.from_numpy(np.load(self.labels)))


@dataclass(frozen=True)
class Store:
    """
    Attributes:
        folder: of epoch-0020-train.npy, its -labels.npy, and its .json, which is written last.
        crafting: how images are perturbed.
    """

    folder: Path
    crafting: Crafting

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        clean_temporaries(self.folder)

    def part(self, epoch: int, name: str, source: Source, model: Callable[[], nn.Module]) -> Part:
        """The set of a checkpoint; the one on disk if it is whole and of the same weights, data and attack.

        Its measures: accuracy of the checkpoint on it; robust, its accuracy under the same PGD from other starts and
        held to [0, 1], as it was trained; and those of `advfast.studies.dispersion`, means over the images.

        Args:
            name: "train" or "test".
            source: the images as they are, neither augmented nor shuffled.
            model: makes the checkpoint's network.
        """
        stem = f"epoch-{epoch:04d}-{name}"
        images, labels = self.folder / f"{stem}.npy", self.folder / f"{stem}-labels.npy"
        record = self.folder / f"{stem}.json"
        net = model()
        by = asdict(self.crafting) | {"weights": digest(net), "samples": len(source)}
        found = _read(record)
        if found is None or found["by"] != by:
            record.unlink(missing_ok=True)
            images.unlink(missing_ok=True)
        first = 0 if name == "train" else 2**31  # other starts than those of the training images
        if not images.exists():
            _save(images, labels, perturbed(self.crafting.attack(net, 0), source, first), source)
        if not record.exists():
            measures = measure(self.crafting, net, source, images, first)
            write_json(record, {"by": by, "measures": measures})
            found = {"by": by, "measures": measures}
        assert found is not None
        return Part(images, labels, found["measures"])

    def drop(self) -> None:
        """Removes the images; their measures stay."""
        for file in self.folder.glob("epoch-*.npy"):
            with suppress(FileNotFoundError):
                file.unlink()


def perturbed(attack: PGDAttack, source: Source, first: int) -> Iterator[Tensor]:
    """Batches [B, ...] of a set, in its order; sample i has the start number first + i."""
    for batch in ordered(source, ROWS, _device(attack.model)):
        assert batch.indices is not None
        yield attack(batch.images, batch.labels, sample_ids=first + batch.indices)


def measure(
    crafting: Crafting, net: nn.Module, source: Source, images: Path, first: int
) -> dict[str, float]:
    """See `Store.part`."""
    device = _device(net)
    stored = np.load(images, mmap_mode="r")
    right = 0
    with torch.no_grad():
        for numbers in torch.arange(len(source)).split(ROWS):
            batch = torch.from_numpy(stored[numbers[0] : numbers[-1] + 1].copy()).to(device)
            right += int((net(batch).argmax(1).cpu() == source.labels[numbers].cpu()).sum())
    boxed = crafting.attack(net, 1, clip=True)
    report = evaluate(
        net, source, attacks={"pgd": boxed}, eps=crafting.eps, norm=crafting.norm, sanity=False,
        batch_size=ROWS,
    )  # fmt: skip
    found = {"accuracy": right / len(source), "robust": report["pgd"].value}
    sums: dict[str, float] = {}
    pairs, attack = crafting.pairs, crafting.attack(net, 2)
    for part in ordered(source, max(ROWS // (2 * pairs), 1), device):
        assert part.indices is not None
        each = dispersion(attack, part.images, part.labels, pairs, first + part.indices)
        for name, values in each.items():
            sums[name] = sums.get(name, 0.0) + float(values.double().sum())
    return found | {name: total / len(source) for name, total in sums.items()}


def digest(net: nn.Module) -> str:
    """8 hexadecimal digits that differ for other weights."""
    check = 0
    for value in net.state_dict().values():
        check = zlib.crc32(value.detach().cpu().contiguous().numpy().tobytes(), check)
    return f"{check:08x}"


def bytes_of(source: Source) -> int:
    """Of the images of a set on disk."""
    shape = source.batch(torch.zeros(1, dtype=torch.long))[0].shape[1:]
    return 4 * math.prod(shape) * len(source)


def _save(images: Path, labels: Path, batches: Iterator[Tensor], source: Source) -> None:
    """Batch by batch, under another name until it is whole."""
    np.save(labels, source.labels.cpu().numpy())
    temporary = images.with_name(f".{images.name}.{os.getpid()}.tmp")
    shape = source.batch(torch.zeros(1, dtype=torch.long))[0].shape[1:]
    written = np.lib.format.open_memmap(temporary, "w+", np.float32, (len(source), *shape))
    done = 0
    for batch in batches:
        written[done : done + len(batch)] = batch.float().cpu().numpy()
        done += len(batch)
    written.flush()
    del written
    os.replace(temporary, images)


def _read(record: Path) -> dict | None:
    try:
        return json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _device(model: object) -> torch.device:
    assert isinstance(model, nn.Module)
    return next(model.parameters()).device
