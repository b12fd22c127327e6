"""advfast.compat.foolbox against foolbox itself: results, success, draws, errors."""

import importlib.util
import warnings

import pytest
import torch
from torch import nn

import advfast.compat.foolbox as ours
from advfast.compat.foolbox.attacks.gradient_descent_base import BATCH_ELEMENTS

from ..attacks.networks import batch, cnn, mlp

if importlib.util.find_spec("foolbox") is None:
    pytest.skip("foolbox is not installed here", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import eagerpy as ep
    import foolbox as theirs

pytestmark = pytest.mark.filterwarnings("ignore")

EPSILONS = [0.0, 2 / 255, 8 / 255, 0.1]
L2_EPSILONS = [0.0, 0.2, 0.5, 3.0]
LINF = ["LinfPGD", "PGD", "FGSM", "LinfBasicIterativeAttack"]
L2 = ["L2PGD", "FGM", "L2BasicIterativeAttack"]
L1 = ["L1PGD", "L1FastGradientAttack", "L1BasicIterativeAttack"]


def wide_cnn() -> nn.Module:
    """Larger and confident: gradients of every size."""
    torch.manual_seed(7)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(400, 10),
    )  # fmt: skip
    with torch.no_grad():
        net(torch.rand(64, 3, 12, 12))
        net[-1].weight.mul_(4)
    return net.eval()


def models(net, **keywords):
    return [
        library.PyTorchModel(net, bounds=(0, 1), device="cpu", **keywords)
        for library in (theirs, ours)
    ]


def both(name, net, images, criterion, epsilons, seed=3, fold=False, **keywords):
    """(raw, clipped, success) of foolbox and of ours, from the same state of torch's generator."""
    found = []
    for library, fmodel in zip((theirs, ours), models(net), strict=True):
        extra = {} if library is theirs else {"fold": fold}
        attack = getattr(library.attacks, name)(**keywords, **extra)
        torch.manual_seed(seed)
        found.append(attack(fmodel, images, criterion(library), epsilons=epsilons))
    return found


def labels_of(labels):
    return lambda library: labels


def check(found, gap, inside=True):
    (raw, clipped, success), (our_raw, our_clipped, our_success) = found
    assert torch.equal(success, our_success)
    for k in range(len(raw)):
        assert (raw[k] - our_raw[k]).abs().max() <= gap
        # What foolbox clips it adds up anew: a last digit.
        assert (clipped[k] - our_clipped[k]).abs().max() <= max(gap, 1.2e-7)
        assert (our_raw[k] - our_clipped[k]).abs().max() <= (0.0 if inside else 1.2e-7)


@pytest.mark.parametrize("n", [1, 10, 32])
@pytest.mark.parametrize("network", [cnn, wide_cnn])
@pytest.mark.parametrize("name", LINF)
def test_linf_is_bit_identical_from_the_same_seed(name, network, n):
    images, labels = batch(n)
    for random_start in (False, True):
        found = both(
            name, network(), images, labels_of(labels), EPSILONS, random_start=random_start
        )
        check(found, 0.0)
    raw = found[1][0]
    assert torch.equal(raw[0], images) and not torch.equal(raw[1], images)


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("name", L2 + L1)
def test_l2_and_l1_from_the_same_seed(name, random_start):
    images, labels = batch(16)
    epsilons = [0.0, 3.0, 20.0] if name in L1 else L2_EPSILONS
    keywords = {"random_start": random_start}
    if "PGD" in name:
        keywords |= {"steps": 10, "rel_stepsize": 0.2}
    check(both(name, wide_cnn(), images, labels_of(labels), epsilons, **keywords), 1e-6, name in L2)


@pytest.mark.parametrize("name", ["L2PGD", "L1PGD"])
def test_all_steps_of_the_defaults(name):
    # 50 steps over the kinks of a ReLU network multiply the last digits of float32.
    images, labels = batch(8)
    epsilons = [3.0, 20.0] if name in L1 else L2_EPSILONS
    found = both(name, wide_cnn().double(), images.double(), labels_of(labels), epsilons)
    check(found, 1e-9, name in L2)


