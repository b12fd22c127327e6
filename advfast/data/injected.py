"""Images with a feature of their class added: easy to learn, linearly separable, and as robust as it is strong.

The data of "Catastrophic overfitting can be induced with discriminative non-robust features" (Ortiz-Jimenez, de Jorge
et al., TMLR 2023, arXiv 2206.08242), for any number of classes and any size of image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from advfast.kernels.pgd.api import nearest

from .sources import Source, TensorSource, check_labels, is_source

COSINES = ((0, 1), (1, 0), (1, 1), (2, 1), (1, 2))
"""(row, column) frequency of the published carriers of classes 0 to 4; classes 5 to 9 have the negatives."""

KINDS = ("injected", "orthogonal", "reverse", "carrier-only", "original")


def carriers(classes: int, shape: Sequence[int], *, paired: bool | None = None) -> Tensor:
    """V: for each class the signs of one cosine of the two-dimensional DCT-II, the same in every channel.

    V_k[c, i, j] = sign(cos((2i + 1) r pi / 2H) cos((2j + 1) s pi / 2W)), (r, s) the frequency of class k. Where the
    cosine is exactly 0, that is where it changes its sign in the centre of a pixel (of 8 or 32 pixels never; of 7, in
    the middle of the first frequency), the pixel has the sign of those before it. So there are no zeros.

    Ten classes have the published frequencies, five and their negatives: V_{c+5} = -V_c. For another number they are
    those of a zig-zag from the lowest up, without the constant.

    Args:
        classes: K, 2 or more.
        shape: (C, H, W) of an image.
        paired: whether the second half of the classes has the negatives of the first half, which K must be even for;
            None: for ten classes alone. False is one frequency a class.

    Returns:
        [K, C, H, W] float32, of -1 and 1.

    Raises:
        ValueError: the images have too few frequencies for so many classes; an odd number of classes in pairs.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be (C, H, W), got {tuple(shape)}")
    if classes < 2:
        raise ValueError(f"classes must be 2 or more, got {classes}")
    paired = classes == 10 if paired is None else paired
    if paired and classes % 2:
        raise ValueError(f"paired carriers need an even number of classes, got {classes}")
    channels, height, width = shape
    wanted = classes // 2 if paired else classes
    found = list(COSINES) if paired and classes == 10 else _zigzag(height, width, wanted)
    if len(found) < wanted or any(r >= height or c >= width for r, c in found):
        raise ValueError(
            f"images of {height} x {width} pixels have too few cosines for {classes} classes: larger ones are needed"
        )
    waves = torch.stack([torch.outer(_signs(r, height), _signs(c, width)) for r, c in found])
    waves = torch.cat((waves, -waves)) if paired else waves
    return waves[:, None].repeat(1, channels, 1, 1)


