import errno
import json
import os
import subprocess
import sys

import pytest
import torch

from advfast import files


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".tmp"))


def fails(number):
    def call(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return call


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "a.json"
    for value in (1, 2):
        files.write_json(path, {"x": value})
        assert json.loads(path.read_text()) == {"x": value}
    files.write_csv(tmp_path / "a.csv", [{"n": 1, "name": "a,b"}, {"n": 2, "name": "c"}])
    assert (tmp_path / "a.csv").read_text() == 'n,name\n1,"a,b"\n2,c\n'
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "kind", "reason"),
    [
        (errno.ENOSPC, OSError, "the disk is full"),
        (errno.EACCES, PermissionError, "no permission"),
        (errno.EROFS, OSError, "read-only"),
        (errno.EIO, OSError, "Input/output error"),
    ],
)
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_errors_name_the_file_and_the_reason(tmp_path, monkeypatch, where, number, kind, reason):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    monkeypatch.setattr(files.os, where, fails(number))
    with pytest.raises(kind, match=reason) as caught:
        files.write_text(path, "new")
    assert str(caught.value).startswith(f"cannot write {path}: ")
    assert caught.value.errno == number
    assert type(caught.value) is kind
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_full_disk_behind_an_error_of_torch(tmp_path):
    def save(stream):
        class Full:
            written = 0

            def write(self, content):
                self.written += len(content)
                if self.written > 200:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return stream.write(content)

            def flush(self):
                pass

        torch.save({"w": torch.zeros(1000)}, Full())

    with pytest.raises(OSError, match=r"cannot write .*a\.pt: the disk is full"):
        files.write_atomic(tmp_path / "a.pt", save)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_pass_through(tmp_path):
    def write(stream):
        raise ValueError("not this")

    with pytest.raises(ValueError, match="not this"):
        files.write_atomic(tmp_path / "a", write)

    def interrupt(stream):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(tmp_path / "a", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="its folder does not exist"):
        files.write_text(tmp_path / "no" / "a", "x")


def test_content_then_name_then_folder_reach_the_disk(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(descriptor):
        kind = "folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"
        events.append(kind)
        fsync(descriptor)

    def seen_replace(old, new):
        events.append("replace")
        replace(old, new)

    monkeypatch.setattr(files.os, "fsync", seen_fsync)
    monkeypatch.setattr(files.os, "replace", seen_replace)
    files.write_text(tmp_path / "a", "x")
    assert events == ["file", "replace", "folder"]


def test_folder_that_cannot_be_flushed_is_no_error(tmp_path, monkeypatch):
    fsync = os.fsync

    def no_folders(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", no_folders)
    files.write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"


def test_what_killed_processes_left_is_removed(tmp_path):
    code = """
import os, sys
from advfast import files
def write(stream):
    stream.write(b"half")
    stream.flush()
    os.kill(os.getpid(), 9)
files.write_atomic(sys.argv[1], write)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "best.pt")])
    (left,) = leftovers(tmp_path)
    assert left.startswith(".best.pt.")
    living = tmp_path / f".a.{os.getppid()}.tmp"
    own = tmp_path / f".a.{os.getpid()}.tmp"
    foreign = [tmp_path / "a.tmp", tmp_path / ".a.tmp", tmp_path / ".x.y.tmp"]
    for path in (living, own, *foreign):
        path.touch()
    removed = files.clean_temporaries(tmp_path)
    assert sorted(path.name for path in removed) == sorted([left, own.name])
    assert not own.exists()
    assert all(path.exists() for path in (living, *foreign))
