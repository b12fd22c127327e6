import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset

from advfast.data import ForeignLoader, count, ordered
from advfast.data.foreign import samples_of

IMAGES = torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8)
LABELS = torch.arange(10, dtype=torch.int32)


class Items(Dataset):
    """Gives out whatever it was made of."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Stream(IterableDataset):
    def __init__(self, length=None):
        self.length = length
        if length is not None:
            self.__class__ = Sized

    def __iter__(self):
        return iter(TensorDataset(IMAGES, LABELS))


class Sized(Stream):
    def __len__(self):
        return self.length


class ByEpoch(Sampler):
    """Starts at the sample with the number of the epoch, as DistributedSampler changes its order."""

    def __init__(self):
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 10

    def __iter__(self):
        return iter([(number + self.epoch) % 10 for number in range(10)])


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches(channels_last):
    made = ForeignLoader(DataLoader(TensorDataset(IMAGES, LABELS), 4), "cpu", channels_last)
    assert (len(made), made.samples, made.stateful) == (3, 10, False)
    batches = list(made.batches(1))
    assert torch.equal(torch.cat([batch.images for batch in batches]), IMAGES.float() / 255)
    assert torch.cat([batch.labels for batch in batches]).tolist() == list(range(10))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for batch in batches:
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=layout)
        assert batch.labels.dtype == torch.int64
        assert batch.indices is None


def test_numbers_are_passed_on_and_the_start_is_skipped():
    data = TensorDataset(IMAGES.float() / 255, LABELS, torch.arange(10, 20, dtype=torch.int16))
    made = ForeignLoader(DataLoader(data, 3), "cpu")
    (batch,) = made.batches(1, 2)  # a last batch of one is left out
    assert batch.indices.tolist() == [16, 17, 18]
    assert batch.indices.dtype == torch.int64
    assert list(made.batches(1, 3)) == []


def test_sampler_is_told_the_epoch():
    data = TensorDataset(IMAGES, LABELS)
    made = ForeignLoader(DataLoader(data, 5, sampler=ByEpoch()), "cpu")
    for epoch in (1, 7):
        assert next(made.batches(epoch)).labels[0] == epoch
        assert next(made.batches(epoch, 1)).labels[0] == (epoch + 5) % 10


def test_length():
    data = TensorDataset(IMAGES, LABELS)
    assert len(ForeignLoader(DataLoader(data, 3), "cpu")) == 3  # 3 + 3 + 3, and one left out
    assert len(ForeignLoader(DataLoader(data, 4, drop_last=True), "cpu")) == 2
    assert len(ForeignLoader(DataLoader(data, 1), "cpu")) == 10
    assert len(ForeignLoader(DataLoader(TensorDataset(IMAGES[:1], LABELS[:1]), 4), "cpu")) == 1
    assert [samples_of(DataLoader(data, 4, drop_last=last)) for last in (False, True)] == [10, 8]
    assert samples_of(DataLoader(data, batch_sampler=[[1, 2], [3]])) is None
    assert len(ForeignLoader(DataLoader(data, batch_sampler=[[1, 2], [3]]), "cpu")) == 2
    assert count(DataLoader(Stream(), 4)) is None
    with pytest.raises(TypeError, match=r"DataLoader with a length.*Stream has none"):
        len(ForeignLoader(DataLoader(Stream(), 4), "cpu"))
    assert sum(len(batch.labels) for batch in ordered(DataLoader(Stream(), 4), 1)) == 10


def test_a_stream_shorter_than_it_says():
    made = ForeignLoader(DataLoader(Stream(length=20), 5), "cpu")
    with pytest.raises(RuntimeError, match="ended after 2 batches in epoch 3; its length says 4"):
        list(made.batches(3))


IMAGE = torch.rand(3, 4, 4)


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ((IMAGE * 255, 0), ValueError, "divide by 255"),
        ((IMAGE - 2, 0), ValueError, "normalisation belongs inside"),
        (IMAGE, TypeError, "batch 0 of the DataLoader must be .*got Tensor"),
        ({"image": IMAGE, "label": 0}, TypeError, "got dict"),
        ((IMAGE, 0, 1, 2), TypeError, "of 4"),
        ((IMAGE, "cat"), TypeError, "must hold tensors"),
        ((IMAGE, 0.5), TypeError, "labels must be integer classes, got torch.float64"),
        ((IMAGE, -1), ValueError, "0 or more, got -1"),
        ((IMAGE, torch.zeros(2).long()), ValueError, r"shape \(1,\).*got \(1, 2\)"),
        ((IMAGE.long(), 0), TypeError, "got torch.int64"),
        ((IMAGE[0, 0, 0], 0), ValueError, r"\[B, C, H, W\], got \(1,\)"),
        ((IMAGE, 0, 0.5), TypeError, "sample numbers must be integer"),
    ],
)
def test_bad_items(item, error, message):
    with pytest.raises(error, match=message):
        next(ForeignLoader(DataLoader(Items(item)), "cpu").batches(1))


def test_range_is_checked_in_every_epoch():
    items = Items((IMAGE, 0), (IMAGE, 0))
    made = ForeignLoader(DataLoader(items), "cpu")
    list(made.batches(1))
    items.items = ((IMAGE * 9, 0), (IMAGE, 0))
    with pytest.raises(ValueError, match="pixels in"):
        list(made.batches(2))


def test_not_a_dataloader():
    with pytest.raises(TypeError, match="expected a torch DataLoader, got tuple"):
        ForeignLoader((IMAGES, LABELS), "cpu")
