"""Small networks with everything that a user may do in a forward, for which the engine must never be wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def settle(model: nn.Module, shape: tuple[int, ...], seed: int = 0) -> nn.Module:
    """Running statistics and affine parameters that are not those of the start, then eval mode."""
    generator = torch.Generator().manual_seed(seed)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(shape, generator=generator))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.weight is not None:
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.3, 0.3, generator=generator)
    return model.eval()


class Head(nn.Module):
    """body(x), then pooling and a linear layer."""

    def __init__(self, body: nn.Module, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.body, self.linear = body, nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.body(x).mean((2, 3)))


class Residual(nn.Module):
    """The first convolution's input is the second operand of the sum, and dies there."""

    def __init__(self, after: str = "relu") -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.bn(self.conv(x))
        return F.relu(x) if self.after == "relu" else x


class ReadThrice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.bn(self.a(x)).relu() + self.b(x) + x + x


class InPlace(nn.Module):
    """In-place operations as torchvision's networks use them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu, self.silu = nn.ReLU(inplace=True), nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(x))
        out += x
        out = self.silu(out)
        out *= 2
        return self.relu(out)


class Overwritten(nn.Module):
    """Reads a tensor after it was overwritten: as a graph without side effects it would mean something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = F.relu(x, inplace=True)
        return y + x


class OverwrittenView(Overwritten):
    """The same through another name for the memory."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = x.view(x.size(0), -1)
        F.relu_(y)
        return x * 2


class Shared(nn.Module):
    """One convolution and one BN layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = self.bn(self.conv(x)).relu()
        return x


class Dense(nn.Module):
    """Concatenation: DenseNet's pre-activation layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * index) for index in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * index, 4, 3, padding=1) for index in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return x


class Squeeze(nn.Module):
    """A squeeze-and-excitation block: a product of two values that depend on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x)).relu()
        return x * torch.sigmoid(self.up(self.down(self.pool(x)).relu()))


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, then LayerNorm and an MLP over the channels as the last axis, a factor a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


class Functional(nn.Module):
    """torch.nn.functional with the module's own tensors, a normalisation and a factor that broadcasts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3) / 5)
        self.bias = nn.Parameter(torch.randn(8) / 5)
        self.gamma, self.beta = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.randn(8))
        self.register_buffer("running_mean", torch.randn(8) / 5)
        self.register_buffer("running_var", torch.rand(8) + 0.5)
        self.register_buffer("mean", torch.rand(3, 1, 1))
        self.register_buffer("std", torch.rand(3, 1, 1) + 0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean).div(self.std)
        x = F.conv2d(x, self.weight, self.bias, stride=2, padding=1)
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.gamma, self.beta, self.training
        )
        return 0.5 * F.relu(x) / 3 - 0.1 + self.beta[:, None, None]


class Standardised(nn.Conv2d):
    """Weight standardisation: a convolution of another class, with its own forward."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / std, self.bias, self.stride, self.padding)


class Branching(nn.Module):
    """Control flow on values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x.relu() if x.mean() > 0 else x.tanh()


class Noisy(nn.Module):
    """A random defence."""

    def __init__(self, made: str) -> None:
        super().__init__()
        self.conv, self.made = nn.Conv2d(3, 8, 3, padding=1), made

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        noise = torch.randn_like(x) if self.made == "like" else torch.randn(8, 1, 1)
        return x + noise


class Counting(nn.Module):
    """Changes itself while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.calls = nn.Conv2d(3, 8, 3, padding=1), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x)


def conv_bn(*args, **kwargs) -> nn.Sequential:
    conv = nn.Conv2d(*args, **kwargs)
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())


def bodies() -> dict[str, nn.Module]:
    """Name -> module from [B, 3, H, W] to [B, C, h, w]."""
    torch.manual_seed(0)
    return {
        "residual": Residual(),
        "residual-bare": Residual("none"),
        "read-thrice": ReadThrice(),
        "in-place": InPlace(),
        "overwritten": Overwritten(),
        "overwritten-view": OverwrittenView(),
        "shared": Shared(),
        "dense": Dense(),
        "squeeze": Squeeze(),
        "convnext": nn.Sequential(nn.Conv2d(3, 8, 2, stride=2), ConvNeXtBlock(8), ConvNeXtBlock(8)),
        "functional": Functional(),
        "standardised": Standardised(3, 8, 3, padding=1),
        "branching": Branching(),
        "counting": Counting(),
        "strided": conv_bn(3, 8, 3, stride=2, padding=1),
        "uneven": conv_bn(3, 8, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
        "same": nn.Sequential(conv_bn(3, 6, 3, padding="same"), conv_bn(6, 6, (5, 1), padding="same")),
        "grouped": nn.Sequential(conv_bn(3, 6, 3, groups=3), conv_bn(6, 8, 1), conv_bn(8, 8, 3, groups=8)),
        "reflect": conv_bn(3, 8, 3, padding=1, padding_mode="reflect"),
        "transposed": nn.Sequential(nn.ConvTranspose2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
        "max-pool": nn.Sequential(conv_bn(3, 8, 3, padding=1), nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
        "avg-pool": nn.Sequential(conv_bn(3, 8, 3, padding=1), nn.AvgPool2d(3, 2, 1), nn.Conv2d(8, 8, 1)),
        "adaptive": nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d((2, 3))),
        "pre-activation": nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)),
        "bn-only": nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.ReLU(), nn.ReLU()),
        "bn-plain": nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)),
        "bn-batch": nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)),
        "group-norm": nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.GELU(), nn.Conv2d(8, 4, 1)),
        "instance-norm": nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ELU()),
        "dropout": nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout2d(0.5), nn.ReLU(), nn.Identity()),
        "shuffle": nn.Sequential(nn.Conv2d(3, 8, 3), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(2, 4, 3)),
        "parametrised": nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8), nn.ReLU()
        ),
        "spectral": nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)), nn.LeakyReLU(0.1)
        ),
    }  # fmt: skip
