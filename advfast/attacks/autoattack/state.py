"""How far an evaluation has come: what is kept of it, and the file that it is resumed from."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advfast.attacks.state import bare_model
from advfast.files import write_atomic

SECONDS = 30.0
"""Between two writings inside an attack."""
_FORMAT = "advfast-autoattack-1"


@dataclass
class Run:
    """An evaluation under way; tensors have a row for each sample and are where the images are.

    Attributes:
        images: [N, ...] adversarial where one was found.
        predicted: [N] int64, of the model on `images`.
        robust: [N] bool, right so far.
        stages: part -> [N] bool, right after it; of finished parts.
        done: samples of the running part that were attacked.
        seconds, forwards, backwards: by part.
        nonfinite: gradient entries that were not finite.
    """

    images: Tensor
    predicted: Tensor
    robust: Tensor
    stages: dict[str, Tensor] = field(default_factory=dict)
    done: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    forwards: dict[str, int] = field(default_factory=dict)
    backwards: dict[str, int] = field(default_factory=dict)
    nonfinite: int = 0

    @property
    def left(self) -> Tensor:
        """Numbers of the samples that the running part attacks: those that were right when it began."""
        return list(self.stages.values())[-1].nonzero()[:, 0]


class Store:
    """The file of a run; without a path it does nothing.

    Args:
        path: the file.
        identity: what the run is of; a file of another is refused.
    """

    def __init__(self, path: str | Path | None, identity: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self._identity = identity
        self._written = time.monotonic()

    def load(self, into: Run) -> bool:
        """Goes on from the file, where there is one; whether there was.

        Raises:
            ValueError: it is not such a file, or of other settings, data or weights.
            FileNotFoundError: its folder does not exist.
        """
        if self.path is None:
            return False
        if not self.path.exists():
            if not self.path.absolute().parent.is_dir():
                raise FileNotFoundError(f"cannot write {self.path}: its folder does not exist")
            return False
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:
            raise ValueError(_foreign(self.path)) from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(_foreign(self.path))
        differences = [
            f"{name} ({content['identity'].get(name)!r} there, {own!r} here)"
            if name not in ("data", "weights")
            else f"the {name}"
            for name, own in self._identity.items()
            if content["identity"].get(name) != own
        ]
        if differences:
            raise ValueError(
                f"the state in {self.path} is of another evaluation, which differs in "
                f"{', '.join(differences)}; give another state_path, or delete the file to begin anew"
            )
        device = into.images.device
        index = content["index"].to(device)
        into.images[index] = content["images"].to(device)
        into.predicted = content["predicted"].to(device)
        into.robust = content["robust"].to(device)
        into.stages = {name: right.to(device) for name, right in content["stages"].items()}
        into.done, into.nonfinite = content["done"], content["nonfinite"]
        into.seconds, into.forwards = content["seconds"], content["forwards"]
        into.backwards = content["backwards"]
        return True

    def save(self, run: Run, now: bool = False) -> None:
        """Writes the run, at most once in 30 s unless it is `now`.

        Raises:
            OSError: the file and the reason.
        """
        if self.path is None or not run.stages:
            return
        if not now and time.monotonic() - self._written < SECONDS:
            return
        broken = (run.stages["clean"] & ~run.robust).nonzero()[:, 0]
        content = {
            "format": _FORMAT,
            "identity": self._identity,
            "index": broken.cpu(),
            "images": run.images[broken].cpu(),
            "predicted": run.predicted.cpu(),
            "robust": run.robust.cpu(),
            "stages": {name: right.cpu() for name, right in run.stages.items()},
            "done": run.done,
            "nonfinite": run.nonfinite,
            "seconds": run.seconds,
            "forwards": run.forwards,
            "backwards": run.backwards,
        }
        write_atomic(self.path, lambda stream: torch.save(content, stream))
        self._written = time.monotonic()


def _foreign(path: Path) -> str:
    return (
        f"{path} is not a state that advfast.AutoAttack wrote (the original's JSON states cannot be read: they lack "
        "the adversarial images); give another state_path, or delete the file to begin anew"
    )


def fingerprint(*tensors: Tensor) -> str:
    """Of the values, shapes and dtypes."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def weights_of(model: Callable[[Tensor], Tensor]) -> str:
    """A fingerprint of a module's parameters and buffers, and of its class; of another callable its name alone."""
    bare = bare_model(model)
    if not isinstance(bare, nn.Module):
        return getattr(bare, "__qualname__", type(bare).__qualname__)
    content = bare.state_dict()
    names = hashlib.blake2b(" ".join(content).encode(), digest_size=8).hexdigest()
    tensors = [value for value in content.values() if isinstance(value, Tensor)]
    return f"{type(bare).__qualname__} {names} {fingerprint(*tensors)}"
