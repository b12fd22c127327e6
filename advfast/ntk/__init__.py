"""The empirical neural tangent kernel: exact, planned layer by layer, in tiles."""

from . import metrics as metrics
from .adversarial import CleanAdversarial as CleanAdversarial
from .adversarial import clean_adversarial as clean_adversarial
from .eigen import NotConverged as NotConverged
from .estimators import Estimate as Estimate
from .kernel import NTK as NTK
from .kernel import Tile as Tile
from .kernel import ntk as ntk
from .kernel import plan as plan
from .kernel import tiles as tiles
from .operator import NTKOperator as NTKOperator
from .planner import Plan as Plan
from .probe import Probe as Probe
from .probe import balanced_probe as balanced_probe
from .recorder import NTKRecorder as NTKRecorder
from .reduction import reduce as reduce
from .scalars import summary as summary
