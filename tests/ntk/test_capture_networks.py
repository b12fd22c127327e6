"""Captured factors of whole networks and of parameters used in unusual ways, in float64 against Jacobians."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advfast.models.preact_resnet import PreActResNet
from advfast.models.resnet import resnet18
from advfast.models.small_cnn import SmallCNN
from advfast.models.vit import VisionTransformer
from advfast.models.wide_resnet import WideResNet
from advfast.ntk.capture import Capture
from advfast.ntk.subject import Subject

from .jacobians import check_capture


def _random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


NETWORKS = {
    "resnet18": (lambda: resnet18((3, 8, 8), 3, width=4), (3, 8, 8)),
    "preact": (lambda: PreActResNet((3, 8, 8), 3, width=4), (3, 8, 8)),
    "wide": (lambda: WideResNet((3, 8, 8), 3, depth=10, width=1), (3, 8, 8)),
    "small-cnn": (lambda: SmallCNN((1, 8, 8), 3), (1, 8, 8)),
    "vit": (
        lambda: VisionTransformer((3, 8, 8), 3, dim=8, depth=2, heads=2, patch=4), (3, 8, 8)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name):
    build, shape = NETWORKS[name]
    capture = check_capture(build(), torch.rand(2, *shape, dtype=torch.float64))
    assert not capture.generic and not capture.unused


class _Attention(nn.Module):
    def __init__(self, *, batch_first, cross, width=8, **options):
        super().__init__()
        self.batch_first, self.cross = batch_first, cross
        self.queries = nn.Parameter(torch.randn(1, 3, width)) if cross else None
        self.attention = nn.MultiheadAttention(width, 2, batch_first=batch_first, **options)
        self.linear = nn.Linear(width, 3)

    def forward(self, x):
        query = self.queries.expand(len(x), -1, -1) if self.cross else x
        key = x.sin() if self.cross else x
        if not self.batch_first:
            query, key, x = (t.transpose(0, 1) for t in (query, key, x))
            key, query = (x, x) if not self.cross else (key, query)
        elif not self.cross:
            query = key = x
        out, _ = self.attention(query, key, x if not self.cross else key)
        out = out if self.batch_first else out.transpose(0, 1)
        return self.linear(out).tanh().mean(1)


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"add_bias_kv": True}, {"kdim": 8, "vdim": 8}], ids=str
)
def test_multihead_attention(options, batch_first, cross):
    model = _Attention(batch_first=batch_first, cross=cross, **options)
    for p in model.parameters():
        if p.dim() == 1:
            nn.init.normal_(p)
    capture = check_capture(model, _random(3, 5, 8))
    assert not capture.generic
    parts = [layer for layer in capture.layers if layer.parameters == ("attention.in_proj_weight",)]
    # Self-attention has one product for queries, keys and values; else the weight comes in parts.
    assert len(parts) == (0 if "kdim" in options and not parts else (2 if cross else 1))
    assert all(layer.kind == "product" for layer in parts)


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_layers(norm_first):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            options = dict(dropout=0.1, batch_first=True, norm_first=norm_first)
            self.encoder = nn.TransformerEncoderLayer(8, 2, 12, **options)
            self.decoder = nn.TransformerDecoderLayer(8, 2, 12, **options)
            self.linear = nn.Linear(8, 3)

        def forward(self, x):
            return self.linear(self.decoder(x.flip(1)[:, :2], self.encoder(x))[:, 0])

    assert not check_capture(Model(), _random(2, 4, 8)).generic


class _WindowAttention(nn.Module):
    """Windows put into the batch, a bias from a table, LayerScale: as in Swin."""

    def __init__(self, dim=6, heads=2):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.table = nn.Parameter(torch.randn(9, heads))
        at = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        apart = at[:, :, None] - at[:, None] + 1
        self.register_buffer("index", apart[0] * 3 + apart[1])
        self.scale = nn.Parameter(torch.randn(dim))
        self.head = nn.Linear(dim, 3)

    def forward(self, x):  # [B, 4, 4, D]
        b, _, _, d = x.shape
        windows = x.view(b, 2, 2, 2, 2, d).transpose(2, 3).reshape(-1, 4, d)
        qkv = self.qkv(self.norm(windows)).reshape(-1, 4, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.view(-1)].view(4, 4, -1).permute(2, 0, 1)
        attention = (q @ k.mT + bias.unsqueeze(0)).softmax(-1)
        out = self.proj((attention @ v).transpose(1, 2).reshape(-1, 4, d))
        out = windows + self.scale * out
        out = out.view(b, 2, 2, 2, 2, d).transpose(2, 3).reshape(b, 4, 4, d)
        return self.head(out.mean((1, 2)))


def test_windows_in_the_batch():
    capture = check_capture(_WindowAttention(), _random(2, 4, 4, 6))
    assert capture.generic == ("table",)
    layers = {layer.name: layer for layer in capture.layers}
    assert layers["qkv.weight"].positions == 16


class _LayerNorm2d(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.rand(channels)),
            nn.Parameter(torch.rand(channels)),
        )

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        x = (x - mean) * (x - mean).square().mean(1, keepdim=True).add(1e-6).rsqrt()
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class _Blocks(nn.Module):
    """What networks of the last years are made of: depthwise convolution, LayerScale, squeeze and excitation, mixing
    over tokens, weights kept transposed."""

    def __init__(self, c=4, tokens=9):
        super().__init__()
        self.norm = _LayerNorm2d(c)
        self.depthwise, self.ln = nn.Conv2d(c, c, 3, padding=1, groups=c), nn.LayerNorm(c)
        self.wide, self.narrow = nn.Linear(c, 2 * c), nn.Linear(2 * c, c)
        self.gamma, self.prelu = nn.Parameter(torch.rand(c)), nn.PReLU(c)
        self.squeeze, self.excite = nn.Conv2d(c, 2, 1), nn.Conv2d(2, c, 1)
        self.mix = nn.Linear(tokens, tokens)
        self.weight, self.bias = nn.Parameter(torch.randn(c, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x):
        y = self.ln(self.depthwise(self.norm(x)).permute(0, 2, 3, 1))
        x = x + (self.gamma * self.narrow(F.gelu(self.wide(y)))).permute(0, 3, 1, 2)
        x = self.prelu(x)
        x = x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        x = x.flatten(2)
        x = (x + self.mix(x)).transpose(1, 2)
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(len(x), -1, 3)[
            :, 0
        ]


def test_blocks():
    capture = check_capture(_Blocks(), _random(2, 4, 3, 3), looped=True)
    assert not capture.generic and not capture.unused


class _Reused(nn.Module):
    """A convolution used at two sizes and a norm used twice."""

    def __init__(self, share=True):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(2, 4) for _ in range(2))
        if share:
            self.convs[1], self.norms[1] = self.convs[0], self.norms[0]
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        x = self.norms[0](self.convs[0](self.stem(x))).relu()
        x = self.norms[1](self.convs[1](F.avg_pool2d(x, 2))).tanh()
        return self.linear(x.mean((2, 3)))


def test_module_used_twice():
    capture = check_capture(_Reused(), _random(2, 2, 8, 8))
    layers = {layer.name: layer for layer in capture.layers}
    conv = layers["convs.0.weight"]
    assert (conv.kind, conv.pixels, conv.positions) == ("product", 36 + 9, 36 + 9)
    assert layers["norms.0.weight"].kind == "rows"


def test_pointwise_and_windowed_uses_together():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(_random(3, 3, 1, 1))

        def forward(self, x):
            y = F.conv2d(x, self.w).tanh()
            return (F.conv2d(y, self.w, padding=1).tanh() + 1).pow(2).mean((2, 3))

    capture = check_capture(Model(), _random(2, 3, 3, 3))
    assert capture.layers[0].kind == "product" and capture.layers[0].window == 1


class _Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.linear = nn.Linear(4, 4)
        self.projection = nn.Linear(4, 7, bias=False)
        self.projection.weight = self.embedding.weight

    def forward(self, ids):
        return self.projection(self.linear(self.embedding(ids)).tanh()).mean(1)


def test_embedding_tied_to_projection():
    capture = check_capture(_Tied(), torch.tensor([[0, 1, 1], [2, 6, 1]]))
    layers = {layer.name: layer for layer in capture.layers}
    assert layers["embedding.weight"].kind == "rows" and not capture.generic


class _InPlace(nn.Module):
    """Activations and sums written over what the layers gave."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.norm = nn.BatchNorm2d(3)
        self.linear = nn.Linear(3, 3)
        self.gamma = nn.Parameter(torch.rand(3, 1, 1))

    def forward(self, x):
        x = F.relu(self.convs[0](x), inplace=True)
        y = self.norm(self.convs[1](x))
        y += x
        y.relu_()
        z = self.convs[2](y).mul_(self.gamma)
        z.add_(y)
        z *= 2
        return self.linear(F.elu(z, inplace=True).mean((2, 3)))


