"""Readers of data sets, data held as tensors or read as they are needed, loaders and augmentation."""

from .arrays import ArraySource as ArraySource
from .folders import FolderSource as FolderSource
from .folders import image_folder as image_folder
from .foreign import ForeignLoader as ForeignLoader
from .idx import read_idx as read_idx
from .loader import Loader as Loader
from .loader import Plan as Plan
from .loader import count as count
from .loader import ordered as ordered
from .loader import steps_of as steps_of
from .mixed import Mixed as Mixed
from .readers import READERS as READERS
from .readers import load as load
from .share import WHOLE as WHOLE
from .share import Share as Share
from .sources import Batch as Batch
from .sources import DatasetSource as DatasetSource
from .sources import Source as Source
from .sources import TensorSource as TensorSource
from .sources import as_source as as_source
from .split import stratified_split as stratified_split
from .splits import Splits as Splits
from .summary import fingerprint as fingerprint
from .summary import pixel_statistics as pixel_statistics
