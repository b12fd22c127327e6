"""fgsm, fgsm-rs and n-fgsm: the rules of their papers in float64, bounds, and which of them are the same."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from advfast.attacks import PGDAttack
from advfast.training import checkpoint, methods, train
from advfast.training.modifiers import Modifier

from .by_hand import (
    EPS,
    assert_same_weights,
    batch_of,
    descend,
    image_gradient,
    made,
    network,
    one_step,
    settings,
    uniform,
)
from .passes import counted

NAMES = ("fgsm", "fgsm-rs", "n-fgsm")


def by_hand(name, model, batch, alpha, k=2.0):
    """Adversarial images, as the papers have them."""
    x, y = batch.images, batch.labels
    if name == "n-fgsm":
        u = uniform(x, k * EPS, batch.indices)
        return (u + alpha * image_gradient(model, u, y).sign()).clamp(0, 1)
    start = x if name == "fgsm" else uniform(x, EPS, batch.indices)
    d = start - x + alpha * image_gradient(model, start, y).sign()
    return (x + d.clamp(-EPS, EPS)).clamp(0, 1)


ALPHA = {"fgsm": EPS, "fgsm-rs": 1.25 * EPS, "n-fgsm": EPS}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("alpha", [None, 0.04, 0.15])
def test_a_step_is_that_of_the_paper(name, alpha):
    model, batch = network(), batch_of()
    plain = copy.deepcopy(model)
    method = made(name, model, batch, alpha=alpha)
    torch.manual_seed(0)
    expected = by_hand(name, plain, batch, ALPHA[name] if alpha is None else alpha)
    torch.testing.assert_close(method.craft(batch), expected, rtol=0, atol=1e-15)
    torch.manual_seed(0)
    loss, _, _ = one_step(method, batch)
    plain.train()
    wanted = cross_entropy(plain(expected), batch.labels)
    torch.testing.assert_close(loss, wanted.detach())
    descend(plain, wanted)
    assert_same_weights(model, plain, rtol=1e-12, atol=1e-14)


def test_defaults_are_the_published_ones():
    found = {name: methods.make(name, network(), settings()).alpha for name in NAMES}
    assert found == ALPHA


def test_n_fgsm_takes_k():
    model, batch = network(), batch_of()
    method = made("n-fgsm", model, batch, options={"k": 0.5})
    torch.manual_seed(1)
    expected = by_hand("n-fgsm", model, batch, EPS, k=0.5)
    torch.manual_seed(1)
    torch.testing.assert_close(method.craft(batch), expected, rtol=0, atol=1e-15)
    for bad in (-1, "2", True, float("inf")):
        with pytest.raises(ValueError, match="k must be a finite number, 0 or more"):
            methods.make("n-fgsm", model, settings(options={"k": bad}))
    with pytest.raises(ValueError, match="has no option 'k'"):
        methods.make("fgsm", model, settings(options={"k": 1}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ball_and_the_box(dtype):
    model, batch = network(dtype), batch_of(64, dtype)
    furthest = {}
    for name in NAMES:
        crafted = made(name, model, batch).craft(batch)
        assert crafted.min() >= 0 and crafted.max() <= 1
        furthest[name] = (crafted - batch.images).abs().max()
    assert furthest["fgsm"] == pytest.approx(EPS) and furthest["fgsm-rs"] <= EPS + 1e-7
    assert 2.5 * EPS < furthest["n-fgsm"] <= 3 * EPS + 1e-7


def test_fgsm_is_one_pgd_step_from_the_image():
    model, batch = network(torch.float32), batch_of(dtype=torch.float32)
    pgd = PGDAttack(model, EPS, EPS, 1, random_start=False)
    assert torch.equal(made("fgsm", model, batch).craft(batch), pgd(*batch[:2]))


def run(folder, data, method, **changes):
    wanted = {"eps": EPS, "epochs": 2, "batch_size": 48, "lr": 0.05, "progress": False}
    return train(network(torch.float32), data, method=method, out=folder, **wanted | changes)


def last(folder):
    return checkpoint.read(folder / "last.pt")["state"]


@pytest.mark.parametrize("alpha", [None, 0.03])
def test_n_fgsm_without_noise_is_fgsm(tmp_path, tiny, alpha):
    run(tmp_path / "n", tiny, "n-fgsm", method_options={"k": 0}, alpha=alpha)
    run(tmp_path / "f", tiny, "fgsm", alpha=alpha)
    run(tmp_path / "k", tiny, "n-fgsm", method_options={"k": 1}, alpha=alpha)
    found, expected, other = (last(tmp_path / name) for name in "nfk")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not torch.equal(other["0.weight"], expected["0.weight"])


@pytest.mark.parametrize("name", NAMES)
def test_one_step_whatever_is_given(tmp_path, tiny, name):
    model, batch = network(), batch_of()
    method = made(name, model, batch, steps=7)
    assert method.steps == 1
    # From now on smaller, and a step that is larger than the ball.
    method.strength(0.02, 0.05, 7)
    assert (method.steps, method.fgsm.steps) == (1, 1)
    crafted = method.craft(batch)
    reach = 0.02 if name != "n-fgsm" else 2 * 0.02 + 0.05
    assert 0.9 * reach < (crafted - batch.images).abs().max() <= reach + 1e-12
    assert run(tmp_path, tiny, name, epochs=1, steps=7).config["steps"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_pass_units_are_those_that_are_made(name):
    batch = batch_of(dtype=torch.float32)
    assert methods.make(name, network(), settings()).passes() == 5
    assert counted(lambda model: methods.make(name, model, settings()), batch) == 5


@pytest.mark.parametrize("name", NAMES)
def test_crafting_leaves_the_model_alone(name):
    model, batch = network(torch.float32), batch_of(dtype=torch.float32)
    before = copy.deepcopy(model.state_dict())
    made(name, model, batch).craft(batch)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    made(name, model, batch, bn="train-update").craft(batch)
    assert model[1].num_batches_tracked == before["1.num_batches_tracked"] + 1


class Keeps(Modifier):
    """The gradients of each step."""

    def __init__(self):
        self.kept = []

    def after_step(self, model):
        self.kept.append([parameter.grad.clone() for parameter in model.parameters()])


@pytest.mark.parametrize("name", NAMES)
def test_parts_add_up_to_the_batch(tmp_path, tiny, name):
    kept = []
    for size in (None, 20):
        torch.manual_seed(2)
        model = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 9), torch.nn.Softplus(), torch.nn.Linear(9, 3)
        )
        keeps = Keeps()
        train(
            model, tiny, method=name, eps=EPS, epochs=1, batch_size=48, micro_batch=size,
            modifiers=[keeps], out=tmp_path / str(size), progress=False,
        )  # fmt: skip
        kept.append(keeps.kept[0])
    for one, two in zip(*kept, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
