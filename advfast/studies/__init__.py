"""Published studies, each a function that returns a `StudyResult`: ``advfast.studies.<study>(...)``."""

from .result import StudyResult as StudyResult
from .result import load_study as load_study
