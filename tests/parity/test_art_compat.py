"""advfast.compat.art against ART itself: the same calls, the same arrays."""

import importlib.util
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from advfast.compat import art as ours

from ..attacks.networks import batch, mlp
from .test_peers import wide_cnn

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("art") is None, reason="ART is not installed here"),
    pytest.mark.filterwarnings("ignore"),
]
EPS, STEP = 8 / 255, 2 / 255


@pytest.fixture(scope="module")
def peer():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier
    evasion.PyTorchClassifier = PyTorchClassifier
    return evasion


def data(n=32):
    images, labels = batch(n)
    return images.numpy(), labels.numpy()


def estimators(peer, model=None, loss=None, **keywords):
    """ART's classifier and ours of the same network."""
    keywords = {"clip_values": (0.0, 1.0), "device_type": "cpu", **keywords}
    return [
        library.PyTorchClassifier(
            model or wide_cnn(), loss or nn.CrossEntropyLoss(), (3, 12, 12), 10, **keywords
        )
        for library in (peer, ours)
    ]


def both(peer, x, y, *, model=None, loss=None, estimator=None, mask=None, seed=0, **settings):
    """(ART's result, ours on our classifier, ours on ART's classifier)."""
    theirs, own = estimators(peer, model, loss, **(estimator or {}))
    settings = {"eps": EPS, "eps_step": STEP, "max_iter": 10, "verbose": False, **settings}
    keywords = {} if mask is None else {"mask": mask}
    results = []
    for library, classifier, more in (
        (peer, theirs, {}),
        (ours, own, {"fold": False}),
        (ours, theirs, {"fold": False}),
    ):
        np.random.seed(seed)
        attack = library.ProjectedGradientDescent(classifier, **settings, **more)
        results.append(attack.generate(x, y, **keywords))
    assert np.array_equal(results[1], results[2])
    return results


def random_mask(shape):
    return (np.random.default_rng(0).random(shape) < 0.6).astype(np.float32)


RADII = np.random.default_rng(1).uniform(0.01, 0.05, (3, 12, 12))
EACH = np.random.default_rng(1).uniform(0.01, 0.05, (32, 1, 1, 1))
LINF = {
    "plain": {},
    "inf by name": {"norm": "inf"},
    "small batches": {"batch_size": 8},
    "targeted": {"targeted": True},
    "mask of all": {"mask": random_mask((3, 12, 12))},
    "mask of each": {"mask": random_mask((32, 3, 12, 12))},
    "bool mask": {"mask": random_mask((3, 12, 12)) == 1},
    "eps of each feature": {"eps": RADII, "eps_step": RADII / 4},
    "eps of each sample": {"eps": EACH, "eps_step": EACH / 4, "batch_size": 16},
    "large eps": {"eps": 0.3, "eps_step": 0.1},
    "no box": {"estimator": {"clip_values": None}},
    "no step": {"max_iter": 0},
    "standardised": {"estimator": {"preprocessing": (np.array([0.4, 0.5, 0.6]), np.full(3, 0.3))}},
    "one mean": {"estimator": {"preprocessing": (0.5, 0.25)}},
    "box of arrays": {
        "estimator": {"clip_values": (np.zeros((3, 12, 12)), np.ones((3, 12, 12)))},
    },
}


@pytest.mark.parametrize("case", LINF)
def test_linf_is_bit_identical(peer, case):
    x, y = data()
    settings = dict(LINF[case])
    expected, made, _ = both(peer, x, y, **settings)
    if "no box" in case or "standardised" in case:
        # Without a box, x0 + (x - x0) rounds where a clamp would not.
        assert np.abs(made - expected).max() < 1e-6
    else:
        assert np.array_equal(made, expected)
    assert settings.get("max_iter") == 0 or not np.array_equal(made, x)


@pytest.mark.parametrize(
    "form", ["index", "column", "one-hot", "integers", "predictions", "probabilities"]
)
def test_labels(peer, form):
    x, y = data()
    rng = np.random.default_rng(2)
    given = {
        "index": y,
        "column": y[:, None],
        "one-hot": np.eye(10, dtype=np.float32)[y],
        "integers": np.eye(10, dtype=np.int64)[y],
        "predictions": None,
        "probabilities": rng.dirichlet(np.ones(10), len(y)).astype(np.float32),
    }[form]
    expected, made, _ = both(peer, x, given)
    assert np.array_equal(made, expected)


