"""Evaluations that are interrupted, and what goes on with them."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advfast.attacks.sanity import Finding
from advfast.evaluation import AttackFailed, EvalReport, evaluate, run
from advfast.evaluation.saved import STATE, weights_digest

EPS = 0.1
TIMES = {"seconds": 0.0, "attack_seconds": {}, "costs": {}}


class Stop(Exception):
    pass


def numbers(report):
    """A report without what differs from run to run."""
    return replace(report, **TIMES)


def read(folder):
    return EvalReport.from_dict(json.loads((folder / "evaluation.json").read_text()))


def noisy(model, x, y):
    return (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)


@pytest.fixture
def job(cnn):
    """The arguments of an evaluation in 5 batches."""
    model, images, labels = cnn
    return {
        "model": model,
        "data": (images, labels),
        "attacks": ("clean", "pgd-2", noisy),
        "eps": EPS,
        "batch_size": 20,
    }


def stopped(job, out, after=2, **changed):
    """Stops when a callable attack is called the next time; yields the attacks that go on."""
    calls = []

    def noisy_until(model, x, y):
        calls.append(len(x))
        if len(calls) > after:
            raise KeyboardInterrupt
        return noisy(model, x, y)

    noisy_until.__name__, noisy_until.__module__ = noisy.__name__, noisy.__module__
    with pytest.raises(KeyboardInterrupt):
        evaluate(**{**job, "attacks": ("clean", "pgd-2", noisy_until), "out": out, **changed})


def test_goes_on_after_the_last_whole_batch(job, tmp_path, monkeypatch):
    finding = Finding("code", "what was seen", "what to try", {"share": 0.5})
    monkeypatch.setattr(run, "examine", lambda *args, **kwargs: (finding,))
    whole = evaluate(**job, out=tmp_path / "whole")
    stopped(job, tmp_path / "parts")
    assert (tmp_path / "parts" / STATE).exists()
    assert read(tmp_path / "parts").samples == 40
    seen = []
    handle = job["model"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    resumed = evaluate(**job, out=tmp_path / "parts", resume=True)
    handle.remove()
    # The first forward pass is of the third batch.
    assert torch.equal(seen[0], job["data"][0][40:60])
    assert numbers(resumed) == numbers(whole)
    assert numbers(read(tmp_path / "parts")) == numbers(read(tmp_path / "whole"))
    for one, other in zip(resumed.examples, whole.examples, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.attacked, other.attacked)
    assert finding in resumed.findings  # of the first batch, which was not looked at again
    assert resumed.seconds > 0
    names = sorted(file.name for file in (tmp_path / "parts").iterdir())
    assert names == ["evaluation.json", "evaluation.png", "evaluation.txt"]


def test_twice_interrupted(job, tmp_path):
    whole = evaluate(**job)
    stopped(job, tmp_path, after=1)
    stopped(job, tmp_path, after=2, resume=True)
    assert read(tmp_path).samples == 60
    found = evaluate(**job, out=tmp_path, resume=True)
    assert numbers(replace(found, fingerprint={})) == numbers(whole)


def test_without_anything_to_go_on_with_it_begins(job, tmp_path):
    found = evaluate(**job, out=tmp_path / "new", resume=True)
    assert numbers(replace(found, fingerprint={})) == numbers(evaluate(**job))


def test_a_whole_one_is_returned_as_it_is(job, tmp_path):
    first = evaluate(**job, out=tmp_path)
    calls = []
    handle = job["model"].register_forward_pre_hook(lambda module, inputs: calls.append(1))
    again = evaluate(**job, out=tmp_path, resume=True)
    assert again == first
    assert not calls
    assert not (tmp_path / "evaluation.html").exists()
    evaluate(**job, out=tmp_path, resume=True, report=True)
    assert (tmp_path / "evaluation.html").exists()
    handle.remove()
    with pytest.raises(ValueError, match=r"another eps: it was 0\.1 and is now 0\.2"):
        evaluate(**{**job, "eps": 0.2}, out=tmp_path, resume=True)
    images, labels = job["data"]
    job["data"] = images.flip(0), labels
    with pytest.raises(ValueError, match="an evaluation of other data"):
        evaluate(**job, out=tmp_path, resume=True)
    assert read(tmp_path) == first


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"eps": 0.2}, "another eps: it was 0.1 and is now 0.2"),
        ({"norm": "l2"}, "another norm: it was 'linf' and is now 'l2'"),
        ({"batch_size": 10}, "another batch size: it was 20 and is now 10"),
        ({"seed": 1}, "another seed"),
        ({"precision": "bf16"}, "another precision"),
        ({"limit": 70}, "another limit"),
        ({"sanity": False}, "another sanity"),
        ({"attacks": ("clean", "pgd-3", noisy)}, "another attacks: it was .*2 steps.*3 steps"),
        ({"attacks": ("clean", "pgd-2")}, "another attacks"),
    ],
)
def test_other_settings_are_refused(job, tmp_path, changed, message):
    stopped(job, tmp_path)
    before = (tmp_path / STATE).read_bytes(), (tmp_path / "evaluation.json").read_bytes()
    with pytest.raises(ValueError, match=message) as refused:
        evaluate(**{**job, **changed}, out=tmp_path, resume=True)
    assert "start again with overwrite=True" in str(refused.value)
    assert before == (
        (tmp_path / STATE).read_bytes(),
        (tmp_path / "evaluation.json").read_bytes(),
    )


def test_other_weights_and_data_are_refused(job, tmp_path):
    stopped(job, tmp_path)
    before = (tmp_path / STATE).read_bytes()
    images, labels = job["data"]
    moved = images.clone()
    moved[25, 0, 3, 3] += 1e-6  # in a batch that is through
    later = labels.clone()
    later[30] = (later[30] + 1) % 3
    for data in ((moved, labels), (images, later), (images.flip(0), labels)):
        with pytest.raises(ValueError, match="an evaluation of other data"):
            evaluate(**{**job, "data": data}, out=tmp_path, resume=True)
    few = DataLoader(TensorDataset(images[:20], labels[:20]), batch_size=20)
    with pytest.raises(ValueError, match="another data: it was 'tensors' and is now 'a DataLoader"):
        evaluate(**{**job, "data": few}, out=tmp_path, resume=True)
    with torch.no_grad():
        job["model"].linear2.bias[0] += 1e-6
    with pytest.raises(ValueError, match="another weights; choose another folder"):
        evaluate(**job, out=tmp_path, resume=True)
    assert (tmp_path / STATE).read_bytes() == before


def test_data_loaders(job, tmp_path):
    dataset = TensorDataset(*job["data"])
    job["data"] = DataLoader(dataset, batch_size=20)
    stopped(job, tmp_path)
    short = DataLoader(TensorDataset(*(part[:20] for part in dataset.tensors)), batch_size=20)
    shuffled = DataLoader(dataset, batch_size=20, shuffle=True)
    with pytest.raises(ValueError, match=r"a DataLoader that shuffles\?"):
        evaluate(**{**job, "data": shuffled}, out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="another samples: it was 90 and is now 20"):
        evaluate(**{**job, "data": short}, out=tmp_path, resume=True)
    resumed = evaluate(**job, out=tmp_path, resume=True)
    assert numbers(replace(resumed, fingerprint={})) == numbers(evaluate(**job))


def test_what_is_there_is_not_written_over(job, tmp_path):
    stopped(job, tmp_path)
    (tmp_path / "evaluation.json").unlink()  # as after a kill
    with pytest.raises(FileExistsError, match=r"was interrupted .*go on with it \(resume=True"):
        evaluate(**job, out=tmp_path)
    with pytest.raises(ValueError, match="exclude each other"):
        evaluate(**job, out=tmp_path, resume=True, overwrite=True)
    assert evaluate(**job, out=tmp_path, overwrite=True).samples == 90
    assert not (tmp_path / STATE).exists()


def test_damaged_states(job, tmp_path):
    stopped(job, tmp_path)
    state = (tmp_path / STATE).read_bytes()
    for wrong in (state[:200], b"", b"PK" + state[2:300]):
        (tmp_path / STATE).write_bytes(wrong)
        with pytest.raises(ValueError, match="is not the state of an evaluation, or is damaged"):
            evaluate(**job, out=tmp_path, resume=True)
    torch.save({"format": "other"}, tmp_path / STATE)
    with pytest.raises(ValueError, match="its format is 'other'"):
        evaluate(**job, out=tmp_path, resume=True)
    (tmp_path / STATE).unlink()
    with pytest.raises(ValueError, match="not of a whole evaluation"):
        evaluate(**job, out=tmp_path, resume=True)


def test_another_version_is_told_of(job, tmp_path):
    stopped(job, tmp_path)
    content = torch.load(tmp_path / STATE, weights_only=True)
    content["environment"]["torch"] = "1.0"
    torch.save(content, tmp_path / STATE)
    report = evaluate(**job, out=tmp_path, resume=True)
    (warning,) = report.warnings
    assert warning.startswith("went on where torch is ") and "a part where it was '1.0'" in warning


def test_an_attack_that_failed_stays_out(job, tmp_path):
    calls = []

    def fails(model, x, y):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of luck")
        return x

    def stops(model, x, y, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return x

    job["attacks"] = {"pgd-2": "pgd-2", "fails": fails, "stops": stops}
    with pytest.raises(KeyboardInterrupt):
        evaluate(**job, out=tmp_path)
    for _ in range(2):  # going on, and asking for it again
        with pytest.raises(AttackFailed, match=r"fails.*RuntimeError: out of luck") as failed:
            evaluate(**job, out=tmp_path, resume=True)
        assert list(failed.value.report) == ["pgd-2", "stops"]
        assert failed.value.report.samples == 90
    assert len(calls) == 2


KILLED = """
import sys, os, signal, torch
from advfast import evaluation, models

