"""advfast.compat.foolbox by itself: radii, starts, repeats, hygiene. tests/parity compares it with foolbox."""

import pickle

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import advfast.compat.foolbox as fb
import advfast.compat.foolbox.attacks.gradient_descent_base as base
from advfast.compat.foolbox.attacks import L1PGD, L2PGD, LinfPGD
from advfast.compat.foolbox.criteria import TargetedMisclassification

from ..attacks.networks import batch, cnn, mlp, plain_pgd


def fmodel(net=None, bounds=(0, 1), **keywords):
    return fb.PyTorchModel(cnn() if net is None else net, bounds, "cpu", **keywords)


def test_the_readme_example_with_the_import_changed():
    images, labels = batch(16)
    attack = fb.attacks.LinfPGD()
    epsilons = [0.0, 0.001, 0.01, 0.03, 0.1, 0.3, 0.5, 1.0]
    raw, advs, success = attack(fmodel(), images, labels, epsilons=epsilons)
    assert len(raw) == len(advs) == 8 and success.shape == (8, 16) and success.dtype == torch.bool
    clean = fb.accuracy(fmodel(), images, labels)
    assert 1 - success[0].float().mean().item() == pytest.approx(clean)
    assert success.sum(1).tolist() == sorted(success.sum(1).tolist()) and success[-1].all()
    for eps, adv in zip(epsilons, advs, strict=True):
        assert (adv.double() - images.double()).abs().max() <= eps + 1e-7
        assert adv.min() >= 0 and adv.max() <= 1
    assert not any(x.requires_grad for x in (*raw, *advs, success))


@pytest.mark.parametrize("kind", [LinfPGD, L2PGD, L1PGD])
def test_a_list_is_what_single_calls_give(kind, monkeypatch):
    images, labels = batch(5)
    radii = {LinfPGD: [0.01, 0.0, 0.05], L2PGD: [0.3, 0.0, 1.5], L1PGD: [2.0, 0.0, 9.0]}[kind]
    attack = kind(steps=4, random_start=False, fold=False)
    single = [attack(fmodel(), images, labels, epsilons=radius) for radius in radii]
    several = attack(fmodel(), images, labels, epsilons=radii)
    for k in range(3):
        assert torch.equal(single[k][0], several[0][k])
        assert torch.equal(single[k][1], several[1][k])
        assert torch.equal(single[k][2], several[2][k])
    assert torch.equal(several[0][1], images)
    # All radii in one batch; 7 rows at a time, so that radii and inputs mix.
    for elements in (base.BATCH_ELEMENTS, 7 * 3 * 144):
        monkeypatch.setattr(base, "BATCH_ELEMENTS", elements)
        together = kind(steps=4, random_start=False)(fmodel(), images, labels, epsilons=radii)
        for k in range(3):
            assert ((together[0][k] - several[0][k]).abs() < 1e-5).float().mean() > 0.998
        assert torch.equal(together[2], several[2])


def test_radii_share_the_calls_of_the_model():
    images, labels = batch(4)
    sizes = []
    net = cnn()
    net.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    LinfPGD(steps=3)(fmodel(net), images, labels, epsilons=[0.0, 0.01, 0.02, 0.03])
    # 3 steps on 3 radii at once; then each radius is judged.
    assert sizes == [12] * 3 + [4] * 4
    sizes.clear()
    LinfPGD(steps=3, fold=False)(fmodel(net), images, labels, epsilons=[0.01, 0.02])
    assert sizes == [4] * 6 + [4] * 2


def test_batch_statistics_keep_radii_apart():
    images, labels = batch(8)
    net = cnn(dropout=0.0).train()
    with pytest.warns(UserWarning, match="train mode"):
        model = fmodel(net)
    attack = LinfPGD(steps=3, random_start=False)
    several = attack(model, images, labels, epsilons=[0.01, 0.1])
    alone = attack(model, images, labels, epsilons=0.1)
    assert torch.equal(several[0][1], alone[0])
    # In the mode it is in: batch statistics.
    attack.fold = False
    found, _, _ = attack(model, images, labels, epsilons=0.1)
    assert torch.equal(found, plain_pgd(net, images, labels, 0.1, 0.1 / 30, 3))
    assert not torch.equal(found, plain_pgd(net.eval(), images, labels, 0.1, 0.1 / 30, 3))


