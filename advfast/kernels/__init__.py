"""The fused ops themselves."""

from .pgd import pgd_step_ as pgd_step_
from .pgd import project_ as project_
from .pgd import random_start as random_start
