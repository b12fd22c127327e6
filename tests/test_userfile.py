import pickle
import sys

import pytest

from advfast.userfile import UserFileError, call, is_user_object, load_object


@pytest.fixture
def write(tmp_path, monkeypatch):
    """(name, text) -> path of the file."""
    before = set(sys.modules)

    def made(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    yield made
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_form():
    assert is_user_object("a/b.py:make")
    assert is_user_object("b.py:make")
    for other in ("b.py", "fashion-mnist", "b.npz", 3):
        assert not is_user_object(other)


def test_object_and_call(write):
    path = write("mine.py", "answer = 42\ndef make(a, b=1):\n    return a, b\n")
    assert load_object(f"{path}:answer") == 42
    assert load_object(f"{path}:make", to_call=True)(1) == (1, 1)
    assert call(f"{path}:make", 3, b=4) == (3, 4)


def test_it_runs_as_a_module_of_its_own(write):
    """A file that is called like another module leaves that one alone, and its classes can be pickled."""
    import json

    one = write("one/json.py", "class Thing:\n    side = 1\n")
    other = write("other/json.py", "class Thing:\n    side = 2\n")
    things = [load_object(f"{path}:Thing") for path in (one, other)]
    assert [thing.side for thing in things] == [1, 2]
    assert sys.modules["json"] is json
    for thing in things:
        assert type(pickle.loads(pickle.dumps(thing()))) is thing


def test_main_guard_is_respected(write):
    path = write("mine.py", "x = 1\nif __name__ == '__main__':\n    raise SystemExit(3)\n")
    assert load_object(f"{path}:x") == 1


def test_modules_beside_it_can_be_imported(write):
    write("sibling_of_mine.py", "value = 5\n")
    write("late_sibling.py", "value = 6\n")
    path = write(
        "mine.py",
        "import sibling_of_mine\n"
        "def make():\n"
        "    import late_sibling\n"
        "    return sibling_of_mine.value, late_sibling.value\n",
    )
    search = list(sys.path)
    assert call(f"{path}:make") == (5, 6)
    assert sys.path == search


def test_it_runs_once_until_it_changes(write):
    path = write("mine.py", "marks = []\ndef mark():\n    marks.append(1)\n    return len(marks)\n")
    assert call(f"{path}:mark") == 1
    assert call(f"{path}:mark") == 2
    write("mine.py", "def mark():\n    return 'changed'\n")
    assert call(f"{path}:mark") == "changed"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{folder}/none.py:make", FileNotFoundError, r"no file .*none\.py"),
        ("{path}:mak", ValueError, r"defines no 'mak', only make, LEVEL; did you mean 'make'"),
        ("{path}:os", None, None),
        ("{path}:", ValueError, r"expected path/file\.py:name"),
        ("{path}:a b", ValueError, r"expected path/file\.py:name"),
        ("digits", ValueError, "got 'digits'"),
    ],
)
def test_names(write, text, error, message):
    path = write("mine.py", "import os\nfrom os.path import join\ndef make(): pass\nLEVEL = 3\n")
    text = text.format(path=path, folder=path.rpartition("/")[0])
    if error is None:
        assert load_object(text) is sys.modules["os"]
        return
    with pytest.raises(error, match=message):
        load_object(text)


def test_not_callable(write):
    path = write("mine.py", "make = 3\n")
    with pytest.raises(TypeError, match=r"mine\.py:make must be a function or class, got int"):
        call(f"{path}:make")


@pytest.mark.parametrize(
    ("text", "message", "cause"),
    [
        ("x = 1\nundefined\n", r"mine\.py, line 2: NameError: .*'undefined'", NameError),
        ("def f(:\n", r"mine\.py, line 1: SyntaxError: ", SyntaxError),
        ("import nowhere_to_be_found\n", "line 1: ModuleNotFoundError", ModuleNotFoundError),
        ("raise SystemExit(2)\n", "line 1: SystemExit: 2", SystemExit),
        ("\n\ndef make():\n    1 / 0\n", "line 4: ZeroDivisionError", ZeroDivisionError),
        ("import json\ndef make():\n    json.loads('{')\n", "line 3: JSONDecodeError", ValueError),
    ],
)
def test_what_the_file_raises_is_told_with_the_file(write, text, message, cause):
    path = write("mine.py", text)
    search, modules = list(sys.path), set(sys.modules)
    with pytest.raises(UserFileError, match=message) as caught:
        call(f"{path}:make")
    assert isinstance(caught.value.__cause__, cause)
    assert "mine.py" in str(caught.value)
    assert sys.path == search
    if "make" not in text:  # a file that failed is not kept
        assert not [name for name in set(sys.modules) - modules if "mine" in name]


def test_an_interrupt_passes(write):
    path = write("mine.py", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_object(f"{path}:make")
