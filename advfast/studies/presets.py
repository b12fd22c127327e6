"""Arguments of each study by name: "small" is minutes on two CPU cores, "published" that of the paper, for a GPU."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from advfast.kernels.pgd.api import nearest

NAMES = ("small", "published")


def preset(study: str, name: str) -> dict[str, Any]:
    """Arguments of a study: ``advfast.studies.criticality(**advfast.studies.preset("criticality", "small"))``.

    Args:
        study: as on the command line.
        name: "small" or "published", or one more that the study has.

    Raises:
        ValueError: no such preset.
    """
    presets: dict[str, dict[str, Any]] = import_module(
        f".{study.replace('-', '_')}", __package__
    ).PRESETS
    if name not in presets:
        raise ValueError(
            f"preset must be one of {', '.join(presets)}, got {name!r}{nearest(name, list(presets))}"
        )
    return dict(presets[name])
