"""Networks with a layer replaced, at the cost of what depends on it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from advfast import models
from advfast.studies.resets import Plain, Program, layer_tensors, network, tensors_of


class Pair(nn.Module):
    """Two layers; what is between them is the subclass's."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.second(self.between(self.first(x)))

    def between(self, h):
        return h.relu()


class Branches(Pair):
    def between(self, h):
        return h if h.sum() > 0 else -h


class Item(Pair):
    def between(self, h):
        return h * h.max().item()


class Mask(Pair):
    def between(self, h):
        return h * h[h > 0].shape[0]


class Unique(Pair):
    def between(self, h):
        return h * len(h.round().unique())


class Noise(Pair):
    def between(self, h):
        return F.dropout(h, 0.5, True)


class Counts(Pair):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def between(self, h):
        self.calls += 1
        return h * (self.calls > 0)


class InPlace(Pair):
    def between(self, h):
        kept = h.clone()
        h += self.first(h).relu_()
        kept[:, 0] = h[:, 1]
        return kept


class Chosen(Pair):
    def between(self, h):
        return h[:, torch.tensor([1, 0, 2, 3])] * torch.tensor([1.0, 2.0, 3.0, 4.0])


class Tied(Pair):
    def __init__(self):
        super().__init__()
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight


class Tower(nn.Module):
    """A branch beside each of two layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(4))
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        h = self.a(x).relu()
        h = (self.b(h) + self.c(h)).relu()
        return self.head(self.d(h).mean((2, 3)))


def replaced(model, layer):
    torch.manual_seed(1)
    return {
        name: torch.randn_like(tensors_of(model)[name])
        for name in layer_tensors(model, layer).values()
    }


@pytest.mark.parametrize(
    ("kind", "traced"),
    [(Pair, True), (InPlace, True), (Chosen, True), (Tied, True), (Branches, False), (Item, False),
     (Mask, False), (Unique, False), (Noise, False), (Counts, False)],
)  # fmt: skip
def test_any_network_gives_what_a_whole_pass_gives(kind, traced):
    torch.manual_seed(0)
    net, x = kind().eval(), torch.randn(5, 4)
    found = network(net, x, ["first", "second"])
    assert isinstance(found, Program if traced else Plain)
    assert traced == (found.reason == "")
    logits, kept = found.original(x)
    for layer in ("second", "first", "second"):
        new = replaced(net, layer)
        torch.manual_seed(0)  # as `Plain` has it, for the network that draws
        with torch.no_grad():
            expected = functional_call(net, new, (x,))
        assert torch.equal(found.changed(kept, layer, new), expected)
        assert not torch.equal(expected, logits)
        same = {name: tensors_of(net)[name] for name in new}
        assert torch.equal(found.changed(kept, layer, same), logits)
    assert torch.equal(found.original(x)[0], logits)


@pytest.mark.parametrize("name", ["small-cnn", "resnet18", "preact-resnet18", "vit-tiny"])
def test_networks_of_the_library_are_traced_to_the_bit(name):
    width = {"width": 4} if name == "resnet18" else {}
    net = models.make(name, in_shape=(1, 8, 8), classes=10, **width).eval()
    x = torch.rand(3, 1, 8, 8)
    layers = [n for n, m in net.named_modules() if type(m) in (nn.Conv2d, nn.Linear)]
    program = Program(net, x, layers)
    logits, kept = program.original(x)
    with torch.no_grad():
        assert torch.equal(logits, net(x))
        for layer in (layers[0], layers[len(layers) // 2], layers[-1]):
            new = replaced(net, layer)
            assert torch.equal(program.changed(kept, layer, new), functional_call(net, new, (x,)))


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.convolutions = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.convolutions += function is torch.ops.aten.convolution.default
        return function(*args, **(kwargs or {}))


def test_what_does_not_depend_on_the_layer_is_not_run_again():
    net, x = Tower().eval(), torch.rand(2, 2, 4, 4)
    program = Program(net, x, ["a", "b", "c", "d", "head"])
    _, kept = program.original(x)
    for layer, convolutions in {"a": 4, "b": 2, "c": 2, "d": 1, "head": 0}.items():
        with Count() as count:
            program.changed(kept, layer, replaced(net, layer))
        assert count.convolutions == convolutions, layer
    # Kept: what the layers read (a's output, the input of d twice, the branches, the head's input).
    assert program.kept_bytes < 4 * 2 * 2 * 16 * 8


def test_a_layer_that_is_called_twice_is_replaced_in_both_calls():
    class Twice(Pair):
        def between(self, h):
            return self.first(h.relu())

    net, x = Twice().eval(), torch.randn(5, 4)
    program = Program(net, x, ["first"])
    new = replaced(net, "first")
    w, b = new["first.weight"], new["first.bias"]
    with torch.no_grad():
        expected = net.second(((x @ w.T + b).relu()) @ w.T + b)
    assert torch.allclose(
        program.changed(program.original(x)[1], "first", new), expected, atol=1e-6
    )


def test_a_layer_that_the_logits_do_not_depend_on():
    class Unused(Pair):
        def __init__(self):
            super().__init__()
            self.spare = nn.Linear(4, 4)

    net, x = Unused().eval(), torch.randn(5, 4)
    program = Program(net, x, ["spare"])
    logits, kept = program.original(x)
    assert torch.equal(program.changed(kept, "spare", replaced(net, "spare")), logits)
