import pytest

import advfast
from advfast import cli, training


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
        (["train", "--threads", "0"], 1, "threads must be"),
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


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        *([name, "--help"] for name in ("train", "evaluate", "attack", "ntk", "info")),
    ],
)
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
