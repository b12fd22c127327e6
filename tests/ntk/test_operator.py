"""Products of NTKOperator against J J^T, J by loops of autograd; the data it takes and what it refuses."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from advfast.data.sources import TensorSource
from advfast.ntk.operator import NTKOperator

from .networks import NETWORKS, Attention, images, mlp, resnet
from .rows import jacobian, relative, theta

N, CLASSES = 5, 3
LABELS = torch.tensor([0, 2, 1, 1, 0])


def cotangents(readout, logits):
    """C [N, R, CLASSES], written anew."""
    if readout == "full":
        return torch.eye(CLASSES).double().repeat(N, 1, 1)
    if readout == "sum":
        return torch.ones(N, 1, CLASSES).double()
    if readout == "class":
        return torch.eye(CLASSES).double()[1].repeat(N, 1, 1)
    if readout == "matrix":
        return MATRIX.repeat(N, 1, 1)
    if readout == "samples":
        return SAMPLES
    rows = []
    for f, label in zip(logits, LABELS, strict=True):
        f = f.detach().requires_grad_()
        if readout == "loss":
            value = nn.functional.cross_entropy(f[None], label[None])[None]
        elif readout == "margin":
            others = [f[o] for o in range(CLASSES) if o != label]
            value = (f[label] - torch.stack(others).max())[None]
        else:
            value = two_of(f[None])[0]
        rows.append(torch.stack([torch.autograd.grad(v, f, retain_graph=True)[0] for v in value]))
    return torch.stack(rows)


def two_of(logits):
    return torch.stack([logits.square().sum(1), logits.logsumexp(1)], 1)


MATRIX = torch.randn(2, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
SAMPLES = torch.randn(
    N, 2, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
)
READOUTS = {
    "full": "full",
    "sum": "sum",
    "class": 1,
    "matrix": MATRIX,
    "samples": SAMPLES,
    "margin": "margin",
    "loss": "loss",
    "callable": two_of,
}


@pytest.mark.parametrize("batch_size", [None, 2, 1])
@pytest.mark.parametrize("method", ["auto", "double_backward"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_products_are_those_of_the_kernel(name, method, batch_size):
    network, x = NETWORKS[name]().double(), images(N)
    j = jacobian(network, x)
    operator = NTKOperator(network, x, method=method, batch_size=batch_size)
    assert operator.shape == (N * CLASSES, N * CLASSES) and operator.dtype == torch.float64
    assert operator.method == ("forward" if method == "auto" else method)
    v = torch.randn(
        N * CLASSES, 17, dtype=torch.float64
    )  # more columns than are multiplied at once
    expected = j @ (j.T @ v)
    assert relative(operator @ v, expected) < 1e-12
    assert relative(operator.matvec(v[:, 0]), expected[:, 0]) < 1e-12
    assert relative(operator @ v[:, 1].view(N, CLASSES), expected[:, 1].view(N, CLASSES)) < 1e-12
    pulled = operator.vjp(v[:, 0])
    assert relative(torch.cat([t.flatten() for t in pulled.values()]), j.T @ v[:, 0]) < 1e-12
    assert relative(operator.jvp(pulled).flatten(), expected[:, 0]) < 1e-12


@pytest.mark.parametrize("readout", list(READOUTS))
def test_readouts(readout):
    network, x = resnet().double(), images(N)
    c = cotangents(readout, network(x))
    expected = theta(network, x, c)
    operator = NTKOperator(network, x, y=LABELS, readout=READOUTS[readout], batch_size=3)
    assert operator.shape == tuple(expected.shape)
    v = torch.randn(len(expected), 2, dtype=torch.float64)
    assert relative(operator @ v, expected @ v) < 1e-12
    assert relative(operator.dense(), expected) < 1e-12


def test_products_are_linear_in_the_readout():
    network, x = Attention().double(), images(N)
    full, mixed = NTKOperator(network, x), NTKOperator(network, x, readout=MATRIX)
    v = torch.randn(N, 2, dtype=torch.float64)
    assert relative(mixed.matvec(v), full.matvec(v @ MATRIX) @ MATRIX.T) < 1e-13


class NoForward(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class NoVmap(NoForward):
    @staticmethod
    def jvp(ctx, t):
        return t * ctx.saved_tensors[0].cos()


class WrongForward(NoForward):
    """Drops a tenth of the derivative, as a rule that was forgotten for one argument would."""

    @staticmethod
    def jvp(ctx, t):
        return 0.9 * t * ctx.saved_tensors[0].cos()


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g.clone()


class Through(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.inner, self.function = mlp(), function

    def forward(self, x):
        return self.function(self.inner(x))


def through(function):
    return Through(function).double()


@pytest.mark.parametrize(
    ("function", "reason"),
    [(NoForward.apply, "forward:"), (WrongForward.apply, "forward: <u, J w> = ")],
    ids=["no forward rule", "wrong forward rule"],
)
def test_another_method_where_forward_derivatives_fail(function, reason):
    network, x = through(function), images(N)
    operator = NTKOperator(network, x, batch_size=2)
    assert operator.method == "double_backward" and operator.products.reason.startswith(reason)
    j = jacobian(network, x)
    v = torch.randn(N * CLASSES, 3, dtype=torch.float64)
    assert relative(operator @ v, j @ (j.T @ v)) < 1e-12
    with pytest.raises(RuntimeError, match="forward: "):
        NTKOperator(network, x, method="forward")


def test_a_network_without_either_derivative_is_refused():
    with pytest.raises(RuntimeError, match=r"cannot|can be used.*forward: .*double_backward: "):
        NTKOperator(through(Once.apply), images(N))


def test_columns_one_by_one_where_vmap_fails():
    network, x = through(NoVmap.apply), images(N)
    operator = NTKOperator(network, x)
    together = NTKOperator(through(torch.sin), x)
    v = torch.randn(N * CLASSES, 3, dtype=torch.float64)
    j = jacobian(network, x)
    assert relative(operator @ v, j @ (j.T @ v)) < 1e-12
    assert operator.method == "forward" and not operator.products._together
    assert together @ v is not None and together.products._together


def test_frozen_statistics_are_constants():
    network, x, others = resnet().double().train(), images(N), images(9, seed=3)
    operator = NTKOperator(network, x, bn="frozen", bn_batch=others, batch_size=2)
    v = torch.randn(N * CLASSES, 2, dtype=torch.float64)
    got = operator @ v
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        network(others)  # the running statistics are now those, but for the variance's n / (n - 1)
        for module, spread in zip(
            [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)],
            [36, 36, 9, 9],
            strict=True,
        ):
            module.running_var *= (9 * spread - 1) / (9 * spread)
    j = jacobian(network.eval(), x)
    assert relative(got, j @ (j.T @ v)) < 1e-9


def test_a_subset_of_the_parameters():
    network, x = resnet().double(), images(N)
    operator = NTKOperator(network, x, params=["0", "6.bias"])
    assert set(operator.products.names) == {"0.weight", "0.bias", "6.bias"}
    for name, p in network.named_parameters():
        p.requires_grad_(name in operator.products.names)
    j = jacobian(network, x)
    v = torch.randn(N * CLASSES, 2, dtype=torch.float64)
    assert relative(operator @ v, j @ (j.T @ v)) < 1e-12


def test_tied_weights():
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(72, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 3)
    )
    network[4].weight = network[3].weight
    network, x = network.double(), images(N)
    j = jacobian(network, x)
    operator = NTKOperator(network, x)
    v = torch.randn(N * CLASSES, 2, dtype=torch.float64)
    assert relative(operator @ v, j @ (j.T @ v)) < 1e-12


def test_float32_is_near_float64():
    network, x = resnet(), images(N, dtype=torch.float32)
    v = torch.randn(N * CLASSES, 2, dtype=torch.float64)
    single = NTKOperator(network, x) @ v
    assert single.dtype == torch.float32
    assert relative(single.double(), NTKOperator(network.double(), x) @ v) < 1e-5


class Moving(Dataset):
    """Images with fresh noise each time."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return torch.rand(2, 6, 6), int(LABELS[i])


