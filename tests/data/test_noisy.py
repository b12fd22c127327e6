"""Random labels and pixels: how they are drawn, kept and read back, and names of data sets."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import advfast
from advfast.data import (
    LabelNoise,
    Loader,
    as_source,
    load,
    noisy_labels,
    noisy_pixels,
    with_labels,
)
from advfast.data.noisy import PIXELS, named_noisy
from advfast.training.presets import preset


def transition(rate, classes):
    return rate / classes * np.ones((classes, classes)) + (1 - rate) * np.eye(classes)


@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
def test_labels_are_drawn_from_the_transition_matrix(rate):
    labels = torch.arange(40_000) % 4
    drawn = noisy_labels(labels, rate, seed=3)
    counts = np.zeros((4, 4))
    np.add.at(counts, (labels.numpy(), drawn.numpy()), 1)
    # Four standard deviations of a share of 10,000.
    assert np.abs(counts / 10_000 - transition(rate, 4)).max() <= 4 * 0.5 / 100
    if rate == 0:
        assert torch.equal(drawn, labels)


def test_draws_depend_on_the_seed_and_are_nested_over_the_rates():
    labels = torch.arange(500) % 5
    few, many = noisy_labels(labels, 0.3, seed=1), noisy_labels(labels, 0.8, seed=1)
    assert torch.equal(few, noisy_labels(labels, 0.3, seed=1))
    assert not torch.equal(few, noisy_labels(labels, 0.3, seed=2))
    changed = few != labels
    assert changed.any() and torch.equal(many[changed], few[changed])
    assert (many != labels).sum() > changed.sum()
    assert noisy_labels(labels, 1.0, classes=9).max() == 8


def test_bad_rates_and_classes():
    for rate in (-0.1, 1.1, float("nan"), True, "1"):
        with pytest.raises(ValueError, match=r"rate must be a number 0 \.\. 1"):
            noisy_labels(torch.arange(4), rate)
    with pytest.raises(ValueError, match="labels below their number, got 3 classes"):
        noisy_labels(torch.arange(4), 0.5, classes=3)
    with pytest.raises(ValueError, match="at least 2 classes"):
        noisy_labels(torch.zeros(4, dtype=torch.int64), 0.5)


def test_labels_come_back_from_their_file_exactly(tmp_path):
    source = load("digits").train
    chosen = torch.tensor([5, 3, 700, 701, 20])
    drawn = LabelNoise.draw(source, 1.0, numbers=chosen, seed=4)
    drawn.save(tmp_path / "labels.npy")
    read = LabelNoise.read(tmp_path / "labels.npy")
    for name in ("numbers", "original", "labels"):
        assert torch.equal(getattr(read, name), getattr(drawn, name))
    assert torch.equal(read.original, source.labels[chosen])
    noisy = read.of(source)
    assert torch.equal(noisy.labels, drawn.labels)
    assert torch.equal(noisy.batch(torch.arange(5))[0], source.batch(chosen)[0])
    assert read.kept == (drawn.labels == drawn.original).float().mean()


def test_files_and_data_that_do_not_fit(tmp_path):
    source = load("digits").train
    drawn = LabelNoise.draw(source, 0.5)
    with pytest.raises(ValueError, match="drawn for other data"):
        drawn.of(load("digits").test)
    other = with_labels(source, (source.labels + 1) % 10)
    with pytest.raises(ValueError, match="drawn for other data"):
        drawn.of(other)
    np.save(tmp_path / "two.npy", np.zeros((2, 5), dtype=np.int64))
    with pytest.raises(ValueError, match=r"expected an int64 array of shape \[3, N\]"):
        LabelNoise.read(tmp_path / "two.npy")
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(ValueError, match=r"not a whole \.npy file"):
        LabelNoise.read(tmp_path / "text.npy")
    with pytest.raises(FileNotFoundError):
        LabelNoise.read(tmp_path / "none.npy")
    with pytest.raises(ValueError, match=r"labels must have shape \(1297,\), got \(3,\)"):
        with_labels(source, torch.zeros(3))


class Items(Dataset):
    """Read one by one."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], int(self.labels[index])


def pair():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (30, 2, 4, 3), generator=generator).to(torch.uint8)
    return images, torch.arange(30) % 3


