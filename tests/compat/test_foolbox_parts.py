"""advfast.compat.foolbox by itself: models, criteria, distances, names and messages."""

import math
import sys

import pytest
import torch

import advfast.compat.foolbox as fb
from advfast.compat.foolbox.attacks import LinfPGD
from advfast.compat.foolbox.criteria import Misclassification, TargetedMisclassification
from advfast.compat.foolbox.tensors import unwrapped

from ..attacks.networks import batch, cnn, plain_pgd


def fmodel(net=None, bounds=(0, 1), **keywords):
    return fb.PyTorchModel(cnn() if net is None else net, bounds, "cpu", **keywords)


def test_preprocessing_is_inside_the_engines_model():
    images, labels = batch(8)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    model = fmodel(preprocessing={"mean": mean, "std": std, "axis": -3, "flip_axis": -3})
    net = cnn()

    def by_hand(x):
        m, s = (torch.tensor(v).reshape(3, 1, 1) for v in (mean, std))
        return net((x.flip(-3) - m) / s)

    assert torch.equal(model(images), by_hand(images))
    attack = LinfPGD(steps=4, random_start=False, fold=False)
    raw, _, _ = attack(model, images, labels, epsilons=0.03)
    assert torch.equal(raw, plain_pgd(by_hand, images, labels, 0.03, 0.03 / 30, 4))
    assert model.data_format == "channels_first" and model.bounds == (0, 1)
    assert model.bounds.lower == 0 and model.device == torch.device("cpu")
    assert len(list(net.parameters())) == len(list(model.network.parameters()))
    for training in (True, False):
        model._model.train(training)
        assert model.network.training is training


def test_logits_need_grad_only_if_the_inputs_do():
    model, images = fmodel(), batch(2)[0]
    assert not model(images).requires_grad
    with torch.no_grad():
        assert model(images.requires_grad_()).requires_grad


def test_transformed_bounds_share_the_weights():
    images, labels = batch(8)
    net = cnn()
    model = fmodel(net)
    other = model.transform_bounds((-1, 1))
    assert other is not model and model.bounds == (0, 1) and other.bounds == (-1, 1)
    assert torch.allclose(other(images * 2 - 1), model(images), atol=1e-5)
    raw, _, _ = LinfPGD(steps=3)(other, images * 2 - 1, labels, epsilons=0.1)
    assert raw.min() >= -1 and raw.max() <= 1
    assert (raw - (images * 2 - 1)).abs().max() <= 0.1 + 1e-6
    assert torch.allclose(other.transform_bounds((0, 1))(images), model(images), atol=1e-5)
    with torch.no_grad():
        net[-1].bias += 1
    assert torch.allclose(other(images * 2 - 1), model(images), atol=1e-5)
    assert model.transform_bounds((0, 255), inplace=True) is model and model.bounds == (0, 255)
    wrapped = fmodel(net).transform_bounds((0, 255), wrapper=True)
    assert isinstance(wrapped, fb.models.TransformBoundsWrapper)
    assert torch.allclose(wrapped(images * 255), model(images * 255), atol=1e-4)
    assert wrapped.transform_bounds((0, 1)).bounds == (0, 1)


def test_a_model_of_the_users_kind():
    class Halves(fb.Model):
        bounds = fb.models.Bounds(0, 1)

        def __call__(self, inputs):
            return net(inputs / 2)

    net, (images, labels) = cnn(), batch(4)
    raw, _, success = LinfPGD(steps=3, random_start=False, fold=False)(
        Halves(), images, labels, epsilons=[0.1]
    )
    expected = plain_pgd(lambda x: net(x / 2), images, labels, 0.1, 0.1 / 30, 3)
    assert torch.equal(raw[0], expected) and success.shape == (1, 4)


def test_criteria():
    logits = torch.eye(4)
    labels = torch.tensor([0, 1, 0, 0])
    wrong, right = Misclassification(labels), TargetedMisclassification(labels)
    assert wrong(None, logits).tolist() == [False, False, True, True]
    assert right(None, logits).tolist() == [True, True, False, False]
    third = TargetedMisclassification(torch.tensor([3, 3, 2, 2]))
    assert (wrong & third)(None, logits).tolist() == [False, False, True, False]
    assert repr(wrong).startswith("Misclassification(") and " & " in repr(wrong & third)
    with pytest.raises(ValueError, match=r"labels must have shape \(4,\)"):
        Misclassification(labels[:3])(None, logits)


