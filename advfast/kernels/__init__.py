"""The fused ops themselves."""

from .activation import add_relu_bits_ as add_relu_bits_
from .activation import affine_gate_ as affine_gate_
from .activation import affine_relu_bits as affine_relu_bits
from .activation import gate_ as gate_
from .activation import positive_bits as positive_bits
from .activation import relu_bits_ as relu_bits_
from .apgd import apgd_l1_step as apgd_l1_step
from .apgd import apgd_step_ as apgd_step_
from .apgd import l1_box_correction as l1_box_correction
from .conv import conv2d_input_grad as conv2d_input_grad
from .hash import row_hash as row_hash
from .hyperplane import hyperplane_project as hyperplane_project
from .ntk import ntk_chain_ as ntk_chain_
from .ntk import ntk_gram_ as ntk_gram_
from .ntk import ntk_hadamard_ as ntk_hadamard_
from .ntk import ntk_patch_gram as ntk_patch_gram
from .ntk import ntk_rows as ntk_rows
from .pgd import pgd_step_ as pgd_step_
from .pgd import project_ as project_
from .pgd import random_start as random_start
from .square import square_accept_ as square_accept_
from .square import square_window as square_window
