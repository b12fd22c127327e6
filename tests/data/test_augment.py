import numpy as np
import pytest
import torch

from advfast.data import augment, randomness
from advfast.data.augment import Crop, Cutout, Flip, parse


def slow_crop(image, padding, top, left, mode):
    """One image [C, H, W], the plain way."""
    widths = ((0, 0), (padding, padding), (padding, padding))
    padded = np.pad(image.numpy(), widths, mode=mode)
    height, width = image.shape[1:]
    return torch.from_numpy(padded[:, top : top + height, left : left + width].copy())


def slow_cutout(image, side, row, column):
    cut = image.clone()
    for y in range(row - side // 2, row - side // 2 + side):
        for x in range(column - side // 2, column - side // 2 + side):
            if 0 <= y < image.shape[1] and 0 <= x < image.shape[2]:
                cut[:, y, x] = 0
    return cut


SHAPES = [(1, 8, 8), (3, 9, 6)]
DTYPES = [torch.uint8, torch.float32]


def images_of(shape, dtype, count=40):
    images = torch.randint(1, 256, (count, *shape), dtype=torch.uint8)
    return images if dtype == torch.uint8 else images.float() / 255


def drawn_by(step, count, shape):
    return torch.from_numpy(step.draw(randomness.generator(3, 1, step.purpose), count, shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("padding", "reflect"), [(1, False), (4, False), (11, False), (1, True), (5, True)]
)
def test_crop_is_the_plain_one(shape, dtype, padding, reflect):
    images = images_of(shape, dtype)
    step = Crop(padding, reflect)
    drawn = drawn_by(step, len(images), shape)
    mode = "reflect" if reflect else "constant"
    for image, offsets, got in zip(images, drawn.tolist(), step(images, drawn), strict=True):
        assert torch.equal(got, slow_crop(image, padding, *offsets, mode))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_flip_is_the_plain_one(shape, dtype):
    images = images_of(shape, dtype)
    drawn = drawn_by(Flip(), len(images), shape)
    assert set(drawn.flatten().tolist()) == {0, 1}
    for image, (flipped,), got in zip(images, drawn.tolist(), Flip()(images, drawn), strict=True):
        assert torch.equal(got, image.flip(2) if flipped else image)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [1, 3, 4, 30])
def test_cutout_is_the_plain_one(shape, dtype, side):
    images = images_of(shape, dtype)
    before = images.clone()
    drawn = drawn_by(Cutout(side), len(images), shape)
    got = Cutout(side)(images, drawn)
    assert got.dtype == dtype
    assert torch.equal(images, before)
    for image, centre, cut in zip(images, drawn.tolist(), got, strict=True):
        assert torch.equal(cut, slow_cutout(image, side, *centre))


def test_every_outcome_is_as_likely():
    count, shape = 40_000, (1, 8, 6)
    for step, outcomes in ((Crop(2), [5, 5]), (Flip(), [2]), (Cutout(3), [8, 6])):
        drawn = drawn_by(step, count, shape)
        for column, kinds in enumerate(outcomes):
            counts = drawn[:, column].bincount()
            assert len(counts) == kinds
            # Six standard deviations of a binomial count.
            expected, spread = count / kinds, (count / kinds * (1 - 1 / kinds)) ** 0.5
            assert (counts - expected).abs().max() < 6 * spread
        if len(outcomes) == 2:  # and the two axes do not depend on each other
            pairs = (drawn[:, 0] * outcomes[1] + drawn[:, 1]).bincount()
            expected = count / (outcomes[0] * outcomes[1])
            assert (pairs - expected).abs().max() < 6 * expected**0.5


def test_pipeline_applies_in_order_with_each_samples_own_numbers():
    shape = (3, 16, 16)
    images = images_of(shape, torch.uint8, 30)
    pipeline = parse(["crop:3", "flip", "cutout:5"], shape)
    drawn = pipeline.draw(7, 2, 30)
    assert drawn.dtype == torch.int16
    assert drawn.shape == (30, 5)
    got = pipeline(images, drawn)
    for image, (top, left, flipped, row, column), one in zip(
        images, drawn.tolist(), got, strict=True
    ):
        plain = slow_crop(image, 3, top, left, "constant")
        plain = plain.flip(2) if flipped else plain
        assert torch.equal(one, slow_cutout(plain, 5, row, column))
    # A part of the samples, in another order: the same images.
    chosen = torch.tensor([4, 29, 0])
    assert torch.equal(pipeline(images[chosen], drawn[chosen]), got[chosen])


def test_what_is_drawn_depends_on_seed_and_epoch_and_not_on_the_other_augmentations():
    shape = (3, 32, 32)
    crops = parse("crop", shape)
    assert torch.equal(crops.draw(1, 1, 99), crops.draw(1, 1, 99))
    assert not torch.equal(crops.draw(1, 1, 99), crops.draw(1, 2, 99))
    assert not torch.equal(crops.draw(1, 2, 99), crops.draw(2, 1, 99))
    both = parse("flip, crop", shape).draw(1, 1, 99)
    assert torch.equal(both[:, 1:], crops.draw(1, 1, 99))


def test_names():
    assert parse((), (1, 8, 8)).steps == ()
    assert parse("", (5,)).steps == ()
    assert parse(["crop"], (3, 32, 32)).steps == (Crop(4),)
    assert parse(["crop"], (1, 28, 28)).steps == (Crop(3),)
    assert parse(["crop"], (1, 6, 6)).steps == (Crop(1),)
    assert parse(["Crop-Reflect:4", "flip"], (3, 32, 32)).steps == (Crop(4, reflect=True), Flip())
    assert parse(["cutout"], (3, 32, 32)).steps == (Cutout(16),)
    assert parse(["cutout:8"], (3, 32, 32)).steps == (Cutout(8),)
    resized = parse("random-resized-crop:64,flip,cutout", (3, 100, 80))
    assert resized.decode_side == 64
    assert resized.shape == (3, 64, 64)
    assert resized.steps == (Flip(), Cutout(32))


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["crp"], ValueError, "did you mean 'crop'"),
        (["rotate"], ValueError, "expected crop, crop-reflect"),
        (["crop:0"], ValueError, "whole number of pixels from 1"),
        (["crop:four"], ValueError, "'crop:4', got 'four'"),
        (["crop:"], ValueError, "got ''"),
        (["crop:-1"], ValueError, "got '-1'"),
        (["flip:2"], ValueError, "takes no number"),
        (["crop", "crop-reflect:2"], ValueError, "names 'crop' twice"),
        (["crop-reflect:32"], ValueError, "at most 31 pixels, got 32"),
        (["random-resized-crop"], ValueError, "random-resized-crop:224"),
        (["flip", "random-resized-crop:24"], ValueError, "must come first"),
        ([4], TypeError, "got 4"),
    ],
)
def test_bad_names(names, error, message):
    with pytest.raises(error, match=message):
        parse(names, (3, 32, 32))


def test_samples_that_are_no_images():
    with pytest.raises(ValueError, match=r"needs images \(C, H, W\), the data have \(64,\)"):
        parse("flip", (64,))


def test_names_are_documented():
    assert all(f'"{name}' in augment.parse.__doc__ for name in augment.NAMES)
