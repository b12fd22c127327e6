"""advfast.compat.cleverhans in the place of cleverhans."""

import cleverhans.torch.utils
from cleverhans.torch.attacks import fast_gradient_method as fgm
from cleverhans.torch.attacks import projected_gradient_descent as pgd

from advfast.compat import cleverhans as ours

fgm.fast_gradient_method = ours.fast_gradient_method
pgd.projected_gradient_descent = ours.projected_gradient_descent
cleverhans.torch.utils.optimize_linear = ours.optimize_linear
cleverhans.torch.utils.clip_eta = ours.clip_eta
