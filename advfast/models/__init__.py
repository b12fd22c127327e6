"""Networks by name, each with its normalisation inside."""

from .cosine import CosineLinear as CosineLinear
from .cosine import cosine_head as cosine_head
from .cosine import use_cosine_head as use_cosine_head
from .low_pass import LowPass as LowPass
from .low_pass import filters_off as filters_off
from .norm import NORM_LAYERS as NORM_LAYERS
from .norm import DualBatchNorm as DualBatchNorm
from .norm import branch as branch
from .norm import fixed_statistics as fixed_statistics
from .norm import norm_layers as norm_layers
from .norm import use_norm_layers as use_norm_layers
from .normalise import Normalise as Normalise
from .normalise import Normalised as Normalised
from .preact_resnet import PreActResNet as PreActResNet
from .published import KeyReport as KeyReport
from .published import load_published as load_published
from .registry import MODELS as MODELS
from .registry import changes as changes
from .registry import make as make
from .registry import spec as spec
from .resnet import ResNet as ResNet
from .small_cnn import SmallCNN as SmallCNN
from .vit import VisionTransformer as VisionTransformer
from .wide_resnet import WideResNet as WideResNet
from .zoo import PUBLISHED as PUBLISHED
from .zoo import make_published as make_published
