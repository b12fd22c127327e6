"""What scripts written for torchattacks use beside the attacks: modes, targets, normalisation, saving, own attacks."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import advfast.compat.torchattacks as torchattacks

from ..attacks.networks import batch, cnn
from ..attacks.test_contract import assert_untouched, prepared, snapshot

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def normalised(images):
    return (images - torch.tensor(MEAN).reshape(1, 3, 1, 1)) / torch.tensor(STD).reshape(1, 3, 1, 1)


class Sign(torchattacks.attack.Attack):
    """An attack of a user's own, as torchattacks' documentation shows them."""

    def __init__(self, model, eps):
        super().__init__("Sign", model)
        self.eps = eps
        self.supported_mode = ["default", "targeted"]

    def forward(self, images, labels):
        images = images.clone().detach().to(self.device)
        labels = labels.clone().detach().to(self.device)
        if self.targeted:
            labels = self.get_target_label(images, labels)
        images.requires_grad = True
        cost = nn.CrossEntropyLoss()(self.get_logits(images), labels)
        (grad,) = torch.autograd.grad(-cost if self.targeted else cost, images)
        return torch.clamp(images + self.eps * grad.sign(), 0, 1).detach()


class Wrapper(torchattacks.Attack):
    def __init__(self, model):
        super().__init__("Wrapper", model)
        self.parts = [Sign(model, 0.1), {"pgd": torchattacks.PGD(model, random_start=False)}]
        self.supported_mode = ["default", "targeted"]

    def forward(self, images, labels):
        return self.parts[1]["pgd"](images, labels)


@pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
@pytest.mark.parametrize("guard", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_own_attack(guard, mode):
    model = prepared(mode)
    before = snapshot(model)
    with guard():
        images, labels = batch()
        got = Sign(model, 8 / 255)(images, labels)
    assert_untouched(model, before)
    model.eval()
    assert torch.equal(got, torchattacks.FGSM(model, fold=False)(*batch()))


def test_own_attack_that_raises_leaves_everything():
    class Broken(Sign):
        def forward(self, images, labels):
            raise RuntimeError("broken")

    model = prepared("frozen")
    before, attack = snapshot(model), Broken(model, 0.1)
    attack.set_normalization_used(MEAN, STD)
    with pytest.raises(RuntimeError, match="broken"):
        attack(*batch())
    assert_untouched(model, before)
    model.eval()
    assert torch.equal(attack.get_logits(batch()[0]), model(batch()[0]))


def test_no_forward():
    with pytest.raises(NotImplementedError):
        torchattacks.Attack("nothing", cnn())(*batch())


@pytest.mark.parametrize("make", [Sign, lambda m, e: torchattacks.PGD(m, e, 0.01, 3, False)])
def test_normalised_inputs(make):
    model, (images, labels) = cnn(), batch()
    images = images * 0.8 + 0.1
    pixels = nn.Module()
    pixels.net = model
    pixels.forward = lambda x: model(normalised(x))
    expected = make(pixels, 0.1)(images, labels)
    attack = make(model, 0.1)
    attack.set_normalization_used(MEAN, STD)
    assert attack.normalization_used["mean"].shape == (1, 3, 1, 1)
    got = attack(normalised(images), labels)
    assert (attack.inverse_normalize(got) - expected).abs().max() < 1e-6
    assert (attack.normalize(attack.inverse_normalize(got)) - got).abs().max() < 1e-6
    # Between calls the inputs are taken to be normalised.
    assert torch.equal(attack.get_logits(got), model(got))


def test_normalisation_can_change_and_is_needed():
    model, (images, labels) = cnn(), batch()
    attack = torchattacks.FGSM(model)
    with pytest.raises(ValueError, match="call set_normalization_used"):
        attack.normalize(images)
    results = []
    for std in ([0.5] * 3, [0.25] * 3):
        attack.set_normalization_used(torch.tensor([0.5] * 3), std)
        fresh = torchattacks.FGSM(model)
        fresh.set_normalization_used([0.5] * 3, std)
        results.append(attack(attack.normalize(images), labels))
        assert torch.equal(results[-1], fresh(fresh.normalize(images), labels))
    assert not torch.equal(*results)


def test_own_get_logits_is_what_is_attacked():
    class Negated(torchattacks.PGD):
        def get_logits(self, inputs, labels=None):
            return -super().get_logits(inputs)

    model, (images, labels) = cnn(), batch()
    got = Negated(model, random_start=False, fold=False)(images, labels)
    expected = torchattacks.PGD(lambda x: -model(x), random_start=False, fold=False)(images, labels)
    assert torch.equal(got, expected)
    assert not torch.equal(got, torchattacks.PGD(model, random_start=False)(images, labels))


def test_a_function_as_model():
    model, (images, labels) = cnn(), batch()
    attack = torchattacks.PGD(lambda x: model(x), random_start=False, fold=False)
    assert attack.device is None and attack.model_name == "function"
    expected = torchattacks.PGD(model, random_start=False, fold=False)(images, labels)
    assert torch.equal(attack(images, labels), expected)


def test_targets(capsys):
    model, (images, labels) = cnn(), batch(64)
    attack = torchattacks.FGSM(model)
    assert attack.get_mode() == "default"
    attack.set_mode_targeted_by_function(lambda x, y: (y + 1) % 10)
    assert attack.get_mode() == "targeted(custom)" and attack.targeted
    assert torch.equal(attack.get_target_label(images, labels), (labels + 1) % 10)
    shifted = attack(images, labels)
    attack.set_mode_targeted_by_label(quiet=True)
    assert attack.get_mode() == "targeted(label)"
    assert torch.equal(attack(images, (labels + 1) % 10), shifted)
    with pytest.raises(ValueError, match="labels must be given"):
        attack(images)
    attack.set_mode_default()
    assert attack.get_mode() == "default" and not torch.equal(attack(images, labels), shifted)
    assert capsys.readouterr().out == (
        "Attack mode is changed to 'targeted(custom)'.\nAttack mode is changed to 'default.'\n"
    )
    with pytest.raises(ValueError, match="TPGD: targeted mode is not supported"):
        torchattacks.TPGD(model).set_mode_targeted_random()
    attack.targeted, attack.attack_mode = True, "targeted(custom)"
    attack._target_map_function = None
    with pytest.raises(ValueError, match="no targets are set"):
        attack(images, labels)


def test_least_likely_target():
    model, (images, labels) = cnn(), batch(64)
    attack = torchattacks.FGSM(model)
    for kth in (1, 3):
        attack.set_mode_targeted_least_likely(kth, quiet=True)
        assert attack.get_mode() == "targeted(least-likely)"
        for given in (labels, None):
            targets = attack.get_target_label(images, given)
            logits = model(images)
            own = logits.argmax(1) if given is None else given
            for row, label, target in zip(logits, own, targets, strict=True):
                others = [k for k in range(10) if k != label]
                assert target == sorted(others, key=lambda k: row[k].item())[kth - 1]
    for kth, message in ((0, "must be 1 or more, got 0"), (10, "at most 9 for 10 classes, got 10")):
        with pytest.raises(ValueError, match=message):
            attack.set_mode_targeted_least_likely(kth, quiet=True)
            attack(images, labels)


def test_random_target():
    model, (images, labels) = cnn(), batch(4000)
    attack = torchattacks.FGSM(model)
    attack.set_mode_targeted_random(quiet=True)
    assert attack.get_mode() == "targeted(random)"
    targets = attack.get_target_label(images, labels)
    assert targets.dtype == torch.int64 and not (targets == labels).any()
    shift = torch.bincount((targets - labels) % 10, minlength=10)[1:]
    # Each of 9 with 444 expected, standard deviation 20.
    assert shift.min() > 340 and shift.max() < 550
    assert not torch.equal(attack.get_target_label(images, labels), targets)
    assert attack(images[:8], labels[:8]).shape == (8, 3, 12, 12)


def test_setters_reach_attacks_inside():
    model, (images, labels) = cnn(), batch()
    images = images * 0.8 + 0.1
    attack = Wrapper(model)
    inner = [attack.parts[0], attack.parts[1]["pgd"]]
    attack.set_normalization_used(MEAN, STD)
    direct = torchattacks.PGD(model, random_start=False)
    direct.set_normalization_used(MEAN, STD)
    x = attack.normalize(images)
    assert torch.equal(attack(x, labels), direct(x, labels))
    attack.set_mode_targeted_by_label(quiet=True)
    attack.set_device("cpu")
    attack.set_model_training_mode(True, True, False)
    other = cnn()
    attack.set_model(other)
    for part in inner:
        assert part.targeted and part.device == torch.device("cpu") and part.model is other
        assert part._model_training and part._batchnorm_training and not part._dropout_training


def mostly_right(n):
    images, labels = batch(n)
    return images, torch.where(torch.arange(n) % 4 > 0, cnn()(images).argmax(1), labels)


def loader(n=20, size=8):
    images, labels = mostly_right(n)
    return DataLoader(TensorDataset(images, labels), batch_size=size)


@pytest.mark.parametrize("kind", ["float", "int"])
def test_save_and_load(tmp_path, capsys, kind):
    model = prepared("frozen")
    before = snapshot(model)
    attack = torchattacks.PGD(model, 1 / 255, random_start=False)
    path = tmp_path / "adversarial.pt"
    accuracy, l2, seconds = attack.save(
        loader(), path, return_verbose=True, save_predictions=True, save_clean_inputs=True,
        save_type=kind,
    )  # fmt: skip
    assert_untouched(model, before)
    out = capsys.readouterr().out
    assert out.count("\r") == 3 and out.endswith("\n")
    model.eval()
    images, labels = mostly_right(20)
    # Batch by batch: a result does not depend on the batch beyond rounding.
    crafted = torch.cat([attack(*part) for part in loader()])
    predicted = model(crafted).argmax(1)
    right = predicted == labels
    assert accuracy == 100 * right.double().mean() and 0 < accuracy < 100
    expected = (crafted - images)[~right].flatten(1).norm(dim=1).mean()
    assert abs(l2 - expected) < 1e-6 and seconds > 0
    assert f"- Save progress: 100.00 % / Robust accuracy: {accuracy:.2f} % / L2: {l2:.5f} (" in out
    content = torch.load(path)
    assert set(content) == {"adv_inputs", "labels", "preds", "clean_inputs", "save_type"}
    assert content["save_type"] == kind and torch.equal(content["preds"], predicted)
    stored = crafted if kind == "float" else (crafted * 255).to(torch.uint8)
    assert torch.equal(content["adv_inputs"], stored)
    back = attack.load(path, batch_size=50, load_predictions=True, load_clean_inputs=True)
    assert "[adv_inputs, labels, preds, clean_inputs]" in capsys.readouterr().out
    (row,) = list(back)
    tolerance = 0 if kind == "float" else 1 / 255
    assert (row[0] - crafted).abs().max() <= tolerance and torch.equal(row[1], labels)
    assert torch.equal(row[2], predicted) and (row[3] - images).abs().max() <= tolerance
    (row,) = list(attack.load(path, 50, normalize={"mean": MEAN, "std": STD}))
    assert (row[0] - normalised(crafted)).abs().max() <= 6 * tolerance + 1e-6 and len(row) == 2


def test_save_of_normalised_inputs_is_in_pixels(tmp_path):
    model, (images, labels) = cnn(), batch()
    attack = torchattacks.PGD(model, random_start=False)
    attack.set_normalization_used(MEAN, STD)
    data = [(normalised(images), labels)]
    attack.save(data, tmp_path / "x.pt", verbose=False, save_clean_inputs=True)
    content = torch.load(tmp_path / "x.pt")
    assert (content["clean_inputs"] - images).abs().max() < 1e-6
    assert (content["adv_inputs"] - images).abs().max() <= 8 / 255 + 1e-6


def test_save_writes_what_is_done_when_interrupted(tmp_path):
    def broken():
        yield from list(loader())[:2]
        raise KeyboardInterrupt

    class Loader:
        __iter__ = staticmethod(broken)
        __len__ = staticmethod(lambda: 3)

    attack = torchattacks.FGSM(cnn())
    with pytest.raises(KeyboardInterrupt):
        attack.save(Loader(), tmp_path / "x.pt", verbose=False)
    assert len(torch.load(tmp_path / "x.pt")["adv_inputs"]) == 16
    (row,) = list(attack.load(tmp_path / "x.pt"))
    assert torch.equal(row[1], mostly_right(20)[1][:16])


def test_save_alone_and_its_errors(tmp_path, capsys):
    attack = torchattacks.FGSM(cnn())
    assert attack.save(loader(), verbose=False) is None
    assert attack.save(loader(), tmp_path / "x.pt", False, save_predictions=True) is None
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="has no clean_inputs; it holds adv_inputs, labels, preds"):
        attack.load(tmp_path / "x.pt", load_clean_inputs=True)
    with pytest.raises(ValueError, match="'float' or 'int', got 'byte'"):
        attack.save(loader(), tmp_path / "y.pt", save_type="byte")
    assert not (tmp_path / "y.pt").exists()
    images = torch.tensor([0.0, 0.5, 1.0])
    assert attack.to_type(images, "int").tolist() == [0, 127, 255]
    assert torch.equal(attack.to_type(attack.to_type(images.double(), "int"), "float"),
                       torch.tensor([0, 127, 255]) / 255)  # fmt: skip


class Shift(torchattacks.Attack):
    """Adds to the pixels of some images."""

    def __init__(self, model, amount, labels):
        super().__init__("Shift", model)
        self.amount, self.labels = amount, labels

    def forward(self, images, labels):
        self.seen = len(images)
        chosen = torch.isin(labels, torch.tensor(self.labels))
        return images + self.amount * chosen.reshape(-1, 1, 1, 1)


class Brightness(nn.Module):
    """Right (class = label in the red channel) below a brightness of 1."""

    def forward(self, x):
        label = x[:, 0, 0, 0].long()
        broken = x[:, 1].flatten(1).amax(1) >= 1
        return torch.nn.functional.one_hot((label + broken) % 4, 4).float()


def test_multiattack(capsys):
    model, labels = Brightness(), torch.arange(4)
    images = torch.zeros(4, 2, 1, 1)
    images[:, 0, 0, 0] = labels.float()
    first, second, third = (
        Shift(model, 1.0, [1]), Shift(model, 1.5, [1, 2]), Shift(model, 0.5, [0, 3])
    )  # fmt: skip
    with pytest.raises(ValueError, match="two or more, got 1"):
        torchattacks.MultiAttack([first])
    with pytest.raises(ValueError, match="same model"):
        torchattacks.MultiAttack([first, Shift(Brightness(), 1.0, [0])])
    attack = torchattacks.MultiAttack([first, second, third], verbose=True)
    # Shifting moves the label channel as well; the model reads the class from its integer part.
    result = attack(images, labels)
    assert torch.equal(result[0], images[0]) and torch.equal(result[3], images[3])
    assert result[1, 1].item() == 1.0 and result[2, 1].item() == 1.5
    assert (first.seen, second.seen, third.seen) == (4, 3, 2)
    line = "Attack success rate: 25.00 % | 50.00 % | 50.00 %\n"
    assert capsys.readouterr().out == line
    found = attack.save([(images, labels), (images[:2], labels[:2])], return_verbose=True)
    accuracy, rates, _, _ = found
    assert accuracy == 50.0 and rates == pytest.approx([100 / 3, 50.0, 50.0])
    assert " / Attack success rate: 33.33 % | 50.00 % | 50.00 % / L2: " in capsys.readouterr().out
    assert attack.verbose


def test_multiattack_of_real_attacks():
    model, (images, labels) = cnn(), batch(32)
    parts = [torchattacks.FGSM(model), torchattacks.PGD(model, random_start=False, steps=20)]
    attack = torchattacks.MultiAttack(parts)
    with torch.no_grad():
        broken = model(attack(images, labels)).argmax(1) != labels
        for part in parts:
            assert (broken | (model(part(images, labels)).argmax(1) == labels)).all()
    assert torch.equal(attack(images), attack(images, model(images).argmax(1)))
    attack.set_normalization_used(MEAN, STD)
    crafted = attack.inverse_normalize(attack(normalised(images), labels))
    assert (crafted - images).abs().max() <= 8 / 255 + 1e-6
