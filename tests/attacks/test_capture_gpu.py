"""Attacks as CUDA graphs: the bits of an eager attack, one launch, and what a replay must not have kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advfast import PGDAttack
from advfast.attacks.capture import forget_graphs

from . import networks
from .test_capture import CASES

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _same_bits_each_time():
    torch.use_deterministic_algorithms(True, warn_only=True)
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark
    forget_graphs()


def batch(n=16):
    return torch.rand(n, 3, 12, 12, device="cuda").clamp(0.2), torch.randint(
        10, (n,), device="cuda"
    )


def graph_launches(run):
    with torch.profiler.profile() as profile:
        run()
        torch.cuda.synchronize()
    return sum(event.name == "cudaGraphLaunch" for event in profile.events())


@pytest.mark.parametrize("name", CASES)
def test_a_replay_gives_the_bits_of_the_eager_attack(name):
    settings = {"eps": 0.1, "alpha": 0.03, "steps": 4, "seed": 7} | CASES[name]
    eager, graphed = networks.cnn().cuda(), networks.cnn().cuda()
    a = PGDAttack(eager, **settings, capture="off")
    b = PGDAttack(graphed, **settings, capture="required")
    for turn in range(3):
        images, labels = batch(8)
        a.eps = b.eps = settings["eps"] * (1 + turn / 2)
        for net in (eager, graphed):
            net.train("bn" in settings)
            with torch.no_grad():
                net[0].weight.mul_(1.5 if turn else 1)
        results = []
        for attack in (a, b):
            torch.cuda.manual_seed(turn)
            results.append(attack(images, labels))
        assert torch.equal(*results)
        assert a.nonfinite == b.nonfinite == 0
        assert all(map(torch.equal, eager.buffers(), graphed.buffers()))


@pytest.mark.parametrize("steps", [1, 10, 40])
def test_all_steps_are_one_launch(steps):
    attack = PGDAttack(networks.cnn().cuda(), steps=steps, capture="required", check=False)
    images, labels = batch()
    attack(images, labels)
    before = attack.launches
    assert graph_launches(lambda: attack(images, labels)) == 1
    assert attack.launches == before + 1


def test_a_replay_does_not_wait_for_the_device():
    attack = PGDAttack(networks.cnn().cuda(), capture="required", check=False)
    images, labels = batch()
    attack(images, labels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        attack(images, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_ramps_and_new_weights_need_no_capture_and_are_seen():
    net = networks.cnn().cuda()
    attack = PGDAttack(net, capture="required", seed=1)
    eager = PGDAttack(net, capture="off", seed=1)
    images, labels = batch()
    attack(images, labels)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for eps in torch.linspace(0.01, 0.1, 5).tolist():
        attack.eps = eager.eps = eps
        attack.alpha = eager.alpha = eps / 4
        result = attack(images, labels)
        assert torch.equal(result, eager(images, labels))
        assert (result - images).abs().max() > 0.9 * eps
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(result), labels).backward()
        optimiser.step()
    assert attack.launches == 6
    optimiser.zero_grad()
    del optimiser, result
    assert torch.cuda.memory_allocated() <= before + (4 << 20)


def test_other_batches_and_labels_leave_nothing_behind():
    net = networks.cnn().cuda()
    attack = PGDAttack(net, capture="required", seed=1)
    eager = PGDAttack(net, capture="off", seed=1)
    for _ in range(4):
        images, labels = batch()
        result = attack(images, labels)
        kept = result.clone()
        other = attack(*batch())
        assert torch.equal(result, kept) and not torch.equal(result, other)
        assert torch.equal(result, eager(images, labels))
    ids = torch.arange(100, 116, device="cuda")
    assert torch.equal(
        attack(images, labels, sample_ids=ids), eager(images, labels, sample_ids=ids)
    )


def test_starts_differ_between_replays_and_follow_the_seed():
    images, labels = batch()
    attack = PGDAttack(networks.cnn().cuda(), capture="required", steps=1, alpha=1e-6)
    first, second = attack(images, labels), attack(images, labels)
    assert not torch.equal(first, second)
    attack.seed = 3
    third = attack(images, labels)
    assert torch.equal(third, attack(images, labels))
    attack.seed = 4
    assert not torch.equal(third, attack(images, labels))


def test_a_loss_that_waits():
    def loss(logits, labels):
        return nn.functional.cross_entropy(logits, labels) * float(logits.abs().max() > 0)

    images, labels = batch()
    attack = PGDAttack(networks.cnn().cuda(), loss=loss, steps=2, seed=1)
    first = attack(images, labels)
    assert torch.equal(attack(images, labels), first)
    assert attack.launches == 0 and "synchroniz" in attack.capture_note
    attack.capture = "required"
    with pytest.raises(RuntimeError, match=r"capture='required'.*synchroniz"):
        attack(images, labels)
    torch.rand(3, device="cuda")
    PGDAttack(attack.model, capture="required")(images, labels)


def test_inside_a_graph_of_the_user():
    attack = PGDAttack(
        networks.cnn().cuda(), capture="required", check=False, early_stop=True, seed=1
    )
    images, labels = batch()
    expected = attack(images, labels)
    launches = attack.launches
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = attack(images, labels)
    assert attack.launches == launches
    other, other_labels = batch()
    for x, y in ((other, other_labels), (images.clone(), labels.clone())):
        images.copy_(x)
        labels.copy_(y)
        graph.replay()
        assert torch.equal(result, attack(images, labels))
    assert torch.equal(result, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_in_either_layout(layout):
    net = networks.cnn().cuda().to(memory_format=layout)
    images, labels = batch()
    images = images.contiguous(memory_format=layout)
    result = PGDAttack(net, capture="required", seed=1)(images, labels)
    assert torch.equal(result, PGDAttack(net, capture="off", seed=1)(images, labels))
    assert result.is_contiguous(memory_format=layout)
