import gzip

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from advfast.data import TensorSource, load, mnist, read_idx

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
    monkeypatch.setattr(mnist, "PARTS", {"train": 6, "t10k": 4})
    monkeypatch.setattr(mnist, "DEBIAN_FASHION_MNIST", tmp_path / "not-there")
    monkeypatch.delenv("ADVFAST_DATA", raising=False)
    folder = tmp_path / "files"
    folder.mkdir()
    random = np.random.default_rng(0)
    for stem, count in mnist.PARTS.items():
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
    raw = read_idx(fashion / "train-images-idx3-ubyte.gz")
    assert torch.equal(images, raw[[3, 1], None].float() / 255)
    assert len(splits.class_names) == 10


def test_fashion_mnist_is_found(fashion, monkeypatch):
    (fashion.parent / "fashion-mnist").symlink_to(fashion)
    for folder in (fashion, fashion.parent):
        monkeypatch.setenv("ADVFAST_DATA", str(folder))
        assert len(load("fashion-mnist").train) == 6
    monkeypatch.delenv("ADVFAST_DATA")
    monkeypatch.setattr(mnist, "DEBIAN_FASHION_MNIST", fashion)
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
    monkeypatch.setattr(mnist, "PARTS", {"train": 7, "t10k": 4})
    with pytest.raises(ValueError, match=r"7 train images.*\(6, 28, 28\)"):
        load("fashion-mnist", fashion)


@pytest.mark.skipif(
    not mnist.DEBIAN_FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_as_packaged():
    splits = load("fashion-mnist", mnist.DEBIAN_FASHION_MNIST)
    assert splits.train.labels.bincount().tolist() == [6000] * 10
    assert splits.test.labels.bincount().tolist() == [1000] * 10
    assert splits.test.labels[:5].tolist() == [9, 2, 1, 1, 6]


def test_mnist_in_its_places(fashion, monkeypatch):
    """The files have the names of Fashion-MNIST's; a folder of its own comes first."""
    root = fashion.parent / "data"
    own = root / "mnist"
    own.mkdir(parents=True)
    for file in fashion.iterdir():
        (own / file.name.removesuffix(".gz")).write_bytes(gzip.decompress(file.read_bytes()))
        (root / file.name).write_bytes(b"another data set's")
    for place in (own, root):
        splits = load("mnist", place)
        assert splits.name == "mnist"
        assert (len(splits.train), len(splits.test)) == (6, 4)
        assert splits.class_names == tuple("0123456789")
    monkeypatch.setenv("ADVFAST_DATA", str(root))
    assert len(load("MNIST").train) == 6
    with pytest.raises(FileNotFoundError, match=r"MNIST was not found.*/nowhere"):
        load("mnist", "/nowhere")


@pytest.mark.skipif(
    not mnist.DEBIAN_FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_is_not_taken_for_mnist():
    with pytest.raises(ValueError, match="holds Fashion-MNIST, not MNIST"):
        load("mnist", mnist.DEBIAN_FASHION_MNIST)


def test_unknown_name(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        load("digit")
    with pytest.raises(FileNotFoundError, match="no file or folder nowhere/photos"):
        load("nowhere/photos")
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"data\.csv is a file of an unknown kind"):
        load(str(tmp_path / "data.csv"))


USER = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from advfast.data import Splits, TensorSource

images, labels = torch.rand(6, 1, 4, 4), torch.arange(6) % 2
pair = images, labels
def tensors(): return pair
def dataset(): return TensorDataset(*pair)
def loader(): return DataLoader(TensorDataset(*pair), 2)
def source(): return TensorSource(*pair)
def splits(): return Splits("my own", TensorSource(*pair), None, ("a", "b"))
def parts(): return {"train": pair, "test": DataLoader(TensorDataset(*pair)), "val": TensorDataset(*pair),
                     "class_names": ["a", "b"]}
def no_train(): return {"test": pair}
def misspelt(): return {"train": pair, "tset": pair}
def wrong_test(): return {"train": pair, "test": (images * 255, labels)}
def nothing(): return None
"""


@pytest.fixture
def user(tmp_path):
    (tmp_path / "my_data.py").write_text(USER)
    return str(tmp_path / "my_data.py")


@pytest.mark.parametrize("name", ["tensors", "dataset", "loader", "source"])
def test_users_function_with_training_data(user, name):
    splits = load(f"{user}:{name}")
    assert splits.name == name
    assert splits.test is splits.val is splits.class_names is None
    if name == "loader":
        assert isinstance(splits.train, DataLoader)
    else:
        assert splits.train.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_users_function_with_parts(user):
    assert load(f"{user}:splits").name == "my own"
    splits = load(f"{user}:parts")
    assert isinstance(splits.train, TensorSource)
    assert isinstance(splits.val, TensorSource)
    assert isinstance(splits.test, DataLoader)
    assert splits.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "no_train",
            ValueError,
            r"my_data\.py:no_train: the dict must have the key 'train', got test",
        ),
        ("misspelt", ValueError, "unknown key 'tset'.*did you mean 'test'"),
        ("wrong_test", ValueError, "divide by 255"),
        ("nothing", TypeError, r"my_data\.py:nothing must be a pair of tensors.*NoneType"),
        ("tensor", ValueError, "did you mean 'tensors'"),
    ],
)
def test_users_function_with_something_else(user, name, error, message):
    with pytest.raises(error, match=message):
        load(f"{user}:{name}")
