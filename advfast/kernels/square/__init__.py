from .api import square_accept_ as square_accept_
from .api import square_window as square_window
