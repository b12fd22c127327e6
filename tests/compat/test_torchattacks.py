"""The attacks of compat.torchattacks, against loops by hand that share no code with it."""

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import advfast.compat.torchattacks as torchattacks

from ..attacks.networks import batch, cnn, mlp, plain_pgd
from ..attacks.test_contract import assert_untouched, prepared, snapshot

EPS, ALPHA = 8 / 255, 2 / 255
ATTACKS = ("FGSM", "BIM", "RFGSM", "FFGSM", "PGD", "PGDL2", "TPGD", "MIFGSM")
# torchattacks 3.5.1, as its signatures stand.
DEFAULTS = {
    "FGSM": {"eps": EPS},
    "BIM": {"eps": EPS, "alpha": ALPHA, "steps": 10},
    "RFGSM": {"eps": EPS, "alpha": ALPHA, "steps": 10},
    "FFGSM": {"eps": EPS, "alpha": 10 / 255},
    "PGD": {"eps": EPS, "alpha": ALPHA, "steps": 10, "random_start": True},
    "PGDL2": {
        "eps": 1.0, "alpha": 0.2, "steps": 10, "random_start": True, "eps_for_division": 1e-10
    },
    "TPGD": {"eps": EPS, "alpha": ALPHA, "steps": 10},
    "MIFGSM": {"eps": EPS, "alpha": ALPHA, "steps": 10, "decay": 1.0},
}  # fmt: skip


def by_hand(name, model, images, labels, eps, alpha, steps, targeted=False):
    """The attack `name` from its paper's update rule; starts drawn in torchattacks' order."""
    start = images
    if name == "RFGSM":
        start = images + alpha * torch.randn_like(images).sign()
    elif name == "FFGSM":
        torch.randn_like(images)
        start, steps = images + torch.empty_like(images).uniform_(-eps, eps), 1
    elif name == "PGD":
        start = images + torch.empty_like(images).uniform_(-eps, eps)
    elif name == "TPGD":
        start = images + 0.001 * torch.randn_like(images)
    elif name == "FGSM":
        alpha, steps = eps, 1
    x, velocity = start.clamp(0, 1), 0.0
    clean = model(images).softmax(1).detach()
    for _ in range(steps):
        x.requires_grad_()
        if name == "TPGD":
            loss = F.kl_div(model(x).log_softmax(1), clean, reduction="sum")
        else:
            loss = F.cross_entropy(model(x), labels)
        (grad,) = torch.autograd.grad(-loss if targeted else loss, x)
        if name == "MIFGSM":
            velocity = grad / grad.abs().mean((1, 2, 3), keepdim=True) + 0.7 * velocity
            grad = velocity
        x = x.detach() + alpha * grad.sign()
        x = (images + (x - images).clamp(-eps, eps)).clamp(0, 1)
    return x.detach()


@pytest.mark.parametrize("name", ATTACKS)
def test_defaults_are_those_of_torchattacks(name):
    parameters = list(inspect.signature(getattr(torchattacks, name)).parameters.values())
    named = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(named) == ["model", *DEFAULTS[name]]
    attack = getattr(torchattacks, name)(cnn())
    assert {key: getattr(attack, key) for key in DEFAULTS[name]} == DEFAULTS[name]
    # Positional, in that order, with other values.
    values = [0.5, 0.25, 3, False, 1e-8] if name == "PGDL2" else [0.5, 0.25, 3, 0]
    values = values[: len(DEFAULTS[name])]
    attack = getattr(torchattacks, name)(cnn(), *values)
    assert [getattr(attack, key) for key in DEFAULTS[name]] == values


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "PGDL2"])
def test_same_bits_as_by_hand(name, targeted):
    if targeted and name == "TPGD":
        pytest.skip("TPGD uses no labels")
    model, (images, labels) = cnn(), batch(32)
    attack = getattr(torchattacks, name)(model, fold=False)
    attack.decay = 0.7
    if targeted:
        attack.set_mode_targeted_by_label(quiet=True)
    settings = {"alpha": ALPHA, "steps": 10} | DEFAULTS[name]
    torch.manual_seed(4)
    expected = by_hand(
        name, model, images, labels, settings["eps"], settings["alpha"], settings["steps"], targeted
    )
    torch.manual_seed(4)
    assert torch.equal(attack(images, labels), expected)


