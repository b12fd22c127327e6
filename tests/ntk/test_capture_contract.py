"""Readouts, what the capture leaves behind, repeatability, and what it refuses."""

import pytest
import torch
from torch import nn

from advfast.ntk.capture import Capture
from advfast.ntk.readouts import Cotangents
from advfast.ntk.subject import Subject

from .jacobians import check_capture


def _random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def _network():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


READOUTS = {
    "full": "full",
    "sum": "sum",
    "trace": "trace",
    "margin": "margin",
    "loss": "loss",
    "class": 1,
    "last-class": -1,
    "matrix": torch.tensor([[1.0, -1, 0], [0.5, 0, 2]]),
    "per-sample": torch.arange(30.0).sin().view(5, 2, 3),
    "callable": lambda logits: logits.softmax(1)[:, :2],
    "callable-one": lambda logits: logits.logsumexp(1),
}


@pytest.mark.parametrize("name", READOUTS)
def test_readout(name):
    rows = torch.tensor([4, 0, 2]) if name == "per-sample" else None
    capture = check_capture(
        _network(),
        _random(3, 2, 4, 4),
        readout=READOUTS[name],
        y=torch.tensor([0, 2, 1]),
        rows=rows,
    )
    expected = {"full": 3, "trace": 3, "matrix": 2, "per-sample": 2, "callable": 2}.get(name, 1)
    assert capture.readouts == expected and capture.outputs == 3


def test_readout_that_needs_labels_without_an_example_of_them():
    assert Capture(Subject(_network()), "loss", torch.rand(1, 2, 4, 4)).readouts == 1


def test_readouts_of_the_labels_are_derivatives():
    logits = _random(6, 4).requires_grad_()
    y = torch.cat([logits[:3].argmax(1), logits[3:].argmin(1)])  # three right, three wrong
    own = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    values = {
        "loss": nn.functional.cross_entropy(logits, y, reduction="none"),
        "margin": own - others,
    }
    for name, value in values.items():
        (expected,) = torch.autograd.grad(value.sum(), logits)
        torch.testing.assert_close(Cotangents(name, 4)(logits, y)[:, 0], expected)


def test_outputs_of_several_dimensions():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh())
    assert check_capture(model, _random(2, 2, 4, 4)).outputs == 12


def _state(model):
    found = {name: t.clone() for name, t in model.state_dict().items()}
    return found, [
        (m.training, m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)
        for m in model.modules()
    ]


def test_model_is_left_as_it_was():
    model = _network()
    model[1].bias.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[2].eval()
    seen = []
    model[6].register_forward_hook(lambda *_: seen.append(1))
    before, modules = _state(model)
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    wanted = [p.requires_grad for p in model.parameters()]
    x = torch.rand(4, 2, 4, 4)
    kept, random = x.clone(), torch.get_rng_state()
    subject = Subject(model, params=["0", "6"], bn="frozen", bn_batch=x[:3] * 2)
    capture = Capture(subject, "full", x)
    ran = len(seen)
    capture(x)
    assert len(seen) == ran + 1  # one forward pass
    after, modules_after = _state(model)
    assert modules == modules_after
    assert all(torch.equal(after[name], t) for name, t in before.items())
    assert int(model[1].num_batches_tracked) == 0
    assert [p.requires_grad for p in model.parameters()] == wanted
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert (p.grad is None and grad is None) or torch.equal(p.grad, grad)
    assert torch.equal(x, kept) and torch.equal(torch.get_rng_state(), random)


def test_runs_without_tf32_and_gives_it_back():
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    model, seen = _network(), []
    model[6].register_forward_hook(lambda *_: seen.append([p.allow_tf32 for p in places]))
    try:
        for place in places:
            place.allow_tf32 = True
        Capture(Subject(model), "full", torch.rand(1, 2, 4, 4))(torch.rand(2, 2, 4, 4))
        assert seen and not any(flag for flags in seen for flag in flags)
        assert all(place.allow_tf32 for place in places)
    finally:
        for place, flag in zip(places, before, strict=True):
            place.allow_tf32 = flag


def test_left_as_it_was_after_a_failure():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.frozen = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            x = self.frozen(self.linear(x))
            raise ArithmeticError

    model = Model()
    with pytest.raises(ArithmeticError):
        Capture(Subject(model, params=["linear"]), "full", torch.rand(1, 3))
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_factors_outlive_the_next_call():
    capture = Capture(Subject(_network()), "full", torch.rand(1, 2, 4, 4))
    first = capture(torch.rand(3, 2, 4, 4))
    kept = [{k: t.clone() for k, t in vars(f).items()} for f in first]
    capture(torch.rand(3, 2, 4, 4))
    assert all(
        torch.equal(vars(f)[k], t) for f, ts in zip(first, kept, strict=True) for k, t in ts.items()
    )