def inject(
    data: tuple[Tensor, Tensor] | Source,
    beta: float,
    kind: str = "injected",
    *,
    carrier: Tensor | None = None,
    clip: bool = False,
) -> tuple[Tensor, Tensor]:
    """x + beta V_y, or one of the sets that it is told apart from; made once, for training and test images alike.

    * "injected": x + beta V_y.
    * "orthogonal": x - P x + beta V_y, P the projection onto the span of V, so that the images themselves have no part
      in the directions of the features.
    * "reverse": x - beta V_y.
    * "carrier-only": beta V_c of each class c, and nothing else: K images.
    * "original": x.

    Pixels leave [0, 1] by up to beta. Every two carriers differ by 2 beta in some pixel, so that the feature alone is
    robust to a perturbation of eps in linf if and only if beta > eps.

    Args:
        data: images [N, C, H, W], floating point, and labels [N]; or a Source, which is read whole.
        beta: amplitude, 0 or more, in pixel units of [0, 1] (4/255, not 4).
        kind: one of those.
        carrier: V [K, C, H, W]; None makes `carriers` for as many classes as the labels have. Give it where the labels
            at hand may lack some.
        clip: cuts the images at 0 and 1, which takes part of the feature away where they are dark or bright. The
            publication does not.

    Returns:
        images and labels, new tensors.

    Raises:
        ValueError, TypeError: an argument out of range; labels without a carrier; images of another shape.
    """
    if kind not in KINDS:
        raise ValueError(
            f"kind must be one of {', '.join(KINDS)}, got {kind!r}{nearest(kind, KINDS)}"
        )
    check_beta(beta)
    images, labels = _tensors(data)
    if carrier is None:
        carrier = carriers(max(int(labels.max()) + 1, 2), images.shape[1:])
    if carrier.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"the carrier is of images {tuple(carrier.shape[1:])}, the data have {tuple(images.shape[1:])}"
        )
    if int(labels.max()) >= len(carrier):
        raise ValueError(
            f"label {int(labels.max())} has no carrier: there are {len(carrier)} classes"
        )
    carrier = carrier.to(images)
    if kind == "carrier-only":
        made, labels = beta * carrier, torch.arange(len(carrier), device=labels.device)
    elif kind == "original":
        made = images.clone()
    elif kind == "reverse":
        made = images - beta * carrier[labels]
    else:
        rest = without(images, carrier) if kind == "orthogonal" else images
        made = rest + beta * carrier[labels]
    return made.clamp(0, 1) if clip else made, labels.clone()


def without(images: Tensor, carrier: Tensor) -> Tensor:
    """x - P x, P the orthogonal projection onto the span of the carriers.

    The carriers of ten classes have rank 5. So the basis is from a singular value decomposition, of the directions
    whose singular value is more than rounding: a QR decomposition would complete it by five arbitrary directions, and
    take those out of the images too.

    Args:
        images: [N, C, H, W].
        carrier: [K, C, H, W].
    """
    rows = carrier.flatten(1).double()
    _, values, directions = torch.linalg.svd(rows, full_matrices=False)
    least = max(rows.shape) * torch.finfo(rows.dtype).eps * values[0]
    basis = directions[values > least]
    flat = images.flatten(1).double()
    return (flat - flat @ basis.T @ basis).to(images.dtype).view_as(images)


def check_beta(beta: float) -> None:
    """
    Raises:
        ValueError: not a number from 0 to 1.
    """
    if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 <= beta <= 1:
        raise ValueError(
            f"beta must be from 0 to 1, in pixel units of [0, 1] (4/255, not 4), got {beta!r}"
        )


def _tensors(data: tuple[Tensor, Tensor] | Source) -> tuple[Tensor, Tensor]:
    if is_source(data):
        return data.batch(torch.arange(len(data)))  # type: ignore[union-attr]
    images, labels = data  # type: ignore[misc]
    if images.dtype == torch.uint8:
        return TensorSource(images, labels).batch(torch.arange(len(labels)))
    if images.dim() != 4 or not images.is_floating_point() or labels.shape != images.shape[:1]:
        raise ValueError(
            f"data must be images [N, C, H, W] and a label for each, got {tuple(images.shape)} {images.dtype} and "
            f"{tuple(labels.shape)}"
        )
    check_labels(labels)
    return images, labels


def _zigzag(height: int, width: int, count: int) -> list[tuple[int, int]]:
    """The first (row, column) frequencies by diagonals, to and fro, without (0, 0)."""
    found = [
        (r, c)
        for total in range(1, height + width - 1)
        # Odd diagonals begin at the top, even ones on the left.
        for r in (range(total + 1) if total % 2 else range(total, -1, -1))
        if (c := total - r) < width and r < height
    ]
    return found[:count]


def _signs(frequency: int, size: int) -> Tensor:
    """sign(cos((2i + 1) f pi / 2n)) of i = 0 .. n - 1, in integers, as a rounded cosine has signs where it is 0."""
    # The angle in units of pi / 2n, of 4n in a turn; 0 at n and at 3n.
    angle = ((2 * torch.arange(size) + 1) * frequency) % (4 * size)
    positive = (angle <= size) | (angle > 3 * size)
    return torch.where(positive, 1.0, -1.0)
