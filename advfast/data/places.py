"""Where the files of a data set are looked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def folder_with(
    patterns: Sequence[str],
    title: str,
    root: str | Path | None,
    subfolders: Sequence[str],
    advice: str,
    packaged: Sequence[Path] = (),
) -> Path:
    """The first folder that holds any file of a data set; a missing one of several is then named by its reader.

    Args:
        patterns: of the names of its files.
        title: for the message.
        root: where to look; None looks in $ADVFAST_DATA and `packaged`.
        subfolders: of root to look in first: other data sets may have files of the same names beside them.
        advice: how to get the files.
        packaged: where system packages put them.

    Raises:
        FileNotFoundError: with where it looked, and the advice.
    """
    folders = list(packaged)
    given = root if root is not None else os.environ.get("ADVFAST_DATA")
    if given:
        place = Path(given)
        folders = [*(place / name for name in subfolders), place]
        if root is None:
            folders += packaged
    for folder in folders:
        if any(any(folder.glob(pattern)) for pattern in patterns):
            return folder
    looked = ", ".join(str(folder) for folder in folders)
    raise FileNotFoundError(
        f"{title} was not found{'; looked in ' + looked if looked else ''}. {advice}, and name "
        "that with ADVFAST_DATA, data_root= or --data-root"
    )
