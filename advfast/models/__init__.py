"""Networks by name, each with its normalisation inside."""

from .normalise import Normalise as Normalise
from .registry import MODELS as MODELS
from .registry import make as make
from .registry import spec as spec
from .small_cnn import SmallCNN as SmallCNN
