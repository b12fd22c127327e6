import inspect
import re

import pytest
import yaml
from torch import nn

from advfast.training import methods, modifiers, train
from advfast.training.optim import make as make_optimizer
from advfast.training.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_is_an_argument_that_is_accepted(name):
    known = inspect.signature(train).parameters
    arguments = RECIPES[name].arguments
    assert set(arguments) <= set(known)
    settings = methods.Settings(
        eps=arguments["eps"],
        alpha=arguments.get("alpha"),
        steps=arguments.get("steps"),
        norm="linf",
        options=arguments.get("method_options", {}),
    )
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3600, 10))
    methods.make(arguments["method"], model, settings)
    for modifier in arguments.get("modifiers", ()):
        modifiers.make(modifier)


def test_a_recipe_fills_in_what_is_not_given(tmp_path, tiny, capsys):
    result = train(
        "small-cnn", tiny, recipe="rice2020", epochs=1, steps=1, augment=["flip"], out=tmp_path
    )
    config = result.config
    recipe = RECIPES["rice2020"].arguments
    assert (config["epochs"], config["steps"], config["augment"]) == (1, 1, ["flip"])
    for name in ("method", "eps", "alpha", "bn", "lr", "schedule", "schedule_options"):
        assert config[name] == recipe[name]
    told = capsys.readouterr().err
    for name, value in recipe.items():
        (line,) = re.findall(rf"^  {name} = .*$", told, re.MULTILINE)
        assert ("yours in its place" in line) == (name in ("model", "epochs", "steps", "augment"))
        assert name in ("eps", "alpha") or str(value) in line
    assert "alpha = 2/255" in told


def test_the_config_of_a_recipe_keeps_what_was_left_out_on_purpose(tmp_path, tiny):
    train(
        "small-cnn", tiny, recipe="rice2020", epochs=1, steps=1, augment=(), clip_grad=None,
        schedule="constant", schedule_options={}, out=tmp_path, progress=False,
    )  # fmt: skip
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert "recipe" not in config
    assert "schedule_options" not in config
    assert "# from the recipe rice2020" in (tmp_path / "config.yaml").read_text()


def test_unknown_recipe(tmp_path, tiny):
    with pytest.raises(ValueError, match="did you mean 'rice2020'"):
        train("small-cnn", tiny, recipe="rice202", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_weight_decay_on_normalisation_layers():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    (everything,) = make_optimizer("sgd", model, lr=0.1, weight_decay=0.5).param_groups
    assert len(everything["params"]) == 6
    groups = make_optimizer("sgd", model, lr=0.1, weight_decay=0.5, norm_decay=False).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decays) == 6
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.0 if name.startswith("1.") else 0.5)


def test_a_recipe_that_needs_more_data_says_so(tmp_path, tiny):
    with pytest.raises(ValueError, match="recipe 'wang2023' needs `extra`"):
        train("small-cnn", tiny, recipe="wang2023", out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "epochs", "at"), [("reat2023", 80, [60, 75]), ("atbsl2024", 100, [75, 90])]
)
def test_recipes_of_long_tails_name_no_data_and_need_some(name, epochs, at):
    recipe = RECIPES[name]
    with pytest.raises(ValueError, match=f"recipe {name!r} needs `data`: .*cifar10-lt:0.02"):
        train("small-cnn", recipe=name)
    found = recipe.arguments
    assert (found["epochs"], found["schedule_options"]) == (epochs, {"milestones": at})
    assert (found["lr"], found["weight_decay"], found["steps"]) == (0.1, 5e-4, 10)
    made = methods.make(
        found["method"], nn.Identity(), methods.Settings(8 / 255, 2 / 255, 10, "linf")
    )
    assert type(made.pgd).__name__ == ("PGDAttack" if name == "reat2023" else "GaussianPGD")
