import threading
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from advfast.data import (
    Loader,
    TensorSource,
    as_source,
    count,
    loader,
    ordered,
    randomness,
    steps_of,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def source():
    """50 images of 12x12, all different."""
    images = torch.randint(0, 256, (50, 3, 12, 12), dtype=torch.uint8)
    return TensorSource(images, torch.arange(50) % 7)


def gathered(batches):
    """The batches together, sorted by sample number."""
    parts = [
        torch.cat([part.cpu() for part in parts])
        for parts in zip(*(batch[:3] for batch in batches), strict=True)
    ]
    order = parts[2].argsort()
    return [part[order] for part in parts]


@pytest.mark.parametrize("device", DEVICES)
def test_batches_hold_what_the_source_holds(source, device):
    made = Loader(source, 16, device=device, seed=0)
    assert (len(made), made.samples, made.stateful) == (4, 50, True)
    batches = list(made.batches(1))
    assert [len(batch.labels) for batch in batches] == [16, 16, 16, 2]
    for batch in batches:
        assert batch.images.dtype == torch.float32
        assert batch.labels.dtype == batch.indices.dtype == torch.int64
        assert {part.device.type for part in batch[:3]} == {device}
        images, labels = source.batch(batch.indices.cpu())
        assert torch.equal(batch.images.cpu(), images)
        assert torch.equal(batch.labels.cpu(), labels)
    assert gathered(batches)[2].tolist() == list(range(50))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("prefetch", [True, False])
def test_augmented_pixels_are_the_same_from_anywhere(source, device, prefetch):
    """Batch size, memory format, start, storage, device: a sample looks the same in an epoch."""
    augment = ["crop:2", "flip", "cutout:4"]
    plain = Loader(source, 50, device="cpu", seed=5, augment=augment)
    expected = gathered(plain.batches(3))
    assert not torch.equal(expected[0], source.batch(torch.arange(50))[0])
    for batch_size, channels_last in ((9, True), (50, False)):
        other = Loader(
            source,
            batch_size,
            device=device,
            seed=5,
            augment=augment,
            channels_last=channels_last,
            prefetch=prefetch,
        )
        batches = list(other.batches(3))
        for got, wanted in zip(gathered(batches), expected, strict=True):
            assert torch.equal(got, wanted)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert all(batch.images.is_contiguous(memory_format=layout) for batch in batches)
        for start in range(len(other) + 1):
            rest = list(other.batches(3, start))
            assert len(rest) == len(batches) - start
            for got, wanted in zip(rest, batches[start:], strict=True):
                assert all(torch.equal(*pair) for pair in zip(got[:3], wanted[:3], strict=True))
    floats = TensorSource(source.images.float() / 255, source.labels)
    from_floats = Loader(floats, 50, device=device, seed=5, augment=augment, prefetch=prefetch)
    assert torch.equal(gathered(from_floats.batches(3))[0], expected[0])


def test_orders_are_new_in_each_epoch_and_of_each_seed():
    orders = {
        (seed, epoch): tuple(randomness.epoch_order(seed, epoch, 20).tolist())
        for seed in (0, 1, 2, 2**32, 2**32 + 1, 2**63 - 1)
        for epoch in range(1, 30)
    }
    assert len(set(orders.values())) == len(orders)
    assert all(sorted(order) == list(range(20)) for order in orders.values())
    # No sample is preferred at a place: over 4,000 epochs each of 4 samples is first about 1,000 times.
    firsts = [int(randomness.epoch_order(9, epoch, 4)[0]) for epoch in range(4000)]
    assert np.bincount(firsts).min() > 1000 - 6 * 27
    assert np.bincount(firsts).max() < 1000 + 6 * 27


def test_the_order_does_not_depend_on_or_touch_torchs_generator(source):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = [batch.indices for batch in Loader(source, 8, device="cpu", seed=0).batches(1)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = [batch.indices for batch in Loader(source, 8, device="cpu", seed=0).batches(1)]
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("samples", "size", "steps"),
    [(10, 3, 3), (9, 3, 3), (11, 3, 4), (1, 3, 1), (2, 5, 1), (3, 1, 3), (1, 1, 1), (13, 12, 1)],
)
def test_a_last_batch_of_one_is_left_out(samples, size, steps):
    source = as_source((torch.rand(samples, 1, 2, 2), torch.zeros(samples, dtype=torch.long)))
    made = Loader(source, size, device="cpu", seed=0)
    assert len(made) == steps_of(samples, size) == steps
    sizes = [len(batch.labels) for batch in made.batches(1)]
    assert len(sizes) == steps
    assert sum(sizes) == samples - (samples % size == 1 and samples > size)


def test_bytes_are_rounded_once():
    images = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1)
    source = TensorSource(images, torch.arange(256))
    pixels = gathered(Loader(source, 100, device="cpu", seed=0).batches(1))[0]
    exact = np.arange(256, dtype=np.float32) / np.float32(255)
    assert (pixels.flatten().numpy() == exact).all()


