"""Readers of built-in data sets, and data held as tensors."""

from .idx import read_idx as read_idx
from .loader import batches as batches
from .readers import READERS as READERS
from .readers import Splits as Splits
from .readers import load as load
from .sources import DatasetSource as DatasetSource
from .sources import Source as Source
from .sources import TensorSource as TensorSource
from .sources import as_source as as_source
from .sources import pixel_statistics as pixel_statistics
from .split import stratified_split as stratified_split
