import numpy as np
import pytest
import torch

from advfast.data import ArraySource, Loader, TensorSource, load
from advfast.data.arrays import find_layout

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (9, 6, 5, 3), dtype=np.uint8)  # NHWC
GREY = RANDOM.integers(0, 256, (4, 6, 5), dtype=np.uint8)
CLASSES = np.arange(9) % 4


def save(folder, kind, **arrays):
    """The arrays as an .npz file or a folder of .npy files, by its path."""
    if kind == "npz":
        np.savez(folder / "mine.npz", **arrays)
        return str(folder / "mine.npz")
    (folder / "mine").mkdir()
    for name, array in arrays.items():
        np.save(folder / "mine" / f"{name}.npy", array)
    return str(folder / "mine")


@pytest.fixture(params=["npz", "npy"])
def kind(request):
    return request.param


def whole(source):
    return source.batch(torch.arange(len(source)))


@pytest.mark.parametrize("names", ["keras", "named"])
def test_three_parts(tmp_path, kind, names):
    pattern = ("x_{}", "y_{}") if names == "keras" else ("{}_images", "{}_labels")
    arrays = {}
    for part, count in (("train", 9), ("val", 3), ("test", 2)):
        arrays[pattern[0].format(part)] = COLOUR[:count]
        arrays[pattern[1].format(part)] = CLASSES[:count].astype(np.uint8)[:, None]
    splits = load(save(tmp_path, kind, **arrays, class_names=np.array(["a", "b", "c", "d"])))
    assert splits.name == "mine"
    assert splits.class_names == ("a", "b", "c", "d")
    for part, count in (("train", 9), ("val", 3), ("test", 2)):
        source = getattr(splits, part)
        assert isinstance(source, TensorSource if kind == "npz" else ArraySource)
        images, labels = whole(source)
        expected = torch.from_numpy(COLOUR[:count]).permute(0, 3, 1, 2).float() / 255
        assert torch.equal(images, expected)
        assert images.is_contiguous()
        assert labels.dtype == torch.int64
        assert labels.tolist() == CLASSES[:count].tolist()


def test_training_data_alone_and_every_shape(tmp_path, kind):
    nchw = COLOUR.transpose(0, 3, 1, 2)
    cases = {
        "nchw": (nchw, nchw, {}),
        "grey": (GREY, GREY[:, None], {}),
        "vectors": (GREY.reshape(4, 30), GREY.reshape(4, 30), {}),
        "said": (COLOUR[:, :3], COLOUR[:, :3].transpose(0, 3, 1, 2), {"layout": "NHWC"}),
        "big-endian": ((nchw / 255).astype(">f4"), nchw, {}),
        "double": (nchw / 255, nchw, {}),
    }
    for case, (images, expected, more) in cases.items():
        (tmp_path / case).mkdir()
        path = save(tmp_path / case, kind, images=images, labels=CLASSES[: len(images)], **more)
        splits = load(path)
        assert splits.test is splits.val is splits.class_names is None
        pixels = whole(splits.train)[0]
        assert pixels.dtype == torch.float32
        expected = torch.from_numpy(np.ascontiguousarray(expected)).float() / 255
        assert torch.allclose(pixels, expected, atol=1e-7, rtol=0)


def test_mapped_subsets_and_training(tmp_path):
    source = load(save(tmp_path, "npy", images=COLOUR, labels=CLASSES)).train
    assert isinstance(source._array, np.memmap)  # not read whole
    part = source.subset(torch.tensor([8, 2, 5])).subset(torch.tensor([2, 0]))
    assert part.labels.tolist() == [CLASSES[5], CLASSES[8]]
    expected = torch.from_numpy(COLOUR[[5, 8]]).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(whole(part)[0], expected)
    in_memory = TensorSource(
        torch.from_numpy(COLOUR).permute(0, 3, 1, 2), torch.from_numpy(CLASSES)
    )
    loaders = [
        Loader(one, 4, device="cpu", seed=0, augment=["crop", "flip"])
        for one in (source, in_memory)
    ]
    for mapped, held in zip(*(one.batches(1) for one in loaders), strict=True):
        assert all(torch.equal(*pair) for pair in zip(mapped[:3], held[:3], strict=True))


