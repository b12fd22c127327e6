"""The classifier of advfast.compat.art: predictions, gradients, training, errors."""

import numpy as np
import pytest
import torch
from torch import nn

from advfast.compat.art import PyTorchClassifier

from ..attacks.networks import batch, cnn


def classifier(model=None, loss=None, **keywords):
    keywords = {"clip_values": (0.0, 1.0), "device_type": "cpu", **keywords}
    return PyTorchClassifier(
        model or cnn(), loss or nn.CrossEntropyLoss(), (3, 12, 12), 10, **keywords
    )


def data(n=12):
    images, labels = batch(n)
    return images.numpy(), labels.numpy()


def test_predictions_are_logits_in_pieces():
    x, _ = data(10)
    whole = cnn()(torch.from_numpy(x)).detach().numpy()
    made = classifier().predict(x, batch_size=4)
    assert made.dtype == np.float32 and np.abs(made - whole).max() < 1e-5
    assert classifier().predict(x[:0]).shape == (0, 10)
    model = cnn().eval()
    in_training = classifier(model).predict(x, training_mode=True)
    assert np.abs(in_training - whole).max() > 0.1 and not model.training


def test_gradients_against_differences():
    x, y = data(3)
    estimator = classifier(cnn().double().float())
    step, at = 1e-2, (slice(None), 1, 5, 6)
    up, down = x.copy(), x.copy()
    up[at] += step
    down[at] -= step
    mean = [estimator.compute_loss(v, y, "mean") for v in (up, down)]
    made = estimator.loss_gradient(x, y)
    assert made.shape == x.shape
    assert made[at].sum() == pytest.approx((mean[0] - mean[1]) / (2 * step), rel=0.05, abs=1e-3)
    logits = (estimator.predict(up) - estimator.predict(down)) / (2 * step)
    of_all = estimator.class_gradient(x)
    assert of_all.shape == (3, 10, 3, 12, 12)
    assert np.abs(of_all[:, :, 1, 5, 6] - logits).max() < 5e-2
    assert np.array_equal(estimator.class_gradient(x, 4)[:, 0], of_all[:, 4])
    each = estimator.class_gradient(x, [1, 7, 2])
    assert each.shape == (3, 1, 3, 12, 12)
    assert np.array_equal(each[:, 0], of_all[[0, 1, 2], [1, 7, 2]])
    with pytest.raises(ValueError, match=r"0 .. 9"):
        estimator.class_gradient(x, 10)


def test_loss_forms():
    x, y = data()
    estimator = classifier()
    each = estimator.compute_loss(x, y)
    assert each.shape == (12,)
    assert estimator.compute_loss(x, np.eye(10)[y], "sum") == pytest.approx(each.sum(), rel=1e-5)
    assert estimator.loss.reduction == "mean"


@pytest.mark.parametrize("labels", ["index", "one-hot"])
def test_fit_learns(labels):
    torch.manual_seed(0)
    x = np.random.default_rng(0).random((60, 3, 12, 12), np.float32) / 2
    y = np.arange(60) % 2
    x[y == 1, 0] += 0.4
    model = cnn(classes=10, dropout=0.0).eval()
    estimator = classifier(model, optimizer=torch.optim.SGD(model.parameters(), 0.05))
    schedule = torch.optim.lr_scheduler.ExponentialLR(estimator.optimizer, 0.9)
    before = estimator.compute_loss(x, y, "mean")
    target = y if labels == "index" else np.eye(10)[y]
    estimator.fit(x, target, batch_size=20, nb_epochs=6, scheduler=schedule)
    assert estimator.compute_loss(x, y, "mean") < before / 2 and not model.training
    assert (estimator.predict(x).argmax(1) == y).mean() == 1.0
    assert schedule.get_last_lr()[0] == pytest.approx(0.05 * 0.9**6)
    with pytest.raises(ValueError, match="optimizer"):
        classifier().fit(x, y)


@pytest.mark.parametrize(
    "keywords, error",
    [
        ({"device_type": "cuda"}, ValueError),
        ({"clip_values": (1.0, 0.0)}, ValueError),
        ({"clip_values": (0.0, 0.5, 1.0)}, ValueError),
        ({"use_amp": True}, NotImplementedError),
        ({"preprocessing_defences": [object()]}, NotImplementedError),
        ({"preprocessing": (np.zeros(2), np.ones(3))}, ValueError),
    ],
)
def test_bad_settings(keywords, error):
    with pytest.raises(error):
        classifier(**keywords)


def test_bad_model_loss_and_classes():
    with pytest.raises(TypeError, match=r"nn\.Module"):
        PyTorchClassifier(lambda x: x, nn.CrossEntropyLoss(), (3, 12, 12), 10)
    with pytest.raises(TypeError, match="loss"):
        PyTorchClassifier(cnn(), "ce", (3, 12, 12), 10)
    with pytest.raises(ValueError, match="nb_classes"):
        PyTorchClassifier(cnn(), nn.CrossEntropyLoss(), (3, 12, 12), 1)
    assert "cnn" not in repr(classifier()) and "nb_classes=10" in repr(classifier())
