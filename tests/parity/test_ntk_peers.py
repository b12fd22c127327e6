"""Kernels as others compute them: nngeometry where it is right, and where it is not; the forms that torch.func has."""

import importlib.util

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap
from torch.utils.data import DataLoader, TensorDataset

from advfast.ntk import ntk

from ..ntk.kernels import dense

CLASSES = 3


def with_nngeometry(model, x):
    """Theta [N, N, O, O] by nngeometry, which has it as [O, N, O, N]."""
    if importlib.util.find_spec("nngeometry") is None:
        pytest.skip("nngeometry is not installed here")
    from nngeometry.gram import GramMatrix

    loader = DataLoader(TensorDataset(x, torch.zeros(len(x), dtype=torch.int64)), len(x))
    gram = GramMatrix(model, loader, function=lambda *batch: model(batch[0]))
    return gram.to_torch().permute(1, 3, 0, 2).detach()


def image_network(*middle):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), *middle, nn.ReLU(), nn.Flatten(),
        nn.Linear(64, CLASSES),
    )  # fmt: skip


class Positions(nn.Module):
    """A bare parameter."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(16))
        self.linear = nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.linear(torch.tanh(x.flatten(1)[:, :16] + self.positions))


class Twice(nn.Module):
    """One module called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.shared = nn.Linear(128, 8), nn.Linear(8, 8)
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = torch.tanh(self.first(x.flatten(1)))
        return self.last(torch.tanh(self.shared(torch.tanh(self.shared(x)))))


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 9), nn.Tanh(), nn.Linear(9, CLASSES))


RIGHT = {
    "linear": mlp,
    "conv": lambda: image_network(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, bias=False)),
    "batch-norm": lambda: image_network(nn.BatchNorm2d(4)),
    "layer-norm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(128, 9), nn.LayerNorm(9), nn.Tanh(), nn.Linear(9, CLASSES)
    ),
    "group-norm": lambda: image_network(nn.GroupNorm(2, 4)),
}
WRONG = {
    "grouped-conv": lambda: image_network(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=2)),
    "module-twice": Twice,
    "bare-parameter": Positions,
}


def made(make, n=5):
    """(network in float64 and eval mode, images)."""
    model, x = make().double(), torch.randn(n, 2, 8, 8, dtype=torch.float64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
            nn.init.normal_(module.weight)
    model(x)  # statistics of BN
    return model.eval(), x


def error(got, expected):
    return float((got - expected).norm() / expected.norm())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RIGHT)
def test_kernel_is_that_of_nngeometry(name):
    model, x = made(RIGHT[name])
    theirs = with_nngeometry(model, x)
    # It keeps parts of its sums in float32.
    assert error(ntk(model, x).tensor, theirs) < 1e-6


@pytest.mark.parametrize("name", WRONG)
def test_kernel_is_that_of_autograd(name):
    model, x = made(WRONG[name])
    assert error(ntk(model, x).tensor, dense(model, x)) < 1e-11


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRONG)
def test_nngeometry_is_wrong(name):
    # Of version 0.4, and without a word. A later one that is right, or that refuses, belongs above.
    model, x = made(WRONG[name])
    assert error(with_nngeometry(model, x), dense(model, x)) > 1e-2


def tutorial(model, x1, x2, compute):
    """The Jacobian contraction of PyTorch's tutorial: one Jacobian a parameter and side, then a product."""
    params = {name: p.detach() for name, p in model.named_parameters()}

    def single(p, one):
        return functional_call(model, p, (one.unsqueeze(0),)).squeeze(0)

    j1, j2 = (vmap(jacrev(single), (None, 0))(params, x) for x in (x1, x2))
    form = {"full": "naf,mbf->nmab", "trace": "naf,maf->nm", "diagonal": "naf,maf->nma"}[compute]
    return sum(torch.einsum(form, j1[name].flatten(2), j2[name].flatten(2)) for name in params)


def by_products(model, x1, x2):
    """The tutorial's other form: J2^T by VJP of unit vectors, then J1 by JVP, a pair at a time."""
    params = {name: p.detach() for name, p in model.named_parameters()}

    def pair(one, other):
        def at(x):
            return lambda p: functional_call(model, p, (x.unsqueeze(0),)).squeeze(0)

        logits, back = vjp(at(other), params)
        unit = torch.eye(len(logits), dtype=logits.dtype)
        return vmap(lambda v: jvp(at(one), (params,), back(v))[1])(unit).T

    return vmap(vmap(pair, (None, 0)), (0, None))(x1, x2)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # of torch's own jvp
@pytest.mark.parametrize("name", ["linear", "conv", "batch-norm"])
def test_forms_of_the_torch_func_tutorial(name):
    model, x = made(RIGHT[name])
    x1, x2 = x[:3], x[2:]
    full = ntk(model, x1, x2).tensor
    assert error(full, tutorial(model, x1, x2, "full")) < 1e-11
    assert error(full, by_products(model, x1, x2)) < 1e-11
    assert error(full.diagonal(dim1=2, dim2=3), tutorial(model, x1, x2, "diagonal")) < 1e-11
    trace = ntk(model, x1, x2, readout="trace").tensor[..., 0, 0]
    assert error(trace, tutorial(model, x1, x2, "trace")) < 1e-11
