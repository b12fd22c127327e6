"""Bad input to PGDAttack: an error that says what was wrong, expected and got, before the first gradient."""

import pytest
import torch
from torch import nn

from advfast import PGDAttack

from .networks import batch, cnn

MODEL = cnn()
IMAGES, LABELS = batch()
SOFT = torch.full((16, 10), 0.1)

SETTINGS = {
    "eps": ({"eps": -0.1}, ValueError, "eps must be a finite number >= 0 .* got -0.1"),
    "eps nan": ({"eps": float("nan")}, ValueError, "eps must be a finite number"),
    "alpha": ({"alpha": 0.0}, ValueError, "alpha must be a finite number > 0 .* got 0.0"),
    "steps": ({"steps": -1}, ValueError, "steps must be an integer >= 0, got -1"),
    "steps float": ({"steps": 2.5}, ValueError, "steps must be an integer"),
    "norm": ({"norm": "lnf"}, ValueError, "norm must be one of linf, l2, l1, got 'lnf'; did you mean 'linf'"),
    "loss": ({"loss": "margn"}, ValueError, "did you mean 'margin'"),
    "bn": ({"bn": "training"}, ValueError, "did you mean 'train'"),
    "precision": ({"precision": "bf61"}, ValueError, "did you mean 'bf16'"),
    "impl": ({"impl": "gpu"}, ValueError, "impl must be one of auto"),
    "start": ({"start": "torhc"}, ValueError, "did you mean 'torch'"),
    "order": ({"l2_order": "box"}, ValueError, "l2_order must be one of"),
    "restarts": ({"restarts": 0}, ValueError, "restarts must be an integer >= 1"),
    "restarts alike": ({"restarts": 2, "random_start": False}, ValueError, "repeats the same run"),
    "kl": ({"loss": "kl", "random_start": False}, ValueError, "no gradient at the clean image"),
    "kl targeted": ({"loss": "kl", "targeted": True}, ValueError, "does not use labels"),
    "torch l1": ({"norm": "l1", "start": "torch"}, ValueError, "use start='philox'"),
    "capture": ({"capture": "requird"}, ValueError, "did you mean 'required'"),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name):
    settings, error, message = SETTINGS[name]
    with pytest.raises(error, match=message):
        PGDAttack(MODEL, **settings)


def test_model_must_be_callable():
    with pytest.raises(TypeError, match="model must be callable, got str"):
        PGDAttack("resnet18")


def _with(value, at=(0, 0, 0, 0)):
    images = IMAGES.clone()
    images[at] = value
    return images


def _labels(value):
    labels = LABELS.clone()
    labels[3] = value
    return labels


def _soft(first, second):
    soft = SOFT.clone()
    soft[3, :2] = torch.tensor([first, second])
    return soft


