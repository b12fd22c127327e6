import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from advfast.data import Batch
from advfast.training import checkpoint, train
from advfast.training.methods import PGDAT, Settings
from advfast.training.modifiers import AWP, make

from ..passes import counted
from .runs import assert_resumes, assert_same_runs, course, images, network, stepper


def double_network():
    model = network().double()
    model[4] = nn.Identity()  # dropout would draw anew in the proxy
    return model


def published(model, batches, gamma, warmup_steps=0, lr=0.1):
    """The rule as the paper's algorithm has it, with a proxy that takes a step of ascent."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    model.train()
    for number, (x, y) in enumerate(batches):
        moved = {}
        if number >= warmup_steps:
            proxy = copy.deepcopy(model)
            ascent = torch.optim.SGD(proxy.parameters(), lr=0.01)
            (-cross_entropy(proxy(x), y)).backward()
            ascent.step()
            for name, w in model.named_parameters():
                if w.dim() > 1 and "weight" in name:
                    delta = proxy.get_parameter(name).detach() - w.detach()
                    moved[name] = gamma * w.detach().norm() / (delta.norm() + 1e-20) * delta
        with torch.no_grad():
            for name, v in moved.items():
                model.get_parameter(name).add_(v)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            for name, v in moved.items():
                model.get_parameter(name).sub_(v)


def batches(count, size=24):
    x, y = images(count * size)
    return [
        (x[i * size : (i + 1) * size].double(), y[i * size : (i + 1) * size]) for i in range(count)
    ]


@pytest.mark.parametrize("warmup", [0, 2])
def test_awp_is_the_published_rule(warmup):
    data = batches(6 + 3 * warmup)
    expected, model = double_network(), double_network()
    published(expected, data, 0.05, warmup_steps=3 * warmup)
    step = stepper(model, AWP(0.05, warmup))
    for number, (x, y) in enumerate(data):
        step(number, Batch(x, y, None))
    for name, value in expected.state_dict().items():
        # Running statistics too: one pass a step, with moved weights.
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-9, atol=1e-11)
    plain = double_network()
    without = stepper(plain)
    for number, (x, y) in enumerate(data):
        without(number, Batch(x, y, None))
    assert (plain[0].weight - model[0].weight).abs().max() > 1e-3


def test_the_order_of_parameter_groups_does_not_matter():
    data = batches(3)
    models = [double_network(), double_network()]
    for model, reverse in zip(models, (False, True), strict=True):
        awp = AWP(0.1)
        step = stepper(model, awp)
        if reverse:
            step.train_step.optimizer = torch.optim.SGD(
                [{"params": [p]} for p in reversed(list(model.parameters()))],
                lr=0.1,
                momentum=0.9,
                weight_decay=5e-4,
            )
        for number, (x, y) in enumerate(data):
            step(number, Batch(x, y, None))
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


def test_what_is_not_finite_moves_nothing():
    awp, model = AWP(0.1), network()
    with torch.no_grad():
        model[5].weight.zero_()  # its gradient is finite, its length 0
    before = copy.deepcopy(model.state_dict())
    awp.begin(model, None)
    for bad in (float("nan"), float("inf")):
        gradients = [torch.ones_like(p) for p in model.parameters()]
        gradients[0].view(-1)[3] = bad
        awp._find(gradients)
        assert all(move.isfinite().all() for move in awp._moves)
        assert (awp._moves[0] == 0).all()
        assert (awp._moves[1] == 0).all()
    awp._find([None] * 6)
    assert all((move == 0).all() for move in awp._moves)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_an_exception_in_the_step_leaves_the_weights():
    awp, model = AWP(0.1), network()
    awp.begin(model, None)
    awp.active = True
    before = [p.detach().clone() for p in model.parameters()]

    class Update:
        def gradients(self=None):
            return [torch.ones_like(p) for p in model.parameters()]

    with pytest.raises(RuntimeError, match="inside"), awp.updating(Update()):
        assert not torch.equal(model[0].weight, before[0])
        raise RuntimeError("inside")
    for p, value in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), value)


def test_gamma_0_is_the_run_without_it(tmp_path):
    course(tmp_path / "base")
    course(tmp_path / "awp", "awp:gamma=0")
    assert_same_runs(tmp_path / "awp", tmp_path / "base")


def test_during_the_warmup_it_is_the_run_without_it(tmp_path):
    course(tmp_path / "base", epochs=2)
    course(tmp_path / "awp", "awp:gamma=0.1,warmup=2", epochs=2)
    assert_same_runs(tmp_path / "awp", tmp_path / "base")
    course(tmp_path / "shorter", "awp:gamma=0.1,warmup=1", epochs=2)
    one, other = (
        checkpoint.read(tmp_path / name / "last.pt")["state"] for name in ("base", "shorter")
    )
    assert not torch.equal(one["0.weight"], other["0.weight"])


def test_resumed_in_the_middle_of_an_epoch(tmp_path):
    assert_resumes(tmp_path, "awp:gamma=0.02,warmup=1", norm_decay=False)


def test_in_parts_it_is_the_whole_batch(tmp_path):
    data, models = images(48), [double_network() for _ in range(2)]
    for model, micro_batch in zip(models, (None, 10), strict=True):
        model[1].eval().requires_grad_(False)
        model.train = lambda mode=True, model=model: model  # BN stays as it is
        step = stepper(model, AWP(0.05))
        step.train_step.micro_batch = micro_batch
        for number in range(3):
            step(number, Batch(data[0].double(), data[1], None))
    torch.testing.assert_close(models[0][0].weight, models[1][0].weight, rtol=1e-10, atol=1e-12)


def test_names_and_defaults():
    made = make("awp")
    assert (made.gamma, made.warmup) == (0.01, 0)
    assert made.extra_passes() == 3
    assert make("awp:gamma=0.005,warmup=10").warmup == 10
    assert make("awp:gamma=0").extra_passes() == 0


def test_pass_units_by_counting_products():
    data = Batch(*images(24), None)

    def units(*modifiers):
        settings = Settings(eps=0.1, alpha=None, steps=2, norm="linf")
        return counted(lambda model: PGDAT(model, settings), data, modifiers=modifiers)

    assert units(AWP()) - units() == AWP().extra_passes() == 3
    assert units(AWP(0)) == units()


@pytest.mark.parametrize(
    "word", ["awp:gamma=-1", "awp:gamma=x", "awp:gamma=.inf", "awp:warmup=-1", "awp:gamma=true"]
)
def test_bad_values(tmp_path, word):
    with pytest.raises(ValueError, match=r"awp: .* must be a finite number >= 0"):
        train(network(), images(), modifiers=[word], out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_method_whose_loss_is_not_apart_is_refused(tmp_path):
    class Together(PGDAT):
        separable = False

    with pytest.raises(ValueError, match="modifier 'awp' needs the loss of the same images"):
        course(tmp_path / "run", "awp", method=Together)
    assert not (tmp_path / "run").exists()