def test_distances():
    x, y = torch.zeros(2, 1, 1, 4), torch.tensor([[[[3.0, 4, 0, 0]]], [[[0.1, 0, 0, 0]]]])
    for distance, sizes in (
        (fb.distances.l0, [2, 1]), (fb.distances.l1, [7, 0.1]), (fb.distances.l2, [5, 0.1]),
        (fb.distances.linf, [4, 0.1]),
    ):  # fmt: skip
        assert distance(x, y).tolist() == pytest.approx(sizes)
    assert fb.distances.l2.clip_perturbation(x, y, 1.0)[0].flatten().tolist() == pytest.approx(
        [0.6, 0.8, 0, 0]
    )
    assert fb.distances.linf.clip_perturbation(x, y, 3.5).max() == 3.5
    near = fb.distances.l2.clip_perturbation(x, y, 1.0)[1]
    assert torch.allclose(near, y[1])  # not stretched
    assert torch.equal(fb.distances.l0.clip_perturbation(x, y, 2), y)
    with pytest.raises(NotImplementedError):
        fb.distances.l0.clip_perturbation(x, y, 1)
    assert str(fb.distances.linf) == "Linf distance" and fb.distances.linf.p == math.inf


def test_names_that_are_foolboxs_own():
    for space, name in ((fb.attacks, "BoundaryAttack"), (fb.attacks, "LinfAdamPGD"), (fb, "zoo")):
        with pytest.raises(AttributeError, match=rf"has no {name}: .* foolbox"):
            getattr(space, name)
    with pytest.raises(ImportError):
        from advfast.compat.foolbox.attacks import HopSkipJumpAttack  # noqa: F401
    with pytest.raises(NotImplementedError, match="no sample images"):
        fb.samples(fmodel(), dataset="imagenet", batchsize=4)
    assert fb.utils.accuracy is fb.accuracy


def test_messages():
    images, labels = batch(4)
    attack = LinfPGD(steps=1)
    with pytest.raises(AssertionError, match=r"bounds \(0, 1\) .* from 1.0.* to 1.9"):
        attack(fmodel(), images + 1, labels, epsilons=0.1)
    with pytest.raises(AssertionError, match="got values from nan"):
        attack(fmodel(), images * math.nan, labels, epsilons=0.1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'speed'"):
        attack(fmodel(), images, labels, epsilons=0.1, speed=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'speed'"):
        attack.run(fmodel(), images, labels, epsilon=0.1, speed=2)
    with pytest.raises(ValueError, match="unsupported criterion"):
        fb.attacks.FGSM()(fmodel(), images, TargetedMisclassification(labels), epsilons=0.1)
    with pytest.raises(ValueError, match="labels must be a torch tensor"):
        attack(fmodel(), images, labels.tolist(), epsilons=0.1)
    with pytest.raises(NotImplementedError, match="got None"):
        attack(fmodel(), images, labels, epsilons=[0.1, None])
    for radius in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite numbers >= 0"):
            attack(fmodel(), images, labels, epsilons=[0.1, radius])
    with pytest.raises(ValueError, match="at least one number"):
        attack(fmodel(), images, labels, epsilons=[])
    with pytest.raises(ValueError, match=r"preprocessing may have .* got 'scale'"):
        fmodel(preprocessing={"scale": 1})
    with pytest.raises(ValueError, match=r"torch\.nn\.Module, got function"):
        fmodel(lambda x: x)
    with pytest.raises(ValueError, match="torch tensor or an EagerPy"):
        unwrapped([1.0])


def test_eagerpy_is_not_imported_by_itself():
    if "eagerpy" in sys.modules:
        pytest.skip("loaded by something else")
    images, labels = batch(2)
    LinfPGD(steps=1)(fmodel(), images, labels, epsilons=0.1)
    assert "eagerpy" not in sys.modules
