"""Positive-negative momentum: its equations, number by number, and what surrounds a step."""

import copy
import math

import pytest
import torch
from torch import nn

from advfast.training import PNM, AdaPNM, checkpoint, names, optim, train
from advfast.training.presets import PRESETS
from advfast.training.recipes import RECIPES

from .test_fast_resume import Stop, StopAt
from .test_resume import assert_same, course, outcome


def pnm_by_hand(w, gradients, lrs, *, betas=(0.9, 1.0), decay=0.0, decoupled=True):
    """The weights after each step, from the definition: P is the average that this step's parity names."""
    b1, b2 = betas
    averages, found = [torch.zeros_like(w), torch.zeros_like(w)], []
    for t, (g, lr) in enumerate(zip(gradients, lrs, strict=True), 1):
        if decoupled:
            w = (1 - lr * decay) * w
        else:
            g = g + decay * w
        own, other = (t + 1) % 2, t % 2
        averages[own] = b1**2 * averages[own] + (1 - b1**2) * g
        c = math.sqrt((1 + b2) ** 2 + b2**2)
        w = w - lr * ((1 + b2) * averages[own] - b2 * averages[other]) / c
        found.append(w)
    return found


def adapnm_by_hand(
    w, gradients, lrs, *, betas=(0.9, 0.999, 1.0), decay=0.0, decoupled=True, amsgrad=True, eps=1e-8
):
    b1, b2, b3 = betas
    averages, found = [torch.zeros_like(w), torch.zeros_like(w)], []
    v, largest = torch.zeros_like(w), torch.zeros_like(w)
    for t, (g, lr) in enumerate(zip(gradients, lrs, strict=True), 1):
        if decoupled:
            w = w - lr * decay * w
        else:
            g = g + decay * w
        own, other = (t + 1) % 2, t % 2
        averages[own] = b1**2 * averages[own] + (1 - b1**2) * g
        v = b2 * v + (1 - b2) * g * g
        largest = torch.maximum(largest, v)
        root = ((largest if amsgrad else v) / (1 - b2**t)).sqrt() + eps
        c = math.sqrt((1 + b3) ** 2 + b3**2)
        w = w - lr / (1 - b1**t) * ((1 + b3) * averages[own] - b3 * averages[other]) / c / root
        found.append(w)
    return found


def walked(make, gradients, start=0.0):
    """Of one weight: where it is after each of the gradients."""
    w = nn.Parameter(torch.tensor([float(start)], dtype=torch.float64))
    optimizer, places = make([w]), []
    for g in gradients:
        w.grad = torch.tensor([float(g)], dtype=torch.float64)
        optimizer.step()
        places.append(w.item())
    return places, optimizer


def test_three_steps_in_exact_numbers():
    places, optimizer = walked(lambda p: PNM(p, lr=1.0), [1, 2, 3])
    (state,) = optimizer.state.values()
    assert state["odd"].item() == pytest.approx(0.81 * 0.19 + 0.19 * 3) == pytest.approx(0.7239)
    assert state["even"].item() == pytest.approx(0.38)
    moved = [a - b for a, b in zip([0.0, *places], places, strict=False)]
    assert moved == pytest.approx([0.169941, 0.254912, 0.477535], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {}),
        ("sgd", {"dampening": 0.5}),
        ("pnm", {}),
        ("pnm", {"betas": (0.8, 0.5)}),
        ("adamw", {}),
        ("adapnm", {}),
    ],
)
def test_the_effective_step_is_what_a_constant_gradient_moves(name, options):
    # A gradient of 1 is its own sign, so that Adam's are in the same unit.
    lr = 0.25

    def make(parameters):
        model = nn.Module()
        model.weight = parameters[0]
        return optim.make(name, model, lr=lr, weight_decay=0.0, options=options)

    places, optimizer = walked(make, [1] * 4000)
    assert optim.effective_step(optimizer) == pytest.approx(places[-2] - places[-1], rel=1e-6)
    if (name, options) == ("pnm", {}):
        assert optim.effective_step(optimizer) == pytest.approx(lr * 0.4472136)


