"""Two processes with gloo against one with the same batches."""

import os
import signal
import subprocess
import sys
import time
from itertools import chain

import numpy as np
import pytest
import torch

from advfast.data import Loader, Share, TensorSource
from advfast.training import checkpoint, names

from . import ranks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes of POSIX")

CLOSE = 1e-10
"""Of float64 weights: what the order of sums changes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two(folder):
    """What each of the two ranks has found; begun, by one process, is what they go on with."""

    class Terminate:
        def on_step_end(self, state):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    begun = ranks.raised(
        lambda: ranks.course(folder / "one", **ranks.KEPT, callbacks=[Terminate()])
    )
    assert begun == "SystemExit: 143"
    code = "import sys; from tests.training import ranks; ranks.main(int(sys.argv[1]), sys.argv[2])"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(folder)],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=250)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, -signal.SIGKILL], errors
    assert errors[0].count("SIGTERM in epoch 1 after 3 steps") == 1
    assert errors[1] == ""  # shows nothing
    return [torch.load(folder / f"found{rank}.pt") for rank in (0, 1)]


def assert_same(found, expected):
    assert found["state"].keys() == expected["state"].keys()
    for name, value in expected["state"].items():
        torch.testing.assert_close(found["state"][name], value, rtol=0, atol=CLOSE)
    assert len(found["history"]) == len(expected["history"])
    for row, other in zip(found["history"], expected["history"], strict=True):
        assert row == pytest.approx(other, abs=1e-6)
    assert found["test"] == expected["test"]
    assert found["table"] == expected["table"]


@pytest.mark.parametrize("name", ranks.RUNS)
def test_two_ranks_train_as_one(tmp_path, two, name):
    test = {"test": ranks.data()} if name == "pgd-at" else {}
    alone = ranks.outcome(ranks.course(tmp_path, **ranks.RUNS[name], **test))
    untrained = ranks.network(ranks.RUNS[name].get("bn", False)).state_dict()
    assert any((alone["state"][key] - value).abs().max() > 1e-3 for key, value in untrained.items())
    for found in two:
        assert_same(found[name], alone)


def test_a_stopped_run_goes_on_with_another_number_of_ranks(tmp_path, folder, two):
    whole = ranks.outcome(ranks.course(tmp_path, **ranks.KEPT))
    for found in two:
        assert found["sigterm"] == "SystemExit: 143"  # though rank 1 alone got it
        assert_same(found["resumed"], whole)
        assert_same(found["complete"], whole)
    loop = checkpoint.read(folder / "stopped" / names.LAST)["run"]["loop"]
    assert (loop["step"], loop["seen"]) == (3, 48)
    again = ranks.outcome(ranks.course(folder / "stopped", **ranks.KEPT, resume=True))
    assert_same(again, whole)


def test_ranks_have_the_same_weights_and_statistics(two):
    for name in ("local-bn", "free", "collapse", "noise", "stop", "averaged"):
        for key, value in two[0][name]["state"].items():
            assert torch.equal(value, two[1][name]["state"][key]), (name, key)
    assert any("running_mean" in key for key in two[0]["local-bn"]["state"])


def test_noise_is_switched_on_in_all_ranks(folder, two):
    assert two[0]["noise"]["fired"] == two[1]["noise"]["fired"] and 1 in two[0]["noise"]["fired"]
    method = checkpoint.read(folder / "noise" / names.LAST)["run"]["method"]
    assert method["noisy"] and method["scale"].std() > 0.05


def test_validation_is_split(two):
    assert [found["validated"] for found in two] == [[4], [5]]  # of 9


def test_free_goes_on_with_as_many_ranks_as_before(folder, two):
    saved = checkpoint.read(folder / "free" / names.LAST)["run"]["method_of_ranks"]
    assert not torch.equal(saved[0]["delta"], saved[1]["delta"])
    (folder / "free" / names.RESULTS).unlink()
    with pytest.raises(ValueError, match="begun with 2 goes on with as many, not 1"):
        ranks.course(folder / "free", method="free", method_options={"m": 2}, resume=True)


def test_a_callback_on_the_first_rank_stops_all(two):
    assert [found["calls"] for found in two] == [1, 0]
    assert all(len(found["stop"]["history"]) == 1 for found in two)


def test_a_full_disk_ends_all_ranks(folder, two):
    for found in two:
        assert found["disk"].startswith("OSError: cannot write")
        assert "the disk is full" in found["disk"]
        assert "go on with resume=True" in found["disk"]
    assert checkpoint.read(folder / "disk" / names.LAST)["run"]["loop"]["step"] == 2
    assert not list((folder / "disk").glob(".*.tmp"))


def test_a_loss_that_is_not_finite_on_one_rank_ends_all(folder, two):
    assert two[0]["nan"].startswith("NonFiniteLoss: the loss of another rank became NaN")
    assert two[1]["nan"].startswith("NonFiniteLoss: the loss became nan at step 6 (epoch 2 of 2")
    assert all("epochs up to 1 are saved" in found["nan"] for found in two)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("apart", "RuntimeError: the ranks have different weights"),
        ("small", "ValueError: batch_size is that of all ranks together: at least 2 for each of 2"),
        ("micro", "ValueError: sync_bn needs the whole batch in one pass"),
        (
            "other",
            "ValueError: the ranks must have the same arguments: lr is 0.1 in rank 0 and 0.2",
        ),
        ("model", "ValueError: the ranks must have the same weights: layers.3.weight"),
        ("sweep", "ValueError: a sweep runs in one process"),
        ("atta", "ValueError: atta keeps the perturbations of all samples in one process"),
    ],
)
def test_refused_in_both_ranks(two, name, message):
    assert all(found[name].startswith(message) for found in two)


def test_a_killed_rank_ends_the_other(folder, two):
    assert two[0]["killed"].startswith("LostRank: rank 0 of 2: another rank has ended")
    assert "go on with resume=True" in two[0]["killed"]
    assert "\n" not in two[0]["killed"]
    assert checkpoint.read(folder / "killed" / names.LAST)["epoch"] == 1


def test_a_rank_that_does_not_answer_ends_the_others(two):
    assert two[0]["late"].startswith("LostRank: rank 0 of 2: another rank has ended or does not")
    assert "imed out" in two[0]["late"]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("total", [1, 2, 3, 5, 7, 16, 17, 33])
def test_a_batch_is_shared_out_once(world, total):
    parts = [list(range(total))[Share(rank, world).part(total)] for rank in range(world)]
    assert list(chain(*parts)) == list(range(total))
    assert all(len(part) != 1 for part in parts) or total == 1
    assert sum(Share(rank, world).weight(total) for rank in range(world)) == pytest.approx(1)
    for rank, part in enumerate(parts):
        read = list(range(total))[Share(rank, world).read(total)]
        assert read == (part or [0, 1][:total])


@pytest.mark.parametrize("start", [0, 3])
def test_loaders_of_all_ranks_make_the_batches_of_one(start):
    images, labels = torch.rand(45, 3, 8, 8), torch.arange(45)
    settings = {"device": "cpu", "seed": 2, "augment": ["crop", "flip"]}
    whole = Loader(TensorSource(images, labels), 10, **settings)
    shared = [
        Loader(TensorSource(images, labels), 10, share=Share(rank, 3), **settings)
        for rank in range(3)
    ]
    assert [len(loader) for loader in shared] == [len(whole)] * 3
    parts = [list(loader.batches(2, start)) for loader in shared]
    batches = list(whole.batches(2, start))
    for number, batch in enumerate(batches):
        total = len(batch.labels)
        assert shared[0].whole(start + number) == total
        mine = [part[number] for rank, part in enumerate(parts) if Share(rank, 3).weight(total)]
        for field in ("images", "labels", "indices"):
            assert torch.equal(torch.cat([getattr(b, field) for b in mine]), getattr(batch, field))
    assert len(batches[-1].labels) == 5  # of which rank 2 has none


def test_torchrun_ends_when_a_rank_is_killed(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (200, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(200) % 3)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
        "advfast", "train", "--data", "data.npz", "--model", "small-cnn", "--eps", "0.1", "--steps", "1", "--epochs",
        "9999", "--out", "run", "--quiet",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / names.LAST).exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(_rank(process.pid, 1), signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    ours = [line for line in errors.splitlines() if line.startswith("advfast: error:")]
    assert len(ours) == 1, errors
    assert "another rank has ended" in ours[0] and "go on with resume=True" in ours[0]
    assert checkpoint.read(tmp_path / "run" / names.LAST)["run"]["environment"]["ranks"] == 2


def _rank(parent, rank):
    """The process that torchrun has started for a rank."""
    children = subprocess.run(
        ["pgrep", "-P", str(parent)], capture_output=True, text=True, check=True
    ).stdout.split()
    for child in children:
        with open(f"/proc/{child}/environ") as environment:
            if f"RANK={rank}" in environment.read().split("\0"):
                return int(child)
    raise AssertionError(f"no process of rank {rank} among {children}")
