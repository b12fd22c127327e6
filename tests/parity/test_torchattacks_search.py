"""The attacks of compat.torchattacks that search, against torchattacks: the same script, only the import changed."""

import importlib.util
import inspect

import pytest
import torch

import advfast.compat.torchattacks as ours

from ..attacks.search.trained import held_out, robust_cnn

if importlib.util.find_spec("torchattacks") is None:
    pytest.skip("torchattacks is not installed here", allow_module_level=True)
import torchattacks as theirs

pytestmark = pytest.mark.filterwarnings("ignore")

RADIUS = {"Linf": 0.1, "L2": 0.5}
NAMES = ("APGD", "APGDT", "FAB", "Square", "AutoAttack")
SETTINGS = {
    "APGD": {"n_restarts": 2},
    "APGD-dlr": {"loss": "dlr", "steps": 30},
    "APGDT": {"n_classes": 4, "steps": 20},
    "FAB": {"n_restarts": 2},
    "FAB-T": {"multi_targeted": True, "n_classes": 5},
    "Square": {"n_queries": 60, "n_restarts": 2},
    "Square-ce": {"n_queries": 100, "loss": "ce", "resc_schedule": False},
}


def both(name, norm, images, labels, **settings):
    """The results of both, from the same seed."""
    results, model = [], robust_cnn()
    for library in (theirs, ours):
        extra = {"fold": False} if library is ours else {}
        attack = getattr(library, name.split("-")[0])(model, norm=norm, seed=5, **settings, **extra)
        results.append(attack(images.clone(), labels))
    return results


def broken(crafted, labels):
    with torch.no_grad():
        return robust_cnn()(crafted).argmax(1) != labels


@pytest.mark.parametrize("norm", RADIUS)
@pytest.mark.parametrize("name", SETTINGS)
def test_same_outcome_for_each_image(name, norm):
    images, labels = held_out(60)
    eps = RADIUS[norm] * (2 if name.startswith("Square") else 1)
    expected, got = both(name, norm, images, labels, eps=eps, **SETTINGS[name])
    assert got.dtype == expected.dtype and got.stride() == expected.stride()
    here, there = broken(got, labels), broken(expected, labels)
    # In L2 all images of their APGDT take the step size of the first one.
    assert (here != there).sum() <= (3 if (name, norm) == ("APGDT", "L2") else 0)
    assert 0.1 < there.float().mean() < 0.98
    if name.startswith("APGD") and (name, norm) != ("APGDT", "L2"):
        assert (got - expected).abs().max() < 1e-6
    if name.startswith("Square"):
        same = (got - expected).flatten(1).abs().amax(1) < 1e-5
        assert same.float().mean() > 0.95


@pytest.mark.parametrize("version", ["standard", "rand"])
def test_autoattack(version):
    images, labels = held_out(24)
    results = []
    for library in (theirs, ours):
        extra = {"fold": False} if library is ours else {}
        attack = library.AutoAttack(robust_cnn(), eps=0.1, version=version, seed=3, **extra)
        for part in attack._autoattack.attacks:
            if part.attack == "Square":
                part.n_queries = 60
        results.append(broken(attack(images, labels), labels))
    assert torch.equal(*results) and 0 < results[0].sum() < 24


@pytest.mark.parametrize("name", NAMES)
def test_signatures_and_attributes(name):
    model, found = robust_cnn(), []
    expected = inspect.signature(getattr(theirs, name)).parameters
    got = inspect.signature(getattr(ours, name)).parameters
    named = [p for p in got.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name, p.default) for p in named] == [(p.name, p.default) for p in expected.values()]
    for library in (theirs, ours):
        attack = getattr(library, name)(model)
        public = {key for key in vars(attack) if not key.startswith("_")}
        found.append((repr(attack), public - {"engine"}))
    assert found[0] == found[1]
    modes = [getattr(library, name)(model).supported_mode for library in (theirs, ours)]
    assert modes[0] == modes[1] or name == "Square"  # which has no targeted mode here


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_parts_of_autoattack(version):
    found = []
    for library in (theirs, ours):
        parts = library.AutoAttack(robust_cnn(), version=version, seed=0)._autoattack.attacks
        found.append([repr(part) for part in parts])
    assert found[0] == found[1]
