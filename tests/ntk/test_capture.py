"""Captured factors of each kind of layer, in float64 against Jacobians."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from .jacobians import check_capture


def _random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


class _Chain(nn.Module):
    """A layer between two others, so that it has a gradient that depends on the sample, and inputs too."""

    def __init__(self, *layers, flat=True):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.flat = flat

    def forward(self, x):
        out = torch.tanh(self.layers(x))
        out = out.flatten(1) if self.flat else out
        weights = torch.linspace(-1, 1, out.shape[-1] * 3, dtype=out.dtype).view(3, -1)
        return (out @ weights.sin().mT).tanh()


CONVS = [
    pytest.param(dict(kernel_size=3, padding=1), id="k3p1"),
    pytest.param(dict(kernel_size=3, stride=2, padding=1, bias=False), id="stride2"),
    pytest.param(dict(kernel_size=3, dilation=2, padding=2), id="dilation2"),
    pytest.param(dict(kernel_size=2, stride=3), id="stride-over-kernel"),
    pytest.param(dict(kernel_size=1), id="pointwise"),
    pytest.param(dict(kernel_size=1, stride=2, bias=False), id="pointwise-stride2"),
    pytest.param(dict(kernel_size=1, padding=1), id="pointwise-padded"),
    pytest.param(dict(kernel_size=3, padding=1, groups=2), id="groups"),
    pytest.param(dict(kernel_size=3, padding=1, groups=4), id="depthwise"),
    pytest.param(
        dict(kernel_size=3, groups=4, stride=2, dilation=2, padding=2), id="depthwise-mix"
    ),
    pytest.param(dict(kernel_size=4, padding="same", dilation=1), id="same-even"),
    pytest.param(dict(kernel_size=3, padding="valid"), id="valid"),
    pytest.param(dict(kernel_size=3, padding=1, padding_mode="reflect"), id="reflect"),
    pytest.param(dict(kernel_size=3, padding=1, padding_mode="replicate"), id="replicate"),
    pytest.param(dict(kernel_size=3, padding=2, padding_mode="circular"), id="circular"),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("options", CONVS)
def test_conv(rank, options):
    side = 7 if rank < 3 else 5
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    inner = conv(4, 8 if options.get("groups") == 4 else 6, **options)
    first = conv(2, 4, 1)
    capture = check_capture(_Chain(first, nn.Tanh(), inner), _random(3, 2, *(side,) * rank))
    assert not capture.generic
    kinds = {layer.name: layer.kind for layer in capture.layers}
    assert kinds["layers.2.weight"] == kinds["layers.0.weight"] == "product"


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [((1, 3), (1, 2), (0, 1), 1), ((3, 2), 1, (2, 0), (1, 3)), (2, (2, 1), (0, 1), 1)],
    ids=str,
)
def test_conv_whose_sides_differ(kernel, stride, padding, dilation):
    conv = nn.Conv2d(3, 4, kernel, stride, padding, dilation)
    check_capture(_Chain(conv), _random(2, 3, 6, 9))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(dict(kernel_size=3), id="plain"),
        pytest.param(dict(kernel_size=3, stride=2, padding=1, output_padding=1), id="stride2"),
        pytest.param(dict(kernel_size=2, stride=2, groups=2, bias=False), id="groups"),
        pytest.param(dict(kernel_size=3, dilation=2, padding=1), id="dilation2"),
    ],
)
def test_transposed_conv(rank, options):
    conv = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
    capture = check_capture(_Chain(conv(4, 6, **options)), _random(2, 4, *(4,) * rank))
    assert capture.layers[0].kind == "product"


def test_functional_convs():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(_random(4, 2, 3, 3))
            self.b = nn.Parameter(_random(4))

        def forward(self, x):
            x = F.conv2d(input=x, weight=self.w, bias=self.b, padding=(1, 1), stride=(2,))
            return F.conv2d(x, self.w.transpose(0, 1), padding=1).mean((2, 3))

    # One weight in two roles: as it is and with its channels swapped.
    capture = check_capture(Model(), _random(2, 2, 6, 6))
    assert not capture.generic
    assert {layer.name: layer.kind for layer in capture.layers} == {"w": "rows", "b": "rows"}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("leading", [(), (4,), (2, 3)], ids=str)
def test_linear(bias, leading):
    model = _Chain(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 6, bias=bias), flat=True)
    capture = check_capture(model, _random(3, *leading, 5))
    weight = next(layer for layer in capture.layers if layer.name == "layers.2.weight")
    assert (weight.kind, weight.groups, weight.taps) == ("product", 1, None)
    assert weight.positions == max(1, torch.Size(leading).numel())


@pytest.mark.parametrize("leading", [(), (3,)], ids=str)
def test_single_numbers(leading):
    """One output, one channel, one number as a parameter."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.last = nn.Linear(4, 1), nn.Linear(1, 1)
            self.scale, self.shift = nn.Parameter(_random(())), nn.Parameter(_random(1))

        def forward(self, x):
            x = self.last(self.scale * self.linear(x).tanh() + self.shift)
            return x.flatten(1).sum(1, keepdim=True)

    assert not check_capture(Model(), _random(2, *leading, 4)).generic


