"""The kinds of noise of n-fgsm: their size, their definitions, and FGSM where there is none."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from advfast.attacks import PGDAttack
from advfast.data import Loader, TensorSource
from advfast.kernels import random_start
from advfast.training import methods
from advfast.training.methods.n_fgsm import NOISES
from advfast.training.probe_kernel import first_images, input_saliency

from .by_hand import (
    EPS,
    assert_same_weights,
    batch_of,
    descend,
    image_gradient,
    network,
    one_step,
    settings,
)
from .modifiers.runs import course, images
from .test_resume import assert_same, outcome
from .test_single_step import last, run


def loader(batch, size=5):
    return Loader(TensorSource(*batch[:2]), size, device="cpu", seed=0)


class Doubles:
    """Batches in float64, which a Loader does not make."""

    stateful = True

    def __init__(self, batch):
        self.batch = batch

    def batches(self, epoch):
        yield from [self.batch]


def made(model, batch, **options):
    """n-fgsm that has begun its first epoch."""
    method = methods.make("n-fgsm", model, settings(options=options))
    batches = Doubles(batch)
    method.begin(batches, batch.images[:2])
    method.begin_epoch(1, batches)
    return method


def drawn(batch, radius):
    """What the method draws next: noise U(-radius, radius), then N(0, 1) [C, H, W]; the generator stays."""
    state = torch.get_rng_state()
    seed = torch.randint(2**63 - 1, (1,))
    normal = torch.randn(batch.images.shape[1:], dtype=batch.images.dtype)
    torch.set_rng_state(state)
    zero = torch.zeros_like(batch.images)
    return random_start(zero, eps=radius, bounds=None, seed=seed, sample_ids=batch.indices), normal


def scale_by_hand(noise, method, normal, sigma=0.5):
    if noise == "saliency":
        return method.scale
    s = (sigma * normal).exp() if noise == "lognormal" else torch.ones_like(normal)
    return s / s.mean()


@pytest.mark.parametrize("noise", NOISES)
def test_a_step_is_that_of_the_definition(noise):
    model, batch = network(), batch_of()
    method, plain = made(model, batch, noise=noise, k=1.5), copy.deepcopy(model)
    u, normal = drawn(batch, 1.5 * EPS)
    s = scale_by_hand(noise, method, normal)
    start = (batch.images + s * u).clamp(0, 1)
    step = EPS * image_gradient(plain, start, batch.labels).sign()
    state = torch.get_rng_state()
    crafted = method.craft(batch)
    torch.testing.assert_close(crafted, (start + step).clamp(0, 1), rtol=0, atol=1e-15)
    torch.set_rng_state(state)
    loss, _, _ = one_step(method, batch)
    plain.train()
    wanted = cross_entropy(plain(crafted), batch.labels)
    torch.testing.assert_close(loss, wanted.detach())
    descend(plain, wanted)
    assert_same_weights(model, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("noise", NOISES)
def test_the_mean_magnitude_is_the_same(noise):
    batch = batch_of(4000)
    batch = batch._replace(images=torch.full_like(batch.images, 0.5))  # no clamp acts
    method = made(network(), batch_of(), noise=noise, k=0.5)
    sizes = []
    for _ in range(3):
        u, normal = drawn(batch, 0.5 * EPS)
        noised = method.start(batch) - batch.images
        s = (noised / u).median(0).values
        assert (s >= 0).all() and s.mean() == pytest.approx(1, abs=1e-12)
        torch.testing.assert_close(noised, s * u, rtol=1e-10, atol=1e-15)
        sizes.append(noised.abs().mean())
        if noise != "isotropic":
            assert s.std() > 0.2
            assert (noised.abs().mean(0).flatten().argmax()) == s.argmax()
        if noise == "lognormal":
            torch.testing.assert_close(s, scale_by_hand(noise, method, normal))
        torch.randn(1)
    assert torch.stack(sizes).numpy() == pytest.approx(0.25 * EPS, rel=5e-3)


def test_lognormal_noise_is_drawn_anew_and_takes_sigma():
    batch = batch_of()
    method = made(network(), batch, noise="lognormal", sigma=0.0)
    isotropic = made(network(), batch, noise="isotropic")
    state = torch.get_rng_state()
    one = method.start(batch)
    torch.set_rng_state(state)
    torch.testing.assert_close(one, isotropic.start(batch), rtol=0, atol=1e-15)
    method = made(network(), batch, noise="lognormal", sigma=2.0)
    u, normal = drawn(batch, 2 * EPS)
    s = scale_by_hand("lognormal", method, normal, 2.0)
    torch.testing.assert_close(method.start(batch), (batch.images + s * u).clamp(0, 1))
    assert not torch.equal(drawn(batch, EPS)[1], normal)


def test_the_saliency_is_that_of_the_leading_eigenvector():
    model, batch = network(), batch_of(7)
    with torch.no_grad():
        model[1].running_mean.add_(0.1)
    model.eval()
    x = PGDAttack(model, EPS, EPS / 4, 10, True, seed=0)(batch.images, batch.labels)
    parameters = list(model.parameters())

    def jacobian(image, logit):
        grads = torch.autograd.grad(model(image[None])[0, logit], parameters)
        return torch.cat([grad.flatten() for grad in grads])

    kernel = torch.zeros(7, 7, dtype=torch.float64)
    for logit in range(3):
        rows = torch.stack([jacobian(image, logit) for image in x])
        kernel += rows @ rows.T / 3
    v = torch.linalg.eigh(kernel).eigenvectors[:, -1]
    total = torch.zeros(1, 8, 8, dtype=torch.float64)
    for i, image in enumerate(x):
        for logit in range(3):
            point = image.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(model(point[None])[0, logit], point)
            total += (v[i] * gradient).abs() / (7 * 3)
    expected = total / total.mean()
    model.train()
    before = torch.get_rng_state()
    found = input_saliency(model, batch.images, batch.labels, EPS, "linf")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert expected.std() > 0.1
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in parameters)


def test_without_influence_the_saliency_is_even():
    model = network()
    with torch.no_grad():
        model[0].weight.zero_()
    found = input_saliency(model, *batch_of(4)[:2], EPS, "linf")
    assert torch.equal(found, torch.ones(1, 8, 8, dtype=torch.float64))


def test_the_probe_is_the_first_of_the_first_epoch():
    batch = batch_of(12)
    x, y = first_images(loader(batch), 7)
    order = loader(batch).order(1)[:7]
    assert torch.equal(x, batch.images[order].float()) and torch.equal(y, batch.labels[order])
    assert len(first_images(loader(batch), 99)[1]) == 12


def test_the_saliency_is_looked_at_before_every_epoch(tmp_path):
    seen = []

    class See:
        def on_step_end(self, state):
            if state.step == 1:
                seen.append((state.method.scale.clone(), state.method.scale.data_ptr()))

        def on_epoch_end(self, state):
            method = state.method
            # Of the run's eps, though the warm-up has not reached it.
            assert method.eps < 0.1 or state.epoch > 1
            model = copy.deepcopy(state.model)
            seen.append(input_saliency(model, method.probe, method.probe_labels, 0.1, "linf"))

    options = {"noise": "saliency"}
    course(
        tmp_path, "eps-warmup:epochs=2", method="n-fgsm", method_options=options, callbacks=[See()]
    )
    for epoch in (0, 1):
        assert torch.equal(seen[2 * epoch + 1], seen[2 * epoch + 2][0])
        assert not torch.equal(seen[2 * epoch][0], seen[2 * epoch + 2][0])
    assert len({place for _, place in seen[::2]}) == 1


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("alpha", [None, 0.15])
def test_without_noise_it_is_fgsm(tmp_path, tiny, noise, alpha):
    run(tmp_path / "n", tiny, "n-fgsm", method_options={"k": 0, "noise": noise}, alpha=alpha)
    run(tmp_path / "f", tiny, "fgsm", alpha=alpha)
    assert_same(last(tmp_path / "n"), last(tmp_path / "f"))


def test_until_it_is_switched_on_it_is_fgsm(tmp_path):
    # With dropout: nothing is drawn either.
    options = {"start": "monitor", "noise": "lognormal"}
    course(tmp_path / "n", method="n-fgsm", method_options=options, on_collapse="noise")
    course(tmp_path / "f", method="fgsm")
    assert_same(outcome(tmp_path / "n"), outcome(tmp_path / "f"))


def test_switched_on_it_is_the_method_from_the_start():
    model, batch = network(), batch_of()
    waiting = made(model, batch, noise="saliency", start="monitor")
    assert waiting.waits and torch.equal(waiting.scale, torch.ones_like(waiting.scale))
    waiting.strength(0.05, 0.08, 1)
    assert waiting.fgsm.eps == 0.05
    waiting.switch_on()
    assert waiting.fgsm.eps == 0.08
    other = made(model, batch, noise="saliency")
    other.strength(0.05, 0.08, 1)
    crafted = []
    for method in (waiting, other):
        torch.manual_seed(0)
        crafted.append(method.craft(batch))
    assert torch.equal(*crafted) and not other.waits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "anisotropic"}, "noise must be one of isotropic, lognormal, saliency"),
        ({"start": "never"}, "start must be one of always, monitor, got 'never'"),
        ({"sigma": 1.0}, "sigma is of noise='lognormal', not of 'isotropic'"),
        ({"sigma": -1.0, "noise": "lognormal"}, "sigma must be a finite number, 0 or more"),
        ({"start": "monitor", "k": 0}, "k must be above 0, got 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        methods.make("n-fgsm", network(), settings(options=options))


def test_saliency_of_a_foreign_loader(tmp_path):
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*images()), batch_size=48)
    options = {"noise": "saliency"}
    with pytest.raises(ValueError, match="not a DataLoader of your own"):
        course(tmp_path, data=data, val=images(), augment=(), method="n-fgsm", method_options=options)  # fmt: skip
    assert not list(tmp_path.iterdir())
