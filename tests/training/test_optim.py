import pytest
import torch
from torch import nn

from advfast.training import optim


def test_sgd_and_adamw_are_those_of_torch():
    model = nn.Linear(2, 2)
    sgd = optim.make(
        "sgd", model, lr=0.3, momentum=0.5, weight_decay=0.1, options={"nesterov": True}
    )
    assert type(sgd) is torch.optim.SGD
    (group,) = sgd.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, 0.5, 0.1)
    assert group["nesterov"]
    adamw = optim.make("adamw", model, lr=1e-3, weight_decay=0.05, options={"betas": [0.9, 0.95]})
    assert type(adamw) is torch.optim.AdamW
    assert adamw.param_groups[0]["weight_decay"] == 0.05
    assert tuple(adamw.param_groups[0]["betas"]) == (0.9, 0.95)


def test_frozen_parameters_are_left_out():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    (group,) = optim.make("sgd", model, lr=0.1).param_groups
    assert [id(p) for p in group["params"]] == [id(model.weight)]


def test_own_optimizer():
    made = optim.make(lambda parameters: torch.optim.RMSprop(parameters), nn.Linear(2, 2), lr=0.1)
    assert type(made) is torch.optim.RMSprop
    with pytest.raises(TypeError, match="got int"):
        optim.make(lambda parameters: 3, nn.Linear(2, 2), lr=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "adam-w"}, "did you mean 'adamw'"),
        ({"lr": 0.0}, "lr must be"),
        ({"lr": float("inf")}, "lr must be"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"options": {"beta": 1}}, "has no option 'beta'"),
    ],
)
def test_bad_input(arguments, message):
    given = {"optimizer": "sgd", "lr": 0.1} | arguments
    with pytest.raises(ValueError, match=message):
        optim.make(given.pop("optimizer"), nn.Linear(2, 2), **given)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_is_the_plain_update(name):
    def trained(options):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        optimizer = optim.make(name, model, lr=0.1, options=options)
        assert optimizer.param_groups[0]["fused"] is (None if options else True)
        for _ in range(5):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        return model.parameters()

    for one, other in zip(trained({}), trained({"foreach": True}), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
