"""Forms of data, model and method that a run takes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from advfast import load
from advfast.data import Batch
from advfast.training import checkpoint, methods, train
from advfast.training.loop import NonFiniteLoss

from .conftest import RECIPE

SHORT = dict(RECIPE, epochs=2, steps=1)


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def weights(result):
    return checkpoint.read(result.path / "last.pt")["state"]


class Counted(Dataset):
    """Like (images, labels), and says what was read."""

    def __init__(self, images, labels):
        self.images, self.labels, self.read = images, labels, []

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.read.append(index)
        return self.images[index], int(self.labels[index])


def test_tensors_bytes_and_dataset_train_alike(tmp_path, tiny):
    images, labels = tiny
    stored = (images * 255).round().to(torch.uint8)
    pixels = stored.float() / 255
    forms = {
        "floats": (pixels, labels),
        "bytes": (stored, labels),
        "dataset": TensorDataset(pixels, labels),
    }
    found = [
        weights(train(linear(), data, out=tmp_path / name, **SHORT)) for name, data in forms.items()
    ]
    for other in found[1:]:
        assert all(torch.equal(found[0][name], value) for name, value in other.items())


def test_dataloader_is_read_as_it_comes(tmp_path, tiny):
    dataset = Counted(*tiny)
    loader = DataLoader(dataset, batch_size=50)
    seen = []

    class Watch:
        def on_step_end(self, state):
            seen.append(state.batch.images)

    result = train(linear(), loader, val=tiny, callbacks=[Watch()], out=tmp_path, **SHORT)
    assert torch.equal(torch.cat(seen), torch.cat([tiny[0]] * 2))
    assert result.environment["samples"] == {"train": 130, "val": 130, "test": 0}
    held_out = train(
        linear(), loader, val=DataLoader(dataset, 40), test=loader, out=tmp_path / "b", **SHORT
    )
    assert held_out.history[-1]["val_clean"] == result.history[-1]["val_clean"]
    assert held_out.best.test["clean"].total == 130
    assert held_out.picture is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "val must be given when data is a DataLoader"),
        ({"augment": ["flip"], "val": 1}, "augment must be empty when data is a DataLoader"),
        ({"model": "small-cnn", "val": 1}, "needs data whose classes are known"),
    ],
)
def test_what_a_dataloader_cannot(tmp_path, tiny, change, message):
    arguments = {"model": linear()} | change
    if "val" in arguments:
        arguments["val"] = tiny
    loader = DataLoader(TensorDataset(*tiny), 50)
    with pytest.raises(ValueError, match=message):
        train(arguments.pop("model"), loader, out=tmp_path / "run", **SHORT, **arguments)
    assert not (tmp_path / "run").exists()


def test_resumed_dataloader_says_what_is_not_restored(tmp_path, tiny, capsys):
    class Stop(Exception):
        pass

    class Break:
        def on_epoch_end(self, state):
            raise Stop

    loader = DataLoader(TensorDataset(*tiny), 50)
    settings = dict(SHORT, val=tiny, out=tmp_path, resume=True, progress=True)
    with pytest.raises(Stop):
        train(linear(), loader, callbacks=[Break()], **settings)
    train(linear(), loader, **settings)
    shown = capsys.readouterr().err
    assert "resumed in epoch 2 after 0 steps of it" in shown
    assert "the order of a DataLoader's samples is not restored" in shown


def test_augmentation_reaches_the_training_images_alone(tmp_path, tiny):
    black = torch.zeros_like(tiny[0])
    ones = torch.ones_like(tiny[0])
    seen = []

    class Watch:
        def on_step_end(self, state):
            seen.append(state.batch.images)

    train(
        linear(), (ones, tiny[1]), val=(black, tiny[1]), augment=["cutout:4"], callbacks=[Watch()],
        out=tmp_path, **SHORT,
    )  # fmt: skip
    cut = [(images == 0).flatten(1).sum(1) for images in seen]
    assert all(((count >= 4) & (count <= 16)).all() for count in cut)


def test_clean_prefix_trains_on_clean_images_first(tmp_path, tiny):
    settings = dict(RECIPE, epochs=3, steps=3, eps=0.3)
    runs = {
        name: train(linear(), tiny, out=tmp_path / name, **settings, **change).history
        for name, change in {
            "standard": {"method": "standard"},
            "prefix": {"clean_prefix": 2},
            "pgd-at": {},
        }.items()
    }
    losses = {name: [row["train_loss"] for row in rows] for name, rows in runs.items()}
    assert losses["prefix"][:2] == losses["standard"][:2]
    assert losses["prefix"][2] != losses["standard"][2]
    assert losses["prefix"][0] != losses["pgd-at"][0]


class Noise(methods.Method):
    """A method of the user's: uniform noise instead of an attack, and a weight on the loss."""

    options = ("scale",)

    def __init__(self, model, settings):
        super().__init__(model, settings)
        self.scale = settings.options.get("scale", 1.0)
        self.calls = 0

    def craft(self, batch):
        noise = torch.empty_like(batch.images).uniform_(-self.settings.eps, self.settings.eps)
        return (batch.images + noise).clamp(0, 1)

    def loss(self, images, batch):
        self.calls += 1
        step = super().loss(images, batch)
        return step._replace(loss=self.scale * step.loss)

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


