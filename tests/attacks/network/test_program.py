"""The engine's network against autograd on the model: the same logits and input gradients, or autograd itself."""

from __future__ import annotations

import gc
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advfast import models
from advfast.attacks.network import PlainNetwork, open_network
from advfast.attacks.network.network import _engines, engine_of
from advfast.attacks.network.program import Program, ProgramNetwork

from .models import Branching, Counting, Head, Noisy, Residual, bodies, conv_bn, settle

CHANNELS = {
    "dense": 18,
    "pre-activation": 8,
    "bn-only": 3,
    "group-norm": 4,
    "shuffle": 4,
    "same": 6,
}
NOT_TRACED = ("overwritten", "branching", "counting", "bn-batch")
TRIAL_FAILS = ("overwritten-view",)
SHAPE = (5, 3, 9, 10)


@pytest.fixture(autouse=True)
def every_program(monkeypatch):
    """Also those that are right and would not be faster."""
    monkeypatch.setattr(Program, "pays", lambda self: True)


def as_is(output: object) -> Tensor:
    assert isinstance(output, Tensor)
    return output


def network(model, x: Tensor, *, select=as_is, sixteen_bit: bool = False):
    return open_network(
        model, input_dtype=x.dtype, select=select, sixteen_bit=sixteen_bit, fold=True,
        deterministic=True, example=x,
    )  # fmt: skip


def plain(model, x: Tensor, select=as_is) -> PlainNetwork:
    return PlainNetwork(model, x.dtype, select, False, False, True, x)


def objective(logits: Tensor) -> Tensor:
    labels = torch.arange(len(logits)) % logits.shape[1]
    return F.cross_entropy(logits, labels, reduction="none")


def agree(model, x: Tensor, rtol: float, **kwargs) -> ProgramNetwork | PlainNetwork:
    ours = network(model, x, **kwargs)
    expected = plain(model, x, kwargs.get("select", as_is)).gradient(x, objective)
    for found, wanted in zip(ours.gradient(x, objective), expected, strict=True):
        assert found.shape == wanted.shape and found.dtype == wanted.dtype
        assert (found - wanted).abs().max() <= rtol * wanted.abs().max()
    assert torch.allclose(ours.logits(x), expected[0], rtol=rtol, atol=rtol)
    return ours


@pytest.mark.parametrize("name", list(bodies()))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_every_kind_of_model_is_right(name, dtype):
    model = settle(Head(bodies()[name], CHANNELS.get(name, 8)), SHAPE).to(dtype)
    x = torch.rand(SHAPE, dtype=dtype)
    found = agree(model, x, 1e-10 if dtype == torch.float64 else 1e-4)
    # A second time: from the cache, and on a batch of another size.
    agree(model, x[:2], 1e-10 if dtype == torch.float64 else 1e-4)
    assert isinstance(found, PlainNetwork) == (name in NOT_TRACED + TRIAL_FAILS), engine_of(model)


@pytest.mark.parametrize("made", ["like", "constant"])
def test_a_random_defence_runs_as_it_is(made):
    model = settle(Head(Noisy(made), 8), SHAPE)
    assert isinstance(network(model, torch.rand(SHAPE)), PlainNetwork)