@pytest.mark.parametrize("norm", [2, 1, 3, 1.5])
@pytest.mark.parametrize("masked", [False, True])
def test_other_norms(peer, norm, masked):
    x, y = data()
    eps = {2: 0.5, 1: 3.0, 3: 0.2, 1.5: 1.0}[norm]
    mask = random_mask((3, 12, 12)) if masked else None
    for targeted in (False, True):
        expected, made, _ = both(
            peer, x, y, norm=norm, eps=eps, eps_step=eps / 5, mask=mask, targeted=targeted
        )
        assert np.abs(made - expected).max() < (1e-6 if norm == 2 else 2e-6)
    one = np.full((32, 1, 1, 1), eps)
    expected, made, _ = both(peer, x, y, norm=norm, eps=one, eps_step=one / 5)
    assert np.abs(made - expected).max() < 2e-6


@pytest.mark.parametrize("norm", [np.inf, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_momentum(peer, norm, masked):
    x, y = data()
    eps = EPS if norm == np.inf else 0.5
    mask = random_mask((3, 12, 12)) if masked else None
    expected, made, _ = both(peer, x, y, norm=norm, eps=eps, eps_step=eps / 4, decay=0.9, mask=mask)
    # ART divides by the sum of the gradient and the engine by its mean: a sign near zero may differ.
    assert np.mean(np.abs(made - expected) > 1e-5) < 1e-3


def test_random_eps_draws_what_art_draws(peer):
    x, y = data(8)
    for eps, step in ((EPS, STEP), (RADII, RADII / 4)):
        expected, made, _ = both(peer, x, y, eps=eps, eps_step=step, random_eps=True, seed=11)
        assert np.abs(made - expected).max() < 1e-7


def test_random_starts_have_the_same_distribution(peer):
    x = np.full((400, 3, 12, 12), 0.5, np.float32)
    y = np.zeros(400, np.int64)
    # A step so small that only the start is seen.
    for norm, eps in ((np.inf, 0.1), (2, 1.0)):
        theirs, made, _ = both(
            peer, x, y, norm=norm, eps=eps, eps_step=1e-9, max_iter=1, num_random_init=1
        )
        sizes = [np.linalg.norm((v - x).reshape(400, -1), axis=1) for v in (theirs, made)]
        assert sizes[1].mean() == pytest.approx(sizes[0].mean(), rel=0.01)
        assert np.abs(made - x).std() == pytest.approx(np.abs(theirs - x).std(), rel=0.02)


def test_restarts_are_at_least_as_strong(peer):
    x, y = data()
    theirs, made, _ = both(peer, x, y, num_random_init=4, eps=0.02, eps_step=0.01, max_iter=3)
    network = wide_cnn()
    wrong = [(network(torch.from_numpy(v)).argmax(1).numpy() != y).sum() for v in (theirs, made)]
    assert wrong[1] >= wrong[0] - 1


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(label_smoothing=0.1), nn.MultiMarginLoss(), nn.MSELoss()]
)
def test_losses(peer, loss):
    x, y = data()
    expected, made, _ = both(peer, x, y, loss=loss)
    assert np.mean(made != expected) < 1e-3


@pytest.mark.parametrize("norm", [np.inf, 2])
def test_presets(peer, norm):
    x, y = data()
    eps = EPS if norm == np.inf else 0.5
    theirs, own = estimators(peer)
    expected = peer.FastGradientMethod(theirs, norm, eps).generate(x, y)
    made = ours.FastGradientMethod(own, norm, eps, fold=False).generate(x, y)
    assert np.abs(made - expected).max() <= (1e-7 if norm == np.inf else 1e-6)
    settings = {"eps": eps, "eps_step": eps / 4, "max_iter": 5, "verbose": False}
    expected = peer.MomentumIterativeMethod(theirs, norm, **settings).generate(x, y)
    made = ours.MomentumIterativeMethod(own, norm, **settings, fold=False).generate(x, y)
    assert np.mean(np.abs(made - expected) > 1e-5) < 1e-3
    expected = peer.BasicIterativeMethod(theirs, **settings).generate(x, y)
    made = ours.BasicIterativeMethod(own, **settings, fold=False).generate(x, y)
    assert np.array_equal(made, expected)


def test_tables(peer):
    rng = np.random.default_rng(0)
    x, y = rng.random((16, 20), np.float32), rng.integers(4, size=16)
    box = (x.min(0) - 0.01, x.max(0) + 0.01)
    for keywords in ({}, {"preprocessing": (x.mean(0), x.std(0))}, {"clip_values": box}):
        results = []
        for library in (peer, ours):
            classifier = library.PyTorchClassifier(
                mlp(), nn.CrossEntropyLoss(), (20,), 4,
                **{"clip_values": (0.0, 1.0), "device_type": "cpu", **keywords},
            )  # fmt: skip
            attack = library.ProjectedGradientDescent(
                classifier, eps=0.1, eps_step=0.02, max_iter=10, verbose=False
            )
            results.append(attack.generate(x, y))
        assert np.abs(results[0] - results[1]).max() < 1e-6


