"""An evaluation that was interrupted, in its folder: written after each batch, gone when the report is there."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advfast.attacks.state import bare_model
from advfast.files import clean_temporaries, write_atomic

from .report import JSON, EvalReport

STATE = "evaluation.partial.pt"
_FORMAT = "advfast-evaluation-state-1"


def check_folder(folder: Path, *, overwrite: bool, resume: bool) -> None:
    """Before any work: whether the results can be written there.

    Raises:
        FileExistsError: it holds an evaluation, whole or interrupted.
        OSError: it is no folder, or cannot be written to.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"cannot write to {folder}: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write to {folder}: no permission to write to {there}")
    if overwrite or resume:
        return
    if (folder / STATE).exists():
        raise FileExistsError(
            f"{folder} holds an evaluation that was interrupted ({STATE}); go on with it "
            "(resume=True, --resume), replace it (overwrite=True, --overwrite) or choose another folder"
        )
    if (folder / JSON).exists():
        raise FileExistsError(
            f"{folder} already holds an evaluation ({JSON}); choose another folder or replace it "
            "(overwrite=True, --overwrite)"
        )


def weights_digest(model: object) -> str:
    """Of the parameters and buffers, names and bits; "" for what is no nn.Module."""
    inner = bare_model(model) if callable(model) else model
    if not isinstance(inner, nn.Module):
        return ""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in inner.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            digest.update(_bytes(value))
    return digest.hexdigest()


class Chain:
    """A digest of all batches so far."""

    def __init__(self) -> None:
        self.value = ""

    def add(self, images: Tensor, labels: Tensor, numbers: Tensor) -> None:
        digest = hashlib.blake2b(self.value.encode(), digest_size=16)
        digest.update(f"{images.dtype} {tuple(images.shape)};".encode())
        for part in (images, labels, numbers):
            digest.update(_bytes(part))
        self.value = digest.hexdigest()


def _bytes(values: Tensor) -> Any:
    """A buffer of them."""
    return values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


class Saved:
    """The state of one evaluation in its folder.

    Args:
        folder: where the report will be.
        fingerprint: name -> value of all that the numbers depend on; plain values.
        environment: name -> value of what they depend on by rounding alone.
    """

    def __init__(
        self, folder: Path, fingerprint: Mapping[str, Any], environment: Mapping[str, Any]
    ) -> None:
        self.folder = folder
        self.fingerprint = json.loads(json.dumps(dict(fingerprint)))
        self._environment = dict(environment)
        self._told = False

    def load(self) -> tuple[dict[str, Any], list[str]] | None:
        """(the state that was written last, what is not as it was then); None if there is none.

        Raises:
            ValueError: the file is damaged, or of an evaluation with other settings or weights.
        """
        path = self.folder / STATE
        if not path.exists():
            return None
        clean_temporaries(self.folder)
        try:
            if not zipfile.is_zipfile(path):
                raise ValueError("it was cut short")
            content = torch.load(path, map_location="cpu", weights_only=True)
            if content.get("format") != _FORMAT:
                raise ValueError(f"its format is {content.get('format')!r}, expected {_FORMAT!r}")
        except (pickle.UnpicklingError, RuntimeError, KeyError, EOFError, ValueError) as error:
            raise ValueError(
                f"{path} is not the state of an evaluation, or is damaged ({str(error).splitlines()[0]}); "
                "start again with overwrite=True (--overwrite)"
            ) from error
        self._check(content["fingerprint"])
        notes = [
            f"went on where {name} is {now!r}, after a part where it was {content['environment'].get(name)!r}"
            for name, now in self._environment.items()
            if content["environment"].get(name) != now
        ]
        return content, notes

    def complete(self) -> EvalReport | None:
        """The report of this very evaluation, if it has come to its end; its data are not looked at.

        Raises:
            ValueError: the folder holds another evaluation.
        """
        path = self.folder / JSON
        if not path.exists():
            return None
        try:
            report = EvalReport.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} is no evaluation to go on with: {error}") from error
        if "pixels" not in report.fingerprint:
            raise ValueError(
                f"{path} is not of a whole evaluation, or of an older version, and {STATE} is not there to "
                "go on with; start again with overwrite=True (--overwrite)"
            )
        before = {name: value for name, value in report.fingerprint.items() if name != "pixels"}
        self._check(before)
        return report

    def _check(self, before: Mapping[str, Any]) -> None:
        for name in {**before, **self.fingerprint}:
            was, now = before.get(name), self.fingerprint.get(name)
            if was != now:
                differ = "" if name == "weights" else f": it was {was!r} and is now {now!r}"
                raise ValueError(
                    f"{self.folder} holds an evaluation with another {name.replace('_', ' ')}{differ}; "
                    "choose another folder, or start again with overwrite=True (--overwrite)"
                )

    def check_pixels(self, before: str, chain: Chain) -> None:
        """
        Raises:
            ValueError: the data that went through before are not these.
        """
        if before != chain.value:
            raise ValueError(
                f"{self.folder} holds an evaluation of other data: the samples that it has seen are not "
                "those that are given now, or come in another order (a DataLoader that shuffles?); choose "
                "another folder, or start again with overwrite=True (--overwrite)"
            )

    def write(self, state: Mapping[str, Any], chain: Chain, seconds: float) -> None:
        """Replaces the state. A disk that cannot be written to is told of once; the evaluation goes on."""
        content = {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "environment": self._environment,
            "pixels": chain.value,
            "seconds": seconds,
            "tally": dict(state),
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self.folder / STATE, lambda stream: torch.save(content, stream))
        except OSError as error:
            if not self._told:
                self._told = True
                warnings.warn(
                    f"{error}; an interruption would lose what was done since", RuntimeWarning,
                    stacklevel=2,
                )  # fmt: skip

    def remove(self) -> None:
        (self.folder / STATE).unlink(missing_ok=True)
