import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from advfast.data import TensorSource, as_source


def test_bytes_become_exact_pixels():
    images = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1)
    source = TensorSource(images, torch.zeros(256, dtype=torch.long))
    pixels, _ = source.batch(torch.arange(256))
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels.flatten(), torch.arange(256).float() / 255)
    assert pixels.max() == 1


def test_pair_is_read_by_number():
    images = torch.rand(5, 2, 3, 4)
    labels = torch.tensor([0, 1, 2, 1, 0], dtype=torch.int32)
    source = as_source((images, labels))
    picked, classes = source.batch(torch.tensor([4, 0]))
    assert torch.equal(picked, images[[4, 0]])
    assert classes.dtype == torch.int64
    assert classes.tolist() == [0, 0]
    part = source.subset(torch.tensor([1, 2]))
    assert len(part) == 2
    assert torch.equal(part.batch(torch.tensor([1]))[0], images[2:3])


def test_grey_images_without_a_channel():
    source = as_source((torch.rand(3, 8, 8), torch.zeros(3, dtype=torch.long)))
    assert source.batch(torch.arange(3))[0].shape == (3, 1, 8, 8)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


LABELS = torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((torch.rand(4, 1, 8, 8) * 255, LABELS), ValueError, "divide by 255"),
        ((torch.randn(4, 1, 8, 8), LABELS), ValueError, "normalisation belongs inside"),
        ((torch.full((4, 1, 8, 8), torch.nan), LABELS), ValueError, "got nan"),
        ((torch.rand(4, 1, 8, 8), LABELS[:3]), ValueError, r"\(4,\).*got \(3,\)"),
        ((torch.rand(4, 1, 8, 8), LABELS - 1), ValueError, "got -1"),
        ((torch.rand(4, 1, 8, 8), LABELS.float()), TypeError, "float32"),
        ((torch.ones(4, 1, 8, 8, dtype=torch.int64), LABELS), TypeError, "int64"),
        ((torch.rand(0, 1, 8, 8), LABELS[:0]), ValueError, "no samples"),
        ((torch.rand(4), LABELS), ValueError, r"\[N, C, H, W\]"),
        (([1, 2], [3, 4]), TypeError, "pair of tensors"),
        (3, TypeError, "int"),
        (DataLoader(TensorDataset(torch.rand(4, 1), LABELS)), TypeError, "DataLoader"),
        (Stream(), TypeError, "length"),
    ],
)
def test_bad_data(data, error, message):
    with pytest.raises(error, match=message):
        as_source(data)


class Noisy(Dataset):
    """A data set with a random augmentation."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.full((1, 2, 2), index / 10) + torch.rand(1, 2, 2) / 100, index % 3


def test_dataset_is_read_anew_each_time():
    source = as_source(Noisy())
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2]
    first, labels = source.batch(torch.tensor([5, 2]))
    second, _ = source.batch(torch.tensor([5, 2]))
    assert labels.tolist() == [2, 2]
    assert (first * 10).floor().flatten(1).unique(dim=1).flatten().tolist() == [5, 2]
    assert not torch.equal(first, second)  # the augmentation is not frozen
    part = source.subset(torch.tensor([3, 1]))
    assert part.labels.tolist() == [0, 1]
    assert part.batch(torch.tensor([0]))[1].tolist() == [0]


def test_dataset_with_bad_items():
    class Bad(Dataset):
        def __init__(self, item):
            self.item = item

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return self.item

    with pytest.raises(TypeError, match="image, label"):
        as_source(Bad(torch.rand(3)))
    with pytest.raises(TypeError, match="to-tensor"):
        as_source(Bad(("picture", 0)))
    with pytest.raises(ValueError, match="divide by 255"):
        as_source(Bad((torch.full((1, 2, 2), 200.0), 0))).batch(torch.tensor([0]))