def test_without_b2_it_is_the_average_of_every_second_gradient():
    gradients = [3.0, -1.0, 2.0, 5.0, -4.0, 1.0]
    places, _ = walked(lambda p: PNM(p, lr=1.0, betas=(0.9, 0.0)), gradients)
    moved = [a - b for a, b in zip([0.0, *places], places, strict=False)]
    for first in (0, 1):
        average = 0.0
        for t in range(first, 6, 2):
            average += 0.19 * (gradients[t] - average)
            assert moved[t] == pytest.approx(average, rel=1e-12)


CASES = {
    "pnm": (PNM, pnm_by_hand, {}),
    "pnm-coupled": (PNM, pnm_by_hand, {"decoupled": False}),
    "pnm-betas": (PNM, pnm_by_hand, {"betas": (0.5, 3.0)}),
    "adapnm": (AdaPNM, adapnm_by_hand, {}),
    "adapnm-no-max": (AdaPNM, adapnm_by_hand, {"amsgrad": False}),
    "adapnm-coupled": (AdaPNM, adapnm_by_hand, {"decoupled": False, "eps": 0.1}),
    "adapnm-betas": (AdaPNM, adapnm_by_hand, {"betas": (0.6, 0.0, 0.5)}),
}


@pytest.mark.parametrize("case", CASES)
def test_foreach_is_the_definition(case):
    """Several tensors, two groups with a decay and a rate of their own, another rate in each step; float64."""
    kind, by_hand, options = CASES[case]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Linear(4, 2)).double()
    model.to(memory_format=torch.channels_last)
    conv, linear = (list(part.parameters()) for part in model)
    groups = [{"params": conv}, {"params": linear, "weight_decay": 0.0}]
    optimizer = kind(groups, lr=1.0, weight_decay=0.1, **options)
    starts = [p.detach().clone() for p in model.parameters()]
    lrs = [0.3, 0.1, 0.2, 0.05, 0.4]
    steps = [[torch.randn_like(p) for p in model.parameters()] for _ in lrs]
    found = []
    for lr, gradients in zip(lrs, steps, strict=True):
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = lr, 2 * lr
        for p, g in zip(model.parameters(), gradients, strict=True):
            p.grad = g.clone()
        optimizer.step()
        assert all(
            torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True)
        )
        found.append([p.detach().clone() for p in model.parameters()])
    for number, start in enumerate(starts):
        second = number >= len(conv)
        expected = by_hand(
            start, [gradients[number] for gradients in steps], [lr * (1 + second) for lr in lrs],
            decay=0.0 if second else 0.1, **options,
        )  # fmt: skip
        for at, weights in enumerate(expected):
            torch.testing.assert_close(found[at][number], weights, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", [PNM, AdaPNM])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_saved_optimizer_goes_on_with_the_same_bits(kind, steps):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.1)

    def trained(model, optimizer, count):
        for number in range(count):
            torch.manual_seed(100 + number)
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()

    trained(model, optimizer, steps)
    other = copy.deepcopy(model)
    resumed = kind(other.parameters(), lr=0.1, weight_decay=0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.graph_key() == (steps % 2,)
    for one, its in ((model, optimizer), (other, resumed)):
        trained(one, its, 3)
    assert_same(dict(other.state_dict()), dict(model.state_dict()))
    assert_same(resumed.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("kind", [PNM, AdaPNM])
@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_step_that_the_scaler_skips_changes_nothing(kind, unscaled, bad):
    """And one that it does not skip has the bits of a step without a scaler: the scale is a power of two."""
    torch.manual_seed(0)
    plain = nn.Linear(3, 2)
    scaled = copy.deepcopy(plain)
    optimizers = [
        kind(m.parameters(), lr=0.1, weight_decay=0.1, decoupled=False) for m in (plain, scaled)
    ]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    applied = 0
    for skipped in (True, False, False, True, False):
        for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = 1.0 * p.grad
        scaler.scale(torch.ones(()))  # makes the scale
        for q in scaled.parameters():
            q.grad *= scaler.get_scale()
            if skipped:
                q.grad.view(-1)[0] = bad
        kept = copy.deepcopy((scaled.state_dict(), optimizers[1].state_dict()["state"]))
        if unscaled:
            scaler.unscale_(optimizers[1])
        scaler.step(optimizers[1])
        scaler.update()
        if skipped:
            assert_same(dict(scaled.state_dict()), dict(kept[0]))
            if applied:
                assert_same(optimizers[1].state_dict()["state"], kept[1])
            optimizers[0].replayed()  # counts
        else:
            optimizers[0].step()
            applied += 1
        assert_same(dict(scaled.state_dict()), dict(plain.state_dict()))
    assert optimizers[1].param_groups[0]["step"] == 5
    assert all(p.isfinite().all() for p in scaled.parameters())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pnm", {"betas": [0.9, 0.999, 1.0]}, r"betas of PNM must be 2 numbers \(b1, b2\)"),
        ("pnm", {"betas": [1.0, 1.0]}, "b1 in betas of PNM must be at least 0 and below 1, got 1"),
        ("pnm", {"betas": [0.9, -0.5]}, "b2 in betas of PNM must be a finite number >= 0"),
        ("pnm", {"betas": 0.9}, "betas of PNM must be 2 numbers"),
        ("pnm", {"betas": ["0.9", 1]}, "betas of PNM must be 2 numbers"),
        ("pnm", {"decoupled": "no"}, "decoupled must be True or False, got 'no'"),
        ("pnm", {"momentum": 0.9}, "optimizer 'pnm' has no option 'momentum'.* betas"),
        ("pnm", {"fused": True}, "has no option 'fused'"),
        ("adapnm", {"betas": [0.9, 1.0]}, r"must be 3 numbers \(b1, b2, b3\)"),
        (
            "adapnm",
            {"betas": [0.9, 1.0, 1.0]},
            "b2 in betas of AdaPNM must be at least 0 and below",
        ),
        ("adapnm", {"amsgrd": False}, "did you mean 'amsgrad'"),
        ("adapnm", {"amsgrad": 1}, "amsgrad must be True or False"),
        ("adapnm", {"eps": 0.0}, "eps of AdaPNM must be a finite number > 0"),
    ],
)
def test_bad_options_are_said_before_any_work(tmp_path, tiny, name, options, message):
    with pytest.raises(ValueError, match=message):
        train(
            nn.Linear(4, 2), tiny, optimizer=name, optimizer_options=options, out=tmp_path / "run",
            progress=False,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [{"lr": 0.0}, {"lr": math.inf}, {"weight_decay": -1.0}])
def test_numbers_out_of_range(arguments):
    (name,) = arguments
    for kind in (PNM, AdaPNM):
        with pytest.raises(ValueError, match=f"{name} must be a finite number"):
            kind(nn.Linear(2, 2).parameters(), **arguments)


def test_no_decay_on_normalisation_layers():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = optim.make("pnm", model, lr=0.5, weight_decay=0.1, norm_decay=False)
    assert type(optimizer) is PNM
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for number, (p, was) in enumerate(zip(model.parameters(), before, strict=True)):
        torch.testing.assert_close(p.detach(), was * (0.95 if number < 2 else 1.0))


def test_weights_without_a_gradient_stay_and_have_their_averages():
    model = nn.Linear(2, 2)
    bias = model.bias.detach().clone()
    optimizer = AdaPNM(model.parameters(), weight_decay=0.1)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert torch.equal(model.bias, bias)
    assert set(optimizer.state[model.bias]) == {"odd", "even", "square", "largest"}


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(130, 1, 8, 8, generator=generator), torch.arange(130) % 3


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "pnm"},
        {"optimizer": "adapnm", "lr": 1e-3},
        {"optimizer": "pnm", "precision": "fp16", "method": "standard", "steps": None},
        {"optimizer": "pnm", "modifiers": ["awp:gamma=0.01"], "norm_decay": False},
    ],
    ids=str,
)
def test_a_run_stopped_after_an_odd_step_is_undisturbed(tmp_path, data, changes):
    # Averaged weights and a limit of the gradient besides, see `course`; three batches an epoch.
    changes = {"epochs": 2, "save_every": 5} | changes
    course(tmp_path / "whole", data, **changes)
    with pytest.raises(Stop):
        course(tmp_path / "cut", data, callbacks=[StopAt(6)], **changes)
    run = checkpoint.read(tmp_path / "cut" / names.LAST)["run"]
    assert all(group["step"] == 5 for group in run["optimizer"]["param_groups"])
    course(tmp_path / "cut", data, **changes)
    assert_same(outcome(tmp_path / "cut"), outcome(tmp_path / "whole"))