def test_classifier_gives_what_arts_gives(peer):
    x, y = data(8)
    for keywords in ({}, {"preprocessing": (np.array([0.4, 0.5, 0.6]), np.full(3, 0.3))}):
        theirs, own = estimators(peer, **keywords)
        for call in (
            lambda c: c.predict(x, batch_size=3),
            lambda c: c.loss_gradient(x, np.eye(10, dtype=np.float32)[y]),
            lambda c: c.class_gradient(x),
            lambda c: c.class_gradient(x, 3),
            lambda c: c.class_gradient(x, list(y)),
            lambda c: c.compute_loss(x, y),
        ):
            expected, made = call(theirs), call(own)
            assert made.shape == expected.shape and made.dtype == expected.dtype
            assert np.abs(made - expected).max() < 1e-5


def test_fit_is_the_same_training(peer):
    x, y = data(32)
    weights = []
    for library in (peer, ours):
        model = mlp(432, 10)
        whole = nn.Sequential(nn.Flatten(), model)
        classifier = library.PyTorchClassifier(
            whole, nn.CrossEntropyLoss(), (3, 12, 12), 10,
            optimizer=torch.optim.SGD(whole.parameters(), 0.1), device_type="cpu",
        )  # fmt: skip
        torch.manual_seed(4)
        classifier.fit(x, y, batch_size=8, nb_epochs=3)
        weights.append(model[0].weight.detach().clone())
    assert torch.equal(*weights)


BAD = [
    {"norm": 0.5},
    {"eps": -0.1},
    {"eps_step": 0.0},
    {"eps_step": np.ones(3)},
    {"eps": "0.3"},
    {"eps": np.ones(2), "eps_step": np.ones(3)},
    {"targeted": "yes"},
    {"num_random_init": 1.0},
    {"num_random_init": -1},
    {"batch_size": 0},
    {"max_iter": -1},
    {"decay": -0.5},
    {"verbose": 1},
]


@pytest.mark.parametrize("parameters", BAD, ids=str)
def test_error_types(peer, parameters):
    theirs, own = estimators(peer)
    raised = []
    for library, classifier in ((peer, theirs), (ours, own)):
        with pytest.raises((TypeError, ValueError)) as caught:
            library.ProjectedGradientDescent(classifier, **parameters)
        raised.append(caught.type)
    assert raised[0] is raised[1]
    attack = ours.ProjectedGradientDescent(own)
    with pytest.raises(ValueError):
        attack.set_params(unknown=1)
    with pytest.raises(ValueError):
        peer.ProjectedGradientDescent(theirs).set_params(unknown=1)


def test_parameters_and_defaults_are_arts(peer):
    import inspect

    for name in ("ProjectedGradientDescent", "FastGradientMethod", "BasicIterativeMethod",
                 "MomentumIterativeMethod", "PyTorchClassifier"):  # fmt: skip
        theirs = inspect.signature(getattr(peer, name).__init__).parameters
        own = inspect.signature(getattr(ours, name).__init__).parameters
        own = {k: v for k, v in own.items() if v.kind is not inspect.Parameter.KEYWORD_ONLY}
        assert list(own) == list(theirs)
        assert {k: v.default for k, v in own.items()} == {k: v.default for k, v in theirs.items()}
        if name != "PyTorchClassifier":
            params = getattr(peer, name).attack_params
            assert set(getattr(ours, name).attack_params) == set(params)


def test_preprocessing_that_is_more_than_a_standardisation(peer):
    from art.defences.preprocessor.preprocessor import PreprocessorPyTorch

    class Darker(PreprocessorPyTorch):
        def __init__(self):
            super().__init__(apply_fit=True, apply_predict=True)

        @property
        def device(self):
            return torch.device("cpu")

        def forward(self, x, y=None):
            return x * 0.8, y

    x, y = data()
    keywords = {"preprocessing_defences": [Darker()], "preprocessing": (0.5, 0.5)}
    classifier = peer.PyTorchClassifier(
        wide_cnn(), nn.CrossEntropyLoss(), (3, 12, 12), 10, clip_values=(0.0, 1.0),
        device_type="cpu", **keywords,
    )  # fmt: skip
    settings = {"eps": EPS, "eps_step": STEP, "max_iter": 5, "verbose": False}
    expected = peer.ProjectedGradientDescent(classifier, **settings).generate(x, y)
    made = ours.ProjectedGradientDescent(classifier, **settings, fold=False).generate(x, y)
    assert np.array_equal(made, expected)
