"""Runs that begin on clean images, by a number and by the kernel."""

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from advfast.evaluation.named import named
from advfast.ntk import balanced_probe
from advfast.training import CleanPrefix, EarlyStopping, checkpoint, methods, names, train
from advfast.training.parallel import Ranks
from advfast.training.prefix import Prefix
from advfast.training.run import Run

from .modifiers.runs import Terminate, course, images, network
from .test_resume import assert_same, outcome

OPTIONS = {"free": {"m": 2}, "yopo": {"m": 1, "n": 1}, "atta": {"reset_every": 2}}
# Four epochs of three steps, of which two may be clean: one check, after the first.
RUN = {"epochs": 4, "schedule": "piecewise", "schedule_options": {"milestones": [4]}}
LONG = "auto:distance=1,velocity=0,samples=12"
SHORT = "auto:distance=1e-9,samples=12"


@pytest.mark.parametrize("method", sorted(methods.METHODS.keys() - {"standard"}))
def test_a_run_that_finds_its_prefix_is_the_one_that_is_given_it(tmp_path, method):
    """And one that is stopped before the decision and after it goes on as if it had not been."""
    settings = RUN | {"method": method, "method_options": OPTIONS.get(method), "steps": None}
    repeats = 2 if method == "free" else 1
    given = course(tmp_path / "given", clean_prefix=2, **settings)
    found = tmp_path / "found"
    for step in (2, 4, 7):
        with pytest.raises(SystemExit):
            course(found, clean_prefix=LONG, callbacks=[Terminate(step * repeats)], **settings)
        run = checkpoint.read(found / names.LAST)["run"]
        assert (run["loop"]["epoch"], run["clean_prefix"]["epochs"]) == (
            step // 3 + 1,
            1 if step == 2 else 2,
        )
    result = course(found, clean_prefix=LONG, **settings)
    assert_same(outcome(found), outcome(tmp_path / "given"))
    states = [checkpoint.read(path / names.LAST)["run"]["method"] for path in (found, given.path)]
    assert_same(*states)
    assert [check["epoch"] for check in result.clean_prefix["checks"]] == [1]
    assert result.clean_prefix["saved"] == pytest.approx(given.clean_prefix["saved"])


def test_the_end_by_the_distance(tmp_path, capsys):
    course(tmp_path / "given", clean_prefix=1, **RUN)
    result = course(tmp_path / "found", clean_prefix=SHORT, progress=True, **RUN)
    assert_same(outcome(tmp_path / "found"), outcome(tmp_path / "given"))
    told = result.clean_prefix
    assert told["epochs"] == 1
    assert told["reason"].startswith("kernel distance ")
    assert told["reason"].endswith(" >= 1e-09")
    shown = capsys.readouterr().err
    assert f"clean prefix ends after epoch 1: {told['reason']}; the checks took 0." in shown
    assert shown.count("clean prefix") == 1
    assert "of training so far" in shown
    # What the accuracy is of changes with the images.
    lines = [line for line in shown.splitlines() if line.startswith("epoch ")]
    assert [", accuracy " in line for line in lines] == [True, False, False, False]
    # The same from the files.
    again = course(tmp_path / "found", clean_prefix=SHORT, **RUN)
    assert again.clean_prefix == told
    assert json.loads((result.path / names.RESULTS).read_text())["clean_prefix"] == told


def kernel(model, x, readout):
    """Of the sum of the logits, or the sum of the kernels of the classes; one image after another."""
    rows = []
    for image in x:
        logits = model(image[None])[0]
        read = [logits.sum()] if readout == "sum" else list(logits)
        gradients = [
            gradient.flatten()
            for value in read
            for gradient in torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        ]
        rows.append(torch.cat(gradients).double())
    jacobian = torch.stack(rows)
    return jacobian @ jacobian.T


def distance(a, b):
    return 1 - float((a * b).sum() / (a.norm() * b.norm()))


class Killed(Exception):
    pass


class KillAfter:
    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, state):
        if state.epoch == self.epoch:
            raise Killed


class Kernels:
    """K(x) and K(x') of 12 training images after each epoch, without advfast.ntk."""

    def __init__(self, readout):
        self.readout, self.found = readout, []

    def on_epoch_end(self, state):
        x, y = state.data.batch(balanced_probe(state.data.labels, 12, 4))
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        attack, _ = named("pgd-10", state.model, eps=0.1, norm="linf", seed=0, precision="fp32")
        attacked = attack(x, y)
        state.model.eval()
        self.found.append([kernel(state.model, of, self.readout) for of in (x, attacked)])
        state.model.train()