def test_in_place_operations():
    capture = check_capture(_InPlace(), torch.rand(2, 3, 5, 5, dtype=torch.float64))
    assert not capture.generic


class _Overwritten(nn.Module):
    """The input of a layer is written to after the call, which ordinary training does not allow."""

    def __init__(self, in_place):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.in_place = in_place

    def forward(self, x):
        x = self.layers[0](x)
        y = self.layers[1](x)
        x = x.add_(y) if self.in_place else x + y
        return self.layers[2](x.sin())


def test_input_overwritten_after_the_call():
    x = _random(3, 4)
    model, twin = _Overwritten(True).double(), _Overwritten(False).double()
    twin.load_state_dict(model.state_dict())
    check_capture(twin, x)
    for a, b in zip(*(Capture(Subject(m), "full", x)(x) for m in (model, twin)), strict=True):
        for key, value in vars(a).items():
            assert torch.equal(value, vars(b)[key])


class _Bare(nn.Module):
    """Class token, positions, a register put in without a batch dimension, LayerScale, PReLU, a learned temperature."""

    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Parameter(_random(1, 1, 4)), nn.Parameter(_random(1, 9, 4))
        self.registers = nn.Parameter(_random(2, 4))
        self.scale, self.temperature = nn.Parameter(_random(4)), nn.Parameter(_random(()))
        self.linear, self.prelu = nn.Linear(4, 4), nn.PReLU(4)
        self.direct = nn.Parameter(_random(3, 4))

    def forward(self, x):
        n, length = x.shape[:2]
        x = torch.cat([self.token.expand(n, -1, -1), x, self.registers.repeat(n, 1, 1)], 1)
        x = x + self.position[:, : length + 3]
        x = x + self.scale * self.prelu(self.linear(x).mT).mT
        x = F.normalize(x[:, 0], dim=-1)
        return (x @ F.normalize(self.direct, dim=-1).T) * self.temperature.exp()


