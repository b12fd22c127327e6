"""What a replacement for another library's attack must do; peers fail at most of these."""

import copy
import pickle

import pytest
import torch
from torch import nn

from advfast import PGDAttack

from .networks import batch, cnn, mlp, plain_pgd

EPS, ALPHA = 8 / 255, 2 / 255


def snapshot(model: nn.Module) -> dict:
    return {
        "modes": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "hooks": [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()],
        "identity": [id(p) for p in (*model.parameters(), *model.buffers())],
    }


def assert_untouched(model: nn.Module, before: dict) -> None:
    after = snapshot(model)
    for key in ("modes", "requires_grad", "hooks", "identity"):
        assert after[key] == before[key], key
    for a, b in zip(after["grads"], before["grads"], strict=True):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))
    for key, value in before["state"].items():
        assert torch.equal(after["state"][key], value), key


def prepared(mode: str) -> nn.Sequential:
    """A model in train or eval mode, or in train mode with a frozen BN; with a gradient and a frozen parameter."""
    model = cnn()
    model.train(mode != "eval")
    if mode == "frozen":
        model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[4].bias.requires_grad_(False)
    return model


@pytest.mark.parametrize("bn", ["eval", "train"])
@pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
def test_model_is_left_as_found(mode, bn):
    model, (images, labels) = prepared(mode), batch()
    before = snapshot(model)
    result = PGDAttack(model, bn=bn, restarts=2)(images, labels)
    assert_untouched(model, before)
    assert not result.requires_grad and result.is_leaf


@pytest.mark.parametrize("mode", ["train", "frozen"])
def test_model_is_left_as_found_when_the_attack_raises(mode):
    model, (images, labels) = prepared(mode), batch()
    calls = []

    def fails_late(logits, y):
        calls.append(1)
        if len(calls) == 3:
            raise KeyError("late")
        return nn.functional.cross_entropy(logits, y)

    for bn in ("eval", "train"):
        calls.clear()
        before = snapshot(model)
        with pytest.raises(KeyError, match="late"):
            PGDAttack(model, loss=fails_late, bn=bn)(images, labels)
        assert_untouched(model, before)


def test_eval_crafting_ignores_dropout_and_batch_statistics():
    model, (images, labels) = cnn(), batch()
    expected = plain_pgd(model, images, labels, EPS, ALPHA, 5)
    model.train()
    attack = PGDAttack(model, EPS, ALPHA, 5, False)
    assert torch.equal(attack(images, labels), expected) and model.training


def test_bn_train_uses_batch_statistics_and_only_train_update_moves_them():
    images, labels = batch()
    crafted = {}
    for bn in ("eval", "train", "train-update"):
        model = cnn(dropout=0.0)
        model.train()
        before = snapshot(model)
        crafted[bn] = PGDAttack(model, EPS, ALPHA, 5, False, bn=bn)(images, labels)
        if bn == "train-update":
            running = model[1].running_mean
            assert not torch.equal(running, before["state"]["1.running_mean"])
            assert model[1].num_batches_tracked == before["state"]["1.num_batches_tracked"] + 5
            assert snapshot(model)["modes"] == before["modes"]
        else:
            assert_untouched(model, before)
    assert torch.equal(crafted["train"], crafted["train-update"])
    assert not torch.equal(crafted["train"], crafted["eval"])
    # Batch statistics: the hand-written loop with the model in train mode.
    model = cnn(dropout=0.0).train()
    assert torch.equal(crafted["train"], plain_pgd(model, images, labels, EPS, ALPHA, 5))


def test_a_frozen_bn_stays_frozen_in_train_crafting():
    model, (images, labels) = cnn(dropout=0.0), batch()
    model.train()
    model[1].eval()
    expected = plain_pgd(copy.deepcopy(model), images, labels, EPS, ALPHA, 3)
    assert torch.equal(PGDAttack(model, EPS, ALPHA, 3, False, bn="train")(images, labels), expected)


def test_an_attack_inside_a_training_step_changes_no_weight_gradient():
    """foolbox with the released eagerpy, ART and cleverhans add the attack's gradients to .grad."""
    images, labels = batch()
    gradients = []
    for attacked in (False, True):
        model = cnn(dropout=0.0).train()
        loss = nn.functional.cross_entropy(model(images), labels)
        if attacked:
            PGDAttack(model)(images, labels)
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_works_in_any_grad_mode(context):
    model, (images, labels) = cnn(), batch()
    expected = PGDAttack(model, EPS, ALPHA, 5, False)(images, labels)
    with context():
        got = PGDAttack(model, EPS, ALPHA, 5, False)(images, labels)
        assert torch.equal(got, expected)
        # What was made in inference mode is taken too.
        made_here = PGDAttack(model, EPS, ALPHA, 5, False)(images.clone(), labels.clone())
        assert torch.equal(made_here, expected)
    assert not got.is_inference()


@pytest.mark.parametrize("fold", [True, False])
def test_an_outer_autocast_does_not_reach_the_attack(fold):
    model, (images, labels) = cnn(), batch()
    expected = PGDAttack(model, EPS, ALPHA, 5, False, fold=fold)(images, labels)
    with torch.autocast("cpu", torch.bfloat16):
        got = PGDAttack(model, EPS, ALPHA, 5, False, fold=fold)(images, labels)
    assert torch.equal(got, expected) and got.dtype == torch.float32


