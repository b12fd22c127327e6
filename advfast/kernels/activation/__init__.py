from .api import add_relu_bits_ as add_relu_bits_
from .api import affine_gate_ as affine_gate_
from .api import affine_relu_bits as affine_relu_bits
from .api import gate_ as gate_
from .api import positive_bits as positive_bits
from .api import relu_bits_ as relu_bits_
