import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from advfast import cli, evaluate, load, models
from advfast.evaluation import EvalReport


def report_in(folder):
    return EvalReport.from_dict(json.loads((folder / "evaluation.json").read_text()))


def test_defaults_are_those_of_the_run(run, capsys):
    assert cli.main(["evaluate", str(run)]) == 0
    captured = capsys.readouterr()
    expected = evaluate(load(run), "digits", eps=0.15)
    assert (
        captured.err.splitlines()[0] == "as in the run's config: data digits, eps 0.15, norm linf"
    )
    for name in ("clean", "pgd-20"):
        (row,) = [line for line in captured.out.splitlines() if line.startswith(name)]
        assert f"{expected[name].correct}/500" in row
    folder = run / "evaluation"
    assert sorted(file.name for file in folder.iterdir()) == [
        "evaluation.json",
        "evaluation.png",
        "evaluation.txt",
    ]
    assert report_in(folder).results == expected.results
    assert (folder / "evaluation.txt").read_text() == captured.out
    assert str(folder / "evaluation.png") in captured.err
    # A second one does not write over the first.
    assert cli.main(["evaluate", str(run / "last.pt"), "--attacks", "clean", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert list(report_in(run / "evaluation-2")) == ["clean"]
    assert report_in(folder).results == expected.results


def test_options_win_over_the_run(run, tmp_path, capsys):
    words = ["evaluate", str(run), "--eps", "8/255", "--norm", "L2", "--limit", "60", "--seed", "3"]
    words += ["--attacks", "clean, pgd-3", "--batch-size", "16", "--out", str(tmp_path / "mine")]
    assert cli.main(words) == 0
    assert "as in the run's config: data digits\n" in capsys.readouterr().err
    report = report_in(tmp_path / "mine")
    assert (report.eps, report.norm, report.samples) == (8 / 255, "l2", 60)
    expected = evaluate(
        load(run), "digits", attacks=["pgd-3"], eps=8 / 255, norm="l2", limit=60, seed=3
    )
    assert report["pgd-3"] == expected["pgd-3"]
    assert report.settings["batch_size"] == 16
    assert not (run / "evaluation").exists()


def test_json_is_all_of_standard_output(run, capsys):
    words = ["evaluate", str(run), "--attacks", "clean", "--split", "train", "--json"]
    assert cli.main(words) == 0
    report = EvalReport.from_dict(json.loads(capsys.readouterr().out))
    assert report == report_in(run / "evaluation")
    assert report.samples == 1297


OWN = """
import torch
from torch import nn

def still(model, x, y):
    return x

def far(model, x, y):
    return (x + 0.5).clamp(0, 1)

def raises(model, x, y, calls=[]):
    calls.append(len(x))
    if len(calls) > 1:
        raise RuntimeError("broke in the second batch")
    return x

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        return self.linear(x.flatten(1))

def make():
    return Net()

def data():
    images = torch.rand(40, 1, 8, 8)
    return {"train": (images, torch.arange(40) % 10), "test": (images[:20], torch.arange(20) % 10)}
"""


def test_own_attacks(run, tmp_path, capsys):
    own = tmp_path / "own.py"
    own.write_text(OWN)
    attacks = f"clean,{own}:still,{own}:far"
    assert cli.main(["evaluate", str(run), "--attacks", attacks, "--limit", "50"]) == 0
    out = capsys.readouterr().out
    assert "warning: far: " in out
    report = report_in(run / "evaluation")
    assert report["still"] == report["clean"]
    words = ["evaluate", str(run), "--attacks", f"clean,{own}:raises", "--batch-size", "100"]
    assert cli.main(words) == 1
    captured = capsys.readouterr()
    assert "raises: no result: RuntimeError: broke in the second batch" in captured.out
    assert captured.err.splitlines()[-1].endswith("broke in the second batch (--debug shows where)")
    assert report_in(run / "evaluation-2")["clean"].total == 500


def test_own_model_and_data(tmp_path, capsys):
    from advfast import training

    (tmp_path / "own.py").write_text(OWN)
    namespace = {"__name__": "own"}
    exec(OWN, namespace)
    out = tmp_path / "run"
    data = namespace["data"]()["train"]
    training.train(
        namespace["Net"](), data, eps=0.1, steps=1, epochs=1, batch_size=16, out=out, progress=False
    )
    words = ["evaluate", str(out), "--data", f"{tmp_path / 'own.py'}:data"]
    assert cli.main(words) == 1
    assert "holds a own.Net, which advfast cannot make by name" in capsys.readouterr().err
    assert cli.main([*words, "--model", f"{tmp_path / 'own.py'}:make"]) == 0
    assert report_in(out / "evaluation").samples == 20
    # The run's data were tensors.
    assert cli.main(["evaluate", str(out), "--model", f"{tmp_path / 'own.py'}:make"]) == 1
    assert "name the data with --data" in capsys.readouterr().err


def test_published_weights(tmp_path, capsys):
    name = "cifar10/Linf/Wong2020Fast"
    torch.manual_seed(0)
    theirs = {
        key.replace("shortcut.weight", "shortcut.0.weight"): value
        for key, value in models.make_published(name).state_dict().items()
        if not key.startswith("normalise.")
    }
    torch.save(theirs, tmp_path / "wong.pt")
    images = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(6) % 10
    data = tmp_path / "few.npz"
    np.savez(data, x_train=images, y_train=labels, x_test=images, y_test=labels)
    command = ["evaluate", str(tmp_path / "wong.pt"), "--model", name, "--attacks", "clean,pgd-1"]
    assert cli.main([*command, "--data", str(data), "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["results"]["clean"]["total"] == 6
    assert cli.main([*command, "--quiet"]) == 1
    assert "name the data with --data" in capsys.readouterr().err
    command[3] = "cifar10/Linf/Wong2020Fasr"
    assert cli.main([*command, "--data", str(data), "--quiet"]) == 1
    assert "did you mean 'cifar10/Linf/Wong2020Fast'" in capsys.readouterr().err


def test_config_file(run, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"checkpoint: {run}\nattacks: [clean, pgd-3]\neps: 8/255\nbatch-size: 100\nlimit: 70\n"
        "quiet: true\nsplit:\n"
    )
    assert cli.main(["evaluate", "--config", str(config), "--limit", "60"]) == 0
    assert capsys.readouterr().err == ""
    report = report_in(run / "evaluation")
    assert (report.eps, report.samples) == (8 / 255, 60)
    assert list(report) == ["clean", "pgd-3"]
    assert report.settings["batch_size"] == 100


def test_what_is_no_checkpoint_is_one_line(run, capsys):
    (run / "best.pt").write_bytes((run / "best.pt").read_bytes()[:500])
    for arguments, message in (
        ([str(run)], "cut short"),
        ([str(run / "no.pt")], "neither a run's folder nor a checkpoint"),
        ([str(run.parent)], "it has no best.pt"),
        ([str(run / "config.yaml")], "not an advfast checkpoint"),
        ([], "Missing argument"),
    ):
        assert cli.main(["evaluate", *arguments]) != 0
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attacks", "pgd"], "'pgd-K'"),
        (["--attacks", ","], "at least one"),
        (["--attacks", "nowhere.py:attack"], "nowhere.py"),
        (["--eps", "8"], "8/255, not 8"),
        (["--norm", "l7"], "norm must be one of"),
        (["--data", "digit"], "did you mean 'digits'"),
        (["--split", "dev"], "split must be one of"),
        (["--split", "val"], "has no val set"),
        (["--model", "small-cnn"], "file.py:name"),
        (["--batch-size", "0"], "batch_size"),
        (["--threads", "0"], "--threads"),
        (["--data", "large.npz"], "does not take images of shape (9, 1, 28, 28)"),
    ],
)
def test_bad_input_is_one_line(trained, arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels = np.zeros((40, 28, 28), np.uint8), np.arange(40) % 10
    test = {"test_images": images[:9], "test_labels": labels[:9]}
    np.savez("large.npz", train_images=images, train_labels=labels, **test)
    out = tmp_path / "out"
    words = ["evaluate", str(trained), "--quiet", "--out", str(out), *arguments]
    assert cli.main(words) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("advfast: error: ")
    assert message in line
    assert not out.exists()


def test_out_is_not_written_over_in_silence(run, tmp_path, capsys):
    words = ["evaluate", str(run), "--attacks", "clean", "--out", str(tmp_path / "a")]
    assert cli.main(words) == 0
    assert cli.main(words) == 1
    assert "already holds an evaluation" in capsys.readouterr().err
    assert cli.main([*words, "--overwrite"]) == 0


def test_without_matplotlib(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["evaluate", str(run), "--attacks", "clean"]) == 0
    assert "advfast: the picture was skipped: matplotlib" in capsys.readouterr().err
    assert not (run / "evaluation" / "evaluation.png").exists()


def test_as_a_program(run, tmp_path):
    command = [sys.executable, "-W", "error::UserWarning", "-m", "advfast", "evaluate", "run"]
    done = subprocess.run(
        [*command, "--attacks", "clean,pgd-2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("small-cnn on digits (test): 500 samples, linf eps 0.15\n")
    assert len(done.stderr.splitlines()) == 2
    assert (run / "evaluation" / "evaluation.png").stat().st_size > 5000
    assert torch.get_num_threads() >= 1


def test_report_has_a_page_and_figures(run, tmp_path, capsys):
    folder = tmp_path / "report"
    words = ["evaluate", str(run), "--attacks", "clean,pgd-2", "--limit", "60", "--sanity", "full"]
    assert cli.main([*words, "--report", str(folder)]) == 0
    names = [
        "evaluation-curves.png",
        "evaluation-examples.png",
        "evaluation.html",
        "evaluation.json",
        "evaluation.png",
        "evaluation.txt",
    ]
    assert sorted(file.name for file in folder.iterdir()) == names
    said = capsys.readouterr().err
    assert all(str(folder / name) in said for name in names)
    found = report_in(folder)
    assert found.curves is not None and not (run / "evaluation").exists()
    page = (folder / "evaluation.html").read_text()
    command = found.reproduce["command"]
    assert command == (
        f"advfast evaluate {run} --attacks clean,pgd-2 --data digits --eps 0.15 --norm linf --limit 60 "
        "--sanity full"
    )
    assert command in page
    # The command gives the same numbers, and so does the call.
    again = [*command.split()[1:], "--out", str(tmp_path / "again"), "--quiet"]
    assert cli.main(again) == 0
    assert report_in(tmp_path / "again").results == found.results
    advfast = {"evaluate": evaluate}
    scope = {"advfast": type("advfast", (), advfast), "model": load(run)}
    assert eval(found.reproduce["call"], scope).results == found.results
    assert cli.main([*words, "--report", str(folder), "--out", str(tmp_path / "other")]) == 1
    assert "--out and --report name two folders" in capsys.readouterr().err


def test_sanity_is_auto_full_or_off(run, tmp_path, capsys):
    words = ["evaluate", str(run), "--attacks", "clean", "--limit", "20", "--quiet"]
    assert cli.main([*words, "--sanity", "on"]) == 1
    assert "--sanity must be one of auto, full, off, got 'on'" in capsys.readouterr().err
    assert cli.main([*words, "--sanity", "off", "--out", str(tmp_path / "a")]) == 0
    assert "--sanity off" in report_in(tmp_path / "a").reproduce["command"]


KILLS = """
import os, signal
calls = []
def attack(model, x, y):
    calls.append(1)
    if len(calls) == 3 and os.environ.get("ADVFAST_TEST_KILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    return (x + 0.1).clamp(0, 1)
"""


def test_resume_after_a_kill(run, tmp_path, capsys):
    (tmp_path / "own.py").write_text(KILLS)
    attacks = f"clean,pgd-2,{tmp_path / 'own.py'}:attack"
    words = ["evaluate", str(run), "--attacks", attacks, "--batch-size", "100", "--sanity", "off"]
    killed = subprocess.run(
        [sys.executable, "-m", "advfast", *words],
        env=dict(os.environ, OMP_NUM_THREADS="1", ADVFAST_TEST_KILL="1"),
    )
    assert killed.returncode == -9
    assert [file.name for file in (run / "evaluation").iterdir()] == ["evaluation.partial.pt"]
    capsys.readouterr()
    assert cli.main([*words, "--out", str(run / "evaluation")]) == 1
    assert "was interrupted" in capsys.readouterr().err
    assert cli.main([*words, "--batch-size", "50", "--resume"]) == 1
    assert "another batch size: it was 100 and is now 50" in capsys.readouterr().err
    # Without a folder, the one that was interrupted.
    assert cli.main([*words, "--resume"]) == 0
    resumed = report_in(run / "evaluation")
    assert not (run / "evaluation" / "evaluation.partial.pt").exists()
    assert cli.main([*words, "--quiet"]) == 0
    whole = report_in(run / "evaluation-2")
    assert resumed.samples == 500
    assert resumed.results == whole.results and resumed.confusion == whole.confusion
    assert resumed.examples == whole.examples and resumed.fingerprint == whole.fingerprint


def test_what_cannot_be_written_is_still_printed(run, tmp_path, monkeypatch, capsys):
    from advfast.evaluation import report as module

    def full(path, content):
        raise OSError(28, "the disk is full")

    monkeypatch.setattr(module, "write_json", full)
    words = [
        "evaluate",
        str(run),
        "--attacks",
        "clean",
        "--limit",
        "40",
        "--out",
        str(tmp_path / "a"),
    ]
    assert cli.main(words) == 1
    captured = capsys.readouterr()
    assert "40 samples" in captured.out
    assert "the disk is full" in captured.err.splitlines()[-1]
