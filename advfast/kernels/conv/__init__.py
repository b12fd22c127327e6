from .api import conv2d_input_grad as conv2d_input_grad
