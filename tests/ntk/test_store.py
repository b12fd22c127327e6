"""Kernels in files: interrupted, gone on with, refused; and shared out over two processes."""

import json
import os
import subprocess
import sys

import numpy
import pytest
import torch

from advfast.ntk import blocks, ntk, store

from .networks import images, resnet


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setitem(blocks._ROWS, "cpu", 12)
    monkeypatch.setitem(blocks._CHUNK, "cpu", 2)


@pytest.fixture
def network():
    return resnet()


X = images(13, dtype=torch.float32)


def test_file_has_the_bits_of_memory(network, tmp_path):
    expected = ntk(network, X, method="C")
    result = ntk(network, X, method="C", out=tmp_path / "kernel", tile=5)
    assert result.path == tmp_path / "kernel.npy"
    assert torch.equal(result.matrix(), expected.matrix())
    assert numpy.array_equal(numpy.load(result.path), expected.matrix().numpy())
    about = json.loads((tmp_path / "kernel.json").read_text())
    assert about["shape"] == [13, 13, 3] and about["precision"] == "fp32"


def test_goes_on_after_an_interruption(network, tmp_path):
    expected = ntk(network, X, method="C")

    def interrupt(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ntk(network, X, method="C", out=tmp_path / "k.npy", progress=interrupt)
    calls = []
    # With another tile: the bits do not depend on it.
    result = ntk(
        network, X, method="C", out=tmp_path / "k.npy", tile=4, progress=lambda *n: calls.append(n)
    )
    assert calls[0] == (5, 10) and calls[-1] == (10, 10)
    assert torch.equal(result.matrix(), expected.matrix())
    calls.clear()
    again = ntk(network, X, method="C", out=tmp_path / "k.npy", progress=lambda *n: calls.append(n))
    assert not calls and torch.equal(again.matrix(), expected.matrix())


def test_a_piece_that_could_not_be_written_is_not_done(network, tmp_path, monkeypatch):
    put, pieces = store.put, []

    def full(matrix, piece, *rest, **options):
        pieces.append(piece)
        if len(pieces) == 4:
            raise OSError("no space left on device")
        put(matrix, piece, *rest, **options)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space"):
        patched.setattr(store, "put", full)
        ntk(network, X, method="C", out=tmp_path / "k.npy")
    result = ntk(network, X, method="C", out=tmp_path / "k.npy")
    assert torch.equal(result.matrix(), ntk(network, X, method="C").matrix())


@pytest.mark.parametrize("change", ["weights", "x1", "readout", "orders", "parameters"])
def test_a_file_of_another_kernel_is_refused(network, tmp_path, change):
    ntk(network, X, method="C", out=tmp_path / "k.npy", check=False)
    before = (tmp_path / "k.npy").read_bytes()
    settings = {"x1": X, "method": "C"}
    if change == "weights":
        with torch.no_grad():
            network[0].weight.view(-1)[0] += 1e-6
    settings |= {"x1": {"x1": X.flip(0)}, "readout": {"readout": torch.eye(3)},
                 "orders": {"method": "M"}, "parameters": {"params": ["0"]}}.get(change, {})  # fmt: skip
    with pytest.raises(ValueError, match=f"describes another kernel: .*{change}"):
        ntk(network, out=tmp_path / "k.npy", **settings)
    assert (tmp_path / "k.npy").read_bytes() == before


def test_files_that_are_none_of_ours(network, tmp_path):
    (tmp_path / "k.npy").write_bytes(b"mine")
    with pytest.raises(ValueError, match="it is no kernel that was begun here"):
        ntk(network, X, out=tmp_path / "k.npy")
    assert (tmp_path / "k.npy").read_bytes() == b"mine"
    (tmp_path / "k.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        ntk(network, X, out=tmp_path / "k.npy")


_RANK = """
import sys, torch
from torch import distributed
from advfast.ntk import blocks, ntk
from tests.ntk.networks import images, resnet
torch.set_num_threads(1)
blocks._ROWS["cpu"], blocks._CHUNK["cpu"] = 12, 2
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
network, x = resnet(), images(13, dtype=torch.float32)
alone = ntk(network, x, method="C").matrix()
across = ntk(network, x, x[:6], method="M").matrix()
distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
calls = []
shared = ntk(network, x, method="C", group="world", progress=lambda *n: calls.append(n)).matrix()
assert len(calls) == 5, calls
assert torch.equal(shared, alone)
assert torch.equal(ntk(network, x, x[:6], method="M", group="world", tile=4).matrix(), across)
stored = ntk(network, x, method="C", group="world", out=f"{folder}/kernel.npy").matrix()
assert torch.equal(stored, alone)
distributed.destroy_process_group()
"""


def test_two_processes_share_the_work(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", _RANK]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
