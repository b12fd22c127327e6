"""The kernel of a network on some images, what is read off it, and the files of `advfast ntk`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advfast.evaluation.report import versions
from advfast.files import write_atomic, write_json

from . import metrics as dense
from . import scalars
from .kernel import NTK, ntk

WORDS = {
    "trace": "trace",
    "top_share": "largest eigenvalue / trace",
    "effective_rank": "effective rank (entropy)",
    "participation_ratio": "participation ratio",
    "top_mass": f"squared mass of the top {scalars.TOP}",
    "alignment": "alignment with the labels, centred",
    "jacobian_alignment": "alignment of centred Jacobians",
    "specialization": "specialization of the outputs",
}


@dataclass(frozen=True)
class Part:
    """One kernel: "clean" or the name of an attack.

    Attributes:
        theta: [N, N, R, R] on the CPU.
        accuracy: share of the images that are classified right.
        metrics: `advfast.ntk.summary` of it.
        eigenvalues: of the matrix that `of` says, float64, the largest first.
        layers: for each layer its share of the trace and its own metrics; empty unless asked for.
        error: of the check of the kernel against products by autograd.
        seconds: of the kernel.
    """

    theta: Tensor
    accuracy: float
    metrics: dict[str, float]
    eigenvalues: Tensor
    layers: dict[str, dict[str, float]]
    error: float | None
    seconds: float


@dataclass
class KernelReport:
    """Attributes:
    parts: "clean", and under an attack's name the kernel of the adversarial images.
    labels, indices: int64 [N], of the samples.
    settings: what was asked for.
    """

    labels: Tensor
    indices: Tensor
    of: str
    settings: dict[str, Any]
    parts: dict[str, Part] = field(default_factory=dict)

    def add(
        self,
        name: str,
        model: nn.Module,
        x: Tensor,
        *,
        say: Callable[[str], None] = lambda text: None,
        progress: Callable[[int, int], None] | None = None,
        per_layer: bool = False,
        **arguments: Any,
    ) -> None:
        """Computes the kernel of images [N, ...] and reads everything off it.

        Args:
            say: told what takes long.
            progress: called with (blocks done, all blocks).
            arguments: of `advfast.ntk.ntk`.
        """
        y = self.labels.to(x.device)
        with torch.no_grad():
            accuracy = float((model(x).argmax(1) == y).double().mean())
        readout = arguments.get("readout")
        labels = y if isinstance(readout, str) and readout in ("margin", "loss") else None
        say(f"{name}: kernel of {len(x)} images")
        begun = time.perf_counter()
        found = ntk(model, x, y1=labels, per_layer=per_layer, progress=progress, **arguments)
        seconds = time.perf_counter() - begun
        say(f"{name}: {seconds:.1f} s; eigenvalues and metrics")
        eigenvalues = dense.spectrum(found, self.of)
        values = scalars.summary(found, self.labels, of=self.of, eigenvalues=eigenvalues)
        self.parts[name] = Part(
            theta=found.tensor.cpu(),
            accuracy=accuracy,
            metrics=values,
            eigenvalues=eigenvalues.cpu(),
            layers=self._layers(found, values["trace"]) if per_layer else {},
            error=None if found.check is None else found.check.error,
            seconds=seconds,
        )

    def _layers(self, found: NTK, whole: float) -> dict[str, dict[str, float]]:
        rows = {}
        for name, theta in found.per_layer.items():
            trace = dense.trace(theta, self.of)
            rows[name] = {"share": trace / whole}
            if trace > 0:
                rows[name]["effective_rank"] = dense.effective_rank(theta, self.of)
                try:
                    rows[name]["alignment"] = dense.alignment(theta, self.labels)
                except ValueError:  # the last layer's bias tells no samples apart
                    rows[name]["alignment"] = float("nan")
        return rows

    @property
    def distances(self) -> dict[str, float]:
        """Attack -> kernel distance between the clean and the adversarial kernel."""
        clean = self.parts["clean"].theta
        return {
            name: dense.kernel_distance(clean, part.theta, self.of)
            for name, part in self.parts.items()
            if name != "clean"
        }

    def table(self) -> str:
        """A line a metric, a column a kernel; then a line a layer."""
        names = list(self.parts)
        width = max(len(words) for words in WORDS.values()) + 2
        rows = [("", names)]
        rows.append(("accuracy", [f"{100 * part.accuracy:.1f} %" for part in self.parts.values()]))
        for name in self.parts["clean"].metrics:
            values = [part.metrics[name] for part in self.parts.values()]
            rows.append((WORDS[name], [f"{value:.4g}" for value in values]))
        for name, distance in self.distances.items():
            cells = [f"{distance:.4g}" if other == name else "0" for other in names]
            rows.append(("kernel distance from clean", cells))
        lines = [f"{words:<{width}}" + "".join(f"{c:>12}" for c in cells) for words, cells in rows]
        for name, part in self.parts.items():
            if part.layers:
                longest = max(len(layer) for layer in part.layers) + 2
                lines += [
                    "",
                    f"{name + ', by layer':<{longest}}   share of trace  eff. rank  alignment",
                ]
                lines += [
                    f"{layer:<{longest}}{100 * row['share']:>15.2f} %"
                    + "".join(
                        f"{row[key]:>11.4g}" if key in row else f"{'-':>11}"
                        for key in ("effective_rank", "alignment")
                    )
                    for layer, row in part.layers.items()
                ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the kernels, for JSON; what is not defined is None."""
        kernels = {}
        for name, part in self.parts.items():
            kernels[name] = {
                "accuracy": part.accuracy,
                "metrics": part.metrics,
                "eigenvalues": part.eigenvalues.tolist(),
                "class_block_means": dense.class_block_means(part.theta, self.labels).tolist(),
                "check_error": part.error,
                "seconds": part.seconds,
            }
            if "specialization" in part.metrics:
                matrix = dense.specialization(part.theta, self.labels).matrix
                kernels[name]["specialization_matrix"] = matrix.tolist()
            if part.layers:
                kernels[name]["layers"] = part.layers
        content = {
            "settings": {**self.settings, "of": self.of, "samples": len(self.labels)},
            "kernels": kernels,
            "kernel_distance": self.distances,
            "versions": versions(),
        }
        return _without_nan(content)

    def save(self, folder: Path) -> list[Path]:
        """Writes kernel.npz and metrics.json; the folder is made."""
        folder.mkdir(parents=True, exist_ok=True)
        kernels, numbers = folder / "kernel.npz", folder / "metrics.json"
        arrays: dict[str, Any] = {
            name: part.theta.float().numpy() for name, part in self.parts.items()
        }
        arrays |= {"labels": self.labels.numpy(), "indices": self.indices.numpy()}
        arrays["settings"] = np.array(json.dumps(self.settings, default=str))
        write_atomic(kernels, lambda stream: np.savez(stream, **arrays))
        write_json(numbers, self.to_dict())
        return [kernels, numbers]


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and value != value else value
