"""torchattacks 3.5.1 on advfast's engine: ``import advfast.compat.torchattacks as torchattacks``."""

from . import attack as attack
from .attack import Attack as Attack
from .gradient import BIM as BIM
from .gradient import FFGSM as FFGSM
from .gradient import FGSM as FGSM
from .gradient import MIFGSM as MIFGSM
from .gradient import PGD as PGD
from .gradient import PGDL2 as PGDL2
from .gradient import RFGSM as RFGSM
from .gradient import TPGD as TPGD
from .multiattack import MultiAttack as MultiAttack

__all__ = [
    "BIM",
    "FFGSM",
    "FGSM",
    "MIFGSM",
    "PGD",
    "PGDL2",
    "RFGSM",
    "TPGD",
    "Attack",
    "MultiAttack",
]

_ONLY_THERE = {
    "VANILA", "GN", "EOTPGD", "UPGD", "APGD", "APGDT", "DIFGSM", "TIFGSM", "Jitter", "NIFGSM",
    "PGDRS", "SINIFGSM", "VMIFGSM", "VNIFGSM", "SPSA", "PIFGSM", "PIFGSMPP", "CW", "PGDRSL2",
    "DeepFool", "EADEN", "EADL1", "SparseFool", "OnePixel", "Pixle", "JSMA", "FAB", "AutoAttack",
    "Square", "LGV",
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _ONLY_THERE:
        # Not an AttributeError: `from ... import CW` would replace its text.
        raise ImportError(
            f"advfast has no {name} of torchattacks; it has {', '.join(__all__)}. torchattacks itself works on the "
            f"same models: from torchattacks import {name}",
            name=__name__,
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
