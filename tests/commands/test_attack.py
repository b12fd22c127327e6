import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from advfast import PGDAttack, cli, load
from advfast.data import load as load_data


def test_writes_adversarial_images(run, capsys):
    assert cli.main(["attack", str(run), "--steps", "5", "--batch-size", "64", "--seed", "2"]) == 0
    captured = capsys.readouterr()
    with np.load(run / "attack" / "adversarial.npz") as found:
        arrays = {name: torch.from_numpy(found[name]) for name in found.files}
    model, test = load(run), load_data("digits").test
    images, labels = test.batch(torch.arange(500))
    expected = PGDAttack(model, 0.15, None, 5, seed=2)(images, labels)
    assert arrays["images"].dtype == torch.float32
    # The batches differ, and with them the rounding of the network, and now and then a sign.
    assert (arrays["images"] == expected).float().mean() > 0.99
    assert torch.equal(arrays["labels"], labels)
    assert torch.equal(arrays["indices"], torch.arange(500))
    assert torch.equal(arrays["clean_predictions"], model(images).argmax(1))
    assert torch.equal(arrays["predictions"], model(arrays["images"]).argmax(1))
    largest = (arrays["images"] - images).abs().max().item()
    assert 0.149 < largest <= 0.15 * (1 + 1e-6)
    assert f"largest perturbation: linf {largest:.6g} (eps 0.15)" in captured.out
    for name, predicted in (("clean", "clean_predictions"), ("pgd-5", "predictions")):
        share = (arrays[predicted] == labels).double().mean().item()
        (row,) = [line for line in captured.out.splitlines() if line.startswith(name)]
        assert f"{100 * share:.1f} %" in row
    assert (run / "attack" / "adversarial.png").stat().st_size > 5000
    assert str(run / "attack" / "adversarial.npz") in captured.err


@pytest.mark.parametrize("norm", ["l2", "L1"])
def test_other_norms_and_a_target(run, tmp_path, norm, capsys):
    out = tmp_path / "new" / "a.npz"
    words = ["attack", str(run), "--norm", norm, "--eps", "2.5", "--target", "3", "--alpha", "1/2"]
    words += ["--limit", "40", "--restarts", "2", "--loss", "margin", "--out", str(out), "--quiet"]
    assert cli.main(words) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    with np.load(out) as found:
        others = found["labels"] != 3
        reached = (found["predictions"][others] == 3).sum()
        assert found["images"].shape == (40, 1, 8, 8)
    assert 0 < others.sum() < 40
    (row,) = [line for line in captured.out.splitlines() if line.startswith("taken for 3")]
    assert f"{100 * reached / others.sum():.1f} %" in row
    assert f"n = {others.sum()}" in row
    (row,) = [line for line in captured.out.splitlines() if line.startswith("largest")]
    assert row.startswith(f"largest perturbation: {norm.lower()} ")
    assert 2.4 < float(row.split()[3]) <= 2.5 * (1 + 1e-6)
    assert out.with_suffix(".png").exists()


def test_earlier_results_are_kept(run, tmp_path, capsys):
    words = ["attack", str(run), "--limit", "10", "--steps", "1"]
    for folder in ("attack", "attack-2"):
        assert cli.main(words) == 0
        assert (run / folder / "adversarial.npz").exists()
    out = tmp_path / "a.npz"
    assert cli.main([*words, "--out", str(out)]) == 0
    before = out.read_bytes()
    capsys.readouterr()
    assert cli.main([*words, "--out", str(out), "--seed", "1"]) == 1
    assert f"{out} is there already" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert cli.main([*words, "--out", str(out), "--seed", "1", "--overwrite"]) == 0
    assert out.read_bytes() != before


def test_targets_and_early_stop(run, tmp_path):
    """Several runs break at least what one breaks, and with --early-stop no image goes on that is misclassified."""
    model, test = load(run), load_data("digits").test
    images, labels = test.batch(torch.arange(100))
    words = ["attack", str(run), "--limit", "100", "--steps", "6", "--quiet", "--eps", "0.1"]
    made = {}
    for name, more in {
        "one": [],
        "targets": ["--targets", "3"],
        "stop": ["--early-stop", "--restarts", "2"],
    }.items():
        out = tmp_path / f"{name}.npz"
        assert cli.main([*words, "--out", str(out), *more]) == 0
        with np.load(out) as found:
            made[name] = torch.from_numpy(found["images"])
    expected = {
        "targets": PGDAttack(model, 0.1, None, 6, seed=0, targets=3),
        "stop": PGDAttack(model, 0.1, None, 6, seed=0, early_stop=True, restarts=2),
    }
    for name, attack in expected.items():
        assert (made[name] == attack(images, labels)).float().mean() > 0.99
        assert not torch.equal(made[name], made["one"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--targets", "-1"], "targets must be an integer >= 0"),
        (["--targets", "2", "--target", "3"], "targeted must be False"),
        (["--out", "a.txt"], "must name an .npz file"),
        (["--target", "10"], "target must be 0 .. 9, got 10"),
        (["--steps", "-1"], "steps must be an integer >= 0"),
        (["--loss", "cee"], "loss"),
        (["--eps", "-1"], "eps"),
        (["--limit", "0"], "limit"),
        (["--precision", "fp8"], "precision"),
        (["--split", "val"], "has no val set"),
    ],
)
def test_bad_input_is_one_line(trained, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["attack", str(trained), "--quiet", "--out", "a.npz", *arguments]
    assert cli.main(words) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_as_a_program(run, tmp_path):
    (tmp_path / "c.yaml").write_text("steps: 2\nlimit: 30\nalpha: 0.1\nout: made.npz\n")
    command = [sys.executable, "-m", "advfast", "attack", "run", "--config", "c.yaml"]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "pgd-2" in done.stdout
    assert "30 samples" in done.stdout
    assert (tmp_path / "made.npz").exists()
    assert (tmp_path / "made.png").exists()
