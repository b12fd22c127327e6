import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advfast import PGDAttack
from advfast.data import Loader, as_source
from advfast.training import checkpoint, train
from advfast.training.methods import Standard
from advfast.training.schedules import one_cycle


@pytest.mark.parametrize("method", ["standard", "pgd-at"])
def test_training_is_the_plain_loop(tmp_path, tiny, method):
    # Bit for bit: the same order, starts, learning rates, and torch's own SGD.
    images, labels = tiny
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )
    plain = copy.deepcopy(model)
    settings = {"eps": 0.1, "alpha": 0.04, "steps": 3}
    result = train(
        model,
        tiny,
        val=tiny,
        method=method,
        epochs=3,
        batch_size=32,
        lr=0.05,
        seed=7,
        channels_last=False,
        out=tmp_path,
        progress=False,
        **settings,
    )
    torch.manual_seed(7)
    loader = Loader(as_source(tiny), 32, device="cpu", seed=7)
    optimizer = torch.optim.SGD(
        plain.parameters(), lr=1, momentum=0.9, weight_decay=5e-4, fused=True
    )
    step, total = 0, 3 * 5  # 130 images: 4 batches of 32 and one of 2
    for row in result.history:
        plain.train()
        losses, correct = 0.0, 0
        for x, y, numbers, *_ in loader.batches(int(row["epoch"])):
            assert torch.equal(x, images[numbers])
            assert torch.equal(y, labels[numbers])
            if method == "pgd-at":
                x = PGDAttack(plain, **settings)(x, y, sample_ids=numbers)
            optimizer.param_groups[0]["lr"] = one_cycle(step, total, 0.05)
            logits = plain(x)
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses += loss.item() * len(y)
            correct += int((logits.argmax(1) == y).sum())
            step += 1
        assert row["train_loss"] == losses / 130
        assert row["train_accuracy"] == correct / 130
        assert row["lr"] == one_cycle(step - 1, total, 0.05)
    assert step == total
    last = checkpoint.read(tmp_path / "last.pt")["state"]
    assert all(torch.equal(last[name], value) for name, value in plain.state_dict().items())


def test_a_gradient_in_another_memory_format_is_put_right(tmp_path, tiny):
    # torch's fused optimisers read gradients in the order of memory.
    class Own(Standard):
        def update(self, images, batch, backward):
            step = self.loss(images, batch)
            parameters = list(self.model.parameters())
            gradients = torch.autograd.grad(step.loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.contiguous()
            return step

    found = []
    for method in ("standard", Own):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 3)
        )
        folder = tmp_path / str(len(found))
        train(
            model,
            tiny,
            val=tiny,
            method=method,
            epochs=1,
            channels_last=True,
            out=folder,
            progress=False,
        )
        found.append(checkpoint.read(folder / "last.pt")["state"])
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
