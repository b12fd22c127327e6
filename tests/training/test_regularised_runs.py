"""TRADES, MART and GradAlign in the loop: passes, precision, modifiers, parts of a batch, resume."""

import os
from dataclasses import replace

import pytest
import torch
from torch import nn

from advfast.data import Batch
from advfast.training import checkpoint, methods, names, train
from advfast.training.modifiers import Modifier

from .passes import counted

NAMES = ("trades", "mart", "gradalign")
SETTINGS = methods.Settings(eps=0.1, alpha=None, steps=None, norm="linf")


@pytest.fixture
def batch():
    torch.manual_seed(5)
    return Batch(torch.rand(16, 1, 8, 8), torch.arange(16) % 3, torch.arange(16))


VARIANTS = (
    ("standard", {}),
    ("pgd-at", {}),
    ("trades", {}),
    ("trades", {"start": "uniform"}),
    ("mart", {}),
    ("gradalign", {}),
    ("gradalign", {"at": "adversarial"}),
)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("steps", [1, 4])
def test_pass_units_are_those_that_are_made(name, options, steps, batch):
    wanted = replace(SETTINGS, options=options, steps=steps)
    expected = methods.make(name, nn.Identity(), wanted).passes()
    assert counted(lambda model: methods.make(name, model, wanted), batch) == expected


def test_pass_units_of_ten_steps():
    found = {
        name: methods.make(name, nn.Identity(), SETTINGS).passes() for name in (*NAMES, "pgd-at")
    }
    assert found == {"trades": 27, "mart": 26, "gradalign": 13, "pgd-at": 23}


def normalised():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
    )


# Train-mode passes of the loss, and those of the attack where they move the statistics too.
UPDATES = {"trades": (2, 11), "mart": (2, 10), "gradalign": (3, 1)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bn", ["eval", "train", "train-update"])
def test_batch_norm_policy_is_of_the_attack_alone(name, bn, batch):
    model = normalised()
    method = methods.make(name, model, replace(SETTINGS, bn=bn))
    loss, _ = method.loss(method.craft(batch), batch)
    of_loss, of_attack = UPDATES[name]
    assert model[1].num_batches_tracked == of_loss + of_attack * (bn == "train-update")
    assert model.training and loss.isfinite()


@pytest.mark.parametrize("name", NAMES)
def test_bf16_is_near_fp32(name, batch):
    model = normalised().eval()
    images, losses = None, {}
    for precision in ("fp32", "bf16"):
        method = methods.make(name, model, replace(SETTINGS, precision=precision))
        torch.manual_seed(1)  # of x + u in gradalign
        crafted = method.craft(batch)
        images = crafted if images is None else images
        losses[precision] = method.loss(images, batch).loss
    narrow, wide = losses["bf16"], losses["fp32"]
    assert narrow.dtype == torch.float32
    assert 0 < (narrow - wide).abs() < 0.05 * wide
    narrow.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


class Takes(Modifier):
    """Keeps the gradients that a modifier is given and those of the step."""

    def __init__(self):
        self.pairs = []

    def updating(self, update):
        self.update, self.given = update, update.gradients()
        return super().updating(update)

    def after_step(self, model):
        self.pairs.append((self.given, [p.grad.clone() for p in model.parameters()]))


def run(folder, method, model, data, **changes):
    arguments = {
        "method": method, "eps": 0.1, "steps": 2, "epochs": 2, "batch_size": 48, "lr": 0.05,
        "test": data, "seed": 4, "progress": False, "out": folder,
    }  # fmt: skip
    return train(model, data, **arguments | changes)


def weights(folder):
    """Of the last epoch, without running statistics."""
    state = checkpoint.read(folder / names.LAST)["run"]["weights"]
    return {name: value for name, value in state.items() if "running" not in name}


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(130, 1, 8, 8, generator=generator), torch.arange(130) % 3


@pytest.mark.parametrize("name", NAMES)
def test_a_modifier_is_given_the_gradients_of_the_step(tmp_path, data, name):
    takes = Takes()
    run(tmp_path, name, normalised(), data, epochs=1, modifiers=[takes])
    for given, made in takes.pairs:
        for one, two in zip(given, made, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_parts_add_up_to_the_batch(tmp_path, data, name):
    whole, parts = Takes(), Takes()
    for folder, takes, size in ((tmp_path / "1", whole, None), (tmp_path / "2", parts, 20)):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Softplus(), nn.Linear(9, 3))
        run(folder, name, model, data, epochs=1, modifiers=[takes], micro_batch=size)
    for one, two in zip(whole.pairs[0][1], parts.pairs[0][1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_trades_without_its_regulariser_is_standard_training(tmp_path, data):
    run(tmp_path / "trades", "trades", normalised(), data, method_options={"beta": 0})
    run(tmp_path / "standard", "standard", normalised(), data)
    found, expected = weights(tmp_path / "trades"), weights(tmp_path / "standard")
    counts = "1.num_batches_tracked"
    assert found.pop(counts) == 2 * expected.pop(counts)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_in_the_middle_of_an_epoch_and_resumed(tmp_path, data, name):
    model = normalised()
    model.insert(4, nn.Dropout(0.2))
    start = {key: value.clone() for key, value in model.state_dict().items()}

    class Dies:
        def on_step_end(self, state):
            if state.global_step == 5:
                os._exit(9)

    def course(folder, **changes):
        model.load_state_dict(start)
        run(folder, name, model, data, save_every=1, resume=True, deterministic=True, **changes)

    course(tmp_path / "whole")
    child = os.fork()
    if child == 0:
        try:
            course(tmp_path / "cut", callbacks=[Dies()])
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    loop = checkpoint.read(tmp_path / "cut" / names.LAST)["run"]["loop"]
    assert 0 < loop["step"] < 3
    course(tmp_path / "cut")
    whole, cut = (checkpoint.read(tmp_path / f / names.LAST)["run"] for f in ("whole", "cut"))
    for key, value in whole["weights"].items():
        assert torch.equal(cut["weights"][key], value), key
    assert torch.equal(cut["rng"]["torch"], whole["rng"]["torch"])