@pytest.mark.parametrize("name", ["LinfPGD", "L2PGD", "L1PGD"])
def test_all_radii_in_one_batch_change_rounding_only(name, monkeypatch):
    # fold=True. Pieces of 10 rows in which radii mix.
    import advfast.compat.foolbox.attacks.gradient_descent_base as module

    images, labels = batch(6)
    epsilons = {"LinfPGD": EPSILONS, "L2PGD": L2_EPSILONS, "L1PGD": [0.0, 3.0, 9.0, 27.0]}[name]
    for elements in (BATCH_ELEMENTS, 10 * 3 * 144):
        monkeypatch.setattr(module, "BATCH_ELEMENTS", elements)
        (raw, _, success), (our_raw, _, our_success) = both(
            name, cnn(), images, labels_of(labels), epsilons, fold=True, steps=3
        )
        assert torch.equal(success, our_success)
        for k in range(4):
            # A sign may flip within rounding.
            same = (raw[k] - our_raw[k]).abs() < 1e-5
            assert same.float().mean() > 0.998


@pytest.mark.parametrize("name", ["LinfPGD", "LinfBasicIterativeAttack", "L2PGD"])
def test_targeted(name):
    images, labels = batch(16)

    def criterion(library):
        return library.criteria.TargetedMisclassification((labels + 1) % 10)

    epsilons = L2_EPSILONS if name == "L2PGD" else EPSILONS
    keywords = {"steps": 10, "rel_stepsize": 0.2}
    found = both(name, wide_cnn(), images, criterion, epsilons, **keywords)
    check(found, 1e-6 if name == "L2PGD" else 0.0)
    assert 0 < found[0][2].sum() < found[0][2].numel()


def test_step_sizes_and_single_radius():
    images, labels = batch(16)
    for keywords in ({"abs_stepsize": 2 / 255}, {"rel_stepsize": 0.25}, {"abs_stepsize": 1.0}):
        theirs_found, found = both(
            "LinfPGD", cnn(), images, labels_of(labels), 8 / 255, steps=5, **keywords
        )
        for a, b in zip(theirs_found, found, strict=True):
            assert a.shape == b.shape
        assert torch.equal(theirs_found[0], found[0])
        assert torch.equal(theirs_found[2], found[2])


def test_defaults_are_foolboxs():
    for name in LINF + L2 + L1:
        their_attack, attack = getattr(theirs.attacks, name)(), getattr(ours.attacks, name)()
        settings = {key: value for key, value in vars(attack).items() if key != "fold"}
        assert settings == vars(their_attack)


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0, 255), (-2.5, 3.0)])
def test_other_bounds(bounds):
    images, labels = batch(16)
    width = bounds[1] - bounds[0]
    images = images * width + bounds[0]
    preprocessing = {"mean": [bounds[0]] * 3, "std": [width] * 3, "axis": -3}
    results = []
    for library in (theirs, ours):
        fmodel = library.PyTorchModel(cnn(), bounds, "cpu", preprocessing)
        extra = {} if library is theirs else {"fold": False}
        attack = library.attacks.LinfPGD(steps=5, random_start=False, **extra)
        results.append(attack(fmodel, images, labels, epsilons=[0.03 * width, 0.1 * width]))
    for k in range(2):
        assert torch.equal(results[0][0][k], results[1][0][k])
    assert torch.equal(results[0][2], results[1][2])


@pytest.mark.parametrize(
    "preprocessing",
    [
        {},
        {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "axis": -3},
        {"mean": torch.tensor([0.4, 0.5, 0.6]), "axis": -3, "flip_axis": -3},
        {"std": 0.3},
        {"mean": [1, 2, 3], "axis": -3, "flip_axis": 1},
    ],
)
def test_models(preprocessing):
    images, labels = batch(8)
    pair = models(cnn(), preprocessing=preprocessing)
    assert torch.equal(pair[0](images), pair[1](images))
    assert torch.equal(pair[0](ep.astensor(images)).raw, pair[1](ep.astensor(images)).raw)
    assert theirs.accuracy(pair[0], images, labels) == ours.accuracy(pair[1], images, labels)
    scaled = images * 5 - 2
    for keywords in ({}, {"wrapper": True}):
        a, b = (m.transform_bounds((-2.0, 3.0), **keywords) for m in pair)
        assert tuple(a.bounds) == tuple(b.bounds) == (-2.0, 3.0)
        assert torch.allclose(a(scaled), b(scaled), atol=1e-6)
        back = (m.transform_bounds((0, 1)) for m in (a, b))
        assert torch.allclose(*(m(images) for m in back), atol=1e-6)
    pair[1].transform_bounds((-2.0, 3.0), inplace=True)
    assert torch.allclose(pair[1](scaled), pair[0](images), atol=1e-4)


