"""The tests of other libraries that can judge ours: which files, which tests of them, and what they import."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

# Attacks that both have; foolbox' Adam, momentum and single-purpose attacks are its own.
_FOOLBOX = (
    "LinfProjectedGradientDescentAttack or L2ProjectedGradientDescentAttack or "
    "L1ProjectedGradientDescentAttack or LinfBasicIterativeAttack or L2BasicIterativeAttack or "
    "L1BasicIterativeAttack or LinfFastGradientAttack or L2FastGradientAttack or "
    "L1FastGradientAttack"
)
_TORCHATTACKS = ("FGSM", "BIM", "RFGSM", "FFGSM", "PGD", "PGDL2", "TPGD", "MIFGSM")


@dataclass(frozen=True)
class Suite:
    """One run of pytest, with the peer and again with ours in its place.

    Attributes:
        name: also that of its module in `swaps`.
        peer: distribution whose version is reported.
        files: test files, relative to the root.
        checkout: folder under --sources that is the root; "" for the installed package, which ships its tests.
        select: pytest's -k; the rest of the files tests what we do not have.
        arguments: further ones for pytest.
        on_path: folders of the checkout that its tests import from.
    """

    name: str
    peer: str
    files: tuple[str, ...]
    checkout: str = ""
    select: str = ""
    arguments: tuple[str, ...] = ()
    on_path: tuple[str, ...] = ()

    def root(self, sources: Path | None) -> Path | None:
        """Where the files are, or None."""
        if self.checkout:
            root = sources / self.checkout if sources else None
        else:
            found = find_spec(self.peer)
            places = list(found.submodule_search_locations or ()) if found else []
            root = Path(places[0]) if places else None
        return root if root and all((root / self.plain(f)).exists() for f in self.files) else None

    @staticmethod
    def plain(file: str) -> str:
        """The path of a file, without the test that follows it."""
        return file.split("::")[0]


SUITES = (
    Suite(
        "cleverhans",
        "cleverhans",
        ("torch/tests/test_attacks.py", "torch/tests/test_utils.py"),
        select="FastGradientMethod or ProjectedGradientMethod or OptimizeLinear",
    ),
    Suite(
        "adv_lib",
        "adv-lib",
        ("tests/test_attacks.py",),
        checkout="adversarial-library",
        # attack0 is pgd_linf; the other one is APGD.
        select="test_untargeted_budget_linf and attack0",
        on_path=(".",),
    ),
    Suite(
        "foolbox",
        "foolbox",
        ("tests/test_attacks.py",),
        checkout="foolbox",
        select=f"pytorch_simple and ({_FOOLBOX}) and not Adam and not repeat",
        arguments=("--backend", "pytorch"),
    ),
    Suite(
        "foolbox_rest",
        "foolbox",
        (
            "tests/test_criteria.py",
            "tests/test_models.py",
            "tests/test_eot_wrapper.py",
            "tests/test_attacks_base.py",
            "tests/test_attacks_raise.py",
        ),
        checkout="foolbox",
        select=(
            "(test_criteria and pytorch_simple) or (test_criteria and repr) "
            "or (test_models and pytorch_simple) or (test_models and test_pytorch) "
            "or (eot_wrapper and pytorch_simple) or (fgsm_run_raises and pytorch_simple) "
            "or (test_attacks_base and pytorch_simple) or wrapper_data_format "
            "or wrapper_missing_data_format"
        ),
        arguments=("--backend", "pytorch"),
    ),
    Suite(
        "torchattacks",
        "torchattacks",
        tuple(
            f"code_coverage/test_atks.py::test_atks_on_cifar10[{name}]" for name in _TORCHATTACKS
        ),
        checkout="adversarial-attacks-pytorch",
        on_path=(".",),
    ),
)
