"""compat.torchattacks against torchattacks: the same script on both, only the import changed."""

import importlib.util
import inspect
import re

import pytest
import torch
from torch import nn

import advfast.compat.torchattacks as ours

from ..attacks.networks import batch, cnn
from .test_peers import wide_cnn

if importlib.util.find_spec("torchattacks") is None:
    pytest.skip("torchattacks is not installed here", allow_module_level=True)
import torchattacks as theirs

pytestmark = pytest.mark.filterwarnings("ignore")

SETTINGS = {
    "FGSM": {},
    "BIM": {},
    "RFGSM": {},
    "FFGSM": {},
    "PGD": {},
    "PGDL2": {"eps": 0.5, "alpha": 0.1},
    "TPGD": {},
    "MIFGSM": {"decay": 0.7},
}
# Largest difference. BIM there confines to the ball by bounds, here by the distance from the image: for pixels that are
# nearly black the last bit may differ.
GAP = {"BIM": 1e-8, "PGDL2": 5e-7}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
MODES = {
    "default": lambda attack: None,
    "label": lambda attack: attack.set_mode_targeted_by_label(quiet=True),
    "function": lambda attack: attack.set_mode_targeted_by_function(lambda x, y: (y + 1) % 10),
    "least-likely": lambda attack: attack.set_mode_targeted_least_likely(2),
}


def both(name, run, model, **settings):
    """What `run` returns for the attack of each library, from the same random state."""
    results = []
    for library in (theirs, ours):
        extra = {"fold": False} if library is ours else {}
        attack = getattr(library, name)(model, **settings, **extra)
        torch.manual_seed(21)
        results.append(run(attack))
    return results


