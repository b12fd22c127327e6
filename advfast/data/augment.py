"""Random changes of training images: on the device, the whole batch at once, parameters drawn for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advfast.kernels.pgd.api import nearest

from . import randomness

NAMES = ("crop", "crop-reflect", "flip", "cutout", "random-resized-crop")
"""As they are written in `augment`; all but "flip" take a number of pixels behind a colon."""


class Augmentation(Protocol):
    purpose: ClassVar[int]
    """Of its generator."""

    parameters: ClassVar[int]
    """Integers that it draws for a sample."""

    def draw(self, random: np.random.Generator, samples: int, shape: tuple[int, ...]) -> np.ndarray:
        """[samples, parameters] small integers for images of `shape` (C, H, W)."""
        ...

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """images [B, C, H, W] of any dtype, drawn [B, parameters] int64 -> [B, C, H, W]."""
        ...

    @property
    def margin(self) -> int:
        """Pixels that it adds on each side before it cuts them off again."""
        ...

    def moved(self, images: Tensor, drawn: Tensor) -> Tensor:
        """What it does to the places of pixels: images with the margin -> without."""
        ...


@dataclass(frozen=True)
class Crop:
    """A window of the image's size at a random place of the padded image.

    Args:
        padding: pixels on each side.
        reflect: pad with the mirrored image (Rice et al., ICML 2020), else with zeros.
    """

    padding: int
    reflect: bool = False
    purpose: ClassVar[int] = randomness.CROP
    parameters: ClassVar[int] = 2

    def draw(self, random: np.random.Generator, samples: int, shape: tuple[int, ...]) -> np.ndarray:
        return random.integers(0, 2 * self.padding + 1, (samples, 2))

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        height, width = images.shape[2:]
        pad = self.padding
        if self.reflect:
            for axis, side in ((2, height), (3, width)):
                place = torch.arange(-pad, side + pad, device=images.device).abs()
                place = side - 1 - (side - 1 - place).abs()
                images = images.index_select(axis, place)
        else:
            images = F.pad(images, (pad, pad, pad, pad))
        return self.moved(images, drawn)

    @property
    def margin(self) -> int:
        return self.padding

    def moved(self, images: Tensor, drawn: Tensor) -> Tensor:
        height, width = (side - 2 * self.padding for side in images.shape[2:])
        windows = images.unfold(2, height, 1).unfold(3, width, 1)  # a view: every window
        samples = torch.arange(len(images), device=images.device)
        return windows[samples, :, drawn[:, 0], drawn[:, 1]]


@dataclass(frozen=True)
class Flip:
    """Left and right swapped in half of the images."""

    purpose: ClassVar[int] = randomness.FLIP
    parameters: ClassVar[int] = 1

    def draw(self, random: np.random.Generator, samples: int, shape: tuple[int, ...]) -> np.ndarray:
        return random.integers(0, 2, (samples, 1))

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        column = torch.arange(images.shape[3], device=images.device)
        columns = torch.where(drawn == 1, column.flip(0), column)  # [B, W]
        return images.gather(3, columns[:, None, None, :].expand_as(images))

    margin = 0
    moved = __call__


@dataclass(frozen=True)
class Cutout:
    """A square of zeros with its centre anywhere in the image, clipped at the border (DeVries & Taylor 2017).

    Args:
        side: of the square in pixels.
    """

    side: int
    purpose: ClassVar[int] = randomness.CUTOUT
    parameters: ClassVar[int] = 2

    def draw(self, random: np.random.Generator, samples: int, shape: tuple[int, ...]) -> np.ndarray:
        return random.integers(0, shape[1:], (samples, 2))

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        inside = []
        for axis in (0, 1):
            place = torch.arange(images.shape[2 + axis], device=images.device)
            first = drawn[:, axis, None] - self.side // 2
            inside.append((place >= first) & (place < first + self.side))  # [B, H], [B, W]
        return images.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0)

    margin = 0

    def moved(self, images: Tensor, drawn: Tensor) -> Tensor:
        return images


@dataclass(frozen=True)
class Pipeline:
    """The augmentations of a run, in order.

    Args:
        steps: on the device.
        shape: (C, H, W) of the images they see.
        decode_side: side of a random resized crop while a file is decoded, before the steps; None for none.
    """

    steps: tuple[Augmentation, ...]
    shape: tuple[int, ...]
    decode_side: int | None = None

    def draw(self, seed: int, epoch: int, samples: int) -> Tensor:
        """[samples, parameters] int16, on the CPU: what happens to each sample in an epoch, by sample number."""
        columns = [
            step.draw(randomness.generator(seed, epoch, step.purpose), samples, self.shape)
            for step in self.steps
        ]
        columns.append(np.empty((samples, 0), dtype=np.int64))  # of no steps, no parameters
        return torch.from_numpy(np.concatenate(columns, axis=1).astype(np.int16))

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """
        Args:
            images: [B, C, H, W].
            drawn: the rows of `draw` of these samples, on their device.
        """
        drawn, first = drawn.long(), 0
        for step in self.steps:
            images = step(images, drawn[:, first : first + step.parameters])
            first += step.parameters
        return images

    @property
    def canvas(self) -> tuple[int, int]:
        """(H, W) of an image with the margin of its crop, in which `places` counts."""
        margin = sum(step.margin for step in self.steps)
        return self.shape[1] + 2 * margin, self.shape[2] + 2 * margin

    def places(self, drawn: Tensor) -> Tensor:
        """Where each pixel of an augmented image was: what a perturbation of it needs to be put back.

        Args:
            drawn: [B, parameters], as for the call.

        Returns:
            [B, H, W] int64, places on the `canvas`, row by row; no two pixels of a sample have the same.
        """
        drawn, first = drawn.long(), 0
        height, width = self.canvas
        cells = torch.arange(height * width, device=drawn.device).view(1, 1, height, width)
        places = cells.expand(len(drawn), -1, -1, -1)
        for step in self.steps:
            places = step.moved(places, drawn[:, first : first + step.parameters])
            first += step.parameters
        return places[:, 0]


def parse(names: Sequence[str] | str, shape: tuple[int, ...]) -> Pipeline:
    """Augmentations by name.

    "crop" pads with side // 8 zeros (4 for 32x32), "crop:4" with 4; "crop-reflect" and "crop-reflect:4" mirror; "flip";
    "cutout" cuts half the side, "cutout:16" 16 pixels; "random-resized-crop:224" crops and scales while an image file
    is decoded (Szegedy et al. 2015: area 8 to 100 %, ratio 3/4 to 4/3).

    Args:
        names: in the order in which they are applied; one string may hold several, with commas.
        shape: (C, H, W) of the images.

    Raises:
        TypeError, ValueError: unknown name, bad number, a kind given twice, images without height and width.
    """
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",") if name.strip()]
    steps: list[Augmentation] = []
    decode_side = None
    seen: set[str] = set()
    for text in names:
        if not isinstance(text, str):
            raise TypeError(f"augment must hold strings such as 'crop', got {text!r}")
        if len(shape) != 3:
            raise ValueError(f"augment {text!r} needs images (C, H, W), the data have {shape}")
        kind, number = _split(text)
        group = kind.removesuffix("-reflect")
        if group in seen:
            raise ValueError(f"augment names {group!r} twice: {', '.join(names)}")
        seen.add(group)
        side = min(shape[1:])
        if group == "crop":
            padding = max(side // 8, 1) if number is None else number
            if kind == "crop-reflect" and padding >= side:
                raise ValueError(
                    f"augment {text!r}: an image of {shape[1]}x{shape[2]} can be mirrored by at "
                    f"most {side - 1} pixels, got {padding}"
                )
            steps.append(Crop(padding, reflect=kind == "crop-reflect"))
        elif kind == "flip":
            steps.append(Flip())
        elif kind == "cutout":
            steps.append(Cutout(max(side // 2, 1) if number is None else number))
        else:
            if number is None:
                raise ValueError(f"augment {text!r} needs a side in pixels: '{kind}:224'")
            if steps:
                raise ValueError(f"augment {text!r} happens while decoding: it must come first")
            decode_side, shape = number, (shape[0], number, number)
    return Pipeline(tuple(steps), tuple(shape), decode_side)


def _split(text: str) -> tuple[str, int | None]:
    kind, colon, number = text.strip().lower().partition(":")
    if kind not in NAMES:
        raise ValueError(
            f"unknown augmentation {text!r}; expected {', '.join(NAMES)}{nearest(kind, NAMES)}"
        )
    if not colon:
        return kind, None
    if kind == "flip":
        raise ValueError(f"augment {text!r}: 'flip' takes no number")
    if not number.isascii() or not number.isdigit() or not 1 <= int(number) < 2**14:
        raise ValueError(
            f"augment {text!r}: expected a whole number of pixels from 1 to {2**14 - 1}, such as "
            f"'{kind}:4', got {number!r}"
        )
    return kind, int(number)