@pytest.mark.parametrize("targeted", [False, True])
def test_l2_is_that_of_a_loop_by_hand(targeted):
    model, (images, labels) = cnn(), batch(32)
    attack = torchattacks.PGDL2(model, 0.5, 0.1, 10, False)
    if targeted:
        attack.set_mode_targeted_by_label(quiet=True)
    expected = plain_pgd(model, images, labels, 0.5, 0.1, 10, "l2", targeted=targeted)
    assert (attack(images, labels) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("name", ATTACKS)
def test_default_engine_is_as_strong(name):
    model, (images, labels) = cnn(), batch(32)
    found = []
    for fold in (True, False):
        torch.manual_seed(4)
        crafted = getattr(torchattacks, name)(model, fold=fold)(images, labels)
        with torch.no_grad():
            found.append(F.cross_entropy(model(crafted), labels))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
@pytest.mark.parametrize("name", ATTACKS)
def test_model_is_left_as_found(name, mode):
    model, (images, labels) = prepared(mode), batch()
    before = snapshot(model)
    result = getattr(torchattacks, name)(model)(images, labels)
    assert_untouched(model, before)
    assert not result.requires_grad and result.dtype == images.dtype
    assert result.min() >= 0 and result.max() <= 1
    assert not torch.equal(result, images)


@pytest.mark.parametrize(
    "training", [(True, True, True), (True, False, False), (True, True, False)]
)
@pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
def test_training_mode_of_the_model_is_used_and_undone(mode, training):
    model, (images, labels) = prepared(mode), batch()
    before, seen = snapshot(model), []
    for layer in (model[1], model[3]):
        layer.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    before["hooks"] = [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()]
    attack = torchattacks.PGD(model, steps=2)
    attack.set_model_training_mode(*training)
    attack(images, labels)
    assert set(seen[::2]) == {training[1]} and set(seen[1::2]) == {training[2]}
    assert_untouched(model, before)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ATTACKS)
def test_where_gradients_are_off(name, guard):
    model = cnn()
    torch.manual_seed(1)
    expected = getattr(torchattacks, name)(model)(*batch())
    torch.manual_seed(1)
    with guard():
        got = getattr(torchattacks, name)(model)(*batch())
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["PGD", "PGDL2", "MIFGSM", "TPGD"])
def test_layout_and_dtype_are_kept(name):
    model, (images, labels) = cnn(), batch()
    nhwc = images.to(memory_format=torch.channels_last)
    result = getattr(torchattacks, name)(model)(nhwc, labels)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert (
        getattr(torchattacks, name)(model.double())(images.double(), labels).dtype == torch.double
    )


@pytest.mark.parametrize("name", ["FGSM", "PGD", "PGDL2"])
def test_tabular_data(name):
    model = mlp()
    rows, labels = torch.rand(8, 20), torch.arange(8) % 4
    assert getattr(torchattacks, name)(model)(rows, labels).shape == rows.shape


def test_attributes_changed_between_calls_count():
    model, (images, labels) = cnn(), batch()
    attack = torchattacks.PGD(model, random_start=False)
    attack(images, labels)
    attack.eps, attack.alpha, attack.steps = 4 / 255, 1 / 255, 5
    expected = torchattacks.PGD(model, 4 / 255, 1 / 255, 5, False)(images, labels)
    assert torch.equal(attack(images, labels), expected)
    assert (expected - images).abs().max() <= 4 / 255 + 1e-7
    other = cnn()
    with torch.no_grad():
        other[-1].weight.neg_()
    attack.set_model(other)
    assert attack.model is other and attack.model_name == "Sequential"
    expected = torchattacks.PGD(other, 4 / 255, 1 / 255, 5, False)(images, labels)
    assert torch.equal(attack(images, labels), expected)
    attack.engine["fold"] = False
    expected = plain_pgd(other, images, labels, 4 / 255, 1 / 255, 5)
    assert torch.equal(attack(images, labels), expected)


