import json

import numpy as np
import pytest
import torch

import advfast
from advfast import cli
from advfast.data import load as load_data
from advfast.ntk import metrics, ntk

WORDS = ["--n", "30", "--threads", "1"]


@pytest.fixture
def no_pictures(monkeypatch):
    """They take most of the time."""
    from advfast.ntk import pictures

    for name in ("draw_heat", "draw_spectrum"):
        monkeypatch.setattr(pictures, name, lambda *arguments, **more: None)


def row(text, start):
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return line.split()


def test_table_and_files(run, capsys):
    words = ["ntk", str(run), *WORDS, "--adversarial", "pgd-3", "--per-layer", "--seed", "1"]
    assert cli.main(words) == 0
    captured = capsys.readouterr()
    folder = run / "ntk"
    with np.load(folder / "kernel.npz") as found:
        arrays = {name: found[name] for name in found.files}
    model, test = advfast.load(run), load_data("digits").test
    images, labels = test.batch(torch.from_numpy(arrays["indices"]))
    assert np.array_equal(arrays["labels"], labels.numpy())
    assert torch.equal(labels, torch.arange(10).repeat_interleave(3))
    expected = ntk(model, images).tensor
    assert arrays["clean"].dtype == np.float32
    clean = torch.from_numpy(arrays["clean"])
    torch.testing.assert_close(clean, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))
    assert json.loads(str(arrays["settings"]))["readout"] == "full"

    attack = advfast.PGDAttack(model, 0.15, None, 3, seed=1)
    adversarial = torch.from_numpy(arrays["pgd-3"])
    expected = ntk(model, attack(images, labels)).tensor
    torch.testing.assert_close(adversarial, expected, rtol=1e-4, atol=1e-4 * float(expected.max()))
    numbers = json.loads((folder / "metrics.json").read_text())
    found = numbers["kernels"]["clean"]["metrics"]
    assert found["effective_rank"] == pytest.approx(metrics.effective_rank(clean), rel=1e-4)
    assert found["trace"] == pytest.approx(metrics.trace(clean), rel=1e-5)
    assert numbers["kernel_distance"]["pgd-3"] == pytest.approx(
        metrics.kernel_distance(clean, adversarial), rel=1e-3
    )
    assert len(numbers["kernels"]["pgd-3"]["eigenvalues"]) == 30
    assert len(numbers["kernels"]["clean"]["specialization_matrix"]) == 10
    assert numbers["kernels"]["clean"]["check_error"] < 1e-4
    shares = [part["share"] for part in numbers["kernels"]["clean"]["layers"].values()]
    assert sum(shares) == pytest.approx(1, rel=1e-5)
    assert float(row(captured.out, "trace")[1]) == pytest.approx(found["trace"], rel=1e-3)
    assert float(row(captured.out, "kernel distance")[-1]) == pytest.approx(
        numbers["kernel_distance"]["pgd-3"], rel=1e-3
    )
    assert "clean, by layer" in captured.out
    for name in ("kernel.png", "spectrum.png"):
        assert (folder / name).stat().st_size > 10_000
        assert str(folder / name) in captured.err


def test_other_readouts_and_parameters(run, tmp_path, no_pictures, capsys):
    for readout, params in (("sum", None), ("3", "linear2,conv1.weight"), ("margin", "linear2")):
        out = tmp_path / readout
        words = ["ntk", str(run), *WORDS, "--readout", readout, "--out", str(out), "--quiet"]
        words += [] if params is None else ["--params", params]
        assert cli.main([*words, "--max-bytes", "1GB", "--of", "full"]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        assert "specialization" not in captured.out
        with np.load(out / "kernel.npz") as found:
            assert found["clean"].shape == (30, 30, 1, 1)


def test_plan_is_printed_and_nothing_computed(run, tmp_path, monkeypatch, capsys):
    from advfast.ntk import report

    monkeypatch.setattr(report, "ntk", lambda *arguments, **more: pytest.fail("computed"))
    assert cli.main(["ntk", str(run), *WORDS, "--plan", "--out", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert "conv1.weight" in out
    assert "30 x 30 samples" in out
    assert not (tmp_path / "a").exists()


def test_config_file_and_earlier_results(run, tmp_path, no_pictures, capsys):
    (tmp_path / "c.yaml").write_text("n: 20\nreadout: sum\nmax-bytes: 500MB\nthreads: 1\n")
    words = ["ntk", str(run), "--config", str(tmp_path / "c.yaml"), "--quiet"]
    out = tmp_path / "out"
    assert cli.main([*words, "--out", str(out)]) == 0
    with np.load(out / "kernel.npz") as found:
        assert found["clean"].shape == (20, 20, 1, 1)
    before = (out / "kernel.npz").read_bytes()
    capsys.readouterr()
    assert cli.main([*words, "--out", str(out), "--n", "10"]) == 1
    assert "kernel.npz is there already" in capsys.readouterr().err
    assert (out / "kernel.npz").read_bytes() == before
    assert cli.main([*words, "--out", str(out), "--n", "10", "--overwrite"]) == 0
    assert (out / "kernel.npz").read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--n", "0"], 1, "n must be an integer >= 1"),
        (["--n", "501"], 1, "n must be 1 .. 500"),
        (["--readout", "all"], 1, "readout must be one of full"),
        (["--readout", "10"], 1, "class 10 is not one of"),
        (["--params", "conv9"], 1, "no parameter or module named 'conv9'"),
        (["--precision", "fp8"], 1, "precision must be one of"),
        (["--method", "J"], 1, "method"),
        (["--of", "sum"], 1, "of must be one of"),
        (["--adversarial", "pdg-10"], 1, "an attack must be"),
        (["--adversarial", "clean"], 1, "--adversarial must be an attack"),
        (["--adversarial", "pgd-2", "--eps", "-1"], 1, "eps"),
        (["--adversarial", "pgd-2", "--eps", "8"], 1, "8/255, not 8"),
        (["--split", "val"], 1, "has no val set"),
        (["--max-bytes", "lots"], 2, "expected a size such as 2GB"),
        (["--max-bytes", "1KB"], 1, "max_bytes"),
        (["--tile", "0"], 1, "tile"),
        (["--layers", "a"], 2, "No such option"),
    ],
)
def test_bad_input_is_one_line(trained, arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["ntk", str(trained), "--quiet", "--out", "a", *arguments]
    assert cli.main(words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2GB", 2_000_000_000), ("512MiB", 512 * 2**20), ("1.5 g", 1_500_000_000), ("4096", 4096)],
)
def test_sizes(text, expected):
    from advfast.commands.ntk import _bytes

    assert _bytes(text) == expected
