"""Attacks of other libraries in `evaluate`: the accuracy of a loop by hand, and that of our own attack."""

import importlib.util
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advfast import PGDAttack, evaluate

EPS, ALPHA, STEPS = 0.04, 0.01, 10


def foolbox_pgd(model, images, labels):
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=ALPHA, steps=STEPS, random_start=False)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    return attack(wrapped, images, labels, epsilons=EPS)[1]


def adv_lib_pgd(model, images, labels):
    return _pgd_linf()(
        model, images, labels, EPS, steps=STEPS, random_init=False, absolute_step_size=ALPHA
    )


def _pgd_linf():
    # By file: importing the package's attacks also imports those that need torchvision. Its plots need visdom, of which
    # only the name of a type is used here.
    if importlib.util.find_spec("visdom") is None:
        logger = types.ModuleType("adv_lib.utils.visdom_logger")
        logger.VisdomLogger = object
        sys.modules.setdefault(logger.__name__, logger)
    package = importlib.util.find_spec("adv_lib")
    path = f"{package.submodule_search_locations[0]}/attacks/projected_gradient_descent.py"
    spec = importlib.util.spec_from_file_location("adv_lib_pgd", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pgd_linf


ATTACKS = {"foolbox": foolbox_pgd, "adv_lib": adv_lib_pgd}


def attack_of(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed here")
    return ATTACKS[name]


@pytest.fixture(scope="module")
def network():
    """A network with BN and dropout that knows most of its 120 images, whose margins differ."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2),
        nn.Flatten(), nn.Linear(8 * 64, 3),
    )  # fmt: skip
    images, labels = torch.rand(120, 1, 8, 8) / 3 + 0.2, torch.arange(120) % 3
    images[torch.arange(120), 0, labels] += torch.linspace(0.0, 0.25, 120)[:, None]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    labels = labels.clone()
    labels[::7] = (labels[::7] + 1) % 3
    return model.train(), images, labels


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.filterwarnings("ignore")
def test_accuracy_is_that_of_a_loop_by_hand(name, network):
    attack, (model, images, labels) = attack_of(name), network
    model.eval()
    # Clean-wrong samples are wrong: an attack may not repair them.
    clean = model(images).argmax(1) == labels
    right = clean & (model(attack(model, images, labels)).argmax(1) == labels)
    model.train()
    report = evaluate(
        model, (images, labels), attacks={"clean": "clean", name: attack}, eps=EPS, batch_size=50
    )
    assert report["clean"].correct == int(clean.sum())
    assert report[name].correct == int(right.sum())
    assert 0 < right.sum() < clean.sum() < 120
    assert report.warnings == ()
    assert all(module.training for module in model.modules())


@pytest.mark.filterwarnings("ignore")
def test_foolbox_and_pgd_attack_agree(network):
    attack, (model, images, labels) = attack_of("foolbox"), network
    ours = PGDAttack(model, EPS, ALPHA, STEPS, False, fold=False)
    report = evaluate(
        model, (images, labels), attacks={"foolbox": attack, "ours": ours}, eps=EPS, batch_size=32
    )
    assert report["foolbox"] == report["ours"] == report["worst"]
    assert report.per_class["foolbox"] == report.per_class["ours"]


@pytest.mark.filterwarnings("ignore")
def test_adv_lib_finds_at_least_what_the_last_iterate_shows(network):
    # It keeps the first adversarial iterate of a sample, PGD the last iterate.
    attack, (model, images, labels) = attack_of("adv_lib"), network
    ours = PGDAttack(model, EPS, ALPHA, STEPS, False)
    report = evaluate(model, (images, labels), attacks={"adv": attack, "ours": ours}, eps=EPS)
    assert report["adv"].correct <= report["ours"].correct <= report["adv"].correct + 3


@pytest.mark.filterwarnings("ignore")
def test_a_larger_radius_than_said_is_flagged(network):
    attack, (model, images, labels) = attack_of("foolbox"), network
    report = evaluate(model, (images, labels), attacks=[attack], eps=EPS / 2)
    assert "outside the linf ball by up to 0.02 " in report.warnings[0]