@pytest.mark.parametrize("kind", PIXELS)
def test_pixels_in_memory_and_as_they_are_read(kind):
    images, labels = pair()
    rows = torch.tensor([7, 2, 29])
    whole = noisy_pixels((images, labels), kind, seed=5)
    lazy = noisy_pixels(Items(images, labels), kind, seed=5)
    x, y = whole.batch(rows)
    assert torch.equal(y, labels[rows]) and x.dtype == torch.float32
    for part in (lazy.batch(rows), lazy.subset(rows).batch(torch.arange(3))):
        assert torch.equal(part[0], x) and torch.equal(part[1], y)
    original = (images[rows].float() / 255).flatten(2)
    other, _ = noisy_pixels((images, labels), kind, seed=6).batch(rows)
    assert not torch.equal(other, x) and not torch.equal(x.flatten(2), original)
    if kind == "gaussian":
        return
    for made, image in zip(x.flatten(2), original, strict=True):
        columns = {tuple(c) for c in image.T.tolist()}
        assert {tuple(c) for c in made.T.tolist()} == columns  # channels stay together
    orders = [
        [(column == image.T).all(1).nonzero()[0, 0].item() for column in made.T]
        for made, image in zip(x.flatten(2), original, strict=True)
    ]
    assert (orders[0] == orders[1] == orders[2]) == (kind == "shuffled")


def test_gaussian_images_have_the_statistics_of_the_data():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(400, 2, 8, 8, generator=generator) * torch.tensor([0.2, 0.4])[:, None, None]
    images += 0.3
    made, _ = noisy_pixels((images, torch.zeros(400).long()), "gaussian").batch(torch.arange(400))
    for channel in range(2):
        assert float(made[:, channel].mean()) == pytest.approx(float(images[:, channel].mean()), abs=2e-3)  # fmt: skip
        assert float(made[:, channel].std()) == pytest.approx(float(images[:, channel].std()), abs=2e-3)  # fmt: skip
    black = noisy_pixels((torch.zeros(50, 1, 4, 4), torch.zeros(50).long()), "gaussian")
    x, _ = black.batch(torch.arange(50))
    assert x.min() == 0 and x.max() <= 1  # a deviation of 1 around 0, clipped


def test_what_has_no_pixels_is_refused():
    with pytest.raises(ValueError, match="kind must be one of shuffled, random, gaussian"):
        noisy_pixels(pair(), "white")
    with pytest.raises(ValueError, match=r"shape \[N, C, H, W\], got \(1, 5\)"):
        noisy_pixels((torch.rand(4, 5), torch.arange(4)), "shuffled")


def test_names():
    plain, noisy = load("digits"), load("digits-noisy:0.6")
    assert noisy.name == "digits-noisy-0.6" and noisy.test is not None
    assert torch.equal(noisy.train.labels, noisy_labels(plain.train.labels, 0.6, classes=10))
    assert torch.equal(noisy.test.labels, plain.test.labels)
    seeded = load("Digits-noisy:1:7")
    assert seeded.name == "digits-noisy-1-7"
    assert torch.equal(seeded.train.labels, noisy_labels(plain.train.labels, 1, classes=10, seed=7))
    every = torch.arange(20)
    for kind in PIXELS:
        made = load(f"digits-{kind}")
        x, y = made.train.batch(every)
        assert torch.equal(x, noisy_pixels(plain.train, kind).batch(every)[0])
        assert torch.equal(y, plain.train.labels[every])
        same = torch.equal(made.test.batch(every)[0], plain.test.batch(every)[0])
        assert same == (kind != "shuffled")
    assert preset("digits-noisy:0.5") == preset("digits-random:3") == preset("digits")
    assert named_noisy("own-noisy:1", ("digits",), load) is None
    assert named_noisy("digits", ("digits",), load) is None
    for end in ("noisy:", "noisy:2", "noisy:x", "random:-1", "noisy:1:a"):
        with pytest.raises(ValueError, match="must be digits-noisy:RATE"):
            load(f"digits-{end}")


def test_a_run_trains_on_what_was_drawn(tmp_path):
    images, labels = pair()
    images = torch.nn.functional.interpolate(images[:, :1].float() / 255, (8, 8))
    source = LabelNoise.draw((images, labels), 1.0, seed=1).of((images, labels))
    seen = {}

    class See:
        def on_step_end(self, state):
            seen.update(zip(state.batch.indices.tolist(), state.batch.labels.tolist(), strict=True))

    advfast.train(
        "small-cnn", source, val=source, method="standard", epochs=1, batch_size=10, out=tmp_path,
        progress=False, callbacks=[See()],
    )  # fmt: skip
    assert seen == dict(enumerate(source.labels.tolist()))
    lazy = with_labels(as_source(Items(images, labels)), source.labels)
    loader = Loader(lazy, 10, device=torch.device("cpu"), seed=0)
    found = {
        int(i): int(y) for b in loader.batches(1) for i, y in zip(b.indices, b.labels, strict=True)
    }
    assert found == seen
