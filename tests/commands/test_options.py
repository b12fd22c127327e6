from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from advfast.commands.options import Config, config_option, extras, given, number, read_config


def app_of(seen):
    app = typer.Typer()

    @app.command()
    def command(
        context: typer.Context,
        name: Annotated[str, typer.Option()] = "none",
        count: Annotated[int | None, typer.Option()] = None,
        size: Annotated[float | None, typer.Option(parser=number)] = None,
        flag: Annotated[bool, typer.Option("--flag")] = False,
        either: Annotated[bool | None, typer.Option("--either/--no-either")] = None,
        where: Annotated[Path | None, typer.Option()] = None,
        two_words: Annotated[str, typer.Option()] = "",
        config: Annotated[Path | None, config_option("nested")] = None,
        debug: bool = False,
    ) -> None:
        seen.update(locals(), given=given(context), extras=extras(context))

    return app


def run(tmp_path, text, *arguments):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    seen = {}
    result = CliRunner().invoke(app_of(seen), ["--config", str(path), *arguments])
    return result, seen


def test_every_type_and_the_command_line_wins(tmp_path):
    text = """
name: x
count: 3
size: 8/255
flag: true
either: false
where: some/where
two-words: [a, 1, b]
nested: {gamma: 0.1, steps: [1, 2]}
"""
    result, seen = run(tmp_path, text, "--count", "4")
    assert result.exit_code == 0, result.output
    assert (seen["name"], seen["count"], seen["size"]) == ("x", 4, 8 / 255)
    assert (seen["flag"], seen["either"]) == (True, False)
    assert (seen["where"], seen["two_words"]) == (Path("some/where"), "a,1,b")
    assert seen["extras"] == {"nested": {"gamma": 0.1, "steps": [1, 2]}}
    assert seen["given"] == {
        "name",
        "count",
        "size",
        "flag",
        "either",
        "where",
        "two_words",
        "config",
    }


def test_what_is_not_given_keeps_its_default(tmp_path):
    result, seen = run(tmp_path, "two_words: y\nsize:\n", "--name", "x")
    assert result.exit_code == 0, result.output
    assert (seen["two_words"], seen["size"], seen["count"]) == ("y", None, None)
    assert seen["given"] == {"two_words", "name", "config"}
    assert seen["extras"] == {}


@pytest.mark.parametrize(
    ("written", "value"), [("1e-3", 1e-3), ("5", 5.0), ("0.25", 0.25), ("'2/4'", 0.5)]
)
def test_numbers_as_people_write_them(tmp_path, written, value):
    # YAML takes 1e-3 for a text.
    assert run(tmp_path, f"size: {written}\n")[1]["size"] == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("siez: 1", "`siez` is no option of command; did you mean 'size'?"),
        ("qqqqqq: 1", "expected count, either, flag, name, nested, size, two_words, where"),
        ("config: other.yaml", "`config` is no option"),
        ("debug: true", "`debug` is no option"),
        ("count: many", "count must be an integer, got 'many'"),
        ("count: 1.5", "count must be an integer, got 1.5"),
        ("count: true", "count must be an integer, got True"),
        ("size: big", "size must be a number such as 0.1 or 8/255, got 'big'"),
        ("size: [1]", "size must be a number"),
        ("flag: 1", "flag must be true or false, got 1"),
        ("name: {a: 1}", "name must be a text, got {'a': 1}"),
        ("name: true", "name must be a text, got True"),
        ("where: [a]", "where must be a path"),
        ("two-words: a\ntwo_words: b", "gives two_words twice"),
        ("name: a\nname: b", "the key 'name' is there twice"),
        ("- a\n- b", "must hold lines such as `eps: 8/255`, got list"),
        ("1: 2", "must hold lines"),
        ("name: [", "is not valid YAML"),
    ],
)
def test_errors_name_the_file_and_the_key(tmp_path, text, message):
    result, seen = run(tmp_path, text)
    assert seen == {}
    assert message in str(result.exception)
    assert "c.yaml" in str(result.exception)


def test_files_that_are_not_there_or_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.yaml"):
        read_config(tmp_path / "no.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_config(tmp_path / "empty.yaml") == {}
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(ValueError, match="not valid YAML"):
        read_config(tmp_path / "bytes.yaml")


def test_without_extra_keys_there_are_none(tmp_path):
    app = typer.Typer()

    @app.command()
    def command(name: str = "a", config: Config = None) -> None: ...

    path = tmp_path / "c.yaml"
    path.write_text("nested: {a: 1}\n")
    result = CliRunner().invoke(app, ["--config", str(path)])
    assert "`nested` is no option of command" in str(result.exception)
