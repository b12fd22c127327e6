"""Published studies, each a function that returns a `StudyResult`: ``advfast.studies.<study>(...)``."""

from .bn_estimators import bn_estimators as bn_estimators
from .co_features import co_features as co_features
from .criticality import criticality as criticality
from .criticality_tables import read_criticality as read_criticality
from .index import index as index
from .induced import induced as induced
from .memorization import memorization as memorization
from .noise_scale import noise_scale as noise_scale
from .ntk_trace import ntk_trace as ntk_trace
from .presets import preset as preset
from .result import StudyResult as StudyResult
from .result import load_study as load_study