def test_without_labels_the_predictions_count():
    model, (images, _) = cnn(), batch()
    predicted = model(images).argmax(1)
    attack = torchattacks.PGD(model, random_start=False)
    assert torch.equal(attack(images), attack(images, predicted))


@pytest.mark.parametrize("name", ATTACKS)
def test_radius_of_zero_gives_the_images(name):
    model, (images, labels) = cnn(), batch()
    attack = getattr(torchattacks, name)(model)
    attack.eps = 0.0
    assert torch.equal(attack(images, labels), images)


def test_images_beyond_the_box_are_clamped_silently():
    model, (images, labels) = cnn(), batch()
    wide = images * 3 - 1
    attack = torchattacks.PGD(model, random_start=False)
    assert torch.equal(attack(wide, labels), attack(wide.clamp(0, 1), labels))


def test_steps_of_zero_is_the_rule_of_the_paper():
    assert torchattacks.BIM(cnn(), 8 / 255, steps=0).steps == 10
    assert torchattacks.BIM(cnn(), 32 / 255, steps=0).steps == 36


def test_a_sample_without_gradient_stays_finite():
    # torchattacks divides by the mean of the gradient.
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    nn.init.zeros_(model[1].weight)
    images, labels = torch.rand(2, 3, 2, 2), torch.tensor([0, 1])
    assert torch.equal(torchattacks.MIFGSM(model)(images, labels), images)


def test_seed_governs_the_start():
    model, (images, labels) = cnn(), batch()
    for name in ("PGD", "PGDL2", "RFGSM", "FFGSM", "TPGD"):
        attack = getattr(torchattacks, name)(model, seed=3)
        first = attack(images, labels)
        torch.rand(7)
        assert torch.equal(attack(images, labels), first), name
        attack.engine["seed"] = 4
        assert not torch.equal(attack(images, labels), first), name


def test_repr_pickle_and_deepcopy():
    model, (images, labels) = cnn(), batch()
    attack = torchattacks.PGD(model, 4 / 255, 1 / 255, 3, False)
    assert repr(attack) == (
        "PGD(model_name=Sequential, device=cpu, attack_mode=default, targeted=False, "
        f"normalization_used=False, eps={4 / 255}, alpha={1 / 255}, steps=3, random_start=False)"
    )
    assert "engine={'fold': False}" in repr(torchattacks.PGD(model, fold=False))
    attack.set_normalization_used([0.5] * 3, [0.25] * 3)
    expected = attack(images, labels)
    for other in (pickle.loads(pickle.dumps(attack)), copy.deepcopy(attack)):
        assert torch.equal(other(images, labels), expected)
        assert repr(other) == repr(attack)


def test_errors_say_what_to_do():
    with pytest.raises(TypeError, match="unexpected keyword argument 'iters'"):
        torchattacks.PGD(cnn(), iters=40)
    with pytest.raises(TypeError, match="unexpected keyword argument 'norm'"):
        torchattacks.PGD(cnn(), norm="l2")
    with pytest.raises(ValueError, match="eps must be a finite number >= 0"):
        torchattacks.PGD(cnn(), eps=-1.0)(*batch())
    with pytest.raises(ValueError, match=r"eps_for_division must be 0 .. 1e-6, got 0\.5"):
        torchattacks.PGDL2(cnn(), eps_for_division=0.5)(*batch())
    with pytest.raises(ValueError, match=r"labels must be 0 .. 9"):
        torchattacks.PGD(cnn())(batch()[0], torch.full((16,), 10))


@pytest.mark.parametrize("name", ["CW", "DeepFool", "SPSA", "LGV"])
def test_other_attacks_are_named_with_a_way_out(name):
    with pytest.raises(ImportError, match=f"no {name} of torchattacks.*from torchattacks import"):
        getattr(torchattacks, name)
    with pytest.raises(ImportError, match=f"no {name} of torchattacks"):
        exec(f"from advfast.compat.torchattacks import {name}")
    assert not hasattr(torchattacks, "Nonsense")