def test_result_is_pgd_by_hand():
    net, (images, labels) = cnn(), batch(16)
    attack = LinfPGD(rel_stepsize=0.25, steps=6, random_start=False, fold=False)
    expected = plain_pgd(net, images, labels, 0.03, 0.25 * 0.03, 6)
    raw, _, success = attack(fmodel(net), images, labels, epsilons=0.03)
    assert torch.equal(raw, expected)
    assert torch.equal(success, net(expected).argmax(1) != labels)
    attack = LinfPGD(rel_stepsize=0.25, abs_stepsize=0.02, steps=6, random_start=False, fold=False)
    expected = plain_pgd(net, images, labels, 0.03, 0.02, 6)
    assert torch.equal(attack.run(fmodel(net), images, labels, epsilon=0.03), expected)
    targets = TargetedMisclassification((labels + 1) % 10)
    expected = plain_pgd(net, images, targets.target_classes, 0.03, 0.02, 6, targeted=True)
    raw, _, success = attack(fmodel(net), images, targets, epsilons=0.03)
    assert torch.equal(raw, expected)
    assert torch.equal(success, net(expected).argmax(1) == targets.target_classes)
    attack.steps = 1
    raw, _, _ = attack(fmodel(net), images, labels, epsilons=0.03)
    assert torch.equal(raw, plain_pgd(net, images, labels, 0.03, 0.02, 1))


def test_seeds_govern_the_start():
    images, labels = batch(8)

    model = fmodel()

    def found(seed, fold):
        torch.manual_seed(seed)
        return LinfPGD(steps=0, fold=fold)(model, images, labels, epsilons=[0.1, 0.1])[0]

    first, again, other, separate = found(1, True), found(1, True), found(2, True), found(1, False)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], separate[1])
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[0], first[1])
    inside = (images > 0.1) & (images < 0.9)
    delta = (first[0] - images)[inside] / 0.1
    assert abs(delta.mean()) < 0.05 and abs(delta.var() - 1 / 3) < 0.03


@pytest.mark.parametrize("kind", [L2PGD, L1PGD])
def test_start_is_uniform_in_the_ball(kind):
    torch.manual_seed(0)
    dim = 5
    x = torch.zeros(20000, dim)
    start = kind().get_random_start(x, 2.0)
    p = 2 if kind is L2PGD else 1
    share = (torch.linalg.vector_norm(start, p, dim=1) / 2.0) ** dim  # uniform in [0, 1]
    assert share.max() <= 1 + 1e-5
    assert abs(share.mean() - 0.5) < 0.01 and abs(share.var() - 1 / 12) < 0.003
    assert start.mean(0).abs().max() < 0.03


def test_repeat_keeps_the_first_success():
    net, (images, _) = cnn(), batch(32)
    labels = net(images).argmax(1)
    attack = LinfPGD(steps=1, abs_stepsize=0.002)
    torch.manual_seed(0)
    runs = [attack(fmodel(net), images, labels, epsilons=[0.03, 0.06]) for _ in range(3)]
    torch.manual_seed(0)
    raw, clipped, success = attack.repeat(3)(fmodel(net), images, labels, epsilons=[0.03, 0.06])
    won = torch.stack([run[2] for run in runs])
    assert torch.equal(success, won.any(0)) and success.sum() > won[0].sum()
    which = won.long().argmax(0)  # 0 where none succeeded
    for k in range(2):
        for i in range(32):
            assert torch.equal(raw[k][i], runs[which[k, i]][0][k][i])
            assert torch.equal(clipped[k][i], runs[which[k, i]][1][k][i])
    assert attack.repeat(3).repeat(2).times == 6 and attack.repeat(2).distance is fb.distances.linf
    single = attack.repeat(2)(fmodel(net), images, labels, epsilons=0.03)
    assert single[0].shape == images.shape and single[2].shape == (32,)


RADII = {LinfPGD: 1.0, L2PGD: 3.0, L1PGD: 9.0}