def test_it_trains_and_says_its_effective_step(tmp_path, capsys):
    result = train(data="digits", optimizer="pnm", eps=0.1, steps=2, epochs=4, out=tmp_path)
    assert result.config["lr"] == 1.0
    assert result.last.test["pgd-20"].value > 0.4
    said = capsys.readouterr().err
    assert said.count("effective step 0.4472 at learning rate 1 (") == 1
    assert "(SGD with momentum 0.9: 1 at rate 0.1, 10 at rate 1)" in said


def test_other_optimizers_have_their_rate_and_say_nothing():
    model = nn.Linear(2, 2)
    rates = {name: optim.rate(None, name) for name in optim.OPTIMIZERS}
    assert rates == {"sgd": 0.1, "adamw": 0.1, "pnm": 1.0, "adapnm": 0.001}
    assert optim.rate(None, lambda p: None) == 0.1 and optim.rate(0.3, "pnm") == 0.3
    assert optim.told(optim.make("sgd", model, lr=0.1), 0.9) == ""
    assert "(AdamW: 0.001 at that rate)" in optim.told(optim.make("adapnm", model, lr=1e-3), 0.9)
    assert optim.effective_step(torch.optim.RMSprop(model.parameters())) is None


def test_rates_for_sgd_are_fitted_where_none_is_given():
    preset = PRESETS["digits"]
    assert optim.fitted(preset, {"optimizer": "pnm"})["lr"] == pytest.approx(10 * preset["lr"])
    assert (
        optim.fitted(preset, {"optimizer": "pnm", "lr": 0.3})["lr"] == preset["lr"]
    )  # loses to 0.3
    assert optim.fitted(preset, {"optimizer": "adamw"}) == preset == optim.fitted(preset, {})
    assert optim.fitted({"epochs": 3}, {"optimizer": "pnm"}) == {"epochs": 3}
    recipe = RECIPES["deat2023"].arguments
    assert optim.fitted(recipe, {"optimizer": "sgd"})["lr"] == pytest.approx(0.1)
    assert optim.fitted(recipe, {}) == recipe


def test_a_recipe_says_the_rate_in_its_place(tmp_path, tiny, capsys):
    changes = {"model": "small-cnn", "epochs": 1, "steps": 1, "augment": ["flip"]}
    result = train(data=tiny, recipe="rice2020", optimizer="pnm", out=tmp_path / "a", **changes)
    assert result.config["lr"] == pytest.approx(1.0)
    assert "lr = 0.1 (1 in its place, for optimizer pnm)" in capsys.readouterr().err
    result = train(data=tiny, recipe="deat2023", out=tmp_path / "b", **changes)
    assert (result.config["optimizer"], result.config["lr"]) == ("pnm", 1.0)
    assert "22 times shorter" in capsys.readouterr().err
