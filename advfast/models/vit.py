"""Vision transformer (Dosovitskiy et al., ICLR 2021) for small images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .normalise import input_layer


class EncoderBlock(nn.Module):
    """Pre-norm: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.projection = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp1 = nn.Linear(dim, hidden)
        self.mlp2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, tokens, dim / heads]
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.projection(mixed.transpose(1, 2).reshape(batch, tokens, dim))
        return x + self.mlp2(F.gelu(self.mlp1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Patches, learned positions, a class token, `depth` pre-norm blocks, a linear layer on the class token.

    No dropout and no stochastic depth. Initialisation as in DeiT: weights and positions from a normal of standard
    deviation 0.02 cut at two of them, biases zero.

    Args:
        in_shape: (C, H, W) of an image, sides that are multiples of `patch`.
        classes: number of logits.
        mean, std: of each channel, for the normalisation inside; None for 0 and 1.
        patch: side of a patch in pixels.
        dim: values of a token, a multiple of `heads`.
        depth: number of blocks.
        heads: attention heads of a block.
        mlp_ratio: hidden values of the MLP, as a multiple of `dim`.

    Raises:
        ValueError: impossible shape, number of classes or option.
    """

    def __init__(
        self,
        in_shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        patch: int = 4,
        dim: int = 192,
        depth: int = 12,
        heads: int = 3,
        mlp_ratio: int = 4,
    ) -> None:
        super().__init__()
        for name, count in (("patch", patch), ("dim", dim), ("depth", depth), ("heads", heads)):
            if count < 1:
                raise ValueError(f"{name} must be 1 or more, got {count}")
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads = {heads}, got {dim}")
        self.normalise = input_layer(in_shape, classes, mean, std, multiple=patch)
        channels, height, width = in_shape
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        tokens = (height // patch) * (width // patch) + 1
        self.positions = nn.Parameter(torch.zeros(1, tokens, dim))
        self.blocks = nn.Sequential(
            *(EncoderBlock(dim, heads, mlp_ratio * dim) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.linear = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.token, std=0.02, a=-0.04, b=0.04)
        nn.init.trunc_normal_(self.positions, std=0.02, a=-0.04, b=0.04)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in [0, 1] -> logits [B, classes]."""
        x = self.patches(self.normalise(x)).flatten(2).transpose(1, 2)  # [B, tokens, dim]
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.linear(self.norm(self.blocks(x))[:, 0])


def vit_tiny(
    in_shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    *,
    patch: int = 4,
) -> VisionTransformer:
    """The size of DeiT-Ti: dim 192, depth 12, 3 heads; 5.4 million parameters."""
    return VisionTransformer(in_shape, classes, mean, std, patch=patch)


def vit_small(
    in_shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    *,
    patch: int = 4,
) -> VisionTransformer:
    """The size of DeiT-S: dim 384, depth 12, 6 heads; 21 million parameters."""
    return VisionTransformer(in_shape, classes, mean, std, patch=patch, dim=384, heads=6)
