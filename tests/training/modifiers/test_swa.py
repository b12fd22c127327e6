import copy

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, update_bn

from advfast.data import Loader, TensorSource
from advfast.evaluation import evaluate
from advfast.training import checkpoint, train
from advfast.training.modifiers import SWA, RunInfo, make, swa

from ..test_resume import assert_same
from .runs import assert_resumes, assert_same_runs, course, images, network

RUN = RunInfo(classes=3, batch_size=48, epochs=6, steps_per_epoch=3, seed=4)


def loader(seed=4):
    return Loader(TensorSource(*images()), 48, device="cpu", seed=seed, augment=["crop", "flip"])


@pytest.mark.parametrize(("start", "first"), [(0.5, 4), (0.0, 1), (2, 2), (6, 6), (0.99, 6)])
def test_it_is_torchs_averaged_model(start, first):
    modifier, model = SWA(start), network()
    modifier.begin(model, RUN)
    data, theirs = loader(), None
    generator = torch.Generator().manual_seed(0)
    for epoch in range(1, 7):
        model.train()
        with torch.no_grad():
            for value in model.parameters():
                value.add_(torch.randn(value.shape, generator=generator))
            model[1].running_mean.add_(1)
        before = copy.deepcopy(model.state_dict())
        modifier.after_epoch(model, epoch, data)
        assert_same(dict(model.state_dict()), dict(before))
        assert all(module.training for module in model.modules())
        assert model[1].momentum == 0.1
        if epoch >= first:
            theirs = AveragedModel(model) if theirs is None else theirs
            theirs.update_parameters(model)
            theirs.eval()
            averaged = copy.deepcopy(theirs.module)
            averaged[4].p = 0.0  # update_bn has dropout in train mode
            update_bn((batch.images for batch in data.batches(epoch)), averaged)
        with modifier.evaluating(model):
            expected = before if theirs is None else averaged.state_dict()
            for name, value in expected.items():
                torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-5)
        assert_same(dict(model.state_dict()), dict(before))


def test_statistics_are_those_of_all_images():
    # One batch: mean and unbiased variance of what the layer sees.
    model, data = network(), images()
    data = Loader(TensorSource(*data), 130, device="cpu", seed=0)
    with torch.no_grad():
        seen = model[0](images()[0])
    swa.estimate_statistics(model, (batch.images for batch in data.batches(1)))
    torch.testing.assert_close(model[1].running_mean, seen.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model[1].running_var, seen.var((0, 2, 3)), rtol=1e-5, atol=1e-5)


def test_training_is_as_without_it_and_the_average_is_what_counts(tmp_path):
    course(tmp_path / "base")
    result = course(tmp_path / "swa", "swa:start=2")
    base, last = (checkpoint.read(tmp_path / name / "last.pt") for name in ("base", "swa"))
    assert_same(last["run"]["weights"], base["run"]["weights"])
    assert_same(last["run"]["optimizer"], base["run"]["optimizer"])
    assert_same(last["state"], last["run"]["modifiers"][0]["average"])
    assert not torch.equal(last["state"]["5.weight"], base["state"]["5.weight"])
    model = network()
    model.load_state_dict(last["state"])
    held_out = evaluate(model, images(), attacks=("clean", "pgd-20"), eps=0.1)
    assert result.last.test["clean"].value == held_out["clean"].value
    rows = [row["val_robust"] for row in result.history]
    assert rows[0] == course(tmp_path / "again", epochs=3).history[0]["val_robust"]


def test_statistics_are_estimated_once_an_epoch(tmp_path, monkeypatch):
    calls, estimate = [], swa.estimate_statistics
    monkeypatch.setattr(swa, "estimate_statistics", lambda *a: (calls.append(1), estimate(*a)))
    course(tmp_path, "swa:start=2", save_every=1)
    assert len(calls) == 2


def test_of_one_epoch_it_is_its_weights(tmp_path):
    course(tmp_path / "base", epochs=3)
    course(tmp_path / "one", "swa:start=3", epochs=3)
    one, base = (checkpoint.read(tmp_path / name / "last.pt") for name in ("one", "base"))
    # With statistics of their own.
    for name, value in base["state"].items():
        assert torch.equal(one["state"][name], value) == (
            not name.startswith("1.r") and "num" not in name
        )


@pytest.mark.parametrize("steps", [(1, 3), (5, 6)])
def test_resumed(tmp_path, steps):
    # Step 6 is the last of an epoch: what is left of it is the averaging.
    assert_resumes(tmp_path, "swa:start=2", steps=steps)


def test_without_batch_normalisation(tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    train(model, images(), modifiers=["swa"], epochs=2, steps=1, out=tmp_path, progress=False)


def test_of_repeated_batches_each_counts_once(monkeypatch):
    from advfast.training.repeated import Repeated

    seen = []
    monkeypatch.setattr(
        swa, "estimate_statistics", lambda model, batches: seen.append(len(list(batches)))
    )
    modifier, model = SWA(0.0), network()
    modifier.begin(model, RUN)
    modifier.after_epoch(model, 1, Repeated(loader(), 4))
    assert seen == [3]


def test_names_and_defaults():
    assert make("swa").start == 0.5
    assert make("swa:start=55").start == 55


@pytest.mark.parametrize("word", ["swa:start=-1", "swa:start=2.5", "swa:start=x"])
def test_bad_values(tmp_path, word):
    with pytest.raises(ValueError, match="swa: start must be an epoch from 1 or a share"):
        train(network(), images(), modifiers=[word], out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_start_after_the_end(tmp_path):
    with pytest.raises(
        ValueError, match="swa: start must be at most the 3 epochs of the run, got 4"
    ):
        course(tmp_path, "swa:start=4")


def test_base_run_is_deterministic(tmp_path):
    course(tmp_path / "one")
    course(tmp_path / "other")
    assert_same_runs(tmp_path / "one", tmp_path / "other")
