"""The fused ops themselves."""

from .conv import conv2d_input_grad as conv2d_input_grad
from .pgd import pgd_step_ as pgd_step_
from .pgd import project_ as project_
from .pgd import random_start as random_start
