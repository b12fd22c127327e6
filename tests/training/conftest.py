import pytest
import torch

from advfast.training import train

EPS = 0.15

RECIPE = {"eps": EPS, "steps": 5, "epochs": 10, "batch_size": 64, "lr": 0.1, "progress": False}
"""A short run on digits: seconds, far from the best accuracy."""


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    # On 8x8 images a second thread mostly waits; results are promised for a fixed number of threads.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def robust(tmp_path_factory):
    """pgd-at on digits."""
    return train("small-cnn", "digits", out=tmp_path_factory.mktemp("pgd-at"), **RECIPE)


@pytest.fixture(scope="package")
def standard(tmp_path_factory):
    """Clean training on digits, everything else the same."""
    out = tmp_path_factory.mktemp("standard")
    return train("small-cnn", "digits", method="standard", out=out, **RECIPE)


@pytest.fixture
def tiny():
    """130 random 8x8 images of 3 classes that a network can tell apart."""
    images = torch.rand(130, 1, 8, 8) / 2
    labels = torch.arange(130) % 3
    images[torch.arange(130), 0, labels] += 0.5
    return images, labels