@pytest.mark.parametrize("readout", ["sum", "full"])
def test_the_checks_are_of_the_kernels_after_each_epoch(tmp_path, readout):
    rule = CleanPrefix(distance=1, velocity=0, samples=12, readout=readout)
    kernels = Kernels(readout)
    settings = {"clean_prefix": rule, "epochs": 16, "schedule": "constant", "steps": 1}
    result = course(tmp_path / "whole", callbacks=[kernels], **settings)
    checks = result.clean_prefix["checks"]
    assert (result.clean_prefix["epochs"], len(checks)) == (4, 3)
    assert checks[0]["velocity"] is None
    for check, (clean, attacked) in zip(checks, kernels.found, strict=False):
        assert check["distance"] == pytest.approx(distance(clean, attacked), abs=2e-5)
        assert check["distance"] > 1e-4
    for number in (1, 2):
        moved = distance(kernels.found[number - 1][0], kernels.found[number][0])
        assert checks[number]["velocity"] == pytest.approx(moved, abs=2e-5)
    if readout == "full":
        return
    # Killed between an epoch and what callbacks do after it; the third check compares with a kernel that was saved.
    for epoch in (1, 2):
        with pytest.raises(Killed):
            course(tmp_path / "cut", callbacks=[KillAfter(epoch)], **settings)
    again = course(tmp_path / "cut", **settings)
    names_ = ("epoch", "distance", "velocity")
    for one, other in zip(again.clean_prefix["checks"], checks, strict=True):
        assert [one[name] for name in names_] == [other[name] for name in names_]
    assert_same(outcome(tmp_path / "cut"), outcome(tmp_path / "whole"))


def test_a_run_too_short_for_a_prefix_has_none(tmp_path, capsys):
    course(tmp_path / "given", epochs=3)
    result = course(tmp_path / "found", clean_prefix="auto", epochs=3, progress=True)
    assert_same(outcome(tmp_path / "found"), outcome(tmp_path / "given"))
    assert result.clean_prefix["epochs"] == 0
    assert result.clean_prefix["saved"] == 0
    assert "no clean prefix: at most a quarter of the 3 epochs" in capsys.readouterr().err


def test_a_run_that_is_stopped_while_it_looks(tmp_path):
    class Stop:
        def on_epoch_end(self, state):
            state.stop = True

    result = course(tmp_path, clean_prefix=LONG, callbacks=[Stop()], **RUN)
    assert result.clean_prefix["epochs"] == 1
    assert result.clean_prefix["saved_seconds"] is None


def test_of_a_dataloader_and_other_norms(tmp_path):
    data = images()
    results = []
    for name, given in (("given", 2), ("found", LONG)):
        torch.manual_seed(0)
        results.append(train(
            network(), DataLoader(TensorDataset(*data), 44, shuffle=True), val=data, norm="l2", eps=0.5,
            steps=2, out=tmp_path / name, progress=False, clean_prefix=given, **RUN,
        ))  # fmt: skip
    assert_same(*(dict(result.model.state_dict()) for result in results))
    assert len(results[1].clean_prefix["checks"]) == 1


class Noisy(Dataset):
    """Images with noise from torch's generator, anew each time."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, number):
        image = self.images[number]
        return (image + 0.1 * torch.rand_like(image)).clamp(0, 1), int(self.labels[number])


def test_of_a_dataset_that_draws(tmp_path):
    data = images()
    for name, given in (("given", 2), ("found", LONG)):
        course(tmp_path / name, data=Noisy(*data), test=data, clean_prefix=given, augment=(), **RUN)
    assert_same(outcome(tmp_path / "found"), outcome(tmp_path / "given"))


def test_clean_epochs_do_not_count_for_patience(tmp_path, monkeypatch):
    epoch, values = Run._epoch, iter(range(9, 0, -1))

    def worse(run):
        """Each epoch is less robust than the one before."""
        run.validate = lambda: (0.5, next(values) / 10)
        epoch(run)

    monkeypatch.setattr(Run, "_epoch", worse)
    result = course(tmp_path, clean_prefix=LONG, patience=1, **RUN)
    # Two clean epochs, and one after them that is no better.
    assert len(result.history) == 3
    assert EarlyStopping(1).best(result.history)["epoch"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "standard"}, "method 'standard' trains on clean ones"),
        ({"clean_prefix": "auto:samples=0"}, "samples must be an integer >= 2"),
        ({"norm_layers": "batch-no-stats"}, "clean_prefix='auto' needs the kernel of the network"),
        ({"clean_prefix": -2}, "clean_prefix must be an integer >= 0"),
    ],
)
def test_errors_come_before_a_folder(tmp_path, changes, message):
    settings = {"clean_prefix": "auto", "epochs": 8, "batch_size": 48} | changes
    with pytest.raises(ValueError, match=message):
        train(network(), images(), out=tmp_path / "run", progress=False, **settings)
    assert not (tmp_path / "run").exists()


class FarRanks(Ranks):
    """As a second rank sees it: what the first one found."""

    rank = 1

    def __init__(self, found):
        self.found = found

    def alone(self, work):
        return self.found


def test_other_ranks_take_what_the_first_one_found(capsys):
    found = {"epoch": 1, "distance": 0.06, "velocity": float("nan"), "seconds": 1.0}
    run = {
        "epochs": 8, "schedule": "constant", "schedule_options": None, "eps": 0.1, "norm": "linf",
        "seed": 0,
    }  # fmt: skip
    other = Prefix(CleanPrefix(), run, nn.Identity(), ranks=FarRanks(found), shown=True)
    assert (other.epochs, other.reason) == (1, "")
    other.after_epoch(1, lambda: 10.0)
    assert (other.epochs, other.reason) == (1, "kernel distance 0.06 >= 0.05")
    assert capsys.readouterr().err == ""
