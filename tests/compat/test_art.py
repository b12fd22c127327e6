"""advfast.compat.art: arrays in and out, parameters and their errors, masks, labels, boxes, restarts."""

import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from advfast import PGDAttack
from advfast.compat import art
from advfast.compat.art.attacks.evasion import ProjectedGradientDescent
from advfast.compat.art.estimators.classification import PyTorchClassifier

from ..attacks.networks import batch, cnn, mlp

EPS, STEP = 0.1, 0.03


def classifier(model=None, loss=None, shape=(3, 12, 12), classes=10, **keywords):
    keywords = {"clip_values": (0.0, 1.0), "device_type": "cpu", **keywords}
    return PyTorchClassifier(
        model or cnn(), loss or nn.CrossEntropyLoss(), shape, classes, **keywords
    )


def data(n=12):
    images, labels = batch(n)
    return images.numpy(), labels.numpy()


def pgd(estimator=None, **keywords):
    keywords = {"eps": EPS, "eps_step": STEP, "max_iter": 5, "verbose": False, **keywords}
    return ProjectedGradientDescent(estimator or classifier(), **keywords)


def test_result_is_that_of_the_engine():
    x, y = data()
    made = pgd(fold=False).generate(x, y)
    expected = PGDAttack(cnn(), EPS, STEP, 5, False, fold=False, l2_order="box-ball-box")(
        torch.from_numpy(x), torch.from_numpy(y)
    )
    assert made.dtype == np.float32 and made.shape == x.shape
    assert np.array_equal(made, expected.numpy())


@pytest.mark.parametrize("norm", [np.inf, "inf", 2, 1, 3])
def test_ball_box_and_success(norm):
    x, y = data(20)
    eps = {np.inf: 0.1, "inf": 0.1, 2: 1.0, 1: 4.0, 3: 0.6}[norm]
    estimator = classifier()
    made = pgd(estimator, norm=norm, eps=eps, eps_step=eps / 3, max_iter=8).generate(x, y)
    order = np.inf if norm == "inf" else norm
    sizes = np.linalg.norm((made.astype(np.float64) - x).reshape(len(x), -1), order, axis=1)
    assert sizes.max() <= eps * (1 + 1e-5)
    assert norm == 1 or sizes.min() > 0.9 * eps  # one pixel a step, and the box stops it
    assert made.min() >= 0 and made.max() <= 1 + 1e-6
    before = estimator.compute_loss(x, y)
    assert (estimator.compute_loss(made, y) > before).all()


@pytest.mark.parametrize("size", [1, 5, 32])
def test_batch_size_does_not_change_the_result(size):
    x, y = data()
    whole = pgd(batch_size=12, fold=False).generate(x, y)
    assert np.abs(pgd(batch_size=size, fold=False).generate(x, y) - whole).max() < 1e-6
    results = []
    for pieces in (size, 12):
        np.random.seed(5)
        attack = pgd(batch_size=pieces, num_random_init=1, max_iter=1, eps_step=1e-9)
        results.append(attack.generate(x, y))
    assert np.abs(results[0] - results[1]).max() < 1e-6  # starts by sample number


def test_labels_as_indices_one_hot_and_columns():
    x, y = data()
    expected = pgd().generate(x, y)
    for form in (np.eye(10)[y], np.eye(10, dtype=np.int64)[y], y[:, None], y.astype(np.float32)):
        assert np.array_equal(pgd().generate(x, form), expected)
    assert not np.array_equal(pgd().generate(x, (y + 1) % 10), expected)


def test_soft_labels_are_used_as_probabilities():
    x, y = data()
    hard, other = np.eye(10)[y], np.eye(10)[(y + 1) % 10]
    soft = (0.6 * hard + 0.4 * other).astype(np.float32)
    made = pgd().generate(x, soft)
    assert not np.array_equal(made, pgd().generate(x, y))

    def loss(logits, _):
        return F.cross_entropy(logits, torch.from_numpy(soft), reduction="none")

    expected = PGDAttack(cnn(), EPS, STEP, 5, False, loss=loss)(
        torch.from_numpy(x), torch.from_numpy(y)
    )
    assert np.abs(made - expected.numpy()).max() < 1e-6


def test_without_labels_the_predictions_count():
    x, _ = data()
    estimator = classifier()
    predicted = estimator.predict(x).argmax(1)
    for norm in (np.inf, 1):
        attack = pgd(estimator, norm=norm)
        assert np.array_equal(attack.generate(x), attack.generate(x, predicted))