@hypothesis.settings(hypothesis.settings.get_profile("quick"))
@hypothesis.given(
    kind=st.sampled_from([LinfPGD, L2PGD, L1PGD]),
    radii=st.lists(st.floats(0, 2), min_size=1, max_size=3),
    step=st.floats(0.01, 3),
    lower=st.floats(-3, 0),
    width=st.floats(0.1, 10),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    random_start=st.booleans(),
    fold=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_inside_the_ball_and_the_bounds(
    kind, radii, step, lower, width, dtype, random_start, fold, seed
):
    torch.manual_seed(seed)
    bounds = (lower, lower + width)
    x = (torch.rand(4, 20, dtype=torch.float64) * width + lower).to(dtype)
    x = torch.minimum(torch.maximum(x, _inner(bounds[0], dtype, up=True)), _inner(bounds[1], dtype))
    net = mlp().to(dtype)
    attack = kind(rel_stepsize=step, steps=3, random_start=random_start, fold=fold)
    radii = [radius * RADII[kind] for radius in radii]
    raw, clipped, _ = attack(fmodel(net, bounds), x, torch.arange(4), epsilons=radii)
    for k, radius in enumerate(radii):
        for found in (clipped[k], raw[k]):
            assert found.dtype == dtype and found.isfinite().all()
            delta = found.double() - x.double()
            size = torch.linalg.vector_norm(delta, attack.distance.p, dim=1).max().item()
            # The l1 attack adds and scales in the dtype of its inputs, as foolbox does.
            slack = torch.finfo(dtype).eps * 40 * width if kind is L1PGD else 1e-6 * width
            assert size <= radius * (1 + 1e-6) + slack
            assert found.double().min() >= lower - (slack if kind is L1PGD else 1e-6 * width)
            assert found.double().max() <= bounds[1] + (slack if kind is L1PGD else 1e-6 * width)


def _inner(bound, dtype, up=False):
    """The number of the dtype next to a bound, not beyond it."""
    value = torch.tensor(bound, dtype=torch.float64).to(dtype)
    beyond = value.double() < bound if up else value.double() > bound
    if beyond:
        value = value + (1 if up else -1) * max(abs(bound), 1e-3) * torch.finfo(dtype).eps
    return value.to(dtype)


# --- hygiene ---


@pytest.mark.parametrize("kind", [LinfPGD, L2PGD, L1PGD])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.filterwarnings("ignore:the model is in train mode")
def test_the_model_is_left_as_it_was(kind, training):
    images, labels = batch(6)
    net = cnn()
    net.train(training)
    net[1].train(not training)  # one part in the other mode
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [part.training for part in net.modules()]
    given = images.clone()
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            # Tensors made here: autograd cannot save those of inference mode.
            own = images.clone(), labels.clone()
            found = kind(steps=2)(fmodel(net), *own, epsilons=[0.1, 0.2])
        assert not found[0][0].requires_grad
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [part.training for part in net.modules()] == modes
    assert (net[0].weight.grad == 1).all() and net[3].training is training
    assert all(p.grad is None for p in list(net.parameters())[1:])
    assert torch.equal(images, given)


def test_dropout_in_train_mode_stays_random():
    # Monte-Carlo dropout: a model in eval mode with one layer in train mode.
    images, labels = batch(8)
    net = cnn(dropout=0.5)
    net[3].train()
    attack = LinfPGD(steps=2, random_start=False)
    raw = [attack(fmodel(net), images, labels, epsilons=0.05)[0] for _ in range(2)]
    assert not torch.equal(*raw)


def test_raw_and_clipped_do_not_share_memory():
    images, labels = batch(4)
    for kind in (LinfPGD, L1PGD):
        raw, clipped, _ = kind(steps=1)(fmodel(), images, labels, epsilons=[0.0, 0.1])
        kept = [x.clone() for x in raw]
        for x in clipped:
            x.zero_()
        assert all(torch.equal(a, b) for a, b in zip(raw, kept, strict=True))
        assert not torch.equal(images, clipped[0])
        raw, _, _ = kind(steps=0, random_start=False)(fmodel(), images, labels, epsilons=0.1)
        assert torch.equal(raw, images) and raw.data_ptr() != images.data_ptr()


def test_channels_last_and_pickling():
    images, labels = batch(4)
    images = images.to(memory_format=torch.channels_last)
    for epsilons in (0.1, [0.1, 0.2]):
        raw, _, _ = LinfPGD(steps=2)(fmodel(), images, labels, epsilons=epsilons)
        for x in raw if isinstance(raw, list) else [raw]:
            assert x.is_contiguous(memory_format=torch.channels_last)
    attack = LinfPGD(steps=7, fold=False)
    assert vars(pickle.loads(pickle.dumps(attack))) == vars(attack)
    assert "steps=7" in repr(attack) and repr(attack).startswith("LinfProjected")


def test_an_empty_batch():
    images, labels = batch(4)
    for kind in (LinfPGD, L2PGD):
        raw, _, success = kind(steps=2)(fmodel(), images[:0], labels[:0], epsilons=[0.1, 0.2])
        assert raw[1].shape == (0, 3, 12, 12) and success.shape == (2, 0)


@pytest.mark.parametrize(
    ("name", "relative", "steps", "random_start"),
    [
        ("LinfProjectedGradientDescentAttack", 1 / 30, 40, True),
        ("L2ProjectedGradientDescentAttack", 1 / 40, 50, True),
        ("L1ProjectedGradientDescentAttack", 1 / 40, 50, True),
        ("LinfBasicIterativeAttack", 1 / 5, 10, False),
        ("L2BasicIterativeAttack", 1 / 5, 10, False),
        ("L1BasicIterativeAttack", 1 / 5, 10, False),
        ("LinfFastGradientAttack", 1.0, 1, False),
        ("L2FastGradientAttack", 1.0, 1, False),
        ("L1FastGradientAttack", 1.0, 1, False),
    ],
)
def test_defaults_are_those_of_foolbox(name, relative, steps, random_start):
    attack = getattr(fb.attacks, name)()
    assert attack.rel_stepsize == pytest.approx(relative)
    assert attack.abs_stepsize is None
    assert (attack.steps, attack.random_start) == (steps, random_start)