def test_bare_parameters():
    capture = check_capture(_Bare(), _random(2, 5, 4), looped=True)
    assert set(capture.generic) == {"direct", "temperature"}


def test_parameters_that_are_not_used():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)
            self.dropped, self.bare = nn.Linear(4, 2), nn.Parameter(_random(2))

        def forward(self, x):
            self.dropped(x)
            with torch.no_grad():
                constant = self.idle(x)
            return self.used(x) + constant

    capture = check_capture(Model(), _random(2, 4))
    assert set(capture.unused) == {
        "idle.weight", "idle.bias", "dropped.weight", "dropped.bias", "bare",
    }  # fmt: skip


@pytest.mark.parametrize(
    "params", [["convs.1"], ["stem.weight", "linear.bias"], ["norms.0"]], ids=str
)
def test_subsets(params):
    capture = check_capture(_Reused(share=False), _random(2, 2, 8, 8), params=params)
    names = {name for layer in capture.layers for name in layer.parameters}
    assert all(any(name.startswith(p) for p in params) for name in names)


def test_frozen_parameters_are_constants():
    model = _Reused()
    for p in (*model.stem.parameters(), *model.linear.parameters()):
        p.requires_grad_(False)
    capture = check_capture(model, _random(2, 2, 8, 8))
    assert {layer.name.split(".")[0] for layer in capture.layers} == {"convs", "norms"}


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bound):
        ctx.save_for_backward(x, bound)
        return x.clamp(max=bound.item())

    @staticmethod
    def backward(ctx, g):
        x, bound = ctx.saved_tensors
        return g * (x < bound), (g * (x >= bound)).sum()


class _Clipped(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.bound = nn.Linear(4, 3), nn.Parameter(torch.tensor(0.2))

    def forward(self, x):
        return _Clip.apply(self.linear(x), self.bound)


def test_custom_function_goes_sample_by_sample():
    capture = check_capture(_Clipped(), _random(4, 4), looped=True)
    assert capture.generic == ("bound",) and not capture._generic.mapped


class _Half(torch.autograd.Function):
    """The gradient of the second output is given as None."""

    @staticmethod
    def forward(ctx, x, y):
        return x * 1, y * 1

    @staticmethod
    def backward(ctx, g, _):
        return g, None


def test_gradient_that_is_none():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            a, b = _Half.apply(self.first(x), self.second(self.third(x)))
            return a + b

    capture = check_capture(Model(), _random(3, 4), looped=True)
    assert all("first" not in name for name in capture.unused)


def test_recurrent_layer_goes_sample_by_sample():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.linear = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.linear(self.rnn(x)[0][:, -1])

    capture = check_capture(Model(), _random(3, 4, 3), looped=True)
    assert set(capture.generic) == {name for name, _ in Model().rnn.named_parameters("rnn")}


def test_reparametrised_weights():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrizations.spectral_norm(model[2])
    capture = check_capture(model, _random(3, 4), looped=True)
    assert capture._generic.mapped and set(capture.generic) == {
        "0.parametrizations.weight.original0", "0.parametrizations.weight.original1",
        "2.parametrizations.weight.original",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted_submodule():
    inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double()
    model = nn.Sequential(torch.jit.script(inner), nn.Linear(4, 3))
    capture = check_capture(model, _random(3, 4), looped=True)
    assert set(capture.generic) == {"0.0.weight", "0.0.bias"}


def test_samples_run_one_by_one():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.second(torch.cat([self.first(one[None]).tanh() for one in x]))

    capture = check_capture(Model(), _random(3, 4), looped=True)
    assert set(capture.generic) == {"first.weight", "first.bias"}
