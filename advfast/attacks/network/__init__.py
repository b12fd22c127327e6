"""A model as the attacks see it: logits, and the gradient with respect to the input alone."""

from .network import Network as Network
from .network import explain as explain
from .network import open_network as open_network
from .plain import PlainNetwork as PlainNetwork
