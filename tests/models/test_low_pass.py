"""The low-pass layer: what it keeps, on which axes, and how it is switched off."""

import pytest
import scipy.fft
import torch
from torch import nn

from advfast.attacks import FGSM
from advfast.models import LowPass, filters_off
from advfast.models.low_pass import dct


def by_scipy(x, bandwidth):
    coefficients = scipy.fft.dctn(x.double().numpy(), axes=(-2, -1), norm="ortho")
    coefficients[..., bandwidth:, :] = 0
    coefficients[..., :, bandwidth:] = 0
    return torch.from_numpy(scipy.fft.idctn(coefficients, axes=(-2, -1), norm="ortho"))


@pytest.mark.parametrize("batch", [1, 3])
def test_filters_rows_and_columns_of_each_image(batch):
    torch.manual_seed(0)
    # More channels and samples than the bandwidth, so that a filter of other axes is another one.
    x = torch.rand(batch, 5, 12, 8)
    layer = LowPass(12, 8, 4)
    assert layer(x).shape == x.shape
    torch.testing.assert_close(layer(x).double(), by_scipy(x, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(layer(layer(x)), layer(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(LowPass(12, 8, 12)(x), x, atol=1e-5, rtol=0)


def test_the_transform_is_orthonormal():
    d = dct(8)
    torch.testing.assert_close(d @ d.T, torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(dct(1), torch.ones(1, 1, dtype=torch.float64))


def test_an_attack_is_differentiated_through_the_filter():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    model = nn.Sequential(LowPass(8, 8, 2), net)
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        nn.functional.cross_entropy(net(by_scipy(x, 2).float()), y, reduction="sum"), leaf, allow_unused=True
    )  # fmt: skip
    assert gradient is None
    filtered = by_scipy(x, 2).float().requires_grad_()
    (inner,) = torch.autograd.grad(
        nn.functional.cross_entropy(net(filtered), y, reduction="sum"), filtered
    )
    # The filter is its own transpose.
    expected = 0.1 * by_scipy(inner, 2).sign().float()
    torch.testing.assert_close(FGSM(model, 0.1, bounds=None)(x, y) - x, expected, atol=1e-6, rtol=0)


def test_it_is_switched_off_where_it_is():
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    x = torch.rand(2, 1, 8, 8)
    model = Wrapper(Wrapper(LowPass(8, 8, 2)))
    filtered = model(x)
    assert not torch.equal(filtered, x)
    with filters_off(model):
        assert torch.equal(model(x), x)
    assert torch.equal(model(x), filtered)
    with pytest.raises(RuntimeError, match="now"), filters_off(model):
        raise RuntimeError("now")
    assert torch.equal(model(x), filtered)
    with pytest.raises(ValueError, match="no LowPass layer"), filters_off(nn.Identity()):
        pass


def test_weights_of_a_network_behind_it_have_their_own_names():
    assert not LowPass(8, 8, 2).state_dict()
    with pytest.raises(ValueError, match="bandwidth must be an integer >= 1, got 0"):
        LowPass(8, 8, 0)


def test_it_stays_in_float32_under_autocast():
    x = torch.rand(1, 1, 8, 8)
    layer = LowPass(8, 8, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer(x.clone())) and layer(x).dtype == torch.float32
    torch.testing.assert_close(layer(x.double()), by_scipy(x, 3), atol=1e-6, rtol=0)
