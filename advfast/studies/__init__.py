"""Published studies, each a function that returns a `StudyResult`: ``advfast.studies.<study>(...)``."""

from .bn_estimators import bn_estimators as bn_estimators
from .result import StudyResult as StudyResult
from .result import load_study as load_study