def test_own_method_with_state(tmp_path, tiny):
    settings = dict(SHORT, method=Noise, method_options={"scale": 2.0})
    result = train(linear(), tiny, out=tmp_path / "a", **settings)
    single = train(linear(), tiny, out=tmp_path / "b", **dict(settings, method_options={}))
    assert checkpoint.read(result.last.checkpoint)["run"]["method"] == {"calls": 4}
    assert result.config["method"] == "<Noise from Python>"
    ratio = result.history[0]["train_loss"] / single.history[0]["train_loss"]
    assert 1 < ratio < 2.5
    with pytest.raises(ValueError, match="the method has no option 'scales'; it has scale"):
        train(linear(), tiny, out=tmp_path / "c", **dict(settings, method_options={"scales": 1}))
    with pytest.raises(TypeError, match="something that makes a Linear"):
        train(linear(), tiny, method=lambda m, s: nn.Linear(1, 1), out=tmp_path / "c", **SHORT)


def test_own_method_and_optimizer_are_made_once_with_the_model(tmp_path, tiny):
    made = []

    class LastLayer(methods.Standard):
        def __init__(self, model, settings):
            super().__init__(model, settings)
            made.append(("method", model[1].out_features))

    def two_rates(parameters):
        weight, bias = parameters
        made.append(("optimizer", len(parameters)))
        return torch.optim.SGD([{"params": [weight]}, {"params": [bias], "lr_scale": 0.5}], lr=0.1)

    class Watch:
        def on_step_end(self, state):
            first, second = (group["lr"] for group in state.optimizer.param_groups)
            assert first == state.lr == 2 * second

    train(
        linear(), tiny, method=LastLayer, optimizer=two_rates, callbacks=[Watch()],
        out=tmp_path / "a", **SHORT,
    )  # fmt: skip
    assert made == [("method", 3), ("optimizer", 2)]
    for change in ({"method": lambda m, s: 3}, {"optimizer": lambda parameters: 3}):
        with pytest.raises(TypeError, match="int"):
            train(linear(), tiny, out=tmp_path / "b", **SHORT, **change)
        assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["standard", "pgd-at"])
def test_label_smoothing_is_in_the_loss(tiny, name):
    settings = methods.Settings(eps=0.1, alpha=None, steps=0, norm="linf", label_smoothing=0.2)
    images, labels = tiny
    batch = Batch(images, labels, torch.arange(130))
    model = linear()
    method = methods.make(name, model, settings)
    loss, logits = method.loss(images, batch)
    smooth = 0.8 * F.one_hot(labels, 3) + 0.2 / 3
    expected = -(smooth * F.log_softmax(model(images), 1)).sum(1).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits, model(images))
    plain = methods.make(name, model, replace(settings, label_smoothing=0.0))
    assert plain.loss(images, batch).loss != loss


class SpoiltGradient(nn.Module):
    """A finite loss whose gradient is NaN in the last step of the second epoch."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 3)
        self.calls = 0

    def forward(self, x):
        weight = self.linear.weight
        if self.training:
            self.calls += 1
            if self.calls == 4:
                zero = (weight - weight.detach()).pow(2).sum().sqrt()  # 0, its gradient 0/0
                return self.linear(x.flatten(1)) + zero
        return self.linear(x.flatten(1))


def test_spoilt_weights_are_never_saved(tmp_path, tiny):
    model = SpoiltGradient()
    with pytest.raises(NonFiniteLoss, match=r"weights became NaN .* epoch 2 .* up to 1 are saved"):
        train(model, tiny, out=tmp_path, **dict(RECIPE, epochs=4, steps=0))
    saved = checkpoint.read(tmp_path / "last.pt")
    assert saved["epoch"] == 1
    assert all(value.isfinite().all() for value in saved["state"].values())
    # The model has the last good weights.
    assert torch.equal(model.linear.weight, saved["state"]["linear.weight"])


def test_training_goes_on_from_given_weights(tmp_path, tiny):
    first = train(linear(), tiny, out=tmp_path / "a", **SHORT)
    second = train(
        linear(), tiny, weights=tmp_path / "a", out=tmp_path / "b", **dict(SHORT, lr=1e-9, epochs=1)
    )
    start = load(tmp_path / "a", linear()).state_dict()
    for name, value in weights(second).items():
        torch.testing.assert_close(value, start[name], atol=1e-6, rtol=0)
    assert first.config["weights"] is None
    assert second.config["weights"] == str(tmp_path / "a")
