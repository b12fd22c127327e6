import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import advfast
from advfast import cli, training

SHORT = ["train", "--epochs", "1", "--steps", "1"]


@pytest.fixture(autouse=True)
def _threads():
    # `train` sets the number of threads of the process.
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_train_writes_and_reports(tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main([*SHORT, "--eps", "38/255", "--alpha", "0.1", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    config = json.loads((out / "config.json").read_text())
    assert config["eps"] == 38 / 255
    assert config["alpha"] == 0.1
    assert (config["epochs"], config["steps"], config["threads"]) == (1, 1, 1)
    assert config["batch_size"] == 128  # from the preset of digits
    results = json.loads((out / "results.json").read_text())["best"]["test"]["results"]
    for name in ("clean", "pgd-20"):
        low, high = (100 * bound for bound in results[name]["interval_95"])
        row = f"{100 * results[name]['accuracy']:.1f} % [{low:.1f}, {high:.1f}]"
        assert row in captured.out
    assert "PGD-20 (linf, eps 0.149)" in captured.out
    for name in ("best.pt", "history.csv", "adversarial.png"):
        assert name in captured.out
        assert (out / name).exists()
    assert str(out) in captured.out
    assert " s; " in captured.out
    assert "500 test images" in captured.out
    assert "epoch 1/1" in captured.err
    model = training.load(out)
    assert model(torch.rand(1, 1, 8, 8)).shape == (1, 10)


def test_quiet(tmp_path):
    result = CliRunner().invoke(cli.app, [*SHORT, "--quiet", "--out", str(tmp_path)])
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "test accuracy" in result.stdout


def test_best_and_last_are_both_shown(tmp_path):
    result = training.train(data="digits", epochs=1, steps=1, out=tmp_path, progress=False)
    assert "best = last (epoch 1)" in cli._summary(result)
    shown = cli._summary(replace(result, last=replace(result.last, epoch=2)))
    assert "best (epoch 1)" in shown
    assert "last (epoch 2)" in shown


def test_presets_name_arguments_of_train():
    import inspect

    from advfast.data import READERS
    from advfast.training.presets import PRESETS

    known = {*inspect.signature(training.train).parameters, "threads"}
    assert set(PRESETS) == set(READERS)
    assert all(set(preset) <= known for preset in PRESETS.values())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["trian"], 2, "Did you mean 'train'"),
        (["train", "--epsilon", "1"], 2, "No such option"),
        (["train", "--eps", "much"], 2, "expected a number such as 0.1 or 8/255, got 'much'"),
        (["train", "--eps", "1/0"], 2, "got '1/0'"),
        (["train", "--epochs", "x"], 2, "--epochs"),
        (["train", "--eps", "8"], 1, "8/255, not 8"),
        (["train", "--data", "digit"], 1, "did you mean 'digits'"),
        (["train", "--model", "resnet"], 1, "unknown model 'resnet'"),
        (["train", "--method", "pgd"], 1, "unknown method 'pgd'"),
        (["train", "--norm", "l7"], 1, "norm must be one of"),
        (["train", "--epochs", "0"], 1, "epochs must be an integer >= 1, got 0"),
        (["train", "--threads", "0"], 1, "--threads"),
        (["train", "--data", "fashion-mnist", "--data-root", "/nowhere"], 1, "looked in /nowhere"),
        (["train", "--lr", "1e30", "--quiet"], 1, "the loss became"),
        (["info", "--yaml"], 2, "No such option"),
    ],
    ids=lambda value: "_".join(value).replace("/", "") if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("advfast: error: ")
    assert message in line


def test_debug_shows_where():
    with pytest.raises(ValueError, match="unknown data set"):
        cli.main(["train", "--data", "digit", "--debug"])


def test_unexpected_errors_name_their_type(monkeypatch, capsys):
    def fails(*args, **kwargs):
        raise RuntimeError("boom\nand more")

    monkeypatch.setattr(training, "train", fails)
    assert cli.main(["train"]) == 1
    assert capsys.readouterr().err == (
        "advfast: error: RuntimeError: boom and more (--debug shows where)\n"
    )


def test_interrupt(tmp_path, monkeypatch, capsys):
    from advfast.training.progress import Progress

    def interrupted(self, row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "on_epoch_end", interrupted)
    assert cli.main(["train", "--epochs", "5", "--steps", "1", "--out", str(tmp_path)]) == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2:] == [
        f"stopped after epoch 1, which is saved in {tmp_path}",
        "advfast: interrupted",
    ]
    assert (tmp_path / "last.pt").exists()


def test_info(capsys):
    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    assert advfast.__version__ in shown
    for op in advfast.info()["ops"]:
        (line,) = [line for line in shown.splitlines() if line.startswith(op)]
        assert line.split()[1] == "yes"  # reference
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(advfast.info(), default=str))


def test_info_says_why_not(monkeypatch, capsys):
    def info():
        return {"version": "1", "ops": {"op": {"reference": "available", "cuda": "no nvcc"}}}

    monkeypatch.setattr(advfast, "info", info)
    assert cli.main(["info"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"{'op':<16}{'yes':<11}no",
        "no cuda: no nvcc",
    ]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["train", "--help"], ["info", "--help"]])
def test_help(arguments, capsys):
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(" ".join(["Usage: advfast", *arguments[:-1]]))
    assert captured.err == ""
    if arguments[:1] == ["train"]:
        assert "[default: by data set]" in " ".join(captured.out.split())


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{advfast.__version__}\n"


def test_as_a_program(tmp_path):
    command = [sys.executable, "-m", "advfast", *SHORT, "--out", "run"]
    environment = dict(os.environ, PYTHONWARNINGS="error::UserWarning")
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert "best = last (epoch 1)" in run.stdout
    assert (tmp_path / "run" / "best.pt").exists()
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert again.returncode == 1
    assert "already holds a run" in again.stderr
    assert "Traceback" not in again.stderr
    assert len(again.stderr.splitlines()) == 1
