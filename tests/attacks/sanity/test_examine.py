"""`examine`: each code on a model made for it, silence on healthy ones, and nothing left behind."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advfast.attacks.sanity import examine, train_mode
from advfast.models.vit import VisionTransformer

from ..masking.defences import adversarially_trained, digits, two_classes, undefended, with_bn


def codes(model, images=None, labels=None, **options) -> set[str]:
    _, _, x, y = digits()
    x, y = (x if images is None else images), (y if labels is None else labels)
    return {finding.code for finding in examine(model, x, y, **{"eps": 0.1, **options})}


class Counted(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.forwards, self.largest = model, 0, 0

    def forward(self, x):
        self.forwards += 1
        self.largest = max(self.largest, len(x))
        return self.model(x)


def _untrained():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).eval()


HEALTHY = {
    "undertrained": _untrained,
    "trained": undefended,
    "adversarially trained": adversarially_trained,
    "BN": with_bn,
    "ViT": lambda: VisionTransformer((1, 8, 8), 10, patch=2, dim=32, depth=2, heads=2).eval(),
    "float64": lambda: copy.deepcopy(with_bn()).double(),
    "bfloat16": lambda: copy.deepcopy(with_bn()).bfloat16(),
    "float16": lambda: copy.deepcopy(undefended()).half(),
}


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize(
    ("norm", "eps"), [("linf", 0.1), ("linf", 0.001), ("l2", 1.0), ("l1", 4.0)]
)
def test_says_nothing_of_healthy_networks(name, norm, eps):
    assert codes(HEALTHY[name](), norm=norm, eps=eps) == set()


def test_two_classes():
    _, _, _, labels = digits()
    assert codes(two_classes(), labels=labels % 2) == {"few-classes"}
    assert codes(two_classes(), labels=labels % 2, targets=1) == set()


def test_cost_is_as_documented():
    model = Counted(undefended())
    _, _, images, labels = digits()
    assert not examine(model, images, labels, eps=0.1, samples=24)
    assert model.forwards == 12 and model.largest == 24


@pytest.mark.parametrize("output", (0, lambda found: found[0]))
def test_output(output):
    class Pair(nn.Module):
        def forward(self, x):
            return undefended()(x), x

    assert codes(Pair(), output=output) == set()
    with pytest.raises(TypeError, match="logits"):
        codes(Pair())


def test_nothing_is_left_behind():
    class Nasty(nn.Module):
        """Draws from everything, adapts, differentiates and counts."""

        def __init__(self):
            super().__init__()
            self.net = copy.deepcopy(with_bn()).requires_grad_(True)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            with torch.no_grad():
                self.net[0].weight += (
                    1e-3 * torch.randn(()) + random.random() * np.random.rand() * 0
                )
            logits = self.net(x)
            logits.logsumexp(1).sum().backward(retain_graph=True, inputs=[self.net[0].weight])
            return logits

    model = Nasty()
    model.train()
    model.net[1].eval()
    model.net[0].weight.grad = mark = torch.ones_like(model.net[0].weight)
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    parameters = dict(model.named_parameters())
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    found = codes(model)
    assert {"randomised", "dynamic", "train-mode"} <= found
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), str(np.random.get_state()))
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name] and parameter.requires_grad
    assert model.net[0].weight.grad is mark and torch.equal(mark, torch.ones_like(mark))


def test_the_same_findings_again_whatever_the_generators_hold():
    class Noise(nn.Module):
        def forward(self, x):
            return undefended()(x + 0.1 * torch.randn_like(x))

    _, _, images, labels = digits()
    torch.manual_seed(1)
    first = examine(Noise(), images, labels, eps=0.1)
    torch.manual_seed(2)
    assert first == examine(Noise(), images, labels, eps=0.1) and first[0].code == "randomised"


def _model(function):
    class Model(nn.Module):
        def forward(self, x):
            return function(undefended(), x)

    return Model()


def test_draws_that_hardly_show_are_found_and_rounding_is_not():
    tiny = _model(lambda net, x: net(x) * (1 + 1e-5 * torch.rand(())))
    assert codes(tiny) == {"randomised"}
    # The same size from no generator that torch knows: as a GPU's order of sums.
    numbers = iter(np.random.default_rng(0).uniform(size=1000))
    rounding = _model(lambda net, x: net(x) * (1 + 1e-5 * next(numbers)))
    assert codes(rounding) == set()
    more = _model(lambda net, x: net(x) + next(numbers) * torch.arange(10))
    assert "randomised" in codes(more)


def test_draws_that_do_not_show_are_no_matter():
    assert codes(_model(lambda net, x: net(x) + 0 * torch.rand(()))) == set()


def test_probabilities():
    assert codes(_model(lambda net, x: net(x).softmax(1))) == {"probabilities"}
    assert codes(_model(lambda net, x: net(x).log_softmax(1))) == {"log-probabilities"}


def test_not_finite():
    def broken(net, x):
        logits = net(x).clone()
        logits[1, 3] = float("nan")
        return logits

    (finding,) = [f for f in _findings(_model(broken)) if f.code == "nonfinite"]
    assert finding.values == {"samples": 64, "nonfinite": 1}


def _findings(model):
    _, _, images, labels = digits()
    return examine(model, images, labels, eps=0.1)


@pytest.mark.parametrize("how", ("grad", "backward", "func"))
def test_dynamic_by_a_backward_pass(how):
    """A purification step: the input is moved along a gradient before it is classified."""

    def purify(net, x):
        with torch.enable_grad():
            z = x.detach().clone().requires_grad_()
            if how == "func":
                gradient = torch.func.grad(lambda v: net(v).logsumexp(1).sum())(x.detach())
            elif how == "grad":
                (gradient,) = torch.autograd.grad(net(z).logsumexp(1).sum(), z)
            else:
                net(z).logsumexp(1).sum().backward()
                gradient = z.grad
        return net(x + 1e-3 * gradient.sign())

    found = [f for f in _findings(_model(purify)) if f.code == "dynamic"]
    assert len(found) == 1 and found[0].values == {"changed": 0, "backward": 1}


def test_dynamic_by_its_state():
    class Adapts(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = copy.deepcopy(undefended())
            self.register_buffer("mean", torch.zeros(64))

        def forward(self, x):
            self.mean = 0.9 * self.mean + 0.1 * x.detach().flatten(1).mean(0)
            return self.net(x.flatten(1) - 0.01 * self.mean)

    found = {finding.code: finding for finding in _findings(Adapts())}
    assert found["dynamic"].values == {"changed": 1, "backward": 0}
    assert "mean" in found["dynamic"].message


def test_a_checkpointed_model_is_not_dynamic():
    from torch.utils.checkpoint import checkpoint

    assert codes(_model(lambda net, x: checkpoint(net, x, use_reentrant=False))) == set()


def test_no_gradient():
    assert codes(_model(lambda net, x: net(x.detach()))) == {"no-gradient"}
    trainable = copy.deepcopy(undefended()).requires_grad_(True)
    assert codes(nn.Sequential(_Detach(), trainable)) == {"no-gradient"}

    def under_no_grad(net, x):
        with torch.no_grad():
            return net(x)

    assert codes(_model(under_no_grad)) == {"no-gradient"}


class _Detach(nn.Module):
    def forward(self, x):
        return x.detach()


def test_zero_gradient_counts_samples():
    """Only those whose pixels are zeroed in front of the network."""

    def half(net, x):
        return torch.cat([net(torch.round(x[:5])), net(x[5:])])

    (finding,) = [f for f in _findings(_model(half)) if f.code == "zero-gradient"]
    right = undefended()(torch.round(digits()[2][:5])).argmax(1) == digits()[3][:5]
    assert finding.values["zero"] == int(right.sum()) and finding.values["zero_of_ce_alone"] == 0


def test_small_gradients_of_16_bits_are_not_taken_for_zero():
    """In float16 the softmax of a sure network underflows; the attacks rescale, and so does the check."""
    sure = nn.Sequential(*copy.deepcopy(undefended()), _Times(4.0)).half()
    assert "zero-gradient" not in codes(sure)


class _Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_misleading_gradient():
    class Turned(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return -gradient

    assert codes(_model(lambda net, x: net(Turned.apply(x)))) == {"misleading-gradient"}


def test_wide_box():
    _, _, images, _ = digits()
    found = codes(_model(lambda net, x: net((x + 1) / 2)), images=images * 2 - 1)
    assert found == {"wide-box"}
    assert "wide-box" in codes(_model(lambda net, x: net(x / 255)), images=images * 255)


def test_train_mode_is_measured_as_it_was_handed_in():
    model = copy.deepcopy(with_bn())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 3.0  # so that the modes differ
    model.train()
    _, _, images, labels = digits()
    (finding,) = [f for f in examine(model, images, labels, eps=0.1) if f.code == "train-mode"]
    with torch.no_grad():
        train = int((copy.deepcopy(model)(images[:64]).argmax(1) == labels[:64]).sum())
        evaluated = int((copy.deepcopy(model).eval()(images[:64]).argmax(1) == labels[:64]).sum())
    assert finding.values["right_as_given"] == train > evaluated == finding.values["right_in_eval"]


def test_train_mode_of_layers_that_have_none():
    assert train_mode(copy.deepcopy(undefended()).train()) == ()
    assert train_mode(nn.Sequential(nn.Dropout(0.0)).train()) == ()
    assert train_mode(lambda x: x) == ()
    (finding,) = train_mode(nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3).eval()))
    assert finding.values == {"batch_norms": 0, "dropouts": 1}


def test_batch_dependence_by_a_functional_layer():
    found = codes(
        _model(lambda net, x: net(F.batch_norm(x, None, None, training=True) * 0.3 + 0.3))
    )
    assert "batch-dependent" in found


def test_any_shape_and_few_samples():
    vectors = nn.Sequential(nn.Linear(20, 10)).eval()
    assert codes(vectors, torch.rand(1, 20), torch.tensor([3])) == set()
    assert examine(vectors, torch.rand(0, 20), torch.zeros(0, dtype=torch.long), eps=0.1) == ()
    deep = nn.Sequential(nn.Flatten(), nn.Linear(24, 10))
    x = torch.rand(6, 2, 2, 3, 2)
    assert codes(deep, x, deep(x).argmax(1)) == set()
    assert codes(deep, x, (deep(x).argmax(1) + 1) % 10) == set()  # all wrong
    assert codes(deep, x, F.one_hot(deep(x).argmax(1), 10).float(), eps=0.0) == set()


def test_bad_arguments():
    for change, said in (
        ({"eps": -1.0}, "eps must be"),
        ({"norm": "l3"}, "norm"),
        ({"samples": 0}, "samples must be an integer >= 1"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, "labels must have shape"),
    ):
        with pytest.raises(ValueError, match=said):
            codes(undefended(), **change)
    with pytest.raises(TypeError, match="callable"):
        codes(3)