CALLS = {
    "below": ((_with(-0.01), LABELS), ValueError, r"bounds=\(0.0, 1.0\), got values from -0.01 to"),
    "above": ((IMAGES * 255, LABELS), ValueError, "normalisation belongs inside the model"),
    "nan": ((_with(torch.nan), LABELS), ValueError, "images contain NaN or infinity"),
    "inf": ((_with(torch.inf), LABELS), ValueError, "images contain NaN or infinity"),
    "label large": ((IMAGES, _labels(10)), ValueError, r"labels must be 0 \.\. 9 for 10 logits, got 0 \.\. 10"),
    "label negative": ((IMAGES, _labels(-1)), ValueError, r"got -1 \.\. 8"),
    "label shape": ((IMAGES, LABELS[:, None]), ValueError, r"labels must have shape \(16,\)"),
    "label count": ((IMAGES, LABELS[:3]), ValueError, r"got \(3,\)"),
    "label dtype": ((IMAGES, LABELS.float()), TypeError, r"class indices .* got torch.float32 of shape \(16,\)"),
    "label bool": ((IMAGES, LABELS > 4), TypeError, "integer class indices .* got torch.bool"),
    "label one-hot": ((IMAGES, SOFT.long()), ValueError, r"got \(16, 10\); one-hot labels must be floats"),
    "label complex": ((IMAGES, SOFT.to(torch.complex64)), TypeError, "got torch.complex64"),
    "soft 3-d": ((IMAGES, SOFT[:, :, None]), TypeError, r"shape \[B, K\], got torch.float32 of shape \(16, 10, 1\)"),
    "soft count": ((IMAGES, SOFT[:3]), ValueError, r"labels must have shape \(16,\), .* got \(3, 10\)"),
    "soft classes": ((IMAGES, SOFT[:, :9] + 0.1 / 9), ValueError, r"K = 10, the number of logits, got \(16, 9\)"),
    "soft sum": ((IMAGES, SOFT * 1.001), ValueError, r"the sum 1, got values from 0.1\d* and sums from 1.001"),
    "soft negative": ((IMAGES, _soft(-0.1, 0.3)), ValueError, "none below 0, .* from -0.1 and sums from 1 to 1"),
    "soft 16 bit": ((IMAGES, SOFT.half()), TypeError, r"float32 or float64 .* got torch.float16"),
    "soft nan": ((IMAGES, _soft(torch.nan, 0.1)), ValueError, "probabilities: .* got values from nan"),
    "soft inf": ((IMAGES, _soft(torch.inf, 0.1)), ValueError, "probabilities: .* sums from 1 to inf"),
    "soft device": ((IMAGES, SOFT.to("meta")), ValueError, "labels are on meta but images are on cpu"),
    "uint8": (((IMAGES * 255).byte(), LABELS), TypeError, "divide by 255 first"),
    "array": ((IMAGES.numpy(), LABELS), TypeError, "images must be a tensor, got ndarray"),
    "1-d": ((torch.rand(4), LABELS[:4]), ValueError, r"shape \[B, ...\]"),
    "device": ((IMAGES.to("meta"), LABELS), ValueError, "images are on meta but the model is on cpu"),
    "label device": ((IMAGES, LABELS.to("meta")), ValueError, "labels are on meta but images are on cpu"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_calls(name):
    arguments, error, message = CALLS[name]
    modes = [m.training for m in MODEL.modules()]
    with pytest.raises(error, match=message):
        PGDAttack(MODEL)(*arguments)
    assert [m.training for m in MODEL.modules()] == modes


class Returns(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change
        self.net = cnn()

    def forward(self, x):
        return self.change(self.net(x))


OUTPUTS = {
    "tuple": (lambda z: (z, z), TypeError, r"\[B, K\], got tuple \(Tensor, Tensor\); .* output=0"),
    "dict": (lambda z: {"logits": z}, TypeError, "got dict with keys 'logits'; .* output='logits'"),
    "rank": (lambda z: z[:, :, None], ValueError, r"\[B, K\] = \[\d+, K\], got \(\d+, 10, 1\)"),
    "batch": (lambda z: z[:5], ValueError, r"got \(5, 10\)"),
    "detached": (lambda z: z.detach(), RuntimeError, "no gradient to follow"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_model_outputs(name):
    change, error, message = OUTPUTS[name]
    with pytest.raises(error, match=message):
        PGDAttack(Returns(change))(IMAGES, LABELS)


@pytest.mark.parametrize("loss", ["margin", "dlr"])
@pytest.mark.parametrize("targeted", [False, True])
def test_losses_of_one_class_take_no_soft_labels(loss, targeted):
    calls = []
    model = cnn()
    model.register_forward_hook(lambda *_: calls.append(1))
    message = rf"loss='{loss}' compares .* got soft ones of shape \(16, 10\); use loss='ce'"
    with pytest.raises(ValueError, match=message):
        PGDAttack(model, loss=loss, targeted=targeted)(IMAGES, SOFT)
    assert not calls


def test_soft_labels_of_float64():
    soft = torch.rand(16, 10).softmax(1)
    results = [
        PGDAttack(MODEL, steps=2, random_start=False)(IMAGES, labels)
        for labels in (soft, soft.double(), soft.clone().requires_grad_())
    ]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert not torch.equal(
        results[0], PGDAttack(MODEL, steps=2, random_start=False)(IMAGES, soft.argmax(1))
    )


def test_losses_that_need_more_classes():
    binary = cnn(classes=2)
    with pytest.raises(ValueError, match="needs at least 3 classes, the model has 2"):
        PGDAttack(binary, loss="dlr")(IMAGES, LABELS % 2)


def test_what_cannot_be_captured():
    with pytest.raises(RuntimeError, match=r"capture='required', but .* no CUDA graphs on cpu"):
        PGDAttack(MODEL, capture="required")(IMAGES, LABELS)


def test_targeted_needs_labels():
    with pytest.raises(ValueError, match="the classes to reach"):
        PGDAttack(MODEL, targeted=True)(IMAGES)


def test_restarts_need_one_loss_a_sample():
    attack = PGDAttack(MODEL, loss=nn.CrossEntropyLoss(), restarts=2)
    with pytest.raises(ValueError, match="one value a sample"):
        attack(IMAGES, LABELS)


def test_bad_images_are_seen_before_the_first_gradient():
    backward = []
    model = cnn()
    model[0].register_full_backward_hook(lambda *_: backward.append(1))
    with pytest.raises(ValueError, match="images must lie"):
        PGDAttack(model)(IMAGES + 1, LABELS)
    assert not backward


def test_check_can_be_switched_off():
    result = PGDAttack(MODEL, steps=1, check=False, bounds=(0.0, 2.0))(IMAGES + 1, LABELS)
    assert result.max() <= 2
    PGDAttack(MODEL, steps=1, check=False)(_with(-0.01), LABELS)


def test_compile_on_goes_with_a_module_that_may_be_changed():
    model = cnn()
    with pytest.raises(ValueError, match="compile='on' with fold=False"):
        PGDAttack(model, compile="on", fold=False)
    with pytest.raises(TypeError, match=r"compile='on' needs an nn\.Module, got function"):
        PGDAttack(lambda x: model(x), compile="on")