SIXTEEN = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("images_dtype", [torch.float64, torch.float32, *SIXTEEN], ids=str)
@pytest.mark.parametrize("model_dtype", [torch.float64, torch.float32, *SIXTEEN], ids=str)
def test_dtypes_of_model_and_images(model_dtype, images_dtype, norm):
    """Peers fail for some, and leave the ball (8.47/255 for 8/255 in bfloat16) for others."""
    model, (images, labels) = cnn(dropout=0.0).to(model_dtype), batch()
    images = images.to(images_dtype)
    eps = {"linf": EPS, "l2": 0.5, "l1": 6.0}[norm]
    result = PGDAttack(model, eps, eps / 4, 5, norm=norm, seed=1)(images, labels)
    assert result.dtype == images_dtype and result.shape == images.shape
    assert next(model.parameters()).dtype == model_dtype
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    delta = (result.double() - images.double()).flatten(1)
    sizes = torch.linalg.vector_norm(delta, order, dim=1)
    limit = eps * (1 + 1e-6) if norm != "linf" else torch.tensor(eps).item() * (1 + 1e-6)
    assert sizes.max() <= limit and sizes.max() > 0.8 * eps
    assert result.min() >= 0 and result.max() <= 1
    with torch.no_grad():
        wide = copy.deepcopy(model).double()
        loss = nn.functional.cross_entropy
        assert loss(wide(result.double()), labels) > loss(wide(images.double()), labels) + 0.03


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_channels_last_is_kept(norm):
    model, (images, labels) = cnn(), batch()
    settings = {
        "eps": EPS if norm == "linf" else 0.5,
        "alpha": None,
        "norm": norm,
        "random_start": False,
    }
    expected = PGDAttack(model, steps=3, **settings)(images, labels)
    for net in (model, copy.deepcopy(model).to(memory_format=torch.channels_last)):
        for layout in (torch.channels_last, torch.contiguous_format):
            given = images.contiguous(memory_format=layout)
            got = PGDAttack(net, steps=3, **settings)(given, labels)
            assert got.stride() == given.stride()
            # A convolution in another layout sums in another order.
            assert (got - expected).abs().mean() < 1e-3 * settings["eps"]


def test_other_strides_are_kept():
    model, (images, labels) = cnn(), batch()
    turned = images.transpose(2, 3).contiguous().transpose(2, 3)
    attack = PGDAttack(model, EPS, ALPHA, 3, False)
    got = attack(turned, labels)
    assert got.stride() == turned.stride() and torch.equal(got, attack(images, labels))
    assert torch.equal(attack(images.expand(2, 16, 3, 12, 12)[0], labels), got)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("shape", [(6, 20), (6, 4, 5), (6, 1, 2, 2, 5)], ids=str)
def test_inputs_of_any_rank(shape, norm):
    net = mlp()

    def model(x):
        return net(x.flatten(1))

    images = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(6) % 4
    result = PGDAttack(model, 0.1, 0.05, 5, norm=norm)(images, labels)
    assert result.shape == shape
    expected = PGDAttack(net, 0.1, 0.05, 5, False, norm=norm)(images.reshape(6, 20), labels)
    got = PGDAttack(model, 0.1, 0.05, 5, False, norm=norm)(images, labels)
    assert torch.equal(got.reshape(6, 20), expected)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_sample_without_gradient_stays(norm):
    """ARES returns NaN here."""

    def model(x):
        z = x.flatten(1).sum(1)
        return torch.stack((z * torch.tensor([0.0, 1.0, 0.0]), z * 0), 1)

    images = torch.rand(3, 5)
    result = PGDAttack(model, 0.1, 0.1, 2, False, norm=norm)(
        images, torch.zeros(3, dtype=torch.long)
    )
    assert torch.equal(result[[0, 2]], images[[0, 2]]) and (result[1] != images[1]).any()


def test_the_input_tensor_is_never_written():
    model, (images, labels) = cnn(), batch()
    before, version = images.clone(), images._version
    images.requires_grad_()
    PGDAttack(model)(images, labels)
    assert torch.equal(images, before) and images._version == version and images.grad is None


def test_labels_of_any_integer_dtype():
    model, (images, labels) = cnn(), batch()
    attack = PGDAttack(model, EPS, ALPHA, 3, False)
    expected = attack(images, labels)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(attack(images, labels.to(dtype)), expected)


def test_any_callable_is_a_model():
    net, (images, labels) = cnn(), batch()
    attack = PGDAttack(lambda x: net(x), EPS, ALPHA, 3, False)
    assert torch.equal(attack(images, labels), PGDAttack(net, EPS, ALPHA, 3, False)(images, labels))


def test_attack_can_be_copied_and_pickled():
    model, (images, labels) = cnn(), batch()
    attack = PGDAttack(model, 0.1, seed=4)
    expected = attack(images, labels)
    for twin in (copy.deepcopy(attack), pickle.loads(pickle.dumps(attack))):
        assert torch.equal(twin(images, labels), expected)


def test_a_model_wrapped_for_data_parallel_works():
    model, (images, labels) = cnn(), batch()
    wrapped = nn.DataParallel(model)
    before = snapshot(model)
    got = PGDAttack(wrapped, EPS, ALPHA, 3, False)(images, labels)
    assert torch.equal(got, PGDAttack(model, EPS, ALPHA, 3, False)(images, labels))
    assert_untouched(model, before)


def test_exactly_one_forward_a_step():
    model, (images, labels) = cnn(), batch()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    PGDAttack(model, steps=10)(images, labels)
    assert len(calls) == 10
    calls.clear()
    PGDAttack(model, steps=10, restarts=3)(images, labels)
    assert len(calls) == 11  # the runs are one batch; and one to compare the final iterates
    calls.clear()
    PGDAttack(model, steps=10, restarts=3, fold=False)(images, labels)
    assert len(calls) == 33
