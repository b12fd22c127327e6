"""APGD, APGDT, FAB, Square and AutoAttack of compat.torchattacks: which attack runs, with which settings."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

import advfast
import advfast.compat.torchattacks as torchattacks
from advfast import attacks

from ..attacks.networks import batch, cnn
from ..attacks.search.trained import held_out, robust_cnn
from ..attacks.test_contract import assert_untouched, prepared, snapshot

EPS = 8 / 255
# torchattacks 3.5.1, as its signatures stand.
DEFAULTS = {
    "APGD": {
        "norm": "Linf", "eps": EPS, "steps": 10, "n_restarts": 1, "seed": 0, "loss": "ce",
        "eot_iter": 1, "rho": 0.75, "verbose": False,
    },
    "APGDT": {
        "norm": "Linf", "eps": EPS, "steps": 10, "n_restarts": 1, "seed": 0, "eot_iter": 1,
        "rho": 0.75, "verbose": False, "n_classes": 10,
    },
    "FAB": {
        "norm": "Linf", "eps": EPS, "steps": 10, "n_restarts": 1, "alpha_max": 0.1, "eta": 1.05,
        "beta": 0.9, "verbose": False, "seed": 0, "multi_targeted": False, "n_classes": 10,
    },
    "Square": {
        "norm": "Linf", "eps": EPS, "n_queries": 5000, "n_restarts": 1, "p_init": 0.8,
        "loss": "margin", "resc_schedule": True, "seed": 0, "verbose": False,
    },
    "AutoAttack": {
        "norm": "Linf", "eps": EPS, "version": "standard", "n_classes": 10, "seed": None,
        "verbose": False,
    },
}  # fmt: skip
# (settings there, the attack here, its settings): none is at its default.
SAME = {
    "APGD": (
        {"norm": "L2", "eps": 0.4, "steps": 7, "n_restarts": 2, "seed": 3, "loss": "dlr",
         "eot_iter": 2, "rho": 0.5},
        attacks.APGD,
        {"norm": "l2", "eps": 0.4, "steps": 7, "restarts": 2, "seed": 3, "loss": "dlr", "eot": 2,
         "rho": 0.5},
    ),
    "APGDT": (
        {"norm": "L2", "eps": 0.4, "steps": 6, "n_restarts": 2, "seed": 3, "eot_iter": 2,
         "rho": 0.5, "n_classes": 4},
        attacks.APGDT,
        {"norm": "l2", "eps": 0.4, "steps": 6, "restarts": 2, "seed": 3, "targets": 3, "eot": 2,
         "rho": 0.5},
    ),
    "FAB": (
        {"norm": "L2", "eps": 0.4, "steps": 5, "n_restarts": 2, "alpha_max": 0.2, "eta": 1.1,
         "beta": 0.8, "seed": 3, "multi_targeted": True, "n_classes": 3},
        attacks.FAB,
        {"norm": "l2", "eps": 0.4, "steps": 5, "restarts": 2, "alpha_max": 0.2, "eta": 1.1,
         "beta": 0.8, "seed": 3, "targets": 2},
    ),
    "Square": (
        {"norm": "L2", "eps": 1.2, "n_queries": 30, "n_restarts": 2, "p_init": 0.5, "loss": "ce",
         "resc_schedule": False, "seed": 3},
        attacks.Square,
        {"norm": "l2", "eps": 1.2, "queries": 30, "restarts": 2, "p_init": 0.5, "loss": "ce",
         "rescale_schedule": False, "seed": 3},
    ),
}  # fmt: skip
FAST = {"Square": {"n_queries": 20}}


def broken(model, crafted, labels):
    with torch.no_grad():
        return model(crafted).argmax(1) != labels


@pytest.mark.parametrize("name", DEFAULTS)
def test_signature(name):
    parameters = inspect.signature(getattr(torchattacks, name)).parameters.values()
    found = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert found.pop("model") is inspect.Parameter.empty
    assert list(found.items()) == list(DEFAULTS[name].items())


@pytest.mark.parametrize("name", SAME)
def test_settings_reach_the_attack(name):
    theirs, kind, ours = SAME[name]
    model, (images, labels) = robust_cnn(), held_out(40)
    attack = getattr(torchattacks, name)(model, **theirs)
    crafted = attack(images, labels)
    expected = kind(model, rng="upstream", **ours)(images, labels)
    assert torch.equal(crafted, expected)
    assert 0.1 < broken(model, crafted, labels).float().mean() < 1
    assert torch.equal(attack(images, labels), crafted)  # the same draws at every call
    keyed = getattr(torchattacks, name)(model, **theirs, rng="philox", fold=False)
    expected = kind(model, rng="philox", fold=False, **ours)(images, labels)
    assert torch.equal(keyed(images, labels), expected)


def test_resc_schedule_and_untargeted_fab():
    model, (images, labels) = robust_cnn(), held_out(30)
    crafted = torchattacks.Square(model, eps=0.1, n_queries=40)(images, labels)
    expected = attacks.Square(model, 0.1, queries=40, rescale_schedule=True, rng="upstream")
    assert torch.equal(crafted, expected(images, labels))
    crafted = torchattacks.FAB(model, eps=0.1)(images, labels)
    assert torch.equal(crafted, attacks.FAB(model, 0.1, steps=10)(images, labels))
    assert [torchattacks.FAB(model, n, None).eps for n in ("Linf", "L2", "L1")] == [0.3, 1.0, 5.0]


def test_fab_goes_towards_targets():
    model, (images, labels) = robust_cnn(), held_out(40)
    images[0] = 0.5  # most likely wrong when clean, so that rows and places differ
    attack = torchattacks.FAB(model, eps=0.4, steps=20)
    attack.set_mode_targeted_by_function(lambda x, y: (y + 1) % 10, quiet=True)
    crafted = attack(images, labels)
    hit = broken(model, crafted, labels) & ~broken(model, images, labels)
    assert hit.sum() > 20
    reached = model(crafted).argmax(1) == (labels + 1) % 10
    assert reached[hit].float().mean() > 0.5
    attack.set_mode_targeted_by_function(lambda x, y: (y + 5) % 10, quiet=True)
    other = model(attack(images, labels)).argmax(1) == (labels + 5) % 10
    assert other[hit].float().mean() > 0.5
    for name in ("APGD", "APGDT", "Square"):
        with pytest.raises(ValueError, match=f"{name}: targeted mode is not supported"):
            getattr(torchattacks, name)(model).set_mode_targeted_random()


@pytest.mark.parametrize("name", SAME)
def test_as_any_attack_of_torchattacks(name):
    """Normalised inputs, labels left out, copies, and a model that is left as it was found."""
    model, (images, labels) = cnn(), batch(12)
    settings = {"eps": 0.05, **FAST.get(name, {})}
    attack = getattr(torchattacks, name)(model, **settings)
    labels = model(images).argmax(1)
    crafted = attack(images, labels)
    assert torch.equal(attack(images), crafted)
    assert broken(model, crafted, labels).any()
    for other in (pickle.loads(pickle.dumps(attack)), copy.deepcopy(attack)):
        assert torch.equal(other(images, labels), crafted) and repr(other) == repr(attack)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    shifted = nn.Sequential(Unnormalise(mean, std), model).eval()
    attack = getattr(torchattacks, name)(shifted, **settings)
    attack.set_normalization_used(mean, std)
    got = attack.inverse_normalize(attack(attack.normalize(images), labels))
    same = (got - crafted).abs().flatten(1).amax(1) < 1e-3
    assert same.float().mean() > 0.7  # a rounding may tip a step
    assert (got - images).abs().max() <= 0.05 + 1e-5
    prepared(model)
    before = snapshot(model)
    attack = getattr(torchattacks, name)(model, **settings)
    attack(images, labels)
    assert_untouched(model, before)


class Unnormalise(nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))

    def forward(self, x):
        return x * self.std + self.mean


PARTS = {
    "standard": ["APGD ce 1 1", "APGDT 9", "FAB 1 True", "Square"],
    "plus": ["APGD ce 5 1", "APGD dlr 5 1", "FAB 5 False", "Square", "APGDT 9", "FAB 1 True"],
    "rand": ["APGD ce 1 20", "APGD dlr 1 20"],
}


def described(part):
    if isinstance(part, torchattacks.APGD):
        return f"APGD {part.loss} {part.n_restarts} {part.eot_iter}"
    if isinstance(part, torchattacks.APGDT):
        return f"APGDT {part.n_target_classes}"
    return f"FAB {part.n_restarts} {part.multi_targeted}" if part.attack == "FAB" else "Square"


@pytest.mark.parametrize("version", PARTS)
def test_parts_of_autoattack(version):
    attack = torchattacks.AutoAttack(cnn(), "L2", 0.3, version, seed=7, fold=False)
    parts = attack._autoattack.attacks
    assert [described(part) for part in parts] == PARTS[version]
    for part in parts:
        assert (part.norm, part.eps, part.seed, part.engine) == ("L2", 0.3, 7, {"fold": False})
        assert getattr(part, "steps", 10) == 10 and getattr(part, "n_queries", 5000) == 5000
    timed = torchattacks.AutoAttack(cnn())._autoattack.attacks
    assert all(part.seed > 1.5e9 for part in timed)


def test_autoattack():
    model, (images, labels) = robust_cnn(), held_out(24)
    attack = torchattacks.AutoAttack(model, eps=0.1, seed=0)
    attack._autoattack.attacks[-1].n_queries = 50
    crafted = attack(images, labels)
    found = broken(model, crafted, labels)
    assert (crafted - images).abs().max() <= 0.1 + 1e-6
    assert torch.equal(crafted[~found], images[~found])
    for part in attack._autoattack.attacks:
        assert not (broken(model, part(images, labels), labels) & ~found).any()
    published = attack.standard(verbose=False)
    assert isinstance(published, advfast.AutoAttack)
    assert (published.version, published.norm.lower(), published.eps, published.model) == (
        "standard", "linf", 0.1, model,
    )  # fmt: skip
    assert published.apgd.n_iter == published.fab.n_iter == 100
    attack.set_normalization_used([0.5], [0.25])
    behind = attack.standard(verbose=False).model
    torch.testing.assert_close(behind(images), model((images - 0.5) / 0.25))


def test_prints_only_if_asked(capsys):
    model, (images, labels) = robust_cnn(), held_out(8)
    torchattacks.APGD(model, eps=1.0)(images, labels)
    assert capsys.readouterr().out == ""
    torchattacks.APGD(model, eps=1.0, verbose=True)(images, labels)
    assert capsys.readouterr().out == "APGD: robust accuracy 0.00 %\n"


def test_errors_say_what_to_do():
    model, (images, labels) = robust_cnn(), held_out(4)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'iters'.*batch_size, fold"):
        torchattacks.APGD(model, iters=40)
    with pytest.raises(ValueError, match="version must be standard, plus or rand, got 'fast'"):
        torchattacks.AutoAttack(model, version="fast")
    with pytest.raises(ValueError, match="targets"):
        torchattacks.APGDT(model, n_classes=11)(images, labels)
    attack = torchattacks.FAB(model)
    attack.set_model_training_mode(True)
    with pytest.raises(ValueError, match="FAB attacks models in eval mode only"):
        attack(images, labels)
