import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from typer.testing import CliRunner

from advfast import cli, training
from advfast.commands.train import _summary

from .conftest import SHORT


def test_train_writes_and_reports(tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main([*SHORT, "--eps", "38/255", "--alpha", "0.1", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    config = yaml.safe_load((out / "config.yaml").read_text())
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
    assert "best = last (epoch 1)" in _summary(result)
    shown = _summary(replace(result, last=replace(result.last, epoch=2)))
    assert "best (epoch 1)" in shown
    assert "last (epoch 2)" in shown


def test_the_rate_of_a_preset_is_fitted_to_the_optimizer_and_that_is_said(tmp_path, capsys):
    def rate(*words):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        assert cli.main([*SHORT, "--out", str(out), *words]) == 0
        return yaml.safe_load((out / "config.yaml").read_text())["lr"], capsys.readouterr().err

    lr, said = rate("--optimizer", "pnm", "--optimizer-option", "betas=[0.9,0.5]")
    assert lr == 2.0
    assert "learning rate 2: the 0.2 of digits, which is for SGD, times 10 for pnm" in said
    assert (
        "effective step 1.265 at learning rate 2 (SGD with momentum 0.9: 2 at rate 0.2, 20 at rate 2)"
        in said
    )
    assert rate("--optimizer", "pnm", "--lr", "0.2")[0] == 0.2
    lr, said = rate()
    assert lr == 0.2 and "for SGD" not in said and "effective step" not in said


def test_presets_name_arguments_of_train():
    import inspect

    from advfast import models
    from advfast.data import READERS
    from advfast.training.presets import PRESETS

    known = inspect.signature(training.train).parameters
    assert set(PRESETS) == set(READERS)
    for preset in PRESETS.values():
        assert set(preset) <= set(known)
        assert preset["model"] in models.MODELS


@pytest.mark.parametrize(("method", "steps"), [("pgd-at", 10), ("trades", 10), ("atta", 1)])
def test_steps_of_a_preset_are_for_methods_that_take_several(method, steps, tmp_path):
    options = ["--method", method, "--epochs", "1", "--out", str(tmp_path), "--quiet"]
    assert cli.main(["train", *options]) == 0
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["steps"] == steps


def test_noise_of_the_monitor(tmp_path, capsys):
    words = ["--method", "n-fgsm", "--method-option", "noise=lognormal", "--on-collapse", "noise"]
    assert cli.main([*SHORT, *words, "--out", str(tmp_path / "none")]) != 0
    assert "start='monitor' in method_options" in capsys.readouterr().err
    words += ["--method-option", "start=monitor", "--collapse-kernel", "8"]
    assert cli.main([*SHORT, *words, "--out", str(tmp_path / "run")]) == 0
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["method_options"] == {"noise": "lognormal", "start": "monitor"}
    assert (config["on_collapse"], config["collapse_kernel"]) == ("noise", 8)
    assert "effective_rank" in (tmp_path / "run/catastrophic.csv").read_text()


def weights(folder):
    return training.checkpoint.read(folder / "last.pt")["state"]


def test_config_of_a_run_makes_the_same_run(tmp_path, capsys):
    options = "--epochs 2 --steps 1 --schedule piecewise --schedule-option milestones=[1] --ema 0.5"
    options += (
        " --optimizer adamw --lr 1e-3 --optimizer-option betas=[0.8,0.9] --augment crop:1,flip"
    )
    options += " --clip-grad 1 --label-smoothing 0.1 --weight-decay 0.01 --seed 3 --norm l2 --eps 1"
    first, again = tmp_path / "first", tmp_path / "again"
    assert cli.main(["train", *options.split(), "--out", str(first), "--quiet"]) == 0
    config = ["--config", str(first / "config.yaml")]
    assert cli.main(["train", *config, "--out", str(again), "--quiet"]) == 0
    assert (first / "config.yaml").read_text() == (again / "config.yaml").read_text()
    one, other = weights(first), weights(again)
    assert all(torch.equal(one[name], other[name]) for name in one)
    history = json.loads((first / "history.json").read_text())["history"]
    assert [row["lr"] for row in history] == pytest.approx([1e-3, 1e-4])
    # The command line wins over the file, and the file over the presets.
    other = tmp_path / "other"
    assert cli.main(["train", *config, "--seed", "4", "--out", str(other), "--quiet"]) == 0
    assert yaml.safe_load((other / "config.yaml").read_text())["seed"] == 4
    assert not torch.equal(weights(other)["linear2.bias"], one["linear2.bias"])


def test_a_prefix_that_is_found_by_the_kernel(tmp_path, capsys):
    first, again = tmp_path / "first", tmp_path / "again"
    # Half of the four epochs before the rate falls may be clean.
    options = "--epochs 4 --steps 1 --batch-size 256 --clean-prefix auto:distance=1,samples=20"
    options += " --schedule piecewise --schedule-option milestones=[4]"
    assert cli.main(["train", *options.split(), "--out", str(first), "--quiet"]) == 0
    found = json.loads((first / "results.json").read_text())["clean_prefix"]
    shown = capsys.readouterr().out
    assert f"clean prefix: {found['epochs']} of 4 epochs ({found['reason']}); against" in shown
    assert f"{found['saved']:.1%} of the pass-units and {found['saved_seconds']:.1%} of" in shown
    assert 0 < found["epochs"] <= 2
    assert yaml.safe_load((first / "config.yaml").read_text())["clean_prefix"] == (
        "auto:distance=1.0,samples=20"
    )
    config = ["--config", str(first / "config.yaml")]
    assert cli.main(["train", *config, "--out", str(again), "--quiet"]) == 0
    one, other = weights(first), weights(again)
    assert all(torch.equal(one[name], other[name]) for name in one)
    # A number in a file is a number.
    text = (first / "config.yaml").read_text()
    (tmp_path / "file.yaml").write_text(text.replace("auto:distance=1.0,samples=20", "1"))
    config = ["--config", str(tmp_path / "file.yaml"), "--epochs", "1"]
    assert cli.main(["train", *config, "--out", str(tmp_path / "file"), "--quiet"]) == 0
    result = json.loads((tmp_path / "file" / "results.json").read_text())
    assert result["config"]["clean_prefix"] == 1


def test_several_seeds_make_one_table(tmp_path, capsys):
    out = tmp_path / "sweep"
    command = [*SHORT, "--seeds", "0,1", "--out", str(out), "--quiet"]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    found = []
    for seed in (0, 1):
        results = json.loads((out / f"seed={seed}" / "results.json").read_text())
        found.append(100 * results["best"]["test"]["results"]["pgd-20"]["accuracy"])
        assert f"{found[-1]:.1f}" in shown
    mean = sum(found) / 2
    assert f"{mean:.1f}" in shown
    assert (out / "summary.csv").exists()
    assert cli.main(command) == 1  # there is one already
    assert "already holds a sweep" in capsys.readouterr().err
    assert cli.main([*command, "--resume"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--seeds", "0,x"], 2, "--seeds must be integers"),
        (["--seeds", "0,1", "--seed", "1"], 1, "exclude each other"),
        (["--schedule-option", "milestones"], 2, "must be KEY=VALUE"),
        (["--schedule-option", "milestone=3"], 1, "has no option 'milestone'"),
        (["--augment", "crop,flop"], 1, "did you mean 'flip'"),
        (["--precision", "fp8"], 1, "precision must be one of"),
        (["--ema", "1"], 1, "ema must be a decay"),
        (["--resume"], 1, "resume needs `out`"),
        (["--clean-prefix", "atuo"], 1, "did you mean 'auto'"),
        (["--clean-prefix", "-1"], 1, "clean_prefix must be an integer >= 0"),
        (["--model", "nowhere.py:make"], 1, "nowhere.py"),
        (["--weights", "nowhere.pt"], 1, "nowhere.pt"),
    ],
)
def test_bad_options_are_one_line(arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


def test_own_model_and_data(tmp_path, capsys):
    own = tmp_path / "own.py"
    own.write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
        "def data():\n    g = torch.Generator().manual_seed(0)\n"
        "    return torch.rand(90, 1, 8, 8, generator=g), torch.arange(90) % 3\n"
    )
    out = tmp_path / "run"
    names = ["--model", f"{own}:net", "--data", f"{own}:data", "--threads", "1"]
    assert cli.main([*SHORT, *names, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "held out accuracy" in shown  # there is no test set
    assert cli.main([*SHORT, *names, "--out", str(out), "--resume", "--quiet"]) == 0
    config = ["--config", str(out / "config.yaml"), "--out", str(tmp_path / "again")]
    assert cli.main(["train", *config, "--quiet"]) == 0
    assert torch.equal(weights(out)["1.weight"], weights(tmp_path / "again")["1.weight"])


def test_ctrl_c(tmp_path, monkeypatch, capsys):
    from advfast.training.progress import Progress

    def interrupted(self, state):
        if state.epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "on_step_end", interrupted)
    command = ["train", "--epochs", "5", "--steps", "1", "--out", str(tmp_path)]
    assert cli.main(command) == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2:] == [
        f"SIGINT in epoch 2 after 1 steps: saved in {tmp_path}; go on with resume=True (--resume)",
        "advfast: interrupted",
    ]
    monkeypatch.undo()
    assert cli.main([*command, "--resume"]) == 0
    assert "resumed in epoch 2 after 1 steps" in capsys.readouterr().err


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
