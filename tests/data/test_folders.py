import sys

import numpy as np
import pytest
import torch

from advfast.data import FolderSource, Loader, folders, image_folder, load

Image = pytest.importorskip("PIL.Image")

RANDOM = np.random.default_rng(0)


def picture(path, height=8, width=8, mode="RGB"):
    """A random image, saved; its values [C, H, W]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = RANDOM.integers(0, 256, (height, width, 3 if mode == "RGB" else 1), dtype=np.uint8)
    Image.fromarray(values if mode == "RGB" else values[:, :, 0]).save(path)
    return torch.from_numpy(values).permute(2, 0, 1)


@pytest.fixture
def pictures(tmp_path):
    """photos/{train,test}/{ant,bee,cat}/<n>.png; part -> [(class, values)]."""
    made = {"train": [], "test": []}
    for part, classes in (("train", "ant bee cat"), ("test", "bee cat")):
        for name in classes.split():
            for number in range(3):
                values = picture(tmp_path / "photos" / part / name / f"{number}.png")
                made[part].append((name, values))
    return tmp_path / "photos", made


@pytest.mark.parametrize("limit", [None, 8 * 8 * 3 * 9 - 1])
def test_parts_in_memory_and_streamed(pictures, monkeypatch, limit):
    root, made = pictures
    if limit is not None:  # one byte less than the training images have
        monkeypatch.setattr(folders, "IN_MEMORY_BYTES", limit)
    (root / "train" / "ant" / "notes.txt").write_text("not an image")
    (root / "train" / ".cache").mkdir()
    splits = load(str(root))
    assert splits.name == "photos"
    assert splits.class_names == ("ant", "bee", "cat")
    assert splits.val is None
    assert (splits.train.images is None) == (limit is not None)
    assert splits.test.images is not None
    for part, expected in made.items():
        source = getattr(splits, part)
        images, labels = source.batch(torch.arange(len(source)))
        assert images.dtype == torch.float32
        assert torch.equal(images, torch.stack([v for _, v in expected]).float() / 255)
        assert labels.tolist() == [splits.class_names.index(name) for name, _ in expected]
    part = splits.train.subset(torch.tensor([7, 1]))
    assert part.labels.tolist() == [2, 0]
    expected = torch.stack([made["train"][n][1] for n in (7, 1)]).float() / 255
    assert torch.equal(part.batch(torch.arange(2))[0], expected)


def test_streamed_and_held_images_train_alike(pictures):
    root, _ = pictures
    held, streamed = (image_folder(root, in_memory=flag).train for flag in (True, False))
    assert streamed.images is None
    loaders = [
        Loader(one, 4, device="cpu", seed=0, augment="crop,flip") for one in (held, streamed)
    ]
    for one, other in zip(*(made.batches(2) for made in loaders), strict=True):
        assert all(torch.equal(*pair) for pair in zip(one[:3], other[:3], strict=True))


def test_class_folders_without_parts_and_below_them(tmp_path):
    picture(tmp_path / "b" / "x.jpeg")
    picture(tmp_path / "a" / "deep" / "y.PNG")
    picture(tmp_path / "a" / "z.png")
    splits = load(str(tmp_path))
    assert splits.test is None
    assert splits.train.labels.tolist() == [0, 0, 1]
    assert [path.rpartition("/")[2] for path in splits.train.paths] == ["z.png", "y.PNG", "x.jpeg"]


def test_grey_images_have_one_channel(tmp_path):
    values = picture(tmp_path / "a" / "0.png", mode="L")
    picture(tmp_path / "b" / "0.png", mode="L")
    source = load(str(tmp_path)).train
    assert torch.equal(source.batch(torch.tensor([0]))[0][0], values.float() / 255)
    picture(tmp_path / "b" / "1.png", mode="RGB")
    assert load(str(tmp_path)).train.batch(torch.tensor([0]))[0].shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"1\.png is a colour image.*grey"):
        FolderSource([tmp_path / "b" / "1.png"], torch.zeros(1).long(), channels=1).hold()


def test_sizes(tmp_path):
    picture(tmp_path / "a" / "0.png", 20, 30)
    picture(tmp_path / "b" / "0.png", 16, 12)
    with pytest.raises(ValueError, match=r"got 20x30 of .*a/0\.png and 16x12 of .*b/0\.png.*@32"):
        load(str(tmp_path))
    for name, shorter, size in ((f"{tmp_path}@10", 10, 10), (f"{tmp_path}@12/8", 12, 8)):
        images, _ = load(name).train.batch(torch.arange(2))
        assert images.shape == (2, 3, size, size)
        for number, path in enumerate(("a/0.png", "b/0.png")):
            # Scaled so that the shorter side fits, then the middle.
            image = Image.open(tmp_path / path)
            scale = shorter / min(image.size)
            scaled = image.resize(
                [int(side * scale + 1e-9) for side in image.size], Image.Resampling.BILINEAR
            )
            values = torch.from_numpy(np.array(scaled)).permute(2, 0, 1).float() / 255
            top, left = (round((side - size) / 2) for side in values.shape[1:])
            assert torch.equal(images[number], values[:, top : top + size, left : left + size])
    with pytest.raises(ValueError, match="shorter_side must be at least size, got 8 and 12"):
        load(f"{tmp_path}@8/12")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        load(f"{tmp_path}/nowhere@8")


def test_random_resized_crops(tmp_path):
    """They are parts of the image, scaled, and the same for the same key."""
    row, column = np.mgrid[0:48, 0:64].astype(np.uint8)
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(20):
            image = np.stack([row * 4, column * 3, np.full_like(row, 7)], axis=2)
            Image.fromarray(image).save(tmp_path / name / f"{number}.png")
    source = load(str(tmp_path)).train
    assert source.images is not None  # held, and still cropped from the files

    def epoch(number, batch_size=40, start=0):
        made = Loader(source, batch_size, device="cpu", seed=1, augment="random-resized-crop:16")
        batches = list(made.batches(number, start))
        numbers = torch.cat([batch.indices for batch in batches])
        return torch.cat([batch.images for batch in batches])[numbers.argsort()], numbers

    first, _ = epoch(1)
    assert first.shape == (40, 3, 16, 16)
    assert torch.equal(first, epoch(1, 6)[0])
    rest, numbers = epoch(1, 6, 3)
    assert torch.equal(rest, first[numbers.sort().values])
    second, _ = epoch(2)
    assert not torch.isclose(first, second).flatten(1).all(1).any()
    assert (first[:, 2] == 7 / 255).all()
    # The red ramp tells how many rows the crop has, the green one how many columns.
    rows = (first[:, 0, -1, 0] - first[:, 0, 0, 0]) * 255 / 4 * 16 / 15
    columns = (first[:, 1, 0, -1] - first[:, 1, 0, 0]) * 255 / 3 * 16 / 15
    for ramp, parts in (
        (first[:, 0, 0, 0] * 255 / 4, rows),
        (first[:, 1, 0, 0] * 255 / 3, columns),
    ):
        begin = (
            ramp - parts / 32 + 0.5
        )  # of the crop; the first pixel is the mean of a sixteenth of it
        assert begin.min() < 4
        assert begin.max() > 12
    area, ratio = rows * columns / (48 * 64), columns / rows
    assert area.min() > 0.06
    assert area.min() < 0.3
    assert 0.7 < area.max() < 1.05
    assert ratio.min() > 0.65
    assert ratio.max() < 1.5
    assert ratio.std() > 0.1


def test_random_crops_of_a_narrow_image(tmp_path):
    for name in "ab":
        picture(tmp_path / name / "0.png", 4, 100)
    source = image_folder(tmp_path, in_memory=False).train.random_crops(8)
    images, _ = source.read(torch.tensor([0]), torch.tensor([5]))
    assert images.shape == (1, 3, 8, 8)


@pytest.mark.parametrize("in_memory", [True, False])
def test_damaged_image(pictures, in_memory):
    root, _ = pictures
    path = root / "train" / "bee" / "1.png"
    whole = path.read_bytes()
    for content in (whole[:-40], whole[:20], b"", b"<html>"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bee/1\.png is (a damaged image|no image)"):
            image_folder(root, in_memory=in_memory).train.batch(torch.arange(9))


def test_wide_pixels_are_refused(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        values = np.full((8, 8), 40000, dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / name / "0.png")
    with pytest.raises(ValueError, match=r"0\.png has more than 8 bits"):
        load(str(tmp_path))


def test_folders_that_hold_no_classes(tmp_path):
    with pytest.raises(ValueError, match="each of at least 2 classes, found none"):
        load(str(tmp_path))
    picture(tmp_path / "only" / "0.png")
    with pytest.raises(ValueError, match="found one, 'only'"):
        load(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no images"):
        load(str(tmp_path))


def test_parts_with_other_classes(pictures):
    root, _ = pictures
    picture(root / "val" / "dog" / "0.png")
    with pytest.raises(
        ValueError, match=r"class 'dog' is not among those of train/: ant, bee, cat"
    ):
        load(str(root))
    (root / "val" / "dog" / "0.png").unlink()
    (root / "val" / "dog").rmdir()
    with pytest.raises(ValueError, match="val holds no class folders"):
        load(str(root))


def test_bad_arguments():
    labels = torch.zeros(2).long()
    for arguments, message in (
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"size": 0}, "size must be a number of pixels >= 1, got 0"),
        ({"shorter_side": 8}, "at least size"),
    ):
        with pytest.raises(ValueError, match=message):
            FolderSource(["a", "b"], labels, **arguments)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        FolderSource(["a", "b", "c"], labels)


def test_without_pillow(pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'pip install "advfast\[images\]"'):
        load(str(pictures[0]))