def test_inputs_may_be_overwritten_after():
    model, x = nn.Linear(4, 2), torch.rand(3, 4)
    (weight, _) = Capture(Subject(model), "full", x)(x)
    kept = weight.x.clone()
    x.zero_()
    assert torch.equal(weight.x, kept)


def test_same_chunk_gives_the_same_bits():
    capture = Capture(Subject(_network()), "full", torch.rand(1, 2, 4, 4))
    x = torch.rand(5, 2, 4, 4)
    again = Capture(Subject(capture.subject.model), "full", torch.rand(2, 2, 4, 4))
    for a, b, c in zip(capture(x), capture(x), again(x), strict=True):
        for key, value in vars(a).items():
            assert torch.equal(value, vars(b)[key]) and torch.equal(value, vars(c)[key])


def test_under_no_grad_and_inference_mode():
    model, x = _network(), torch.rand(3, 2, 4, 4)
    plain = Capture(Subject(model), "full", x)(x)
    with torch.no_grad():
        other = Capture(Subject(model), "full", x)(x)
    with torch.inference_mode():
        third = Capture(Subject(model), "full", x)(x)
    for a, b, c in zip(plain, other, third, strict=True):
        for key, value in vars(a).items():
            assert torch.equal(value, vars(b)[key]) and torch.equal(value, vars(c)[key])


def test_out():
    capture = Capture(Subject(_network()), "full", torch.rand(1, 2, 4, 4))
    x = torch.rand(3, 2, 4, 4)
    expected = capture(x)
    wide = [
        (f.g if hasattr(f, "g") else f.j).new_full(
            (3, 4, *(f.g if hasattr(f, "g") else f.j).shape[2:]), torch.nan
        )
        for f in expected
    ]
    out = [t[:, :3] for t in wide]
    out[1] = None
    got = capture(x, out=out)
    for a, b, room in zip(expected, got, out, strict=True):
        own = b.g if hasattr(b, "g") else b.j
        assert torch.equal(own, a.g if hasattr(a, "g") else a.j)
        assert room is None or own is room
    with pytest.raises(ValueError, match=r"out for 0.weight must be .* \(3, 3, 1, 16, 4\)"):
        capture(x, out=[torch.empty(2), *out[1:]])


def test_views_that_need_plain_layout():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(48, 3)

        def forward(self, x):
            return self.linear(self.conv(x).relu().view(-1, 48))

    check_capture(Model(), _random(2, 2, 4, 4))


class _Mixing(nn.Module):
    def __init__(self, mix, ids=False):
        super().__init__()
        self.mix = mix
        self.first = nn.Embedding(9, 4) if ids else nn.Linear(4, 4)
        self.second = nn.Linear(4, 2)

    def forward(self, x):
        x = self.first(x)
        x = x.mean(1) if x.dim() == 3 else x
        return self.second(self.mix(x))


MIXES = {
    "mean": lambda x: x - x.mean(0),
    "order": lambda x: x.flip(0),
    "batch-statistics": lambda x: nn.functional.batch_norm(x, None, None, training=True),
    "attention": lambda x: (x @ x.T).softmax(1) @ x,
}


@pytest.mark.parametrize("ids", [False, True], ids=["numbers", "ids"])
@pytest.mark.parametrize("mix", MIXES)
def test_samples_that_mix_are_refused(mix, ids):
    x = torch.tensor([[1, 2, 3], [4, 4, 5]]) if ids else torch.rand(2, 4)
    with pytest.raises(ValueError, match="depend on the other samples"):
        Capture(Subject(_Mixing(MIXES[mix], ids)), "full", x)


def test_mixing_among_identical_samples_is_seen():
    with pytest.raises(ValueError, match="depend on the other samples"):
        Capture(Subject(_Mixing(MIXES["mean"])), "full", torch.rand(1, 4))


def test_not_finite():
    capture = Capture(Subject(_network()), "full", torch.rand(1, 2, 4, 4))
    x = torch.rand(4, 2, 4, 4)
    x[2] = torch.nan
    with pytest.raises(ValueError, match=r"logits are not finite for 1 of the samples: \[2\]"):
        capture(x)

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x):
            return self.linear(x).clamp(min=0).sqrt()

    model = Root()
    nn.init.ones_(model.linear.weight)
    nn.init.zeros_(model.linear.bias)
    x = torch.rand(3, 4)
    capture = Capture(Subject(model), "full", x)
    x[1] = 0
    with pytest.raises(ValueError, match=r"gradients of linear.weight are not finite .* \[1\]"):
        capture(x)


def test_other_calls_than_for_the_example():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x) if len(x) < 5 else self.linear(self.linear(x))

    capture = Capture(Subject(Model()), "full", torch.rand(1, 4))
    capture(torch.rand(4, 4))
    with pytest.raises(RuntimeError, match="other calls for 5 samples"):
        capture(torch.rand(5, 4))


