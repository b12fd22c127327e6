"""The definition, in plain torch: int64 arithmetic that wraps around.

Values are read as unsigned numbers, -0.0 as 0.0. Two neighbours make a 64-bit word (the first one its low half; a
float64 is a word by itself), zero stands behind the last of an odd number. The hash is
mix(D + sum over k of mix(word k + (k + 1) * STRIDE)), with the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA
2014) and everything modulo 2^64: terms may be added in any order.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(number: int) -> int:
    """The int64 with the bits of this uint64."""
    return number - (1 << 64) if number >> 63 else number


STRIDE = _signed(0x9E3779B97F4A7C15)
FIRST, SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _shifted(z: Tensor, by: int) -> Tensor:
    """z >> by, zeros coming in."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def mix(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * FIRST
    z = (z ^ _shifted(z, 27)) * SECOND
    return z ^ _shifted(z, 31)


def row_hash(x: Tensor) -> Tensor:
    rows, dim = x.shape[0], x.shape[1:].numel()
    width = x.element_size()
    flat = x.as_strided((rows, dim), (dim, 1)).view(_INTEGERS[width])
    words = torch.where(flat == torch.iinfo(flat.dtype).min, 0, flat).to(torch.int64)
    if width < 8:
        words = words & ((1 << 8 * width) - 1)
        pairs = torch.nn.functional.pad(words, (0, dim % 2)).view(rows, (dim + 1) // 2, 2)
        words = pairs[..., 0] | (pairs[..., 1] << 32)
    places = torch.arange(1, words.shape[1] + 1, device=x.device) * STRIDE
    return mix(mix(words + places).sum(1) + dim)
