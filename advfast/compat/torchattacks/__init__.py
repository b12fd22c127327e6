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
from .search import APGD as APGD
from .search import APGDT as APGDT
from .search import FAB as FAB
from .search import AutoAttack as AutoAttack
from .search import Square as Square

__all__ = [
    "APGD",
    "APGDT",
    "BIM",
    "FAB",
    "FFGSM",
    "FGSM",
    "MIFGSM",
    "PGD",
    "PGDL2",
    "RFGSM",
    "TPGD",
    "Attack",
    "AutoAttack",
    "MultiAttack",
    "Square",
]

_ONLY_THERE = {
    "VANILA", "GN", "EOTPGD", "UPGD", "DIFGSM", "TIFGSM", "Jitter", "NIFGSM",
    "PGDRS", "SINIFGSM", "VMIFGSM", "VNIFGSM", "SPSA", "PIFGSM", "PIFGSMPP", "CW", "PGDRSL2",
    "DeepFool", "EADEN", "EADL1", "SparseFool", "OnePixel", "Pixle", "JSMA", "LGV",
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