NORMS = [
    pytest.param(nn.BatchNorm1d(6), (6,), id="batch-flat"),
    pytest.param(nn.BatchNorm1d(6), (6, 4), id="batch-1d"),
    pytest.param(nn.BatchNorm2d(6), (6, 3, 4), id="batch-2d"),
    pytest.param(nn.BatchNorm3d(6), (6, 2, 3, 2), id="batch-3d"),
    pytest.param(nn.LayerNorm(6), (6,), id="layer-flat"),
    pytest.param(nn.LayerNorm(6), (4, 6), id="layer-tokens"),
    pytest.param(nn.LayerNorm((6, 3, 4)), (6, 3, 4), id="layer-image"),
    pytest.param(nn.LayerNorm(6, bias=False), (4, 6), id="layer-no-bias"),
    pytest.param(nn.GroupNorm(3, 6), (6, 3, 4), id="group"),
    pytest.param(nn.GroupNorm(2, 6), (6,), id="group-flat"),
    pytest.param(nn.InstanceNorm1d(6, affine=True), (6, 5), id="instance-1d"),
    pytest.param(nn.InstanceNorm2d(6, affine=True), (6, 3, 4), id="instance-2d"),
    pytest.param(
        nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
        (6, 3, 4),
        id="instance-running",
    ),
    pytest.param(nn.RMSNorm(6), (4, 6), id="rms"),
]


@pytest.mark.parametrize("gamma", ["random", "zero"])
@pytest.mark.parametrize(("norm", "shape"), NORMS)
def test_norm(norm, shape, gamma):
    for name, t in (*norm.named_parameters(), *norm.named_buffers()):
        if t.is_floating_point():
            nn.init.uniform_(t, 0.5, 2)
        if name == "weight" and gamma == "zero":
            nn.init.zeros_(t)
    # The sum after it keeps a gradient where the weight is zero.
    capture = check_capture(_Chain(norm), _random(3, *shape))
    assert not capture.generic and not capture.unused


class _Tokens(nn.Module):
    def __init__(self, embedding, uses=1):
        super().__init__()
        self.embedding, self.linear, self.uses = embedding, nn.Linear(4, 3), uses

    def forward(self, ids):
        out = self.embedding(ids).tanh().mean(1)
        if self.uses == 2:
            out = out + self.embedding(ids.flip(1)[:, :2]).sin().mean(1)
        return self.linear(out)


@pytest.mark.parametrize("uses", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize("padding", [None, 2, -1], ids=str)
def test_embedding(uses, padding):
    ids = torch.tensor([[0, 1, 2, 2], [3, 6, 2, 0], [6, 6, 6, 1]])
    capture = check_capture(_Tokens(nn.Embedding(7, 4, padding_idx=padding), uses), ids)
    layer = capture.layers[0]
    assert (layer.kind, layer.channels, layer.columns) == ("tokens", 4, 28)
    assert layer.positions == (4 if uses == 1 else 6)


class _Elementwise(nn.Module):
    """Bare parameters in each place of each operation."""

    def __init__(self, operation):
        super().__init__()
        self.operation = operation
        self.p = nn.Parameter(torch.rand(1, 5, dtype=torch.float64) + 0.5)
        self.linear = nn.Linear(5, 5)

    def forward(self, x):
        return self.operation(self.linear(x).tanh() + 2, self.p).tanh().mean(1)


OPERATIONS = {
    "x+p": lambda x, p: x + p,
    "p+x": lambda x, p: p + x,
    "x-p": lambda x, p: x - p,
    "p-x": lambda x, p: p - x,
    "x*p": lambda x, p: x * p,
    "p*x": lambda x, p: p * x,
    "x/p": lambda x, p: x / p,
    "p/x": lambda x, p: p / x,
    "x/p-p": lambda x, p: x / p - p,  # of two uses the signs count
    "x+=p": lambda x, p: x.sin().__iadd__(p),
    "x*=p": lambda x, p: x.sin().__imul__(p),
    "x.div_(p)": lambda x, p: x.sin().div_(p),
    "torch.add": torch.add,
    "torch.mul": torch.mul,
    "part": lambda x, p: x * p[:, 1:2] + p[0, 3:].sum() * 0,
    "row": lambda x, p: x + p.squeeze(0),
    "column": lambda x, p: x.mT * p.T,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_bare_parameter(name):
    capture = check_capture(_Elementwise(OPERATIONS[name]), _random(3, 4, 5))
    # The sum of a part is not something a rule knows.
    assert capture.generic == (("p",) if name == "part" else ())


def test_matmul_with_a_bare_weight():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(_random(5, 4))
            self.v = nn.Parameter(_random(3, 4))

        def forward(self, x):
            return torch.matmul((x @ self.w).tanh(), self.v.T).mean(1)

    capture = check_capture(Model(), _random(3, 6, 5))
    assert [layer.kind for layer in capture.layers] == ["product", "product"]


@pytest.mark.parametrize("layout", ["images", "flat"])
@pytest.mark.parametrize("bn", ["eval", "frozen"])
def test_batch_norm_policies(bn, layout):
    shape = (3, 4, 4) if layout == "images" else (3,)
    norm = nn.BatchNorm2d(3) if layout == "images" else nn.BatchNorm1d(3)
    batch = None if bn == "eval" else _random(6, *shape) * 3 + 1
    check_capture(_Chain(norm), _random(2, *shape), bn=bn, bn_batch=batch)