def test_source_is_not_changed_by_what_is_done_to_batches():
    source = TensorSource(torch.full((4, 1, 2, 2), 0.5), torch.arange(4))
    for batch in [*Loader(source, 2, device="cpu", seed=0).batches(1), *ordered(source, 2)]:
        batch.images.zero_()
        batch.labels.zero_()
    assert (source.images == 0.5).all()
    assert source.labels.tolist() == [0, 1, 2, 3]


class Noisy(Dataset):
    """Random by all three generators that a transform may use."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        import random

        return torch.stack(
            [torch.rand(2, 2), torch.full((2, 2), random.random()), torch.as_tensor(noise())]
        ), index % 3


def noise():
    return np.random.rand(2, 2).astype(np.float32)


def test_a_random_dataset_is_the_same_again_from_any_batch():
    source = as_source(Noisy())
    made = Loader(source, 5, device="cpu", seed=3)
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    batches = list(made.batches(2))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]
    for got, wanted in zip(made.batches(2, 1), batches[1:], strict=True):
        assert torch.equal(got.images, wanted.images)
    other_size = Loader(source, 4, device="cpu", seed=3).batches(2)
    assert torch.equal(gathered(other_size)[0], gathered(batches)[0])
    next_epoch = gathered(made.batches(3))[0]
    assert not torch.isclose(next_epoch, gathered(batches)[0]).any()


def test_tensor_datasets_are_held_as_tensors():
    images, labels = torch.rand(6, 1, 2, 2), torch.arange(6)
    assert isinstance(as_source(TensorDataset(images, labels)), TensorSource)


class Slow:
    """A source that is read on threads, and counts them."""

    read_ahead = 3

    def __init__(self, broken=None):
        self.labels = torch.arange(20)
        self.broken = broken
        self.threads = set()
        self.reads = 0

    def __len__(self):
        return 20

    def batch(self, indices):
        return self.read(indices)

    def read(self, indices, keys=None):
        self.threads.add(threading.current_thread())
        self.reads += 1
        if self.broken in indices.tolist():
            raise OSError(f"sample {self.broken} cannot be read")
        time.sleep(
            float(indices[0] % 3) / 1000
        )  # the order in which reads end is not that of the batches
        return indices.float().view(-1, 1, 1, 1) / 100, self.labels[indices]

    def subset(self, indices):
        raise NotImplementedError


def test_streamed_batches_keep_their_order_and_values():
    source = Slow()
    batches = list(Loader(source, 3, device="cpu", seed=1).batches(4))
    assert len(source.threads) > 2
    assert not any(thread.is_alive() for thread in source.threads - {threading.main_thread()})
    order = randomness.epoch_order(1, 4, 20)
    assert torch.equal(torch.cat([batch.indices for batch in batches]), order)
    for batch in batches:
        assert torch.equal(batch.images.flatten(), batch.indices.float() / 100)
    alone = Slow()
    plain = list(Loader(alone, 3, device="cpu", seed=1, prefetch=False).batches(4))
    assert alone.threads == {threading.main_thread()}
    assert torch.equal(torch.cat([batch.indices for batch in plain]), order)
    in_order = Slow()
    read = torch.cat([batch.indices for batch in ordered(in_order, 3)])
    assert read.tolist() == list(range(20))
    assert len(in_order.threads) > 1


def test_threads_end_when_iteration_stops_early():
    source = Slow()
    batches = Loader(source, 2, device="cpu", seed=1).batches(1)
    next(batches)
    batches.close()
    assert source.reads < 8  # a few ahead, not all ten, beside the one that finds the shape
    assert not any(thread.is_alive() for thread in source.threads - {threading.main_thread()})


def test_an_error_while_reading_ahead_comes_at_its_batch():
    order = randomness.epoch_order(1, 1, 20).tolist()
    source = Slow(broken=order[9])
    batches = Loader(source, 2, device="cpu", seed=1).batches(1)
    for _ in range(4):
        next(batches)
    with pytest.raises(OSError, match=f"sample {order[9]} cannot be read"):
        next(batches)
    assert not any(thread.is_alive() for thread in source.threads - {threading.main_thread()})


def test_data_that_do_not_fit_are_streamed(source, monkeypatch):
    expected = gathered(Loader(source, 8, device="cpu", seed=2, augment="crop").batches(1))
    monkeypatch.setattr(loader.Loader, "_on_device", lambda self, source: None)
    streamed = Loader(source, 8, device="cpu", seed=2, augment="crop")
    for got, wanted in zip(gathered(streamed.batches(1)), expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.gpu
def test_prefetched_batches_survive_a_busy_stream():
    """A batch is still itself after later ones were made while the device was busy with it."""
    images = torch.arange(4000, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 64, 64) / 4000
    source = TensorSource(images.contiguous(), torch.arange(4000))
    weights = torch.rand(2048, 2048, device="cuda")
    sums = []
    for batch in Loader(source, 100, device="cuda", seed=0).batches(1):
        for _ in range(20):
            weights = (weights @ weights).clamp(0, 1)
        sums.append((batch.images[:, 0, 0, 0] * 4000).round().long() - batch.indices)
        del batch
    assert torch.cat(sums).abs().max() == 0


@pytest.mark.gpu
def test_data_larger_than_their_share_of_the_gpu_are_streamed(source, monkeypatch):
    monkeypatch.setattr(loader, "_SHARE_OF_FREE_MEMORY", 0.0)
    made = Loader(source, 8, device="cuda", seed=2, augment="crop")
    assert made._images is None
    expected = gathered(Loader(source, 8, device="cpu", seed=2, augment="crop").batches(1))
    for got, wanted in zip(gathered(made.batches(1)), expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"batch_size": 2.0}, "batch_size"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"augment": ["flop"]}, "did you mean 'flip'"),
        ({"augment": ["random-resized-crop:8"]}, "needs a folder of images, got TensorSource"),
    ],
)
def test_bad_arguments(source, arguments, message):
    with pytest.raises(ValueError, match=message):
        Loader(source, **{"batch_size": 4, "device": "cpu", "seed": 0, **arguments})


def test_bad_epoch_start_and_shape(source):
    made = Loader(source, 10, device="cpu", seed=0)
    with pytest.raises(ValueError, match="epoch must be an integer >= 1, got 0"):
        made.batches(0)
    with pytest.raises(ValueError, match=r"start must be 0 \.\. 5, got 6"):
        made.batches(1, 6)
    vectors = as_source((torch.rand(4, 64), torch.arange(4)))
    assert next(Loader(vectors, 2, device="cpu", seed=0).batches(1)).images.shape == (2, 64)
    with pytest.raises(ValueError, match=r"channels_last needs images \(C, H, W\)"):
        Loader(vectors, 2, device="cpu", seed=0, channels_last=True)


def test_ordered_takes_a_source_a_pair_a_dataset_and_a_dataloader():
    images, labels = torch.rand(7, 1, 2, 2), torch.arange(7)
    data = [(images, labels), as_source((images, labels)), TensorDataset(images, labels)]
    for one in data:
        batches = list(ordered(one, 3))
        assert [len(batch.labels) for batch in batches] == [3, 3, 1]
        assert torch.equal(torch.cat([batch.indices for batch in batches]), labels)
        assert torch.equal(torch.cat([batch.images for batch in batches]), images)
        assert count(one) == 7
    own = DataLoader(TensorDataset(images, labels), 4)
    batches = list(ordered(own, 3))
    assert [len(batch.labels) for batch in batches] == [4, 3]  # nothing left out, its own size
    assert batches[0].indices is None
    assert count(own) == 7
    with pytest.raises(TypeError, match="pair of tensors"):
        ordered(3, 3)