def test_a_pair_of_npy_files(tmp_path):
    np.save(tmp_path / "a.npy", COLOUR)
    np.save(tmp_path / "b.npy", CLASSES)
    source = ArraySource.open(tmp_path / "a.npy", tmp_path / "b.npy")
    assert source.batch(torch.tensor([3]))[0].shape == (1, 3, 6, 5)
    with pytest.raises(ValueError, match=r"shapes \(9, 6, 5, 3\) and \(4,\)"):
        ArraySource(COLOUR, CLASSES[:4])


def test_layout():
    assert find_layout((5, 3, 8, 8)) == find_layout((5, 1, 8, 9)) == "NCHW"
    assert find_layout((5, 8, 8, 3)) == find_layout((5, 8, 9, 1)) == "NHWC"
    assert find_layout((5, 3, 8, 3), "NHWC") == "NHWC"
    for shape, problem in (((5, 3, 8, 3), "either"), ((5, 8, 8, 4), "neither")):
        with pytest.raises(ValueError, match=f"{problem} axis 1.*layout='NHWC'"):
            find_layout(shape)
    with pytest.raises(ValueError, match="got 'HWCN'"):
        find_layout((5, 3, 8, 3), "HWCN")


FLOATS = COLOUR.astype(np.float32)


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"images": FLOATS, "labels": CLASSES}, ValueError, "divide by 255"),
        ({"images": FLOATS / 255, "labels": CLASSES / 2}, TypeError, "labels.*integer.*float64"),
        ({"images": COLOUR, "labels": CLASSES > 1}, TypeError, "labels.*integer.*bool"),
        ({"images": COLOUR, "labels": CLASSES - 1}, ValueError, "0 or more, got -1"),
        ({"images": COLOUR, "labels": CLASSES[:4]}, ValueError, "images and labels: "),
        ({"images": COLOUR.astype(np.int32), "labels": CLASSES}, TypeError, "int32"),
        ({"images": COLOUR}, ValueError, "has no labels"),
        ({"images": COLOUR[:0], "labels": CLASSES[:0]}, ValueError, "no samples"),
        ({"images": COLOUR[:, :3], "labels": CLASSES}, ValueError, "either axis 1"),
        (
            {"x_test": COLOUR, "y_test": CLASSES},
            ValueError,
            "must hold x_train.*found x_test, y_test",
        ),
        (
            {"images": COLOUR, "labels": CLASSES, "x_train": COLOUR, "y_train": CLASSES},
            ValueError,
            "train data twice",
        ),
    ],
)
def test_bad_arrays(tmp_path, kind, arrays, error, message):
    path = save(tmp_path, kind, **arrays)
    with pytest.raises(error, match=message) as caught:
        whole(load(path).train)
    if "255" not in message or kind == "npz":  # mapped pixels are seen only when they are read
        assert "mine" in str(caught.value)


def test_damaged_npz(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, images=COLOUR, labels=CLASSES)
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[200] ^= 0xFF
    for broken in (content[:-30], content[:100], b"", b"no numpy file", bytes(damaged)):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"mine\.npz is not a whole \.npz file"):
            load(str(path))
    np.savez(path, images=np.array([{}], dtype=object), labels=CLASSES)
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        load(str(path))
    with open(path, "wb") as stream:
        np.save(stream, COLOUR)
    with pytest.raises(ValueError, match="one array"):
        load(str(path))
    with pytest.raises(FileNotFoundError, match="nothing"):
        load(str(tmp_path / "nothing.npz"))


def test_damaged_npy(tmp_path):
    path = save(tmp_path, "npy", images=COLOUR, labels=CLASSES)
    file = tmp_path / "mine" / "images.npy"
    content = file.read_bytes()
    for broken in (content[:-1], content[:30], b""):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=r"images\.npy is not a whole \.npy file"):
            load(path)
