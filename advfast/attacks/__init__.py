"""Attacks on one inner loop."""

from .autoattack import AutoAttack as AutoAttack
from .autoattack import AutoAttackResult as AutoAttackResult
from .bim import BIM as BIM
from .bpda import BPDA as BPDA
from .bpda import bpda as bpda
from .fgsm import FGSM as FGSM
from .fgsm import FGSMRS as FGSMRS
from .gaussian import GaussianPGD as GaussianPGD
from .mifgsm import MIFGSM as MIFGSM
from .network import explain as explain
from .pgd import PGDAttack as PGDAttack
from .search.apgd import APGD as APGD
from .search.apgd import APGDT as APGDT
from .search.fab import FAB as FAB
from .search.fab import FABT as FABT
from .search.square import Square as Square
from .tpgd import TPGD as TPGD
