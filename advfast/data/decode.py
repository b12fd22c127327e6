"""Image files to bytes, with Pillow, which is optional."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from math import exp, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

GREY_MODES = ("1", "L", "LA")
_WIDE_MODES = ("I", "F")  # 16 bits or more: converting to 8 would clip, not scale

_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
_TRIES = 10


def pillow() -> Any:
    """PIL.Image.

    Raises:
        ImportError: Pillow is not installed; says how to install it.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            'image folders need Pillow, which is not installed: pip install "advfast[images]"'
        ) from error
    return Image


def header(path: str | Path) -> tuple[str, tuple[int, int]]:
    """(mode, (height, width)) without decoding the pixels.

    Raises:
        ValueError: not an image; names the file.
    """
    with _opened(path) as image:
        return image.mode, (image.height, image.width)


def decode(
    path: str | Path,
    channels: int,
    *,
    size: int | None = None,
    shorter_side: int | None = None,
    crop_key: int | None = None,
) -> Tensor:
    """An image file as bytes.

    Args:
        path: any format of Pillow, 8 bits a channel; only the first frame of an animation.
        channels: 1 (grey) or 3 (red, green, blue).
        size: side of the square that is returned; None keeps the image's size.
        shorter_side: the shorter side is scaled to this before the centre is cut out; None is `size`.
        crop_key: draws a random resized crop (Szegedy et al. 2015) instead; the same key gives the same crop.

    Returns:
        [channels, H, W] uint8.

    Raises:
        ValueError: damaged, more than 8 bits, or coloured where `channels` is 1; names the file.
    """
    image_module = pillow()
    with _opened(path) as image:
        if image.mode.startswith(_WIDE_MODES):
            raise ValueError(
                f"{path} has more than 8 bits a pixel (mode {image.mode}); convert it to 8 bits"
            )
        if channels == 1 and image.mode not in GREY_MODES:
            raise ValueError(
                f"{path} is a colour image (mode {image.mode}) in a folder of grey ones; convert it"
            )
        try:
            converted = image.convert("L" if channels == 1 else "RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} is a damaged image: {error}") from error
    if size is not None and crop_key is None:
        converted = _centre(converted, size, shorter_side or size, image_module)
    elif size is not None:
        box = _random_box(converted.width, converted.height, random.Random(crop_key))
        converted = converted.resize((size, size), image_module.Resampling.BILINEAR, box=box)
    values = np.asarray(converted, dtype=np.uint8).reshape(
        converted.height, converted.width, channels
    )
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


@contextmanager
def _opened(path: str | Path) -> Iterator[Image]:
    """
    Raises:
        ValueError: not an image that Pillow knows; names the file.
    """
    image_module = pillow()
    try:
        image = image_module.open(path)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
        raise ValueError(f"{path} is no image or a damaged one: {error}") from error
    with image:
        yield image


def _centre(image: Image, size: int, shorter_side: int, image_module: Any) -> Image:
    short = min(image.width, image.height)
    wide, high = (side * shorter_side // short for side in (image.width, image.height))
    scaled = image.resize((wide, high), image_module.Resampling.BILINEAR)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return scaled.crop((left, top, left + size, top + size))


def _random_box(width: int, height: int, draw: random.Random) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) within the image: area 8 to 100 %, ratio 3/4 to 4/3, uniform in its logarithm."""
    for _ in range(_TRIES):
        area = width * height * draw.uniform(*_AREA)
        ratio = exp(draw.uniform(log(_RATIO[0]), log(_RATIO[1])))
        wide, high = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < wide <= width and 0 < high <= height:
            left, top = draw.randint(0, width - wide), draw.randint(0, height - high)
            return left, top, left + wide, top + high
    # A long, narrow image: the largest part in its centre with a permitted ratio.
    wide = min(width, round(height * _RATIO[1]))
    high = min(height, round(width / _RATIO[0]))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high
