"""Files written whole or not at all."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

_TEMPORARY = re.compile(r"\..+\.([0-9]+)\.tmp")
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)
"""What a file system answers that cannot flush a folder."""

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "its folder does not exist",
    errno.EFBIG: "the file would be too large for the file system or the limit set",
}


def write_atomic(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes through a temporary file beside `path`: a crash leaves the old file or the new one, never half of one.

    On return the new file is on the disk, name and content.

    Args:
        path: the file; replaced if it exists.
        write: writes the content to the stream that it is given.

    Raises:
        OSError: of the system's own kind, with the file and the reason; the old file is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except Exception as error:
        cause = _system_error(error)
        if cause is None:
            raise
        raise _explained(cause, path) from error


def write_text(path: str | Path, text: str) -> None:
    """UTF-8, as `write_atomic`."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> None:
    """As `write_atomic`."""
    write_atomic(path, lambda stream: stream.write(content))


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """Indented JSON, as `write_atomic`."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_csv(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """A header and the rows, as `write_atomic`; the columns are the keys of the first row."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())


def clean_temporaries(folder: str | Path) -> list[Path]:
    """Removes what killed processes left of `write_atomic` in a folder; those of other living processes stay.

    Call it where this process is not writing to the folder at the moment.

    Returns:
        The files that were removed.
    """
    removed = []
    for path in sorted(Path(folder).glob(".*.tmp")):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _runs_elsewhere(int(match[1])):
            with suppress(OSError):  # gone already, or not ours
                path.unlink()
                removed.append(path)
    return removed


def _runs_elsewhere(process: int) -> bool:
    if os.name != "posix":
        return False  # there, an open file cannot be removed
    if process == os.getpid():
        return False  # a container gives the same number again
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Else a power cut may lose the new name of the file."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def _system_error(error: BaseException) -> OSError | None:
    """torch.save turns a full disk into a RuntimeError about positions in the file; the cause is behind it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _explained(error: OSError, path: Path) -> OSError:
    reason = _REASONS.get(error.errno or 0) or error.strerror or str(error)
    explained = type(error)(f"cannot write {path}: {reason}")
    explained.errno = error.errno
    return explained
