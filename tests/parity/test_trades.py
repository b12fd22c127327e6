"""method="trades" against libraries that we did not write: its attack, and a step on the weights."""

import copy
import importlib.util

import pytest
import torch
from torch import nn

from advfast.data import Batch
from advfast.training import methods
from advfast.training.step import TrainStep

from ..attacks.networks import batch, cnn
from .test_peers import wide_cnn

SETTINGS = methods.Settings(eps=8 / 255, alpha=2 / 255, steps=10, norm="linf")


def needs(name):
    return pytest.mark.skipif(
        importlib.util.find_spec(name) is None, reason=f"{name} is not installed here"
    )


@pytest.mark.parametrize("network", [cnn, wide_cnn])
@needs("torchattacks")
@pytest.mark.filterwarnings("ignore")
def test_crafts_the_images_of_torchattacks_tpgd(network):
    import torchattacks

    model, (images, labels) = network(), batch(32)
    images = images.clamp(0.01, 0.99)  # a start outside the box is put into it here, later there
    method = methods.make("trades", model, SETTINGS)
    method.kl_pgd.start, method.kl_pgd.fold = "torch", False
    torch.manual_seed(3)
    got = method.craft(Batch(images, labels, None))
    torch.manual_seed(3)
    expected = torchattacks.TPGD(model, eps=8 / 255, alpha=2 / 255, steps=10)(images, labels)
    # Its loss is another form of the same KL, whose gradient is nearly 0 at the start: signs differ by rounding.
    assert (got == expected).float().mean() > 0.99
    assert (got - expected).abs().mean() < 1e-4


class Whole(nn.Module):
    """ART takes the outputs of all layers from a Sequential, and its trainer then counts with the first one's."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


class Crafted:
    """Images that were made before, where ART asks an attack for them."""

    def __init__(self, images):
        self.images = images

    def generate(self, x, y=None):
        return self.images.numpy()


@needs("art")
@pytest.mark.filterwarnings("ignore")
def test_a_step_is_that_of_arts_trainer():
    from art.defences.trainer import AdversarialTrainerTRADESPyTorch
    from art.estimators.classification import PyTorchClassifier

    ours, (images, labels) = Whole(wide_cnn()).train(), batch(32)
    theirs = copy.deepcopy(ours)
    before = copy.deepcopy(ours.state_dict())
    method = methods.make("trades", ours, SETTINGS)
    crafted = method.craft(Batch(images, labels, None))
    method.craft = lambda given: crafted
    step = TrainStep(
        ours,
        torch.optim.SGD(ours.parameters(), lr=0.01),
        (),
        torch.amp.GradScaler("cpu", enabled=False),
    )
    loss = step(method, Batch(images, labels, None)).loss
    classifier = PyTorchClassifier(
        theirs, nn.CrossEntropyLoss(), tuple(images.shape[1:]), 10,
        torch.optim.SGD(theirs.parameters(), lr=0.01), clip_values=(0.0, 1.0), device_type="cpu",
    )  # fmt: skip
    trainer = AdversarialTrainerTRADESPyTorch(classifier, Crafted(crafted), beta=6.0)
    expected, _, count = trainer._batch_process(images.numpy(), labels.numpy())
    assert loss.item() == pytest.approx(expected / count, rel=1e-5)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-6)
        assert not torch.equal(value, before[name])