content = torch.load(sys.argv[1], weights_only=True)
model = models.make("small-cnn", in_shape=(1, 8, 8), classes=3)
model.load_state_dict(content["state"])
calls = []
def count(module, inputs):
    calls.append(1)
    if len(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
model.register_forward_pre_hook(count)
evaluation.evaluate(
    model, (content["images"], content["labels"]), attacks=("clean", "pgd-2", "fgsm"), eps=0.1,
    batch_size=20, out=sys.argv[2], sanity=False,
)
"""


def test_a_process_that_is_killed(cnn, tmp_path):
    model, images, labels = cnn
    content = {"state": model.state_dict(), "images": images, "labels": labels}
    torch.save(content, tmp_path / "job.pt")
    job = {"attacks": ("clean", "pgd-2", "fgsm"), "eps": EPS, "batch_size": 20, "sanity": False}
    passes = []
    handle = model.register_forward_pre_hook(lambda module, inputs: passes.append(1))
    whole = evaluate(model, (images, labels), **job)
    handle.remove()
    out = tmp_path / "out"
    # In the fourth of five batches.
    words = [tmp_path / "job.pt", out, str(7 * len(passes) // 10)]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *words], env=dict(os.environ, OMP_NUM_THREADS="1")
    )
    assert killed.returncode == -signal.SIGKILL
    assert [file.name for file in out.iterdir()] == [STATE]
    assert len(torch.load(out / STATE, weights_only=True)["tally"]["labels"]) in (40, 60)
    resumed = evaluate(model, (images, labels), **job, out=out, resume=True)
    assert numbers(replace(resumed, fingerprint={})) == numbers(whole)


def test_a_full_disk_stops_nothing_but_says_so(job, tmp_path, monkeypatch):
    from advfast.evaluation import saved

    def full(path, write):
        raise OSError(28, "the disk is full")

    monkeypatch.setattr(saved, "write_atomic", full)
    with pytest.warns(RuntimeWarning, match="an interruption would lose") as told:
        report = evaluate(**job, out=tmp_path)
    assert len(told) == 1
    assert numbers(replace(report, fingerprint={})) == numbers(evaluate(**job))


def test_where_nothing_can_be_written_is_seen_before_any_work(job, tmp_path):
    calls = []
    job["model"].register_forward_pre_hook(lambda module, inputs: calls.append(1))
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match=r"file is a file"):
            evaluate(**job, out=out)
    for name in ("report", "resume"):
        with pytest.raises(ValueError, match=f"{name}=True needs out"):
            evaluate(**job, **{name: True})
    assert not calls


def test_a_report_that_cannot_be_written_is_not_lost(job, tmp_path, monkeypatch):
    from advfast.evaluation import report as module

    def full(path, content):
        raise OSError(28, "the disk is full")

    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(OSError, match="full") as failed:
        evaluate(**job, out=tmp_path)
    monkeypatch.undo()
    assert numbers(failed.value.report).samples == 90
    assert evaluate(**job, out=tmp_path, resume=True).results == failed.value.report.results


def test_digest_of_weights():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    first = weights_digest(model)
    assert weights_digest(model) == first != ""
    model[1].running_mean[0] = 1
    second = weights_digest(model)
    assert second != first
    assert weights_digest(model.double()) != second
    assert weights_digest(model.bfloat16()) not in (first, second)
    assert weights_digest(lambda x: x) == ""
    assert weights_digest(nn.DataParallel(model)) == weights_digest(model)