def assert_same(name, expected, got, gap=None):
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert got.stride() == expected.stride()
    assert (got - expected).abs().max() <= GAP.get(name, 0.0) * (gap or 1.0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("network", [cnn, wide_cnn])
@pytest.mark.parametrize("name", SETTINGS)
def test_same_images(name, network, mode):
    if name == "TPGD" and mode != "default":
        pytest.skip("TPGD has no targeted mode")
    images, labels = batch(32)

    def run(attack):
        MODES[mode](attack)
        return attack(images, labels)

    assert_same(name, *both(name, run, network(), **SETTINGS[name]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_layout_dtype_and_normalisation(name, normalised, layout, dtype):
    if name == "PGDL2" and layout is torch.channels_last:
        pytest.skip("torchattacks.PGDL2 takes contiguous images only")
    model = wide_cnn().to(dtype)
    images, labels = batch(32)
    images = images.to(dtype).to(memory_format=layout)

    def run(attack):
        if not normalised:
            return attack(images, labels)
        attack.set_normalization_used(MEAN, STD)
        return attack(attack.normalize(images * 0.9 + 0.05), labels)

    # Normalised, a difference counts 1 / std times.
    assert_same(name, *both(name, run, model, **SETTINGS[name]), gap=6 if normalised else 1)


@pytest.mark.parametrize("name", SETTINGS)
def test_batch_statistics_during_the_attack(name):
    images, labels = batch(32)

    def run(attack):
        attack.set_model_training_mode(True, True, False)
        return attack(images, labels)

    model = cnn()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected, got = both(name, run, model, **SETTINGS[name])
    assert_same(name, expected, got)
    model.load_state_dict(before)
    plain = both(name, lambda attack: attack(images, labels), model, **SETTINGS[name])[1]
    assert not torch.equal(plain, got)


@pytest.mark.parametrize("name", SETTINGS)
def test_default_settings_are_as_strong(name):
    model, (images, labels) = wide_cnn(), batch(32)
    found = []
    for library in (theirs, ours):
        torch.manual_seed(21)
        crafted = getattr(library, name)(model, **SETTINGS[name])(images, labels)
        with torch.no_grad():
            found.append(nn.functional.cross_entropy(model(crafted), labels))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [*SETTINGS, "MultiAttack"])
def test_signatures(name):
    expected = inspect.signature(getattr(theirs, name)).parameters
    got = inspect.signature(getattr(ours, name)).parameters
    named = [p for p in got.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name, p.default) for p in named] == [(p.name, p.default) for p in expected.values()]


def test_surface():
    for method, function in inspect.getmembers(theirs.attack.Attack, inspect.isfunction):
        if method.startswith("_"):
            continue
        # Their wrapper hides the signature of what it wraps.
        function = inspect.getclosurevars(function).nonlocals.get("func", function)
        expected = list(inspect.signature(function).parameters.values())
        got = list(inspect.signature(getattr(ours.Attack, method)).parameters.values())
        assert [(p.name, p.default) for p in got] == [(p.name, p.default) for p in expected], method
    for name in theirs.__all__:
        if name in ours.__all__:
            continue
        with pytest.raises(ImportError, match=f"no {name} of torchattacks"):
            getattr(ours, name)


@pytest.mark.parametrize("name", SETTINGS)
def test_repr_and_attributes(name):
    model, found = cnn(), []
    for library in (theirs, ours):
        attack = getattr(library, name)(model, **SETTINGS[name])
        public = {key for key in vars(attack) if not key.startswith("_")}
        found.append((repr(attack), public - {"engine"}, attack.supported_mode))
        attack.set_normalization_used(MEAN, STD)
        found[-1] += (repr(attack),)
    assert found[0] == found[1]


def loader(normalised):
    images, labels = batch(40)
    images = (images - 0.5) / 0.25 if normalised else images
    data = torch.utils.data.TensorDataset(images, labels)
    return torch.utils.data.DataLoader(data, batch_size=16)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("kind", ["float", "int"])
def test_files_and_printed_lines(tmp_path, capsys, kind, normalised):
    model, found = cnn(), []
    for library in (theirs, ours):
        extra = {"fold": False} if library is ours else {}
        attack = library.PGD(model, random_start=False, **extra)
        if normalised:
            attack.set_normalization_used([0.5] * 3, [0.25] * 3)
        path = tmp_path / library.__name__
        accuracy, l2, _ = attack.save(
            loader(normalised), path, return_verbose=True, save_predictions=True,
            save_clean_inputs=True, save_type=kind,
        )  # fmt: skip
        printed = re.sub(r"\(\S+ it/s\)", "", capsys.readouterr().out)
        content = torch.load(path)
        batches = [
            list(library_.Attack.load(path, 16, load_predictions=True, load_clean_inputs=True))
            for library_ in (theirs.attack, ours)
        ]
        found.append((accuracy, l2, printed, content, batches, capsys.readouterr().out))
    (accuracy, l2, printed, content, batches, told), (a, b, p, c, d, e) = found
    assert a == accuracy and abs(b - l2) < 1e-5 and p == printed and told == e
    assert list(c) == list(content) and c["save_type"] == content["save_type"]
    for key in ("adv_inputs", "labels", "preds", "clean_inputs"):
        assert c[key].dtype == content[key].dtype and torch.equal(c[key], content[key]), key
    for read in (batches[1], *d):
        for row, expected in zip(read, batches[0], strict=True):
            assert all(torch.equal(x, y) for x, y in zip(row, expected, strict=True))


def test_least_likely_targets():
    model, (images, labels) = cnn(), batch(64)
    for kth in (1, 4, 9):
        found = []
        for library in (theirs, ours):
            attack = library.FGSM(model)
            attack.set_mode_targeted_least_likely(kth, quiet=True)
            found.append(attack.get_target_label(images, labels))
        assert torch.equal(*found)


def test_multiattack(capsys):
    model, (images, labels), results = wide_cnn(), batch(48), []
    labels = torch.where(torch.arange(48) % 3 > 0, model(images).argmax(1), labels)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 48)
    found = []
    for library in (theirs, ours):
        extra = {"fold": False} if library is ours else {}
        attack = library.MultiAttack(
            [library.FGSM(model, eps, **extra) for eps in (0.5 / 255, 1 / 255)], verbose=True
        )
        results.append(attack(images, labels))
        printed = capsys.readouterr().out
        accuracy, rates, l2, _ = attack.save(data, return_verbose=True)
        lines = re.sub(r"\(\S+ it/s\)", "", capsys.readouterr().out)
        found.append((printed, lines, accuracy, rates, round(l2, 5)))
    assert found[0] == found[1] and torch.equal(*results)
    assert 0 < found[0][3][0] < found[0][3][1] < 100


@pytest.mark.parametrize("library", [theirs, ours])
def test_an_attack_of_ones_own(library):
    class Noise(library.attack.Attack):
        def __init__(self, model, eps=0.1):
            super().__init__("Noise", model)
            self.eps = eps
            self.supported_mode = ["default", "targeted"]
            self.inner = library.FGSM(model, eps)

        def forward(self, images, labels):
            images = images.clone().detach().to(self.device)
            labels = labels.clone().detach().to(self.device)
            if self.targeted:
                labels = self.get_target_label(images, labels)
            adv = self.inner(images, labels).requires_grad_()
            cost = nn.CrossEntropyLoss()(self.get_logits(adv), labels)
            grad = torch.autograd.grad(-cost if self.targeted else cost, adv)[0]
            return torch.clamp(adv + self.eps * grad.sign(), 0, 1).detach()

    model, (images, labels) = cnn(), batch()
    attack = Noise(model)
    attack.set_normalization_used(MEAN, STD)
    attack.set_mode_targeted_by_function(lambda x, y: (y + 1) % 10, quiet=True)
    result = attack.inverse_normalize(attack(attack.normalize(images), labels))
    assert result.min() >= -1e-6 and result.max() <= 1 + 1e-6
    assert torch.allclose((result - images).abs().max(), torch.tensor(0.2))
