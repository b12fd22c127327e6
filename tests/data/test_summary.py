import pytest
import torch
from torch.utils.data import Dataset

from advfast.data import as_source, fingerprint, load, pixel_statistics, stratified_split


def test_pixel_statistics():
    images = torch.rand(50, 3, 4, 4)
    images[:, 2] = 0.25
    mean, std = pixel_statistics(as_source((images, torch.zeros(50, dtype=torch.long))))
    assert mean == pytest.approx(images.mean((0, 2, 3)).tolist(), abs=1e-4)
    assert std[:2] == pytest.approx(images.std((0, 2, 3), correction=0).tolist()[:2], abs=1e-4)
    assert std[2] == 1  # constant


def test_pixel_statistics_of_vectors_and_of_few_samples():
    images = torch.rand(700, 9)  # more than are read at a time
    mean, std = pixel_statistics(as_source((images, torch.zeros(700, dtype=torch.long))))
    assert mean == pytest.approx([images.mean().item()], abs=1e-4)
    assert std == pytest.approx([images.std(correction=0).item()], abs=1e-4)
    one = as_source((torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, dtype=torch.long)))
    assert pixel_statistics(one) == ([0.5], [1.0])


def test_fingerprint_of_the_same_and_of_other_data():
    images = torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8)
    labels = torch.arange(40) % 5

    def of(images, labels):
        return fingerprint(as_source((images, labels)))

    same = of(images, labels)
    assert same == of(images.clone(), labels.clone()) == of(images.float() / 255, labels.int())
    assert len(same) == 8
    others = [
        of(images[:39], labels[:39]),
        of(images, labels.roll(1)),
        of(images.roll(1, 0), labels),
        of(images.transpose(2, 3), labels),
        of(images.reshape(40, 12, 2, 2), labels),
        of(255 - images, labels),
    ]
    assert len({same, *others}) == 7


def test_fingerprints_of_seeds_differ_on_real_data():
    train = load("digits").train
    parts = [train.subset(stratified_split(train.labels, 200, seed=seed)[0]) for seed in (0, 1, 0)]
    first, second, again = map(fingerprint, parts)
    assert first == again != second


def test_fingerprint_of_a_random_dataset_is_stable():
    class Noisy(Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return torch.rand(1, 2, 2), index % 3

    source = as_source(Noisy())
    assert fingerprint(source) == fingerprint(source)
    assert fingerprint(source) != fingerprint(source.subset(torch.arange(5)))
