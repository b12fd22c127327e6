"""Models inside DistributedDataParallel and DataParallel: the attack takes the module and leaves the wrapper alone."""

import copy

import pytest
import torch
import torch.distributed
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from advfast import PGDAttack
from advfast.attacks.state import bare_model, crafting

from .networks import batch, cnn

# Raised inside torch when its wrapper is made.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method")


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """This process as the only one of a group."""
    file = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Reduced:
    """A DDP model, and how many times it has reduced gradients."""

    def __init__(self):
        self.model = DistributedDataParallel(cnn(dropout=0.0))
        self.times = 0
        self.model.register_comm_hook(None, self._hook)

    def _hook(self, state, bucket):
        self.times += 1
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future


def step(model, images, labels):
    """One training step; the gradients."""
    F.cross_entropy(model(images), labels).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return gradients


def test_the_module_is_found():
    net = cnn()
    assert bare_model(net) is net and bare_model(net.forward) == net.forward
    wrapped = nn.DataParallel(nn.DataParallel(net))
    assert bare_model(wrapped) is net
    compiled = torch.compile(net)
    assert bare_model(compiled) is compiled


def test_data_parallel():
    net, (images, labels) = cnn().train(), batch()
    expected = PGDAttack(net, steps=3, seed=1)(images, labels)
    wrapped = nn.DataParallel(net)
    wrapped.register_forward_hook(lambda *_: pytest.fail("the wrapper was called"))
    assert torch.equal(PGDAttack(wrapped, steps=3, seed=1)(images, labels), expected)
    assert net.training and wrapped.training


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_an_attack_reduces_nothing_and_training_goes_on(group, bn):
    images, labels = batch()
    wrapped = Reduced()
    model = wrapped.model.train()
    assert bare_model(model) is model.module
    expected = step(cnn(dropout=0.0).train(), images, labels)
    attack = PGDAttack(model, steps=3, seed=1, bn=bn)
    for repeat in range(3):
        alone = PGDAttack(copy.deepcopy(model.module), steps=3, seed=1, bn=bn)
        assert torch.equal(attack(images, labels), alone(images, labels))
        assert wrapped.times == repeat
        assert all(p.grad is None for p in model.parameters())
        assert all(module.training for module in model.modules())
        # The reducer waits for nothing: a step works, and its gradients are those of the bare module.
        for got, wanted in zip(step(model, images, labels), expected, strict=True):
            torch.testing.assert_close(got, wanted)
        assert wrapped.times == repeat + 1


def test_an_attack_between_forward_and_backward(group):
    images, labels = batch()
    wrapped = Reduced()
    model = wrapped.model.train()
    loss = F.cross_entropy(model(images), labels)
    PGDAttack(model, steps=2)(images, labels)
    assert wrapped.times == 0
    loss.backward()
    assert wrapped.times == 1 and all(p.grad is not None for p in model.parameters())


def test_a_wrapper_inside_a_larger_model(group):
    images, labels = batch()
    wrapped = Reduced()
    model = nn.Sequential(nn.Identity(), wrapped.model).train()
    before = vars(wrapped.model).copy()
    expected = PGDAttack(cnn(dropout=0.0), steps=3, seed=1)(images, labels)
    assert torch.equal(PGDAttack(model, steps=3, seed=1)(images, labels), expected)
    assert wrapped.times == 0
    for name in ("require_backward_grad_sync", "require_forward_param_sync"):
        assert getattr(wrapped.model, name) is before[name] is True
    step(model, images, labels)
    assert wrapped.times == 1


def test_no_rank_waits_for_another_while_crafting(group, monkeypatch):
    """Ranks may take different numbers of steps: not even buffers may be exchanged."""
    model = nn.Sequential(nn.Identity(), DistributedDataParallel(cnn())).train()
    exchanged = []
    monkeypatch.setattr(model[1], "_sync_buffers", lambda: exchanged.append(1))
    images, _ = batch()
    model(images)
    assert exchanged == [1]
    with crafting(model, "train"):
        model(images)
    with pytest.raises(KeyError), crafting(model, "eval"):
        raise KeyError
    assert exchanged == [1]
    model(images)
    assert exchanged == [1, 1]