@pytest.mark.parametrize("example", [torch.rand(0, 4), torch.tensor(1.0), [1, 2]], ids=repr)
def test_bad_example(example):
    with pytest.raises(ValueError, match="example must be a tensor of one sample or more"):
        Capture(Subject(nn.Linear(4, 2)), "full", example)


@pytest.mark.parametrize(
    ("readout", "error", "message"),
    [
        ("all", ValueError, "must be one of full"),
        (3, ValueError, "class 3 is not one of the network's 3 outputs"),
        (True, TypeError, "must be a name"),
        (torch.ones(2, 4), ValueError, "O=3 columns"),
        (torch.ones(3), ValueError, r"float \[R, O\] or \[N, R, O\]"),
        (torch.ones(2, 3, dtype=torch.int64), ValueError, "torch.int64"),
        (lambda logits: logits.sum(), ValueError, "must map logits"),
        (lambda logits: torch.ones(len(logits)), ValueError, "does not depend on the logits"),
        (Cotangents("full", 4), ValueError, "is for 4 outputs, the network has 3"),
    ],
    ids=[
        "name", "class", "bool", "columns", "vector", "integers", "scalar", "constant", "outputs",
    ],
)  # fmt: skip
def test_bad_readout(readout, error, message):
    with pytest.raises(error, match=message):
        Capture(Subject(_network()), readout, torch.rand(1, 2, 4, 4))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "needs the labels y1, got none"),
        (torch.tensor([0.0, 1.0]), "must be 2 class indices"),
        (torch.tensor([0, 1, 2]), r"got torch.int64 of shape \(3,\)"),
        (torch.tensor([0, 3]), "0 .. 2, got 0 .. 3"),
    ],
    ids=["none", "float", "length", "range"],
)
def test_bad_labels(y, message):
    with pytest.raises(ValueError, match=message):
        Cotangents("margin", 3).check_labels(y, 2, "y1")


def _frozen():
    model = nn.Linear(3, 2)
    return model.requires_grad_(False)


def _untracked():
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False))


SUBJECTS = {
    "not-a-module": (lambda: Subject(len), TypeError, "must be a torch.nn.Module"),
    "frozen": (lambda: Subject(_frozen()), ValueError, "no parameter with requires_grad"),
    "named-frozen": (lambda: Subject(_frozen(), params=["weight"]), ValueError, "does not require"),
    "unknown-name": (
        lambda: Subject(nn.Linear(3, 2), params=["head"]), ValueError, "no parameter or module named"
    ),
    "foreign": (
        lambda: Subject(nn.Linear(3, 2), params=[nn.Parameter(torch.ones(2))]),
        ValueError, "not a parameter of the model",
    ),
    "no-names": (lambda: Subject(nn.Linear(3, 2), params=[]), ValueError, "names no parameter"),
    "half": (lambda: Subject(nn.Linear(3, 2).half()), TypeError, "float32 or float64"),
    "dtypes": (
        lambda: Subject(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).double())),
        TypeError, "must have one dtype",
    ),
    "devices": (
        lambda: Subject(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, device="meta"))),
        ValueError, "must be on one device",
    ),
    "bn-train": (lambda: Subject(_network(), bn="train"), ValueError, "there is no kernel of two"),
    "bn-name": (lambda: Subject(_network(), bn="none"), ValueError, "must be one of eval, frozen"),
    "bn-batch": (lambda: Subject(_network(), bn="frozen"), ValueError, "go together"),
    "bn-untracked": (lambda: Subject(_untracked()), ValueError, "keeps no running statistics"),
}  # fmt: skip


@pytest.mark.parametrize("case", SUBJECTS)
def test_bad_subject(case):
    build, error, message = SUBJECTS[case]
    with pytest.raises(error, match=message):
        build()


def test_frozen_statistics_are_those_of_the_batch():
    """The network with each norm's statistics written out as buffers."""
    model, batch, x = _network().double(), _random(6, 2, 4, 4), _random(3, 2, 4, 4)
    frozen = Capture(Subject(model, bn="frozen", bn_batch=batch), "full", x)(x)
    with torch.no_grad():
        values = model[0](batch)
        model[1].running_mean.copy_(values.mean((0, 2, 3)))
        model[1].running_var.copy_(values.var((0, 2, 3), correction=0))
    plain = Capture(Subject(model), "full", x)(x)
    for a, b in zip(frozen, plain, strict=True):
        for key, value in vars(a).items():
            assert torch.allclose(value, vars(b)[key], rtol=1e-12, atol=1e-14)


def test_untracked_norm_with_frozen_statistics():
    check_capture(_untracked(), _random(2, 3), bn="frozen", bn_batch=_random(5, 3))


def test_logits_of_the_wrong_shape():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 1)

        def forward(self, x):
            return self.linear(x).squeeze(1)

    with pytest.raises(ValueError, match="to logits"):
        Capture(Subject(Model()), "full", torch.rand(1, 4))