def test_targeted_reaches_the_class():
    x, y = data()
    estimator, goal = classifier(), (y + 3) % 10
    attack = pgd(estimator, targeted=True, eps=0.5, eps_step=0.1, max_iter=20)
    assert (estimator.predict(attack.generate(x, goal)).argmax(1) == goal).mean() > 0.8
    attack.set_params(targeted=False)
    assert (estimator.predict(attack.generate(x, goal)).argmax(1) == goal).mean() < 0.2


@pytest.mark.parametrize("starts", [0, 2])
@pytest.mark.parametrize("norm", [np.inf, 2, 1])
@pytest.mark.parametrize("decay", [None, 0.9])
def test_mask_keeps_what_it_covers(norm, decay, starts):
    x, y = data()
    rng = np.random.default_rng(0)
    for shape in (x.shape, (1, 3, 12, 12), (3, 12, 12), (12, 12), (len(x), 1, 1, 1)):
        mask = (rng.random(shape) < 0.5).astype(np.float32)
        made = pgd(norm=norm, decay=decay, num_random_init=starts).generate(x, y, mask=mask)
        covered = np.broadcast_to(mask, x.shape) == 0
        assert np.array_equal(made[covered], x[covered])
        assert (made[~covered] != x[~covered]).mean() > (0.001 if norm == 1 else 0.5)
    everything = np.ones((12, 12), bool)
    np.random.seed(1)
    with_mask = pgd(norm=norm, decay=decay, num_random_init=starts).generate(x, y, mask=everything)
    np.random.seed(1)
    without = pgd(norm=norm, decay=decay, num_random_init=starts).generate(x, y)
    assert np.mean(np.abs(with_mask - without) > 1e-5) < 0.01


def test_eps_of_each_feature_and_of_each_sample():
    x, y = data()
    for shape in ((12, 12), (3, 12, 12), (1, 3, 1, 1), x.shape, (len(x), 1, 1, 1)):
        eps = np.random.default_rng(1).uniform(0.01, 0.2, shape)
        made = pgd(eps=eps, eps_step=eps / 3, batch_size=5).generate(x, y)
        share = np.abs(made.astype(np.float64) - x) / eps
        assert share.max() < 1 + 1e-5 and np.median(share) > 0.9
    one = np.full((len(x), 1, 1, 1), 1.0)
    one[3] = 0.25
    made = pgd(norm=2, eps=one, eps_step=one / 3, batch_size=5).generate(x, y)
    sizes = np.linalg.norm((made - x).reshape(len(x), -1), axis=1)
    assert sizes == pytest.approx(one.ravel(), rel=1e-4)
    with pytest.raises(NotImplementedError, match="one value a sample"):
        varied = np.random.default_rng(1).uniform(0.1, 0.2, (12, 12))
        pgd(norm=2, eps=varied, eps_step=varied).generate(x, y)


def test_boxes():
    x, y = data()
    for values in (None, (0.0, 1.0), (np.zeros((3, 1, 1)), np.ones((3, 1, 1)))):
        made = pgd(classifier(clip_values=values), eps=0.5).generate(x, y)
        assert (made.min() >= 0 and made.max() <= 1) == (values is not None)
    low = x.min(0) - 0.02
    per_feature = classifier(clip_values=(low, x.max(0) + 0.02))
    made = pgd(per_feature, eps=0.5, fold=False).generate(x, y)
    assert (made >= low - 1e-6).all() and np.abs(made - x).max() > 0.14
    # The same steps as the fused path takes: with a box that is really one number a channel.
    wide = (np.zeros((3, 12, 12), np.float32), np.ones((3, 12, 12), np.float32))
    wide[1][0, 0, 0] = 1.0 + 1e-3
    inside = x.copy()
    inside[:, 0, 0, 0] = 0.5
    own = pgd(classifier(clip_values=wide), fold=False).generate(inside, y)
    fused = pgd(fold=False).generate(inside, y)
    assert np.abs(own - fused).max() < 1e-6
    with pytest.raises(ValueError, match="clip_values of shape"):
        pgd(classifier(clip_values=(np.zeros(5), np.ones(5)))).generate(x, y)
    with pytest.raises(ValueError, match="bounds"):
        pgd().generate(x * 2, y)