def test_repeat_from_the_same_seed():
    images, labels = batch(32)
    results = []
    for library, fmodel in zip((theirs, ours), models(wide_cnn()), strict=True):
        extra = {} if library is theirs else {"fold": False}
        attack = library.attacks.LinfPGD(steps=2, **extra).repeat(2).repeat(2)
        assert attack.times == 4
        torch.manual_seed(9)
        results.append(attack(fmodel, images, labels, epsilons=[0.01, 0.02]))
        single = library.attacks.LinfPGD(steps=2, **extra)(fmodel, images, labels, epsilons=[0.01])
        assert results[-1][2][0].sum() > single[2].sum()
    for k in range(2):
        assert torch.equal(results[0][0][k], results[1][0][k])
    assert torch.equal(results[0][2], results[1][2])
    one = ours.attacks.LinfPGD(steps=2).repeat(3)(models(cnn())[1], images, labels, epsilons=0.02)
    assert one[0].shape == images.shape and one[2].shape == (32,)


def test_foolboxs_own_example_with_the_import_changed():
    # examples/single_attack_pytorch_resnet18.py, with EagerPy tensors.
    def main(fb, images, labels):
        fmodel = fb.PyTorchModel(cnn(), bounds=(0, 1), device="cpu")
        images, labels = ep.astensors(images, labels)
        clean = fb.accuracy(fmodel, images, labels)
        torch.manual_seed(0)
        _, clipped, success = fb.attacks.LinfPGD()(
            fmodel, images, labels, epsilons=[0.0, 0.01, 0.3]
        )
        robust = 1 - success.float32().mean(axis=-1)
        by_hand = [fb.accuracy(fmodel, advs, labels) for advs in clipped]
        sizes = [(advs - images).norms.linf(axis=(1, 2, 3)).numpy().max() for advs in clipped]
        return clean, robust.raw.tolist(), by_hand, sizes

    found, expected = main(ours, *batch(16)), main(theirs, *batch(16))
    assert found[0] == expected[0]
    assert found[1] == pytest.approx(expected[1], abs=0.07)
    assert found[1] == pytest.approx(found[2])
    assert found[3] == pytest.approx([0.0, 0.01, 0.3], abs=1e-7)


def test_parts_of_foolbox_mix():
    """A model and a criterion of foolbox's in our attack; our model and criterion in an attack of foolbox's."""
    images, labels = batch(16)
    pair = models(cnn())
    attack = ours.attacks.LinfPGD(random_start=False, fold=False, steps=5)
    expected = attack(pair[1], images, labels, epsilons=0.03)
    criterion = theirs.Misclassification(labels)
    found = attack(pair[0], ep.astensor(images), criterion, epsilons=0.03)
    assert torch.equal(found[0].raw, expected[0]) and torch.equal(found[2].raw, expected[2])
    targets = theirs.TargetedMisclassification((labels + 1) % 10)
    their_attack = theirs.attacks.LinfPGD(random_start=False, steps=5)
    found = attack(pair[1], images, targets, epsilons=0.03)[0]
    assert torch.equal(found, their_attack(pair[0], images, targets, epsilons=0.03)[0])
    found = their_attack(pair[1], images, labels, epsilons=0.03)[0]
    assert torch.equal(found, expected[0])
    noise = theirs.attacks.LinfAdditiveUniformNoiseAttack()
    _, noisy, _ = noise(pair[1], images, theirs.Misclassification(labels), epsilons=[0.1])
    assert (noisy[0] - images).abs().max() <= 0.1 + 1e-6


