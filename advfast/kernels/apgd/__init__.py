from .api import apgd_step_ as apgd_step_
