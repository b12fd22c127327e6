"""compile="on". The backend here traces both passes and generates no code: that would take a minute."""

from __future__ import annotations

import functools
import gc
import weakref

import pytest
import torch

from advfast.attacks.network import open_network
from advfast.attacks.network.compiled import _compiled

from .models import Head, Residual, settle
from .test_program import SHAPE, agree, as_is, objective, plain


@pytest.fixture(autouse=True)
def traced_only(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    yield
    torch.compiler.reset()


def compiled(model, x):
    return open_network(
        model, input_dtype=x.dtype, select=as_is, sixteen_bit=False, fold=True, deterministic=True,
        example=x, compile=True,
    )  # fmt: skip


def test_the_same_gradient_from_the_live_weights():
    model = settle(Head(Residual(), 8), SHAPE).double()
    x = torch.rand(SHAPE, dtype=torch.float64)
    for _ in range(2):
        found = compiled(model, x).gradient(x, objective)
        for ours, wanted in zip(found, plain(model, x).gradient(x, objective), strict=True):
            assert torch.allclose(ours, wanted, rtol=1e-10, atol=1e-14)
        with torch.no_grad():
            model.body.stem.weight.data.mul_(2)
    assert len(_compiled) == 1
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_it_lets_go_of_the_model():
    model = settle(Head(Residual(), 8), SHAPE)
    x = torch.rand(SHAPE)
    compiled(model, x).gradient(x, objective)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_compiled_model_is_not_followed():
    """What the user compiled stays compiled."""
    model = settle(Head(Residual(), 8), SHAPE)
    agree(torch.compile(model), torch.rand(SHAPE), 1e-4)