def test_preprocessing_is_part_of_the_network():
    x, y = data()
    mean, std = np.array([0.3, 0.4, 0.5]), np.array([0.5, 0.25, 0.125])
    shaped = [torch.from_numpy(v).float().reshape(1, 3, 1, 1) for v in (mean, std)]
    expected = PGDAttack(lambda v: cnn()((v - shaped[0]) / shaped[1]), EPS, STEP, 5, False)(
        torch.from_numpy(x), torch.from_numpy(y)
    )
    for pair in ((mean, std), (mean.reshape(3, 1, 1), std.reshape(3, 1, 1))):
        estimator = classifier(preprocessing=pair)
        assert np.abs(pgd(estimator).generate(x, y) - expected.numpy()).max() < 1e-6
        wanted = cnn()((torch.from_numpy(x) - shaped[0]) / shaped[1]).detach().numpy()
        assert np.abs(estimator.predict(x) - wanted).max() < 1e-5
    with pytest.raises(ValueError, match="do not fit"):
        classifier(preprocessing=(np.full(5, 0.5), np.ones(5)))


def test_tables_of_numbers():
    rng = np.random.default_rng(0)
    x, y = rng.random((16, 20), np.float32), rng.integers(4, size=16)
    for keywords in ({}, {"preprocessing": (0.5, 0.5)}, {"preprocessing": (x.mean(0), x.std(0))}):
        estimator = classifier(mlp(), shape=(20,), classes=4, **keywords)
        made = pgd(estimator, norm=2, eps=0.5, eps_step=0.2).generate(x, y)
        assert (estimator.compute_loss(made, y) > estimator.compute_loss(x, y)).all()
    # A box for each column.
    box = (x.min(0) - 0.01, x.max(0) + 0.01)
    made = pgd(classifier(mlp(), shape=(20,), classes=4, clip_values=box)).generate(x, y)
    assert (made >= box[0] - 1e-6).all() and (made <= box[1] + 1e-6).all()


def test_restarts_follow_numpy_and_help():
    x, y = data(20)
    estimator = classifier()

    def losses(starts, seed=0, norm=np.inf):
        np.random.seed(seed)
        attack = pgd(estimator, num_random_init=starts, max_iter=1, norm=norm)
        return attack.generate(x, y)

    for norm in (np.inf, 1):
        assert np.array_equal(losses(1, 0, norm), losses(1, 0, norm))
        assert not np.array_equal(losses(1, 0, norm), losses(1, 1, norm))
    # What is right in the beginning, so that a restart that succeeds is what decides.
    y = estimator.predict(x).argmax(1)
    for norm, eps in ((np.inf, 0.05), (1, 30.0)):
        wrong = []
        for starts in (1, 8):
            np.random.seed(0)
            attack = pgd(
                estimator, norm=norm, eps=eps, eps_step=eps / 10, num_random_init=starts, max_iter=1
            )
            wrong.append((estimator.predict(attack.generate(x, y)).argmax(1) != y).sum())
        assert wrong[1] > wrong[0]
    with pytest.raises(NotImplementedError, match="random starts"):
        losses(1, 0, 3)


def test_random_eps_draws_anew_and_keeps_the_setting():
    x, y = data()
    attack = pgd(random_eps=True, max_iter=10)
    sizes = []
    for seed in (0, 0, 1, 2):
        np.random.seed(seed)
        sizes.append(float(np.abs(attack.generate(x, y) - x).max()))
    assert sizes[0] == sizes[1] and len(set(sizes)) == 3
    assert all(0 < size <= EPS for size in sizes) and attack.eps == EPS


def test_other_losses():
    x, y = data()
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    weight = torch.linspace(0.1, 2.0, 10)

    def squares(logits, rows):
        assert rows.shape == (12, 10)
        return ((logits.softmax(1) - rows) ** 2).mean()

    cases = [
        (nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1), None),
        (nn.MultiMarginLoss(), None),
        (squares, lambda z, t: ((z.softmax(1) - F.one_hot(t, 10)) ** 2).mean(1)),
        (nn.MSELoss(), lambda z, t: ((z - F.one_hot(t, 10)) ** 2).mean(1)),
    ]
    for loss, by_hand in cases:
        own = by_hand or (lambda z, t, loss=loss: loss(z, t))
        expected = PGDAttack(cnn(), EPS, STEP, 5, False, loss=own)(images, labels)
        made = pgd(classifier(loss=loss)).generate(x, y)
        assert np.mean(made != expected.numpy()) < 0.01
        assert pgd(classifier(loss=loss), norm=1).generate(x, y).shape == x.shape
    assert all(loss.reduction == "mean" for loss, _ in cases if isinstance(loss, nn.Module))
    # Restarts need the loss of each sample.
    made = pgd(classifier(loss=nn.MultiMarginLoss()), num_random_init=2).generate(x, y)
    assert made.shape == x.shape
    # With one class a sample a class weight only scales its gradient; with probabilities it counts.
    soft = np.random.default_rng(0).dirichlet(np.ones(10), len(y)).astype(np.float32)
    weighted = pgd(classifier(loss=nn.CrossEntropyLoss(weight=weight))).generate(x, soft)
    assert np.mean(weighted != pgd().generate(x, soft)) > 0.05
    with pytest.raises(NotImplementedError, match="one logit a class"):
        pgd(classifier(loss=nn.BCEWithLogitsLoss()))


