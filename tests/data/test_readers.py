import gzip

import numpy as np
import pytest
import torch

from advfast.data import load, readers

from .test_idx import idx_bytes


def test_digits():
    splits = load("digits")
    train, test = splits.train, splits.test
    assert (len(train), len(test)) == (1297, 500)
    images, labels = test.batch(torch.arange(500))
    assert images.shape == (500, 1, 8, 8)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert images.min() == 0
    assert images.max() == 1
    assert ((images * 16) == (images * 16).round()).all()
    assert splits.class_names == tuple("0123456789")


def test_digits_split_is_fixed_disjoint_and_whole():
    from sklearn.datasets import load_digits

    splits, again = load("digits"), load("digits")
    assert torch.equal(splits.test.images, again.test.images)
    # The published numbers are of these test images: 48 to 51 of each class.
    assert splits.test.labels.bincount().tolist() == [50, 50, 49, 51, 51, 50, 51, 50, 48, 50]
    assert splits.test.labels[:12].tolist() == [1, 4, 0, 5, 6, 8, 9, 8, 4, 7, 3, 5]
    parts = torch.cat([splits.train.images, splits.test.images]).flatten(1)
    whole = torch.from_numpy(load_digits().data).float() / 16
    assert sorted(map(tuple, parts.tolist())) == sorted(map(tuple, whole.tolist()))
    distances = torch.cdist(splits.train.images.flatten(1), splits.test.images.flatten(1))
    assert distances.min() > 0.01  # no image in both


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """A folder with the four files, of 6 and 4 images."""
    monkeypatch.setattr(readers, "FASHION_PARTS", {"train": 6, "t10k": 4})
    monkeypatch.setattr(readers, "DEBIAN_FASHION_MNIST", tmp_path / "not-there")
    monkeypatch.delenv("ADVFAST_DATA", raising=False)
    folder = tmp_path / "files"
    folder.mkdir()
    random = np.random.default_rng(0)
    for stem, count in readers.FASHION_PARTS.items():
        images = random.integers(0, 256, (count, 28, 28))
        labels = np.arange(count) % 10
        for name, values in ((f"{stem}-images-idx3", images), (f"{stem}-labels-idx1", labels)):
            (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(idx_bytes(values)))
    return folder


def test_fashion_mnist_from_a_folder(fashion):
    splits = load("fashion-mnist", fashion)
    assert (len(splits.train), len(splits.test)) == (6, 4)
    images, labels = splits.train.batch(torch.tensor([3, 1]))
    assert images.shape == (2, 1, 28, 28)
    assert labels.tolist() == [3, 1]
    raw = readers.read_idx(fashion / "train-images-idx3-ubyte.gz")
    assert torch.equal(images, raw[[3, 1], None].float() / 255)
    assert len(splits.class_names) == 10


def test_fashion_mnist_is_found(fashion, monkeypatch):
    (fashion.parent / "fashion-mnist").symlink_to(fashion)
    for folder in (fashion, fashion.parent):
        monkeypatch.setenv("ADVFAST_DATA", str(folder))
        assert len(load("fashion-mnist").train) == 6
    monkeypatch.delenv("ADVFAST_DATA")
    monkeypatch.setattr(readers, "DEBIAN_FASHION_MNIST", fashion)
    assert len(load("fashion-mnist").train) == 6


def test_fashion_mnist_is_not_found(fashion, monkeypatch):
    with pytest.raises(FileNotFoundError) as caught:
        load("fashion-mnist")
    for part in ("not-there", "apt-get install dataset-fashion-mnist", "ADVFAST_DATA"):
        assert part in str(caught.value)
    monkeypatch.setenv("ADVFAST_DATA", "/some/folder")
    with pytest.raises(FileNotFoundError, match="/some/folder"):
        load("fashion-mnist")
    with pytest.raises(FileNotFoundError, match="/other"):
        load("fashion-mnist", "/other")


def test_fashion_mnist_with_a_file_missing(fashion):
    (fashion / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        load("fashion-mnist", fashion)


def test_fashion_mnist_truncated_or_another_set(fashion, monkeypatch):
    path = fashion / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="train-images"):
        load("fashion-mnist", fashion)
    path.write_bytes(whole)
    monkeypatch.setattr(readers, "FASHION_PARTS", {"train": 7, "t10k": 4})
    with pytest.raises(ValueError, match=r"7 train images.*\(6, 28, 28\)"):
        load("fashion-mnist", fashion)


@pytest.mark.skipif(
    not readers.DEBIAN_FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_as_packaged():
    splits = load("fashion-mnist", readers.DEBIAN_FASHION_MNIST)
    assert splits.train.labels.bincount().tolist() == [6000] * 10
    assert splits.test.labels.bincount().tolist() == [1000] * 10
    assert splits.test.labels[:5].tolist() == [9, 2, 1, 1, 6]


def test_unknown_name():
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        load("digit")
