import json

import advfast
from advfast import cli
from advfast._backend import NOT_MADE


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
        missing = {"reference": "available", "cpp": "available", "cuda": "no nvcc"}
        return {"version": "1", "ops": {"one": missing, "other": missing | {"cuda": NOT_MADE}}}

    monkeypatch.setattr(advfast, "info", info)
    assert cli.main(["info"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[-4:]] == [
        ["op", "reference", "cpp", "cuda"],
        ["one", "yes", "yes", "no"],
        ["other", "yes", "yes", "-"],
        ["no", "cuda:", "no", "nvcc"],
    ]
