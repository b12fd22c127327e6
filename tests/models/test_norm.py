import copy

import pytest
import torch
from torch import nn

from advfast import models
from advfast.attacks import PGDAttack, explain
from advfast.models import branch, fixed_statistics, norm_layers, use_norm_layers
from advfast.ntk import ntk


def network(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.BatchNorm2d(6, momentum=0.3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(384, 3),
    )
    with torch.no_grad():
        for layer in (model[1], model[4]):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            layer.weight.uniform_(0.5, 2)
            layer.bias.normal_()
    return model


def batch(count=24):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 3


def test_both_branches_begin_as_the_layer_that_was_there():
    plain, model = network().eval(), network().eval()
    use_norm_layers(model, "dual-batch")
    assert norm_layers(model) == "dual-batch"
    x, _ = batch()
    assert torch.equal(model(x), plain(x))
    with branch(model, "clean"):
        assert torch.equal(model(x), plain(x))
    assert model[4].clean.momentum == 0.3
    assert not model[4].training
    assert "branch=adversarial" in repr(model)


def test_branches_are_apart():
    model = network().train()
    use_norm_layers(model, "dual-batch")
    x, y = batch()
    before = copy.deepcopy(model.state_dict())
    with branch(model, "clean"):
        nn.functional.cross_entropy(model(x), y).backward()
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert {name.split(".")[1] for name in changed} == {"clean"}
    assert model[1].clean.weight.grad is not None
    assert model[1].adversarial.weight.grad is None
    assert model[1].branch == "adversarial"
    with pytest.raises(RuntimeError, match="inside"), branch(model, "clean"):
        raise RuntimeError("inside")
    assert model[1].branch == "adversarial"


def test_without_statistics_a_batch_is_normalised_by_itself():
    model, plain = network(), network().train()
    use_norm_layers(model, "batch-no-stats")
    assert not [name for name in model.state_dict() if "running" in name or "num" in name]
    x, _ = batch()
    assert torch.equal(model.eval()(x), plain(x))
    assert torch.equal(model.train()(x), plain(x))


def test_a_layer_that_is_used_twice_stays_one():
    model = network()
    model.append(model[4])
    use_norm_layers(model, "dual-batch")
    assert model[4] is model[8]


def apart():
    """A dual model whose branches differ."""
    model = network().eval()
    use_norm_layers(model, "dual-batch")
    with torch.no_grad():
        for layer in (model[1], model[4]):
            layer.clean.running_mean.add_(1)
            layer.clean.weight.mul_(-1)
    return model


def plain_of(model, name):
    model = copy.deepcopy(model)
    for place in (1, 4):
        model[place] = getattr(model[place], name)
    return model


@pytest.mark.parametrize("name", ["adversarial", "clean"])
def test_the_engine_takes_the_branch(name):
    model, (x, y) = apart(), batch()
    settings = {"eps": 0.1, "alpha": 0.03, "steps": 5, "seed": 3}
    folded, loop = PGDAttack(model, **settings), PGDAttack(model, fold=False, **settings)
    expected = PGDAttack(plain_of(model, name), fold=False, **settings)(x, y)
    # One attack that has seen the other branch before.
    for other in ("adversarial", "clean", name):
        with branch(model, other):
            found, slow = folded(x, y), loop(x, y)
    assert torch.equal(slow, expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    other = PGDAttack(
        plain_of(model, "clean" if name == "adversarial" else "adversarial"), **settings
    )
    assert not torch.allclose(other(x, y), expected, atol=1e-3)


def test_the_engine_folds_dual_layers():
    model = apart()
    told = [str(explain(made)) for made in (model, plain_of(model, "adversarial"))]
    assert told[0] == told[1]


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_without_statistics_the_engine_gives_the_plain_loop(bn):
    model, (x, y) = network().train(), batch()
    use_norm_layers(model, "batch-no-stats")
    settings = {"eps": 0.1, "alpha": 0.03, "steps": 5, "seed": 3, "bn": bn}
    found = PGDAttack(model, **settings)(x, y)
    assert torch.equal(found, PGDAttack(model, fold=False, **settings)(x, y))


@pytest.mark.parametrize(
    ("kind", "name"), [("dual-batch", "preact-resnet18"), ("batch-no-stats", "resnet18")]
)
def test_networks_by_name(kind, name):
    settings = {"in_shape": [1, 8, 8], "classes": 3, "width": 4}
    model = models.make(name, norm_layers=kind, **settings)
    made = models.spec(model)
    assert made["kwargs"]["norm_layers"] == kind
    again = models.make(made["name"], **made["kwargs"])
    assert again.state_dict().keys() == model.state_dict().keys()
    again.load_state_dict(model.state_dict())
    assert "norm_layers" not in models.spec(models.make(name, **settings))["kwargs"]


def test_bad_values():
    with pytest.raises(ValueError, match="norm_layers must be one of batch, batch-no-stats"):
        use_norm_layers(network(), "layer")
    with pytest.raises(ValueError, match="the model has no batch normalisation"):
        use_norm_layers(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), "dual-batch")
    model = network()
    use_norm_layers(model, "dual-batch")
    use_norm_layers(model, "dual-batch")
    with pytest.raises(ValueError, match="the model has 'dual-batch' already"):
        use_norm_layers(model, "batch-no-stats")
    with pytest.raises(ValueError, match="branch must be one of"), branch(model, "dirty"):
        pass


def test_fixed_statistics_make_batch_statistics_stand_still():
    """On the batch itself what batch statistics give, and a function of one sample; the kernel is the frozen one."""
    model, bare = network().double(), network().double()
    use_norm_layers(bare, "batch-no-stats")
    images, others = batch()[0].double(), torch.rand(9, 1, 8, 8, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    for of in (model, bare):
        fixed = fixed_statistics(of, images)
        with torch.no_grad():
            torch.testing.assert_close(fixed(images), bare(images))
            torch.testing.assert_close(fixed(others)[:1], fixed(others[:1]))
            assert not torch.allclose(fixed(others), bare(others))
        frozen = ntk(of, others, bn="frozen", bn_batch=images)
        torch.testing.assert_close(ntk(fixed, others).tensor, frozen.tensor)
        assert norm_layers(fixed) == "batch" and not fixed.training and of.training
        assert not any(layer._forward_pre_hooks for layer in fixed.modules())
    assert norm_layers(bare) == "batch-no-stats"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
