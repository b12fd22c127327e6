"""A low-pass filter as a layer, so that attacks are differentiated through it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class LowPass(nn.Module):
    """Keeps the coefficients of the two-dimensional DCT-II whose row and column are both below `bandwidth`.

    Y = A_H X A_W of each channel, A_n = D^T diag(i < bandwidth) D the projection [n, n] and D the orthonormal DCT-II:
    the last two axes are filtered, batch and channels are not. Of the low-pass study of Ortiz-Jimenez et al. (TMLR
    2023).

    Args:
        height, width: H and W of the images.
        bandwidth: frequencies that stay in each direction, 1 or more; from max(H, W) on, all.

    Attributes:
        enabled: False passes images through as they are; see `filters_off`.

    Raises:
        ValueError: not such numbers.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, height: int, width: int, bandwidth: int) -> None:
        super().__init__()
        if isinstance(bandwidth, bool) or not isinstance(bandwidth, int) or bandwidth < 1:
            raise ValueError(f"bandwidth must be an integer >= 1, got {bandwidth!r}")
        self.bandwidth = bandwidth
        self.enabled = True
        for name, size in (("rows", height), ("columns", width)):
            kept = dct(size)[:bandwidth]
            self.register_buffer(name, (kept.T @ kept).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W], which a batch of one keeps."""
        if not self.enabled:
            return x
        # In 16 bits the filter would be one of its own.
        with torch.autocast(x.device.type, enabled=False):
            return self.rows.to(x.dtype) @ x @ self.columns.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.rows)}, {len(self.columns)}, bandwidth={self.bandwidth}"


def dct(size: int) -> Tensor:
    """The orthonormal DCT-II, [n, n] float64: row k is sqrt(2 / n) cos((2i + 1) k pi / 2n), the first over sqrt(2)."""
    place = (2 * torch.arange(size, dtype=torch.float64) + 1) * math.pi / (2 * size)
    waves = torch.outer(torch.arange(size, dtype=torch.float64), place).cos()
    waves *= math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    return waves


@contextmanager
def filters_off(model: nn.Module) -> Iterator[None]:
    """Within, every `LowPass` in the model passes images through.

    Raises:
        ValueError: the model has none, so that nothing would be switched off.
    """
    filters = [module for module in model.modules() if isinstance(module, LowPass)]
    if not filters:
        raise ValueError("the model has no LowPass layer to switch off")
    before = [module.enabled for module in filters]
    try:
        for module in filters:
            module.enabled = False
        yield
    finally:
        for module, value in zip(filters, before, strict=True):
            module.enabled = value
