"""The faults of the checks that catch false robustness, and of RobustBench's JSON."""

from __future__ import annotations

from tests.mutants.faults import fault

SANITY = "advfast/attacks/sanity/"
LEADERBOARD = "advfast/compat/robustbench/leaderboard.py"
LOAD = "advfast/compat/robustbench/load.py"

FAULTS = [
    fault(
        "sanity",
        "borrowed: weights are not put back",
        SANITY + "borrowed.py",
        "        held.restore()\n",
        "        pass\n",
    ),
    fault(
        "sanity",
        "borrowed: numpy's generator moves",
        SANITY + "borrowed.py",
        "            np.random.set_state(arrays)\n",
        "",
    ),
    fault(
        "sanity",
        "probe: its own backward pass counts",
        SANITY + "probe.py",
        "backward = bool(unpacked)\n        except",
        "backward = True\n        except",
    ),
    fault(
        "sanity",
        "zero gradient: at the image alone",
        SANITY + "gradients.py",
        '_zero_rows(here, "ce") & _zero_rows(there, "ce")',
        '_zero_rows(here, "ce") | True',
    ),
    fault(
        "sanity",
        "zero gradient: CE and DLR not told apart",
        SANITY + "gradients.py",
        "int((ce & ~other).sum())",
        "int((ce & other).sum())",
    ),
    fault(
        "sanity",
        "16 bits: the cotangent is not rescaled",
        SANITY + "probe.py",
        "found = found / torch.where(largest > 0, largest, 1.0)",
        "found = found * 1e-6",
    ),
    fault(
        "sanity",
        "misleading: any gradient will do",
        SANITY + "gradients.py",
        "better >= _SHARE * samples",
        "better >= 0",
    ),
    fault(
        "sanity",
        "randomised: rounding is a draw",
        SANITY + "outputs.py",
        "(_DRAWN if drew else tolerance(x))",
        "_DRAWN",
    ),
    fault(
        "sanity",
        "randomised: draws need to be large",
        SANITY + "outputs.py",
        "(_DRAWN if drew else tolerance(x))",
        "tolerance(x)",
    ),
    fault(
        "sanity",
        "quantised: all pixels change",
        SANITY + "inputs.py",
        "signs * few, small",
        "signs, small",
    ),
    fault(
        "sanity",
        "train mode: measured in eval mode",
        SANITY + "modes.py",
        "with kept(model):",
        "with borrowed(model):",
    ),
    fault(
        "sanity",
        "sweep: wrong samples are in it",
        SANITY + "sweep.py",
        "(probe.logits(images[part]).argmax(1) == labels[part])",
        "(probe.logits(images[part]).argmax(1) >= 0)",
    ),
    fault(
        "sanity",
        "sweep: one step is a quarter",
        SANITY + "sweep.py",
        "max(0.25, 2.5 / count)",
        "0.25",
    ),
    fault(
        "sanity",
        "sweep: flat by a small radius alone",
        SANITY + "sweep.py",
        "left = of.widest_accuracy > _NEAR_ZERO",
        "left = of.accuracy[-1] > _NEAR_ZERO",
    ),
    fault(
        "sanity",
        "compare: Square first wins",
        SANITY + "compare.py",
        " or names[index - 1] in _STARTS_CLEAN",
        "",
    ),
    fault(
        "sanity",
        "compare: two samples tell",
        SANITY + "compare.py",
        "2 / samples + 1e-9 if samples else 0.0",
        "0.0",
    ),
    fault(
        "robustbench",
        "leaderboard: any number of samples",
        LEADERBOARD,
        "report[attack].total != SAMPLES[dataset]",
        "False",
    ),
    fault(
        "robustbench",
        "leaderboard: findings do not count",
        LEADERBOARD,
        "bool(doubts) if unreliable is None",
        "False if unreliable is None",
    ),
    fault(
        "robustbench",
        "leaderboard: nothing is refused",
        LEADERBOARD,
        "if lacking and not incomplete:",
        "if False:",
    ),
    fault(
        "robustbench",
        "load: in the mode that it comes in",
        LOAD,
        "return model.eval()",
        "return model",
    ),
    fault(
        "robustbench",
        "load: torchattacks' copy will do",
        LOAD,
        'and hasattr(package, "benchmark")',
        "",
    ),
]