GOWAL = {"activation": "silu", "padding": "end", "shortcut": "raw-3x3"}
ZOO = [
    ("small-cnn", {}, (3, 1, 28, 28), (0, 0)),
    ("resnet18", {"width": 4}, (3, 3, 32, 32), (20, 20)),
    ("preact-resnet18", {"width": 4}, (3, 3, 32, 32), (8, 17)),
    ("preact-resnet18", {"width": 4, **GOWAL}, (3, 3, 32, 32), (8, 17)),
    ("wide-resnet", {"depth": 10, "width": 1}, (3, 3, 32, 32), None),
    ("vit-tiny", {}, (2, 3, 16, 16), (0, 0)),
    ("resnet50", {"width": 4}, (2, 3, 64, 64), (53, 53)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kwargs", "shape", "norms"), ZOO)
def test_models_of_the_zoo(name, kwargs, shape, norms):
    torch.manual_seed(0)
    if name == "vit-tiny":
        kwargs = {"in_shape": shape[1:]}
    model = settle(models.make(name, **kwargs), shape).double()
    x = torch.rand(shape, dtype=torch.float64)
    found = agree(model, x, 1e-10)
    assert isinstance(found, ProgramNetwork)
    program = engine_of(model).program
    assert program is not None
    if norms is not None:
        assert (program.folded, program.norms) == norms


def test_the_live_weights_are_used():
    model = settle(models.make("resnet18", width=4), (4, 3, 32, 32)).double()
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    agree(model, x, 1e-10)
    with torch.no_grad():
        model.conv1.weight.add_(0.1)
    agree(model, x, 1e-10)
    model.layer1[0].conv1.weight.data.mul_(1.5)  # no version counter sees this
    agree(model, x, 1e-10)
    model.layer1[0].bn1.running_var.data.mul_(3)
    agree(model, x, 1e-10)
    model.linear.weight = nn.Parameter(model.linear.weight * 2)
    agree(model, x, 1e-10)
    model.layer2[0].conv1 = nn.Conv2d(4, 8, 3, stride=2, padding=1).double().eval()
    assert isinstance(agree(model, x, 1e-10), ProgramNetwork)


def test_a_flag_that_the_forward_reads():
    class Switched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.squared = Residual(), False
            self.config = {"scale": 1.0}

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x) * self.config["scale"]
            return x * x if self.squared else x

    model = settle(Head(Switched(), 8), SHAPE).double()
    x = torch.rand(SHAPE, dtype=torch.float64)
    assert isinstance(agree(model, x, 1e-10), ProgramNetwork)
    model.body.squared = True
    agree(model, x, 1e-10)
    model.body.config["scale"] = 0.25
    agree(model, x, 1e-10)


SWITCH = False


def _outside(x: Tensor) -> Tensor:
    return x * x if SWITCH else x


class ReadsAGlobal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Residual()

    def forward(self, x: Tensor) -> Tensor:
        return _outside(self.body(x))


def test_a_global_that_the_forward_reads(monkeypatch):
    model = settle(Head(ReadsAGlobal(), 8), SHAPE).double()
    x = torch.rand(SHAPE, dtype=torch.float64)
    assert isinstance(agree(model, x, 1e-10), ProgramNetwork)
    monkeypatch.setattr("tests.attacks.network.test_program.SWITCH", True)
    agree(model, x, 1e-10)


def test_hooks_see_every_pass():
    model = settle(Head(Residual(), 8), SHAPE)
    x = torch.rand(SHAPE)
    assert isinstance(network(model, x), ProgramNetwork)
    seen = []
    handle = model.body.conv.register_forward_hook(lambda *args: seen.append(1))
    agree(model, x, 1e-4)
    assert seen
    handle.remove()
    assert isinstance(network(model, x), ProgramNetwork)
    handle = nn.modules.module.register_module_forward_hook(lambda *args: seen.append(1))
    try:
        assert isinstance(network(model, x), PlainNetwork)
    finally:
        handle.remove()


def test_a_replaced_forward_of_one_layer():
    model = settle(Head(Residual(), 8), SHAPE).double()
    x = torch.rand(SHAPE, dtype=torch.float64)
    agree(model, x, 1e-10)
    own = model.body.conv.forward
    model.body.conv.forward = lambda x: own(x) * 2
    agree(model, x, 1e-10)


def test_train_mode_runs_as_it_is():
    model = settle(Head(Residual(), 8), SHAPE)
    model.body.bn.train()
    assert isinstance(network(model, torch.rand(SHAPE)), PlainNetwork)


def test_compiled_and_scripted_models_run_as_they_are():
    model = settle(Head(conv_bn(3, 8, 3), 8), SHAPE)
    x = torch.rand(SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert isinstance(network(torch.jit.script(model), x), PlainNetwork)
    assert isinstance(network(lambda x: model(x), x), PlainNetwork)
    model.body.compile(backend="eager")
    assert isinstance(network(model, x), PlainNetwork)


def test_the_reason_is_told():
    x = torch.rand(SHAPE)
    for body, words in ((Branching(), "cannot be followed"), (Counting(), "changes its own")):
        model = settle(Head(body, 8), SHAPE)
        network(model, x)
        assert words in str(engine_of(model))
    model = settle(models.make("resnet18", width=4), (2, 3, 32, 32))
    assert str(engine_of(model)).startswith("23 layers without autograd, 20 of 20 BN layers folded")


def test_outputs_in_containers():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Residual()
            self.main, self.aux = nn.Linear(8, 5), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            features = self.body(x).mean((2, 3))
            return {"logits": self.main(features), "aux": (self.aux(features), features)}

    model = settle(Two(), SHAPE).double()
    x = torch.rand(SHAPE, dtype=torch.float64)
    for select in (lambda out: out["logits"], lambda out: out["aux"][0]):
        assert isinstance(agree(model, x, 1e-10, select=select), ProgramNetwork)
    # What is made of the outputs afterwards is not a value of the program.
    half = agree(model, x, 1e-10, select=lambda out: out["logits"] + out["aux"][0])
    assert isinstance(half, ProgramNetwork) and "not a value" in str(half.unfit)


@pytest.mark.parametrize("name", ["residual", "squeeze", "pre-activation", "group-norm"])
def test_sixteen_bits(name):
    """Logits near those of float32, gradients that point where its gradients point."""
    model = settle(Head(bodies()[name], CHANNELS.get(name, 8)), SHAPE)
    x = torch.rand(SHAPE)
    expected = plain(model, x).gradient(x, objective)
    with torch.autocast("cpu", torch.bfloat16):
        ours = network(model, x, sixteen_bit=True)
        logits, gradient = ours.gradient(x, objective)
    assert isinstance(ours, ProgramNetwork)
    assert logits.dtype == torch.bfloat16
    assert (logits - expected[0]).abs().max() < 0.05 * expected[0].abs().max()
    directions = F.cosine_similarity(gradient.flatten(1).float(), expected[1].flatten(1))
    assert directions.min() > 0.98


def test_what_is_kept_for_the_backward_pass():
    """One bit a ReLU output: nothing of a convolution."""
    shape = (8, 3, 32, 32)
    model = settle(models.make("resnet18", width=8), shape)
    x = torch.rand(shape)
    ours = network(model, x)
    kept: list[int] = []
    opened = ours._opened
    with torch.no_grad():
        _, _, keep = opened.forward(x, backwards=True)
    tensors = []

    def collect(value) -> None:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, list | tuple):
            for item in value:
                collect(item)

    collect(keep)
    kept = [t.numel() * t.element_size() for t in tensors]
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        logits = model(x.requires_grad_())
    weights = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    activations = sum(size for at, size in saved.items() if at not in weights)
    assert logits.requires_grad and sum(kept) < activations / 40
    assert all(t.dtype == torch.uint8 for t in tensors)


def test_the_cache_lets_go_of_the_model():
    model = settle(Head(Residual(), 8), SHAPE)
    network(model, torch.rand(SHAPE))
    assert model in _engines
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_nothing_of_the_model_changes():
    model = settle(models.make("preact-resnet18", width=4), (2, 3, 32, 32))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    x = torch.rand(2, 3, 32, 32)
    network(model, x).gradient(x, objective)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert attributes == {name: set(vars(module)) for name, module in model.named_modules()}
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_weights_are_kept_between_calls_only_while_they_do_not_change():
    model = settle(models.make("resnet18", width=4), (4, 3, 32, 32)).double()
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    opened = [network(model, x)._opened for _ in range(4)]
    assert opened[0] is not opened[1] and opened[2] is opened[1] and opened[3] is opened[1]
    agree(model, x, 1e-10)
    # One bit of one weight, past the version counters.
    model.layer3[0].conv2.weight.data.view(-1)[5] += 2**-40
    assert network(model, x)._opened is not opened[1]
    model.bn1.running_mean.data.add_(0.1)
    agree(model, x, 1e-10)
    for _ in range(3):
        with torch.no_grad():
            model.linear.bias.add_(1)
        agree(model, x, 1e-10)
        assert engine_of(model).kept.opened is None


def test_a_model_without_weights():
    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x.mean((2, 3)) - 0.4) * 3

    x = torch.rand(SHAPE, dtype=torch.float64)
    model = Bare().eval()
    for _ in range(3):
        assert isinstance(agree(model, x, 1e-10), ProgramNetwork)


