"""The benchmarks of the published systems: a trial of each runs to its table."""

import importlib
import sys
from pathlib import Path

import pytest

from advfast.data import load

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


def fashion_mnist_is_there():
    try:
        load("fashion-mnist")
    except FileNotFoundError:
        return False
    return True


@pytest.mark.parametrize(
    "name", ["clean_prefix", "collapse_remedy", "deat", "ensembling", "long_tail"]
)
def test_the_program_says_what_it_takes(name, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(name).main(["--help"])
    assert end.value.code == 0
    assert "--quick" in capsys.readouterr().out


@pytest.mark.skipif(not fashion_mnist_is_there(), reason="needs Debian's dataset-fashion-mnist")
def test_a_trial_of_clean_prefixes_ends_with_a_table(capsys):
    importlib.import_module("clean_prefix").main(["--quick", "--jobs", "1", "--autoattack", "0"])
    assert "| fashion, `pgd-at` | auto" in capsys.readouterr().out