def test_presets():
    x, y = data()
    estimator = classifier()
    quick = art.FastGradientMethod(estimator, eps=EPS).generate(x, y)
    assert np.array_equal(quick, pgd(estimator, eps_step=EPS, max_iter=1).generate(x, y))
    assert np.array_equal(art.FastGradientMethod(estimator, eps=0).generate(x, y), x)
    basic = art.BasicIterativeMethod(estimator, EPS, STEP, 5, verbose=False).generate(x, y)
    assert np.array_equal(basic, pgd(estimator).generate(x, y))
    momentum = art.MomentumIterativeMethod(
        estimator, np.inf, EPS, STEP, 0.8, 5, verbose=False
    ).generate(x, y)
    assert np.array_equal(momentum, pgd(estimator, decay=0.8).generate(x, y))
    assert not np.array_equal(momentum, basic)
    with pytest.raises(NotImplementedError, match="minimal"):
        art.FastGradientMethod(estimator, minimal=True)


def test_nothing_to_do():
    x, y = data()
    assert np.array_equal(pgd(max_iter=0, num_random_init=1).generate(x, y), x)
    assert pgd().generate(x[:0], y[:0]).shape == (0, 3, 12, 12)
    whole = pgd().generate((x * 255).astype(np.uint8) // 255, y)
    assert whole.dtype == np.float32


def test_bf16_network_and_where_it_is_not_built():
    x, y = data()
    made = pgd(precision="bf16").generate(x, y)
    assert np.abs(made - x).max() <= EPS * (1 + 1e-6)
    assert np.mean(np.abs(made - pgd().generate(x, y)) < 0.01) > 0.8
    with pytest.raises(ValueError, match="precision"):
        pgd(precision="bf16", norm=1).generate(x, y)
    with pytest.raises(ValueError, match="precision"):
        pgd(precision="half")


def test_model_is_left_as_it_was():
    x, y = data()
    model = cnn().train()
    model[1].eval()
    model.weight_grad = model[0].weight.grad = torch.ones_like(model[0].weight)
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    estimator = classifier(model, preprocessing=(0.5, 2.0))
    for norm in (np.inf, 1):
        pgd(estimator, norm=norm, num_random_init=2).generate(x, y)
    estimator.predict(x)
    estimator.loss_gradient(x, y)
    estimator.class_gradient(x)
    estimator.compute_loss(x, y)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(context):
    x, y = data()
    for norm in (np.inf, 1):
        attack = pgd(norm=norm)
        expected = attack.generate(x, y)
        with context():
            assert np.array_equal(attack.generate(x, y), expected)


def test_parameters_change_between_calls():
    x, y = data()
    attack = pgd()
    attack.generate(x, y)
    attack.set_params(eps=0.02, max_iter=3, norm=2)
    assert np.array_equal(attack.generate(x, y), pgd(eps=0.02, max_iter=3, norm=2).generate(x, y))
    attack.eps = 0.05  # as an attribute too
    assert np.array_equal(attack.generate(x, y), pgd(eps=0.05, max_iter=3, norm=2).generate(x, y))
    assert "eps=0.05" in repr(attack) and attack.estimator is attack._estimator
    again = pickle.loads(pickle.dumps(attack))
    assert np.array_equal(again.generate(x, y), attack.generate(x, y))
    # New weights in the same model.
    with torch.no_grad():
        attack.estimator.model[-1].weight.neg_()
    assert not np.array_equal(again.generate(x, y), attack.generate(x, y))
    # Another loss in the same classifier.
    before = attack.generate(x, y)
    attack.estimator.loss = nn.MultiMarginLoss()
    assert not np.array_equal(attack.generate(x, y), before)


@pytest.mark.parametrize(
    "parameters, error",
    [
        ({"norm": 0.5}, ValueError),
        ({"eps": -0.1}, ValueError),
        ({"eps": np.array([-0.1]), "eps_step": np.array([0.1])}, ValueError),
        ({"eps_step": 0.0}, ValueError),
        ({"eps_step": np.ones(3)}, TypeError),
        ({"eps": "0.3"}, TypeError),
        ({"eps": np.ones(2), "eps_step": np.ones(3)}, ValueError),
        ({"targeted": "yes"}, ValueError),
        ({"num_random_init": 1.0}, TypeError),
        ({"num_random_init": -1}, ValueError),
        ({"batch_size": 0}, ValueError),
        ({"max_iter": -1}, ValueError),
        ({"decay": -0.5}, ValueError),
        ({"verbose": 1}, ValueError),
        ({"summary_writer": True}, NotImplementedError),
        ({"restarts": 3}, ValueError),
    ],
)
def test_bad_parameters(parameters, error):
    if "restarts" not in parameters:
        with pytest.raises(error):
            pgd(**parameters)
    attack = pgd()
    with pytest.raises(error):
        attack.set_params(**parameters)
    assert attack.eps == EPS and attack.eps_step == STEP  # as before the error
    attack._check_params()


def test_bad_arguments_of_generate():
    x, y = data()
    cases = [
        ((torch.from_numpy(x), y), {}, TypeError, "numpy"),
        ((x[0, 0, 0], y), {}, TypeError, "numpy array"),
        ((x, torch.from_numpy(y)), {}, TypeError, "numpy"),
        ((x, y[:5]), {}, ValueError, "shape"),
        ((x, np.eye(9)[y % 9]), {}, ValueError, "shape"),
        ((x, y + 8), {}, ValueError, "0 .. 9"),
        ((x, y + 0.5), {}, ValueError, "whole"),
        ((x, y), {"mask": [1]}, TypeError, "mask"),
        ((x, y), {"mask": np.ones((12, 12), np.int64)}, ValueError, "bool or float"),
        ((x, y), {"mask": -np.ones((12, 12))}, ValueError, "positive"),
        ((x, y), {"mask": np.ones((5, 12))}, ValueError, "broadcast"),
        ((x, y), {"mask": np.ones((1, 1, 3, 12, 12))}, ValueError, "broadcast"),
        ((x, y), {"masks": np.ones((12, 12))}, TypeError, "masks"),
    ]
    for arguments, keywords, error, text in cases:
        with pytest.raises(error, match=text):
            pgd().generate(*arguments, **keywords)
    with pytest.raises(ValueError, match="targeted"):
        pgd(targeted=True).generate(x)
    with pytest.raises(ValueError, match="broadcast"):
        pgd(eps=np.ones((5, 12)), eps_step=np.ones((5, 12))).generate(x, y)
    with pytest.raises(TypeError, match="wrap the model"):
        ProjectedGradientDescent(cnn())
    with pytest.raises(TypeError, match="PyTorchClassifier"):
        ProjectedGradientDescent(object())


def test_what_is_not_here_says_where_it_is():
    for module in (art, art.attacks.evasion, art.estimators.classification):
        with pytest.raises(AttributeError, match=r"CarliniL2Method.*art itself"):
            _ = module.CarliniL2Method
    with pytest.raises(ImportError):
        from advfast.compat.art.attacks.evasion import AutoAttack  # noqa: F401


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([math.inf, 2, 1, 1.5]),
    st.floats(1e-3, 2.0),
    st.floats(1e-3, 2.0),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 1000),
)
def test_ball_and_box_hold_for_any_setting(norm, eps, step, steps, start, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.random((5, 20), np.float32), rng.integers(4, size=5)
    x[0] = 0.0
    x[1] = 1.0
    attack = pgd(
        classifier(mlp(), shape=(20,), classes=4), norm=norm, eps=eps, eps_step=step,
        max_iter=steps, num_random_init=int(start and norm != 1.5), batch_size=2,
    )  # fmt: skip
    made = attack.generate(x, y).astype(np.float64)
    sizes = np.linalg.norm(made - x, norm, axis=1)
    assert sizes.max() <= eps * (1 + 1e-5) + 1e-6
    assert made.min() >= -1e-6 and made.max() <= 1 + 1e-6


def test_the_step_follows_a_random_eps():
    x, y = data()
    sizes = []
    for steps in (1, 10):
        np.random.seed(0)
        made = pgd(random_eps=True, max_iter=steps).generate(x, y)
        sizes.append(float(np.abs(made - x).max()))
    assert sizes[0] == pytest.approx(sizes[1] * STEP / EPS, rel=1e-4)
