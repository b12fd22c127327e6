from .api import pgd_step_ as pgd_step_
from .api import project_ as project_
from .api import random_start as random_start