def subclass_of(library):
    """The hooks as foolbox's users write them: EagerPy all over."""

    class Margin(library.attacks.LinfPGD):
        def get_loss_fn(self, model, labels):
            def loss(inputs):
                logits = model(inputs)
                rows = ep.arange(logits, len(logits))
                own = logits[rows, labels]
                others = ep.where(ep.onehot_like(logits, labels) > 0, logits - 1e9, logits)
                return (others.max(axis=-1) - own).sum()

            return loss

        def normalize(self, gradients, *, x, bounds):
            inside = ep.logical_and(x > bounds.lower, x < bounds.upper)
            return ep.where(inside, gradients, gradients * 0.5).sign() * 0.5

        def get_random_start(self, x0, epsilon):
            return x0 + ep.uniform(x0, x0.shape, -epsilon / 2, epsilon / 2)

    return Margin


def test_a_subclass_written_for_foolbox():
    images, labels = batch(16)
    results = []
    for library, fmodel in zip((theirs, ours), models(wide_cnn()), strict=True):
        torch.manual_seed(4)
        attack = subclass_of(library)(steps=6)
        results.append(attack(fmodel, images, labels, epsilons=[0.01, 0.04]))
    for k in range(2):
        assert torch.equal(results[0][0][k], results[1][0][k])
    assert torch.equal(results[0][2], results[1][2])
    plain = ours.attacks.LinfPGD(steps=6)(models(wide_cnn())[1], images, labels, epsilons=0.04)
    assert not torch.equal(plain[0], results[1][0][1])


@pytest.mark.parametrize("hook", ["value_and_grad", "project", "get_optimizer"])
def test_each_other_hook_of_foolboxs(hook):
    images, labels = batch(8)
    results = []
    for library, fmodel in zip((theirs, ours), models(cnn()), strict=True):
        base = library.attacks.L2PGD

        class Changed(base):
            if hook == "value_and_grad":

                def value_and_grad(self, loss_fn, x):
                    loss, gradient = super().value_and_grad(loss_fn, x)
                    return loss, gradient * (x > 0.5)

            elif hook == "project":

                def project(self, x, x0, epsilon):
                    return super().project(x, x0, epsilon / 2)

            else:

                def get_optimizer(self, x, stepsize):
                    return lambda gradient: 3 * stepsize * gradient.sign()

        attack = Changed(steps=4, rel_stepsize=0.25, random_start=False)
        results.append(attack(fmodel, images, labels, epsilons=[0.5]))
    assert (results[0][0][0] - results[1][0][0]).abs().max() < 1e-6
    plain = ours.attacks.L2PGD(steps=4, rel_stepsize=0.25, random_start=False)
    assert not torch.allclose(
        plain(models(cnn())[1], images, labels, epsilons=0.5)[0], results[1][0][0]
    )