class ReadBeforeRelu(nn.Module):
    """A value that is read after its ReLU and before, and a sum whose other part comes after the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = F.relu(x) * 0.5 + x
        return self.last(x) + torch.tanh(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_what_is_read_before_its_relu(dtype):
    model = settle(Head(ReadBeforeRelu(), 8), SHAPE).to(dtype)
    found = agree(model, torch.rand(SHAPE, dtype=dtype), 1e-10 if dtype == torch.float64 else 1e-4)
    assert isinstance(found, ProgramNetwork), engine_of(model)


def test_constants_are_computed_from_the_live_weights():
    model = settle(Head(bodies()["standardised"], 8), SHAPE).double()
    x = torch.rand(SHAPE, dtype=torch.float64)
    for _ in range(3):
        assert isinstance(agree(model, x, 1e-10), ProgramNetwork)
        model.body.weight.data[0, 0, 0, 0] += 1


class AroundTheImage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x)) + x


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_are_not_written_to(layout):
    model = settle(Head(AroundTheImage(), 3), SHAPE)
    x = torch.rand(SHAPE).contiguous(memory_format=layout)
    before = x.clone()
    assert isinstance(agree(model, x, 1e-4), ProgramNetwork)
    assert torch.equal(x, before)


def test_a_returned_value_that_is_read_as_well():
    class Two(Head):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            features = self.body(x).mean((2, 3))
            return {"logits": self.linear(features), "features": features}

    model = settle(Two(Residual(), 8), SHAPE).double()
    x = torch.rand(SHAPE, dtype=torch.float64)
    for name in ("logits", "features"):
        found = agree(model, x, 1e-10, select=lambda out, name=name: out[name])
        assert isinstance(found, ProgramNetwork)


def test_kept_weights_are_of_one_precision_and_size():
    model = settle(models.make("resnet18", width=4), (4, 3, 32, 32))
    x = torch.rand(4, 3, 32, 32)
    for _ in range(3):
        wide = network(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = network(model, x, sixteen_bit=True)
        assert narrow.logits(x).dtype == torch.bfloat16
    assert wide._opened is not narrow._opened
    agree(model, x, 1e-4)
    agree(model, x[:, :, :20, :27], 1e-4)


def test_a_failed_trial_is_remembered():
    model = settle(Head(bodies()["overwritten-view"], 8), SHAPE)
    network(model, torch.rand(SHAPE))
    assert engine_of(model).program is None and "trial" in str(engine_of(model))


def test_gradients_of_samples_beyond_confidence():
    """Down to denormal numbers each row is brought to about 1, exactly."""
    from advfast.attacks.network.plain import rescaled

    rows = torch.tensor([[3.0, -1.0], [1e-30, 1e-31], [1e-44, -1e-44], [0.0, 0.0], [2e38, 1e30]])
    scaled = rescaled(rows)
    assert scaled.isfinite().all()
    largest = scaled.abs().amax(1)
    assert ((largest >= 1) & (largest < 2))[[0, 1, 2, 4]].all() and largest[3] == 0
    ratio = (scaled[:2, 1] / scaled[:2, 0]).double()
    assert torch.equal(ratio.float(), rows[:2, 1] / rows[:2, 0])


@pytest.mark.parametrize("seed", range(3))
def test_a_deep_network_whose_units_lie_on_edges(seed):
    """In float32 a gradient of one sample in many is decided by rounding; that is no reason to refuse the model."""
    torch.manual_seed(seed)
    model = models.make("wide-resnet", depth=28, width=2).eval()
    assert isinstance(network(model, torch.rand(4, 3, 32, 32)), ProgramNetwork)


def test_a_program_must_pay(monkeypatch):
    monkeypatch.undo()
    vit = models.make("vit-tiny", in_shape=(3, 16, 16)).eval()
    assert isinstance(network(vit, torch.rand(2, 3, 16, 16)), PlainNetwork)
    assert "by autograd all the same" in str(engine_of(vit))
    silu = models.make("preact-resnet18", width=4, **GOWAL).eval()
    assert isinstance(network(silu, torch.rand(2, 3, 32, 32)), ProgramNetwork)
