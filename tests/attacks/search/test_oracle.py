"""The oracle: the model's own logits and gradients, in pieces, in their true scale."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advfast import models
from advfast.attacks.search.oracle import Oracle

LABELS = torch.tensor([3, 1, 4, 1, 5, 9, 2])


@pytest.fixture
def images():
    return torch.rand(7, 1, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = models.make("resnet18", width=4, in_shape=(1, 12, 12), classes=10)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
    return model


def cross_entropy(logits, rows):
    return F.cross_entropy(logits, LABELS.to(logits.device)[rows], reduction="none")


def by_autograd(model, images, dtype=torch.float64):
    model = model.to(dtype).eval()
    x = images.to(dtype).requires_grad_()
    logits = model(x)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, LABELS, reduction="sum"), x)
    return logits.detach(), gradient


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("rows", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_and_gradients_are_those_of_the_model(network, images, fold, rows, dtype):
    logits, gradient = by_autograd(network, images)
    network.to(dtype)
    with Oracle(network, images.to(dtype), fold=fold, batch_size=rows) as oracle:
        x = oracle.iterate(images)
        assert x.dtype == oracle.wide == dtype
        got_logits, got = oracle.gradient(x, cross_entropy)
        tolerance = (
            {"atol": 1e-9, "rtol": 0} if dtype == torch.float64 else {"atol": 1e-4, "rtol": 1e-3}
        )
        torch.testing.assert_close(got_logits.double(), logits, **tolerance)
        torch.testing.assert_close(got.double(), gradient, **tolerance)
        torch.testing.assert_close(oracle.logits(x), got_logits)
        assert got.stride() == x.stride()
    assert (oracle.forwards, oracle.backwards) == (14, 7)
    assert oracle.nonfinite.item() == 0


@pytest.mark.parametrize("how", ["parameters", "autocast"])
def test_gradient_of_a_16_bit_network_has_its_true_scale(network, images, how):
    # A confident network: cross-entropy gradients are tiny, and a 16-bit network is given them rescaled.
    network.linear = nn.Sequential(network.linear, Times(8.0))
    _, gradient = by_autograd(network, images)
    kept = {"precision": "bf16"} if how == "autocast" else {}
    network.to(torch.bfloat16 if how == "parameters" else torch.float32)
    with Oracle(network, images, **kept) as oracle:
        _, got = oracle.gradient(oracle.iterate(images), cross_entropy)
    assert got.dtype == torch.float32
    sizes = got.flatten(1).norm(dim=1).double() / gradient.flatten(1).norm(dim=1)
    assert (sizes > 0.5).all() and (sizes < 2).all()
    assert F.cosine_similarity(got.flatten(1).double(), gradient.flatten(1)).min() > 0.8


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_a_sample_without_gradient_has_none_in_16_bits(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 10)).to(torch.bfloat16)
    with Oracle(model, images) as oracle:
        _, got = oracle.gradient(oracle.iterate(images), lambda logits, rows: logits[:, 0] * 0)
    assert not got.any()


def test_the_model_is_left_as_it_was_found(network, images):
    network.train()
    network.bn1.eval()
    modes = [module.training for module in network.modules()]
    buffers = [buffer.clone() for buffer in network.buffers()]
    with torch.no_grad(), Oracle(network, images) as oracle:
        assert torch.is_grad_enabled() and not any(m.training for m in network.modules())
        oracle.gradient(oracle.iterate(images), cross_entropy)
    assert modes == [module.training for module in network.modules()]
    assert all(map(torch.equal, buffers, network.buffers()))
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_what_is_not_finite_is_counted_and_taken_for_zero(images):
    class Bad(nn.Module):
        def forward(self, x):
            x = x.flatten(1)
            return torch.cat([x[:, :9], (x[:, 9:10] - x[:, 9:10].detach()).sqrt()], 1)

    with Oracle(Bad(), images) as oracle:
        _, got = oracle.gradient(oracle.iterate(images), lambda logits, rows: logits[:, 9])
    assert oracle.nonfinite.item() == 7 and not got.any()


def test_any_callable_and_any_shape():
    weights = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    x = torch.rand(4, 5)
    with Oracle(lambda v: {"logits": v @ weights}, x, output="logits") as oracle:
        logits, got = oracle.gradient(oracle.iterate(x), lambda logits, rows: logits[:, 1])
        torch.testing.assert_close(logits, x @ weights)
        torch.testing.assert_close(got, weights[:, 1].expand(4, 5))
        assert oracle.logits(x[:0]).shape == (0, 3)


def test_closed_it_does_not_answer(images):
    with Oracle(nn.Flatten(), images) as oracle:
        pass
    with pytest.raises(RuntimeError, match="inside `with`"):
        oracle.logits(images)


def test_rows_are_those_of_the_piece(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 10))
    seen = []

    def objective(logits, rows):
        seen.append((len(logits), rows))
        return logits[:, 0]

    with Oracle(model, images, batch_size=3) as oracle:
        oracle.gradient(oracle.iterate(images), objective)
    assert {(rows.start, rows.stop) for _, rows in seen} == {(0, 2), (2, 4), (4, 7)}
    assert all(count == rows.stop - rows.start for count, rows in seen)


def test_logits_must_be_a_row_for_each_image(images):
    with pytest.raises(ValueError, match=r"\[B, K\]"), Oracle(nn.Identity(), images) as oracle:
        oracle.logits(oracle.iterate(images))
