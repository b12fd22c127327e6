from .api import apgd_l1_step as apgd_l1_step
from .api import apgd_step_ as apgd_step_
from .api import l1_box_correction as l1_box_correction
