"""The Lightning module, where lightning is installed."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import advfast
from advfast.attacks import PGDAttack
from advfast.data import Batch
from advfast.training import methods

pl = pytest.importorskip("lightning.pytorch")

from advfast.compat.lightning import AdversarialModule, RobustValidation  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

EPS = 0.1


def data(count=96):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 1, 8, 8, generator=generator) / 2
    labels = torch.arange(count) % 3
    images[torch.arange(count), 0, labels] += 0.5
    return TensorDataset(images, labels)


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
    )


def trainer(**settings):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "deterministic": True}
    return pl.Trainer(**quiet | {"max_epochs": 3} | settings)


def fit(module, callbacks=(), **settings):
    loader = DataLoader(data(), batch_size=32)
    run = trainer(callbacks=list(callbacks), **settings)
    run.fit(module, loader, DataLoader(data(48), batch_size=32))
    return run


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("method", ["pgd-at", "trades"])
def test_steps_are_those_of_the_method_by_hand(method):
    module = AdversarialModule(network(), method, eps=EPS, steps=2, lr=0.05, schedule="cosine")

    class Seed(pl.Callback):
        # Starts are drawn from torch's generator, from which Lightning's loaders draw too.
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            torch.manual_seed(trainer.global_step)

    fit(module, [Seed()], max_epochs=2)

    model = network().train()
    own = methods.make(method, model, methods.Settings(EPS, None, 2, "linf"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    images, labels = data().tensors
    schedule = advfast.training.schedules.make("cosine", 0.05, epochs=2, steps=3)
    step = 0
    for _ in range(2):
        for x, y in zip(images.split(32), labels.split(32), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = schedule(step)
            batch = Batch(x, y, torch.arange(32))
            torch.manual_seed(step)
            optimizer.zero_grad()
            own.loss(own.craft(batch), batch).loss.backward()
            optimizer.step()
            step += 1
    for name, value in model.state_dict().items():
        torch.testing.assert_close(module.model.state_dict()[name], value, rtol=0, atol=1e-5)
    assert (module.model[4].weight - network()[4].weight).abs().max() > 0.01


def test_the_rate_of_every_step_is_that_of_the_schedule():
    module = AdversarialModule(network(), "standard", lr=0.2, schedule="one-cycle")
    rates = []

    class See(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(module, [See()])
    schedule = advfast.training.schedules.make("one-cycle", 0.2, epochs=3, steps=3)
    assert rates == pytest.approx([schedule(step) for step in range(9)])


def test_training_learns_and_validation_is_that_of_evaluate():
    module = AdversarialModule(network(), eps=0.05, steps=3, lr=0.01)
    run = fit(module, [RobustValidation(("pgd-10", "fgsm"))], max_epochs=4)
    found = {name: float(value) for name, value in run.callback_metrics.items()}
    report = advfast.evaluate(
        module.model, data(48).tensors, attacks=("clean", "pgd-10", "fgsm"), eps=0.05
    )
    assert found["val_clean"] == pytest.approx(report["clean"].value)
    assert found["val_pgd-10"] == pytest.approx(report["pgd-10"].value)
    assert found["val_fgsm"] == pytest.approx(report["fgsm"].value)
    assert report["clean"].value > 0.9
    assert 0 < found["train_accuracy"] <= 1 and found["train_loss"] > 0


def test_robust_validation_now_and_then_and_in_part():
    seen = []

    def attack(model, images, labels):
        seen.append(len(images))
        return images

    module = AdversarialModule(network(), "standard", eps=EPS)
    fit(module, [RobustValidation([attack], every=2, batches=1)], max_epochs=4)
    assert len(seen) == 2  # epochs 2 and 4, the first batch of each


def test_a_module_of_another_kind_needs_eps():
    class Own(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, images):
            return self.net(images)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    run = fit(Own(), [RobustValidation(eps=0.05)], max_epochs=1)
    assert 0 <= float(run.callback_metrics["val_pgd-10"]) <= 1
    with pytest.raises(ValueError, match="needs eps"):
        fit(Own(), [RobustValidation()], max_epochs=1)


def test_16_bits_are_those_of_the_attack():
    module = AdversarialModule(network(), eps=EPS, steps=1)
    fit(module, max_epochs=1, precision="bf16-mixed")
    assert module.method.pgd.precision == "bf16"
    assert next(module.model.parameters()).dtype == torch.float32


def test_a_checkpoint_goes_on(tmp_path):
    whole = AdversarialModule(network(), "standard", lr=0.1)
    fit(whole, max_epochs=4)
    module = AdversarialModule(network(), "standard", lr=0.1)

    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "at-2.ckpt")

    fit(module, [Stop()], max_epochs=4)
    again = AdversarialModule(network(), "standard", lr=0.1)
    run = trainer(max_epochs=4)
    loader = DataLoader(data(), batch_size=32)
    run.fit(again, loader, loader, ckpt_path=tmp_path / "at-2.ckpt")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


@pytest.mark.parametrize("method", ["free", "yopo", "atta"])
def test_methods_that_need_more_than_a_loss_are_refused(method):
    with pytest.raises(ValueError, match=r"advfast\.train can"):
        AdversarialModule(network(), method)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "pgd"}, "unknown method 'pgd'"),
        ({"schedule": "cosin"}, "schedule must be one of"),
        ({"eps": -1}, "eps"),
        ({"norm": "l7"}, "norm"),
    ],
)
def test_bad_arguments_show_at_once(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        AdversarialModule(network(), **settings)


def test_a_trainer_without_an_end_is_refused():
    module = AdversarialModule(network(), "standard")
    with pytest.raises(ValueError, match="max_epochs or max_steps"):
        fit(module, max_epochs=-1, limit_train_batches=1)


def test_the_attack_is_ours():
    assert isinstance(AdversarialModule(network()).method.pgd, PGDAttack)
