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
        name: "small" or "published".

    Raises:
        ValueError: no such preset.
    """
    if name not in NAMES:
        raise ValueError(
            f"preset must be one of {', '.join(NAMES)}, got {name!r}{nearest(name, NAMES)}"
        )
    module = import_module(f".{study.replace('-', '_')}", __package__)
    return dict(module.PRESETS[name])
