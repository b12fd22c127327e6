import pytest
import torch
import torch.nn.functional as F

from advfast import models


@pytest.fixture
def cnn():
    """A network that knows most of its 90 images of 3 classes."""
    model = models.make("small-cnn", in_shape=(1, 8, 8), classes=3)
    images = torch.rand(90, 1, 8, 8) / 3 + 0.2
    labels = torch.arange(90) % 3
    # Some are clearer than others, so that attacks of all strengths break some.
    images[torch.arange(90), 0, labels] += torch.linspace(0.05, 0.25, 90)[:, None]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    labels = labels.clone()
    labels[::5] = (labels[::5] + 1) % 3  # some are wrong from the start
    return model, images, labels