ERRORS = {
    "below the bounds": lambda fb, m, x, y: fb.attacks.LinfPGD()(m, x - 1, y, epsilons=0.1),
    "above the bounds": lambda fb, m, x, y: fb.attacks.LinfPGD()(m, x + 1, y, epsilons=[0.1]),
    "nan": lambda fb, m, x, y: fb.attacks.LinfPGD()(m, x * torch.nan, y, epsilons=[0.1]),
    "run outside": lambda fb, m, x, y: fb.attacks.L2PGD().run(m, x + 1, y, epsilon=0.1),
    "repeat outside": lambda fb, m, x, y: fb.attacks.FGM().repeat(2)(m, x + 1, y, epsilons=0.1),
    "no radius": lambda fb, m, x, y: fb.attacks.LinfPGD()(m, x, y, epsilons=None),
    "one radius missing": lambda fb, m, x, y: fb.attacks.FGSM()(m, x, y, epsilons=[0.1, None]),
    "epsilons not given": lambda fb, m, x, y: fb.attacks.FGSM()(m, x, y),
    "epsilons by position": lambda fb, m, x, y: fb.attacks.FGSM()(m, x, y, 0.1),
    "unknown keyword": lambda fb, m, x, y: fb.attacks.LinfPGD()(m, x, y, epsilons=0.1, speed=1),
    "unknown keyword of run": lambda fb, m, x, y: fb.attacks.LinfPGD().run(
        m, x, y, epsilon=0.1, speed=1
    ),
    "unknown setting": lambda fb, m, x, y: fb.attacks.LinfPGD(alpha=0.1),
    "setting by position": lambda fb, m, x, y: fb.attacks.LinfPGD(0.1),
    "steps of FGSM": lambda fb, m, x, y: fb.attacks.FGSM(steps=3),
    "targeted FGSM": lambda fb, m, x, y: fb.attacks.FGSM()(
        m, x, fb.TargetedMisclassification(y), epsilons=0.1
    ),
    "two criteria": lambda fb, m, x, y: fb.attacks.LinfPGD()(
        m, x, fb.Misclassification(y) & fb.Misclassification(y), epsilons=0.1
    ),
    "labels in a list": lambda fb, m, x, y: fb.attacks.LinfPGD()(m, x, y.tolist(), epsilons=0.1),
    "inputs in a list": lambda fb, m, x, y: fb.attacks.LinfPGD()(m, x.tolist(), y, epsilons=0.1),
    "too few labels": lambda fb, m, x, y: fb.attacks.LinfPGD()(m, x, y[:-1], epsilons=0.1),
    "no repeats": lambda fb, m, x, y: fb.attacks.LinfPGD().repeat(0),
    "not a module": lambda fb, m, x, y: fb.PyTorchModel(lambda x: x, bounds=(0, 1)),
    "unknown preprocessing": lambda fb, m, x, y: fb.PyTorchModel(
        cnn(), (0, 1), preprocessing={"scale": 2}
    ),
    "positive axis": lambda fb, m, x, y: fb.PyTorchModel(
        cnn(), (0, 1), preprocessing={"mean": [0.5, 0.5, 0.5], "axis": 1}
    ),
    "mean of two dimensions": lambda fb, m, x, y: fb.PyTorchModel(
        cnn(), (0, 1), preprocessing={"mean": [[0.5, 0.5, 0.5]], "axis": -3}
    ),
    "inplace and wrapper": lambda fb, m, x, y: m.transform_bounds(
        (0, 2), inplace=True, wrapper=True
    ),
    "unknown attack": lambda fb, m, x, y: fb.attacks.NoSuchAttack,
    "unknown name": lambda fb, m, x, y: fb.NoSuchName,
}


@pytest.mark.parametrize("case", ERRORS)
def test_the_same_type_of_error(case):
    images, labels = batch(4)
    kinds = []
    for library, fmodel in zip((theirs, ours), models(cnn()), strict=True):
        with pytest.raises(Exception) as caught:
            ERRORS[case](library, fmodel, images, labels)
        kinds.append(caught.type)
    assert kinds[0] is kinds[1]


def test_a_model_in_train_mode_warns_and_is_attacked_in_it():
    images, labels = batch(16)
    net = cnn(dropout=0.0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    results = []
    for library in (ours, theirs):  # foolbox moves the running statistics
        with pytest.warns(UserWarning, match="train"):
            fmodel = library.PyTorchModel(net, (0, 1), "cpu")
        extra = {} if library is theirs else {"fold": False}
        attack = library.attacks.LinfPGD(random_start=False, steps=4, **extra)
        results.append(attack(fmodel, images, labels, epsilons=[0.02, 0.05]))
        if library is ours:
            after = net.state_dict()
            assert all(torch.equal(before[name], after[name]) for name in before)
            assert all(part.training for part in net.modules())
            assert all(weight.grad is None for weight in net.parameters())
    for k in range(2):
        assert torch.equal(results[0][0][k], results[1][0][k])
    assert torch.equal(results[0][2], results[1][2])


def test_flat_inputs():
    torch.manual_seed(0)
    images, labels = torch.rand(10, 20), torch.arange(10) % 4
    check(both("LinfPGD", mlp(), images, labels_of(labels), EPSILONS), 0.0)
    check(both("L2PGD", mlp(), images, labels_of(labels), L2_EPSILONS, steps=10), 1e-6)
