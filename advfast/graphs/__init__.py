"""CUDA graphs of whole computations, and named ranges for a timeline.

A graph replays kernels at the addresses of its capture: it reads what lies there then, so weights that an optimiser
changes in place are seen, and everything that may move comes in through a static buffer. All graphs of a device share
one memory pool and therefore take turns.

Random numbers: kernels keyed by a seed tensor take it as an input. torch's own CUDA generator (dropout, uniform_) is
followed by torch itself: a replay draws what an eager run would have drawn, and moves the generator on as far.
"""

from .captured import Captured as Captured
from .captured import GraphCache as GraphCache
from .captured import Inputs as Inputs
from .captured import plain_attributes as plain_attributes
from .cuda import CaptureError as CaptureError
from .cuda import Outputs as Outputs
from .cuda import Recorder as Recorder
from .cuda import Recording as Recording
from .cuda import capturing as capturing
from .cuda import recorder as recorder
from .cuda import recording as recording
from .ranges import nvtx_range as nvtx_range
