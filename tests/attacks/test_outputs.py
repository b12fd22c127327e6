"""Models that return more than logits."""

import re
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from advfast import PGDAttack
from advfast.attacks.outputs import selector

from .networks import batch, cnn

LOGITS, OTHER = torch.rand(4, 3), torch.rand(4, 8)
Pair = namedtuple("Pair", "features scores")


class ModelOutput(OrderedDict):
    """As Hugging Face's: a mapping whose entries are attributes too."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)


@dataclass
class Result:
    logits: Tensor
    features: Tensor


PARTS = {
    "tensor": (None, LOGITS),
    "key": ("logits", {"loss": None, "logits": LOGITS}),
    "key like a method": ("values", {"values": LOGITS}),
    "number as key": (lambda r: r[5], {5: LOGITS}),
    "model output": ("logits", ModelOutput(logits=LOGITS, hidden=OTHER)),
    "data class": ("logits", Result(LOGITS, OTHER)),
    "named": ("scores", Pair(OTHER, LOGITS)),
    "tuple": (0, (LOGITS, OTHER)),
    "last": (-1, [OTHER, LOGITS]),
    "function": (lambda r: r["head"][1], {"head": (OTHER, LOGITS)}),
}


@pytest.mark.parametrize("name", PARTS)
def test_the_part_is_taken(name):
    output, result = PARTS[name]
    assert selector(output)(result) is LOGITS


WRONG = {
    "dict": (None, {"a": OTHER, "logits": LOGITS}, "got dict with keys 'a', 'logits'; .* such as output='logits'"),
    "other key": (None, {"loss": None, "scores": LOGITS}, "such as output='scores'"),
    "tuple": (None, (LOGITS, OTHER), r"got tuple \(Tensor, Tensor\); .* such as output=0"),
    "second": (None, [3, LOGITS], r"got list \(int, Tensor\); .* such as output=1"),
    "many": (None, (LOGITS,) * 20, r"\(Tensor(, Tensor){7}, \.\.\.\)"),
    "empty": (None, (), "got an empty tuple"),
    "object": (None, Result(LOGITS, OTHER), "got Result; .* output='logits'"),
    "none": (None, None, "got NoneType; give a function"),
    "no such key": ("logit", {"logits": LOGITS}, "output='logit': the model returned dict with keys 'logits'"),
    "no such attribute": ("logits", Pair(OTHER, LOGITS), r"returned Pair \(Tensor, Tensor\)"),
    "a method": ("keys", {"logits": LOGITS}, "output='keys': the model returned dict"),
    "index of a dict": (0, {"logits": LOGITS}, "output=0: the model returned dict with keys"),
    "index too large": (2, (LOGITS, OTHER), r"output=2: the model returned tuple \(Tensor, Tensor\)"),
    "index too small": (-3, (LOGITS, OTHER), "output=-3"),
    "already logits": (0, LOGITS, "the model returned Tensor; it is the logits themselves"),
    "attribute of a tensor": ("data", LOGITS, "it is the logits themselves"),
    "not a tensor": ("loss", {"loss": 1.0, "logits": LOGITS}, "'loss' must give logits .* got float out of dict"),
    "function of nothing": (lambda r: None, LOGITS, "must give logits .* got NoneType out of Tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_came_is_said(name):
    output, result, message = WRONG[name]
    with pytest.raises(TypeError, match=message):
        selector(output)(result)


@pytest.mark.parametrize("output", [1.5, True, ["logits"]])
def test_an_output_that_names_nothing(output):
    with pytest.raises(TypeError, match=f"output must be .* got {re.escape(repr(output))}"):
        PGDAttack(cnn(), output=output)


class Wrapped(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.net = cnn()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.net(x))


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda z: {"features": z[:, :2], "logits": z}, "logits"),
        (lambda z: (z[:, :2], z), 1),
        (lambda z: Result(z, z[:, :2]), "logits"),
        (lambda z: [[z]], lambda result: result[0][0]),
    ],
)
@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_an_attack_is_that_on_the_logits_alone(wrap, output, loss):
    images, labels = batch()
    settings = {"restarts": 2, "loss": loss, "seed": 1, "steps": 4}
    expected = PGDAttack(cnn(), fold=False, **settings)(images, labels)
    attack = PGDAttack(Wrapped(wrap), fold=False, output=output, **settings)
    assert torch.equal(attack(images, labels), expected)
    attack.fold, attack.restarts = True, 1  # the network may be computed in another way then
    alone = PGDAttack(cnn(), **{**settings, "restarts": 1})(images, labels)
    assert (attack(images, labels) == alone).float().mean() > 0.99
    with pytest.raises(TypeError, match=r"logits of shape \[B, K\]"):
        PGDAttack(Wrapped(wrap), **settings)(images, labels)
    with pytest.raises(TypeError, match="output='nothing': the model returned"):
        PGDAttack(Wrapped(wrap), output="nothing", **settings)(images, labels)