@pytest.mark.parametrize("kind", ["tensor", "pair", "dataset", "loader", "source", "bytes"])
def test_data_of_every_kind(kind):
    network, x = resnet().double(), images(N, dtype=torch.float32)
    levels = (x * 255).round().to(torch.uint8)
    x = levels / 255
    data = {
        "tensor": x,
        "pair": (x, LABELS),
        "dataset": TensorDataset(x, LABELS),
        "loader": DataLoader(TensorDataset(x, LABELS), 3),
        "source": TensorSource(x, LABELS),
        "bytes": (levels, LABELS),
    }[kind]
    v = torch.randn(N * CLASSES, dtype=torch.float64)
    draw = torch.get_rng_state()
    operator = NTKOperator(network, data, batch_size=None if kind == "loader" else 2)
    got = operator @ v
    assert draw.equal(torch.get_rng_state())
    j = jacobian(network, x.double())
    assert relative(got, j @ (j.T @ v)) < 1e-12
    if kind != "tensor":
        assert operator.labels.equal(LABELS)


def test_data_that_change_are_noticed():
    with pytest.raises(ValueError, match="not what it was on the first pass"):
        NTKOperator(mlp().double(), Moving())


NAN = torch.tensor([float("nan")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(x=images(0)), "holds no samples"),
        (dict(x="images"), "must be a tensor"),
        (dict(x=TensorDataset(images(0), LABELS[:0])), "holds no samples"),
        (dict(x=(images(N), "labels")), "two tensors"),
        (dict(x=(images(N), LABELS[:2])), "5 labels"),
        (dict(x=DataLoader(TensorDataset(images(N), LABELS), shuffle=True)), "shuffle=False"),
        (dict(x=DataLoader(TensorDataset(images(N), LABELS)), batch_size=2), "has its own"),
        (dict(batch_size=0), "batch_size"),
        (dict(readout="trace"), "sum of R kernels"),
        (dict(readout="logits"), "readout must be one of"),
        (dict(readout="margin"), "needs the labels y"),
        (dict(readout="loss", y=LABELS + 1), "class indices 0 .. 2"),
        (dict(readout=3), "not one of the network's 3 outputs"),
        (dict(readout=torch.ones(4, 2, 3)), "each of the 5 samples"),
        (dict(method="reverse"), "method must be one of"),
        (dict(bn="train"), "batch statistics"),
        (dict(max_bytes=100), "too small for one vector"),
        (dict(x=torch.cat([images(4), NAN.expand(1, 2, 6, 6)])), "not finite, first at sample 4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_are_refused(arguments, message):
    arguments = {"x": images(N)} | arguments
    with pytest.raises((ValueError, TypeError), match=message):
        NTKOperator(resnet().double(), **arguments).matvec(torch.ones(N * CLASSES))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda op: op.matvec(torch.ones(N * CLASSES + 1)),
            r"v must have shape \[5, 3\] or \[15\]",
        ),
        (lambda op: op.matmat(torch.ones(N * CLASSES)), r"V must have shape \[15, k\]"),
        (lambda op: op.matmat(torch.ones(N * CLASSES, 0)), "k of 1 or more"),
        (lambda op: op.matvec(torch.full((N, CLASSES), float("nan"))), "not finite"),
        (lambda op: op.matvec(LABELS), "float tensor"),
        (lambda op: op.jvp({}), "each of the"),
        (lambda op: op.jvp({n: torch.ones(1) for n in op.products.names}), r"must have shape \("),
        (lambda op: op.label_alignment(), "no labels"),
        (lambda op: op.label_alignment(torch.ones(N)), r"y must have shape \[5, 3\]"),
        (lambda op: op.label_alignment(LABELS + 1), "classes 0 .. 2"),
        (lambda op: op.eigsh(N * CLASSES + 1), r"1 .. 15"),
        (lambda op: op.eigsh(2, start="labels"), "needs labels"),
        (lambda op: op.eigsh(2, method="qr"), "lobpcg or lanczos"),
        (lambda op: op.hutchinson_trace(1), "2 or more"),
        (lambda op: op.slq("rank"), "function must be one of"),
        (lambda op: op.solve(torch.ones(4), ridge=1.0), "b must have shape"),
        (lambda op: op.solve(torch.ones(N, CLASSES), ridge=-1.0), "ridge"),
        (lambda op: op.predict(images(2)), "either alpha or targets"),
        (lambda op: op.centred().predict(images(2), alpha=torch.ones(N, CLASSES)), "centred"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_calls_are_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(NTKOperator(mlp().double(), images(N)))


class Failing(nn.Module):
    """Raises from its fourth call on: three are the trial at the start."""

    def __init__(self):
        super().__init__()
        self.inner, self.calls = resnet(), 0

    def forward(self, x):
        self.calls += 1
        if self.calls > 3:
            raise RuntimeError("out of luck")
        return self.inner(x)


@pytest.mark.parametrize("failing", [False, True], ids=["returns", "raises"])
def test_the_model_is_left_as_it_was(failing):
    network = (Failing() if failing else resnet()).double()
    network.train()
    next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    next(network.parameters()).requires_grad_(False)
    state = {k: v.clone() for k, v in network.state_dict().items()}
    modes = [m.training for m in network.modules()]
    wanted = [p.requires_grad for p in network.parameters()]
    torch.backends.mha.set_fastpath_enabled(True)  # as torch has it, whatever ran before
    flags = torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.allow_tf32
    draw = torch.get_rng_state()
    operator = NTKOperator(network, images(N), params=list(dict(network.named_parameters()))[1:])
    if failing:
        with pytest.raises(RuntimeError, match="out of luck"):
            operator.hutchinson_trace(4)
    else:
        operator.eigsh(1)
        operator.hutchinson_trace(4)
    assert modes == [m.training for m in network.modules()]
    assert wanted == [p.requires_grad for p in network.parameters()]
    assert all(p.grad is None for p in network.parameters())
    assert all(v.equal(state[k]) for k, v in network.state_dict().items())
    assert flags == (torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.allow_tf32)
    assert draw.equal(torch.get_rng_state())
    assert not operator.products._kept and not operator.products._keep


def test_products_that_keep_the_graph_are_the_same():
    operator = NTKOperator(resnet().double(), images(N))
    v = torch.randn(N * CLASSES, 2, dtype=torch.float64)
    alone = operator @ v
    with operator.repeated():
        assert (operator @ v).equal(alone) and operator.products._kept
        assert (operator @ v).equal(alone)
