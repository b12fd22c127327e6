"""Small networks for the tests of the engine."""

import torch
from torch import nn


class Residual(nn.Module):
    """Two convolutions with BN beside a shortcut, in-place ReLUs."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return self.relu(y)


def settled(model):
    """BN as after training: statistics and weights that are not 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


def resnet(outputs=3):
    return settled(
        nn.Sequential(
            nn.Conv2d(2, 6, 3, 1, 1),
            nn.ReLU(inplace=True),
            Residual(6, 6, 1),
            Residual(6, 8, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, outputs),
        )
    )


def mlp(outputs=3):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(72, 11),
        nn.Tanh(),
        nn.Linear(11, 9),
        nn.ReLU(),
        nn.Linear(9, outputs),
    )


class Attention(nn.Module):
    """Patches, positions, one attention block with layer norms, a linear head."""

    def __init__(self, outputs=3, width=8):
        super().__init__()
        self.embed = nn.Conv2d(2, width, 2, 2)
        self.position = nn.Parameter(torch.randn(1, 9, width) * 0.3)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.scale = nn.Parameter(torch.full((width,), 0.7))
        self.head = nn.Linear(width, outputs)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        y = self.norm(x)
        x = x + self.scale * self.attention(y, y, y, need_weights=False)[0]
        return self.head(x.mean(1))


NETWORKS = {"mlp": mlp, "resnet": resnet, "attention": Attention}


def images(n, seed=0, dtype=torch.float64):
    return torch.rand(n, 2, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=dtype)
