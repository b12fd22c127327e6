"""advfast.ntk.ntk against vmap(jacrev), and what must hold of any kernel."""

import numpy
import pytest
import torch
from torch import nn

from advfast import ntk as package
from advfast.ntk import blocks, ntk

from .kernels import dense
from .networks import NETWORKS, images, mlp, resnet


def relative(got, expected):
    return float((got - expected).norm() / expected.norm())


@pytest.fixture(params=list(NETWORKS))
def network(request):
    return NETWORKS[request.param]().double()


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few rows, so that a dozen samples are several blocks."""
    monkeypatch.setitem(blocks._ROWS, "cpu", 12)
    monkeypatch.setitem(blocks._CHUNK, "cpu", 2)


@pytest.mark.parametrize("method", ["auto", "M", "C", "G"])
def test_is_the_kernel(network, method, small_blocks):
    x1, x2 = images(7), images(5, seed=1)
    square = ntk(network, x1, method=method)
    assert square.tensor.shape == (7, 7, 3, 3) and square.plan.precision == "fp64"
    assert relative(square.tensor, dense(network, x1)) < 1e-11
    across = ntk(network, x1, x2, method=method)
    assert relative(across.tensor, dense(network, x1, x2)) < 1e-11
    assert square.check.error < 1e-10 and across.check.error < 1e-10


def test_float32_is_near_float64(network):
    x = images(6, dtype=torch.float32)
    exact = dense(network, x.double())
    assert relative(ntk(network.float(), x).tensor.double(), exact) < 5e-6
    assert (
        relative(ntk(network, x, precision="fp64").tensor, exact) < 1e-5
    )  # the weights were rounded


@pytest.mark.parametrize(("precision", "bound"), [("tf32", 1e-4), ("bf16", 1e-3), ("bf16x3", 1e-5)])
@pytest.mark.parametrize("method", ["M", "C", "G"])
def test_low_precision_stays_within_its_bound(precision, bound, method):
    network, x = resnet(), images(6, dtype=torch.float32)
    exact = ntk(network, x, precision="fp64")
    low = ntk(network, x, precision=precision, method=method, check=False)
    error = relative(low.tensor.double(), exact.tensor)
    assert 1e-9 < error < bound


def test_m_in_bf16_is_positive_semidefinite():
    theta = ntk(resnet(), images(12, dtype=torch.float32), precision="bf16", method="M").matrix()
    values = torch.linalg.eigvalsh(theta.double())
    assert values[0] > -1e-6 * values[-1]


@pytest.mark.parametrize("method", ["M", "C", "G"])
def test_same_bits_for_every_tile(method, small_blocks):
    network, x1, x2 = resnet(), images(13, dtype=torch.float32), images(6, 1, torch.float32)
    whole, across = ntk(network, x1, method=method), ntk(network, x1, x2, method=method)
    assert whole.plan.tile == 16 and whole.plan.blocks1.block == 4
    for tile in (1, 5, 12):
        cut = ntk(network, x1, method=method, tile=tile)
        assert cut.plan.tile < 13
        assert torch.equal(cut.matrix(), whole.matrix())
        assert torch.equal(ntk(network, x1, x2, method=method, tile=tile).matrix(), across.matrix())


def test_memory_budget_gives_the_same_bits(small_blocks):
    network, x = resnet(), images(13, dtype=torch.float32)
    whole = ntk(network, x, method="C")
    bytes_of = whole.plan.sample_bytes
    less = whole.plan.peak_bytes - 6 * bytes_of
    cut = ntk(network, x, method="C", max_bytes=less)
    assert cut.plan.tile < whole.plan.tile and cut.plan.peak_bytes <= less
    assert torch.equal(cut.matrix(), whole.matrix())
    small = ntk(network, x, method="C", max_bytes=whole.plan.result_bytes + 5 * bytes_of)
    assert small.plan.blocks1.block < whole.plan.blocks1.block
    assert relative(small.matrix(), whole.matrix()) < 1e-6
    with pytest.raises(ValueError, match=r"max_bytes=1000 does not hold one sample .* \d+ bytes"):
        ntk(network, x, max_bytes=1000)


def test_symmetry_and_sides(network):
    x1, x2 = images(6), images(4, seed=1)
    square, across = ntk(network, x1).matrix(), ntk(network, x1, x2).matrix()
    assert torch.equal(square, square.mT)
    assert relative(ntk(network, x2, x1).matrix().mT, across) < 1e-13
    assert relative(ntk(network, x1, x1).matrix(), square) < 1e-13
    together = ntk(network, torch.cat([x1, x2])).matrix()
    assert relative(together[: 6 * 3, 6 * 3 :], across) < 1e-13
    order = torch.randperm(6)
    moved = ntk(network, x1[order]).tensor
    assert relative(moved, ntk(network, x1).tensor[order][:, order]) < 1e-13


def test_readouts_follow_from_the_full_kernel(network):
    x, y = images(5), torch.tensor([0, 2, 1, 1, 0])
    full = ntk(network, x).tensor
    c = torch.randn(2, 3, dtype=torch.float64)
    own = torch.randn(5, 2, 3, dtype=torch.float64)
    logits = network(x).detach()
    p = logits.softmax(1) - torch.eye(3, dtype=torch.float64)[y]
    others = logits.scatter(1, y[:, None], -torch.inf).argmax(1)
    m = torch.eye(3, dtype=torch.float64)[y] - torch.eye(3, dtype=torch.float64)[others]
    cases = [
        ("sum", full.sum((2, 3))[..., None, None], {}),
        ("trace", full.diagonal(dim1=2, dim2=3).sum(-1)[..., None, None], {}),
        (1, full[:, :, 1:2, 1:2], {}),
        (c, torch.einsum("ro,ijop,sp->ijrs", c, full, c), {}),
        (own, torch.einsum("iro,ijop,jsp->ijrs", own, full, own), {}),
        ("loss", torch.einsum("io,ijop,jp->ij", p, full, p)[..., None, None], {"y1": y}),
        ("margin", torch.einsum("io,ijop,jp->ij", m, full, m)[..., None, None], {"y1": y}),
        (lambda z: z.pow(2), torch.einsum("io,ijop,jp->ijop", 2 * logits, full, 2 * logits), {}),
    ]
    for readout, expected, labels in cases:
        got = ntk(network, x, readout=readout, **labels)
        assert relative(got.tensor, expected) < 1e-12, readout
    pair = ntk(network, x, x, readout=(0, "sum")).tensor
    assert relative(pair[..., 0, 0], full[:, :, 0].sum(2)) < 1e-12


@pytest.mark.parametrize("method", ["M", "C", "G"])
def test_trace_readout_in_every_order(method):
    network, x = resnet().double(), images(5)
    expected = dense(network, x).diagonal(dim1=2, dim2=3).sum(-1)
    got = ntk(network, x, images(5), readout="trace", method=method)
    assert relative(got.tensor[..., 0, 0], expected) < 1e-12


def test_layers_add_up(network):
    x = images(5)
    result = ntk(network, x, per_layer=True)
    total = sum(result.per_layer.values())
    assert relative(result.tensor, total) < 1e-13
    names = {name for row in result.plan.layers for name in (row.layer.parameters or (row.name,))}
    assert names == {name for name, _ in network.named_parameters()}
    with pytest.raises(ValueError, match="per_layer=True"):
        _ = ntk(network, x).per_layer
    head = "5" if "5.weight" in result.per_layer else "head"
    if f"{head}.weight" in result.per_layer:
        alone = ntk(network, x, params=[f"{head}.weight"])
        assert relative(alone.tensor, result.per_layer[f"{head}.weight"]) < 1e-13


def test_tiles_make_the_kernel(network, small_blocks):
    x = images(9)
    whole = ntk(network, x).tensor
    seen = torch.zeros(9, 9, dtype=torch.int64)
    for tile in package.tiles(network, x, tile=4):
        seen[tile.i, tile.j] += 1
        assert tile.i == tile.j or tile.i.stop <= tile.j.start
        assert torch.equal(tile.block.permute(0, 2, 1, 3), whole[tile.i, tile.j])
    assert torch.equal(seen.triu() > 0, torch.ones(9, 9).triu() > 0) and int(seen.max()) == 1


def test_one_sample_one_readout():
    network = mlp(1).double()
    result = ntk(network, images(1))
    assert result.tensor.shape == (1, 1, 1, 1)
    assert relative(result.tensor, dense(network, images(1))) < 1e-13


def test_images_of_another_size():
    network = resnet().double()
    large = torch.rand(3, 2, 9, 8, dtype=torch.float64)
    for method in ("M", "C", "G"):
        got = ntk(network, images(4), large, method=method)
        assert relative(got.tensor, dense(network, images(4), large)) < 1e-12


@pytest.mark.parametrize("method", ["M", "C", "G"])
def test_one_position_with_padding(method):
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3)
    ).double()
    x = torch.rand(5, 2, 2, 2, dtype=torch.float64)
    assert relative(ntk(network, x, method=method).tensor, dense(network, x)) < 1e-12


@pytest.mark.parametrize("readout", ["full", "trace"])
def test_token_ids(readout, small_blocks):
    network = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Tanh(), nn.Linear(12, 3)).double()
    x1, x2 = torch.randint(0, 5, (7, 3)), torch.randint(0, 5, (6, 3))
    for other in (None, x2):
        exact = dense(network, x1, other)
        if readout == "trace":
            exact = exact.diagonal(dim1=2, dim2=3).sum(2)[:, :, None, None]
        assert relative(ntk(network, x1, other, readout=readout).tensor, exact) < 1e-12


def test_the_check_notices_a_wrong_kernel(monkeypatch):
    from advfast.ntk import contract

    real = contract.add

    def forgetful(out, left, right, precision, *, upper):
        if left.layer is None or left.layer.name != "5.weight":
            real(out, left, right, precision, upper=upper)

    monkeypatch.setattr(contract, "add", forgetful)
    with pytest.raises(RuntimeError, match=r"differs from J \(J\^T v\) by autograd by 0\.\d+"):
        ntk(mlp().double(), images(4), method="C")


def test_model_is_left_as_it_was(network):
    network.train()
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    first = next(network.parameters()).requires_grad_(False)
    ntk(network, images(4))
    assert all(module.training for module in network.modules())
    assert all(bool((p.grad == 1).all()) for p in network.parameters())
    assert not first.requires_grad
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_frozen_statistics(small_blocks):
    network = resnet().double()
    batch = images(8, seed=3)
    reference = resnet().double()
    reference.load_state_dict(network.state_dict())
    # The same by hand: the batch's statistics put into the buffers of a copy, layer after layer.
    reference.train()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    reference(batch)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):  # torch keeps the unbiased variance
            count = {6: 8 * 36, 8: 8 * 9}[module.num_features]
            module.running_var.mul_((count - 1) / count)
    reference.eval()
    got = ntk(network, images(5), bn="frozen", bn_batch=batch)
    assert relative(got.tensor, dense(reference, images(5))) < 1e-11


def test_plan_can_be_read_and_used_again():
    network, x = resnet(), images(6, dtype=torch.float32)
    plan = package.plan(network, x)
    text = str(plan)
    assert "2.conv1.weight" in text and "6 x 6 samples" in text and "MiB" in text
    first = ntk(network, x, method=plan)
    assert first.plan.orders == plan.orders
    chosen = ntk(network, x, method={"2.conv1.weight": "C", "0.weight": "G"}).plan.orders
    assert chosen["2.conv1.weight"] == "C" and chosen["0.weight"] == "G"
    assert torch.equal(first.matrix(), ntk(network, x, method=plan.orders).matrix())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"readout": "every"}, ValueError, "readout must be one of full"),
        ({"readout": 3}, ValueError, "class 3 is not one of the network's 3 outputs"),
        ({"readout": torch.ones(2, 4)}, ValueError, "O=3 columns"),
        ({"readout": torch.ones(9, 2, 3)}, ValueError, "block for each of the 4 samples"),
        ({"readout": "loss"}, ValueError, "needs the labels y1"),
        ({"readout": "margin", "y1": torch.tensor([0, 1, 2, 3])}, ValueError, "0 .. 2, got 0 .. 3"),
        ({"bn": "train"}, ValueError, "depends on the others of its batch"),
        ({"bn": "frozen"}, ValueError, "bn_batch"),
        ({"method": "X"}, ValueError, "method must be one of auto, M, C, G"),
        ({"method": {"nothing": "M"}}, ValueError, "no layer 'nothing'"),
        ({"method": {"6.bias": "C"}}, ValueError, "6.bias can be contracted in M"),
        ({"precision": "fp8"}, ValueError, "precision must be one of"),
        ({"tile": 0}, ValueError, "tile must be a positive whole number, got 0"),
        ({"params": "nowhere"}, ValueError, "no parameter or module named 'nowhere'"),
        ({"x1": torch.zeros(0, 2, 6, 6)}, ValueError, "x1 holds no samples"),
        ({"x2": torch.zeros(3, 6)}, ValueError, "x2 must have 4 dimensions like x1"),
        ({"x1": numpy.zeros((2, 2, 6, 6))}, TypeError, "x1 must be a tensor"),
        ({"x1": torch.full((4, 2, 6, 6), torch.nan)}, ValueError, "not finite"),
        ({"group": "world"}, RuntimeError, "init_process_group"),
        ({"out": "kernel.npy", "per_layer": True}, ValueError, "per_layer=True keeps"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)  # fmt: skip
def test_bad_input(settings, error, message):
    settings = {"x1": images(4, dtype=torch.float32)} | settings
    with pytest.raises(error, match=message):
        ntk(resnet(), **settings)


def test_models_that_cannot_be():
    x = images(3, dtype=torch.float32)
    with pytest.raises(ValueError, match="no parameter with requires_grad"):
        ntk(resnet().requires_grad_(False), x)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        ntk(lambda x: x, x)
    with pytest.raises(TypeError, match="float32 or float64, got torch\\.bfloat16"):
        ntk(resnet().bfloat16(), x)
    with pytest.raises(ValueError, match="needs a float32 model"):
        ntk(resnet().double(), x, precision="tf32")
    untracked = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten()
    )
    with pytest.raises(ValueError, match="track_running_stats=False"):
        ntk(untracked, x)
    mixed = resnet()
    mixed.extra = nn.Parameter(torch.zeros(2, device="meta"))
    with pytest.raises(ValueError, match=r"one device: 0\.weight is on cpu, extra on meta"):
        ntk(mixed, x)
    unused = mlp().double()
    unused.register_parameter("extra", nn.Parameter(torch.zeros(2, dtype=torch.float64)))
    result = ntk(unused, images(3))
    assert result.plan.unused == ("extra",)
    assert relative(result.tensor, dense(unused, images(3))) < 1e-12
