"""Adversarial images of a whole loader to a file, and back: torchattacks' file format and its printed line."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


class _Tally:
    """Robust accuracy in percent, and the mean l2 distance of the successful images (NaN without any)."""

    def __init__(self) -> None:
        self.right = self.total = 0
        self.l2_sum = 0.0

    def add(self, crafted: Tensor, clean: Tensor, right: Tensor) -> None:
        self.total += len(right)
        self.right += int(right.sum())
        self.l2_sum += (crafted - clean).flatten(1)[~right].double().norm(dim=1).sum().item()

    @property
    def accuracy(self) -> float:
        return 100 * self.right / self.total if self.total else float("nan")

    @property
    def l2(self) -> float:
        wrong = self.total - self.right
        return self.l2_sum / wrong if wrong else float("nan")


class Saving:
    """save, load and to_type of an attack."""

    device: Any
    normalization_used: Any

    def save(
        self,
        data_loader: Iterable[Sequence[Tensor]],
        save_path: str | Path | None = None,
        verbose: bool = True,
        return_verbose: bool = False,
        save_predictions: bool = False,
        save_clean_inputs: bool = False,
        save_type: str = "float",
    ) -> tuple | None:
        """Attacks all batches of (inputs, labels); writes a dictionary of tensors to `save_path` if one is given.

        The file is written once, at the end or when the run is interrupted, with "adv_inputs", "labels", "save_type"
        and, if asked for, "preds" and "clean_inputs"; images in pixels of [0, 1], or as bytes with save_type="int".

        Returns:
            With return_verbose: (robust accuracy in percent, mean l2 distance of the successful images as they were
            given, seconds of the last batch).
        """
        self.to_type(torch.empty(0), save_type)  # a wrong save_type, before the work
        batches = len(data_loader)  # type: ignore[arg-type]  # a loader has a length
        kept: dict[str, list[Tensor]] = {"adv_inputs": [], "labels": []}
        tally, elapsed = _Tally(), 0.0
        try:
            for number, (inputs, labels) in enumerate(data_loader, 1):
                began = time.time()
                crafted = self(inputs, labels)  # type: ignore[operator]  # an attack is callable
                record = {"adv_inputs": crafted, "labels": labels}
                if verbose or return_verbose or save_predictions:
                    predicted = self.get_output_with_eval_nograd(crafted).argmax(1)  # type: ignore[attr-defined]
                    tally.add(crafted, inputs.to(crafted), predicted == labels.to(predicted))
                    elapsed = time.time() - began
                if verbose:
                    self._save_print(
                        100 * number / batches, tally.accuracy, tally.l2, elapsed, end="\r"
                    )
                if save_predictions:
                    record["preds"] = predicted
                if save_clean_inputs:
                    record["clean_inputs"] = inputs
                if save_path is not None:
                    for name, value in record.items():
                        kept.setdefault(name, []).append(value.detach().cpu())
        finally:
            if save_path is not None and kept["labels"]:
                self._write(kept, save_path, save_type)
        if verbose and tally.total:
            self._save_print(100.0, tally.accuracy, tally.l2, elapsed, end="\n")
        return (tally.accuracy, tally.l2, elapsed) if return_verbose else None

    def _write(self, kept: dict[str, list[Tensor]], path: str | Path, save_type: str) -> None:
        content: dict[str, object] = {}
        for name, parts in kept.items():
            value = torch.cat(parts)
            if name.endswith("_inputs"):
                if self.normalization_used is not None:
                    value = self.inverse_normalize(value)  # type: ignore[attr-defined]
                value = self.to_type(value, save_type)
            content[name] = value
        torch.save({**content, "save_type": save_type}, path)

    @staticmethod
    def to_type(inputs: Tensor, type: str) -> Tensor:
        """Images in [0, 1] as bytes ("int", truncated) or bytes as float32 images ("float"); else unchanged."""
        if type not in ("int", "float"):
            raise ValueError(f"type must be 'float' or 'int', got {type!r}")
        if type == "int" and inputs.is_floating_point():
            return (inputs * 255).to(torch.uint8)
        if type == "float" and inputs.dtype == torch.uint8:
            return inputs.float() / 255
        return inputs

    @staticmethod
    def load(
        load_path: str | Path,
        batch_size: int = 128,
        shuffle: bool = False,
        normalize: Mapping[str, Sequence[float]] | None = None,
        load_predictions: bool = False,
        load_clean_inputs: bool = False,
    ) -> DataLoader:
        """A loader of what `save` wrote, torchattacks' files included.

        Args:
            normalize: {"mean": ..., "std": ...} to apply to the images.

        Raises:
            ValueError: the file does not hold what is asked for.
        """
        content = torch.load(load_path, map_location="cpu", weights_only=True)
        keys = ["adv_inputs", "labels"]
        keys += ["preds"] * load_predictions + ["clean_inputs"] * load_clean_inputs
        missing = [key for key in keys if key not in content]
        if missing:
            raise ValueError(
                f"{load_path} has no {', '.join(missing)}; it holds {', '.join(content)}"
            )
        for key in keys:
            if key.endswith("_inputs"):
                content[key] = Saving.to_type(content[key], "float")
                if normalize is not None:
                    mean = torch.as_tensor(normalize["mean"]).reshape(1, -1, 1, 1)
                    std = torch.as_tensor(normalize["std"]).reshape(1, -1, 1, 1)
                    content[key] = (content[key] - mean) / std
        print(f"Data is loaded in the following order: [{', '.join(keys)}]")
        data = TensorDataset(*[content[key] for key in keys])
        return DataLoader(data, batch_size=batch_size, shuffle=shuffle)

    def _save_print(
        self, progress: float, rob_acc: float, l2: float, elapsed_time: float, end: str
    ) -> None:
        print(
            f"- Save progress: {progress:2.2f} % / Robust accuracy: {rob_acc:2.2f} % / "
            f"L2: {l2:1.5f} ({elapsed_time:2.3f} it/s) \t",
            end=end,
        )
