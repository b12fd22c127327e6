import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, TensorDataset

from advfast.data import Batch, randomness
from advfast.training import train
from advfast.training.methods import PGDAT, Settings
from advfast.training.modifiers import CutMix, Mixup, RunInfo, StepInfo, make

from ..test_resume import assert_same, outcome
from .runs import assert_resumes, course, images, network

KINDS = [CutMix, Mixup]
RUN = RunInfo(classes=5, batch_size=12, epochs=1, steps_per_epoch=100, seed=9)


def batch(count=12, shape=(2, 9, 7)):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (count,), generator=generator)
    return Batch(torch.rand(count, *shape, generator=generator), labels, torch.arange(count))


def mixed(modifier, step, given):
    method = PGDAT(network(), Settings(0.1, None, None, "linf"))
    modifier.before_step(StepInfo(step, 100, 1, 0.1, method, RUN.seed))
    return modifier.batch(given)


def drawn(modifier, step, count, numbers):
    """lambda, uniform numbers and partners, as they are promised to be drawn."""
    random = randomness.generator(RUN.seed, step, modifier.purpose)
    share = random.beta(modifier.alpha, modifier.alpha)
    return share, random.random(numbers), random.random(RUN.batch_size)[:count].argsort()


@pytest.mark.parametrize("count", [12, 5])
def test_mixup_pixel_by_pixel(count):
    given, modifier = batch(count), Mixup(1.4)
    modifier.begin(network(), RUN)
    for step in range(4):
        share, _, partner = drawn(modifier, step, count, 0)
        got = mixed(modifier, step, given)
        for i, j in enumerate(partner):
            pixels = share * given.images[i].double() + (1 - share) * given.images[j].double()
            torch.testing.assert_close(got.images[i].double(), pixels, rtol=0, atol=1e-6)
            label = np.zeros(5)
            label[given.labels[i]] += share
            label[given.labels[j]] += 1 - share
            np.testing.assert_allclose(got.labels[i], label, atol=1e-6)
        assert torch.equal(got.indices, given.indices)


@pytest.mark.parametrize("count", [12, 5])
def test_cutmix_pixel_by_pixel(count):
    given, modifier = batch(count), CutMix()
    modifier.begin(network(), RUN)
    height, width = given.images.shape[2:]
    areas = set()
    for step in range(20):
        share, (v, u), partner = drawn(modifier, step, count, 2)
        # Yun et al., ICCV 2019, their rand_bbox.
        cut_h, cut_w = int(height * np.sqrt(1 - share)), int(width * np.sqrt(1 - share))
        cy, cx = int(v * height), int(u * width)
        y1, y2 = np.clip([cy - cut_h // 2, cy + cut_h // 2], 0, height)
        x1, x2 = np.clip([cx - cut_w // 2, cx + cut_w // 2], 0, width)
        left = 1 - (y2 - y1) * (x2 - x1) / (height * width)
        areas.add(left)
        got = mixed(modifier, step, given)
        for i, j in enumerate(partner):
            image = given.images[i].clone()
            image[:, y1:y2, x1:x2] = given.images[j][:, y1:y2, x1:x2]
            assert torch.equal(got.images[i], image)
            label = np.zeros(5)
            label[given.labels[i]] += left
            label[given.labels[j]] += 1 - left
            np.testing.assert_allclose(got.labels[i], label, atol=1e-6)
    assert len(areas) > 5


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_is_keyed(kind):
    given, modifier = batch(), kind()
    modifier.begin(network(), RUN)
    places = modifier._drawn, modifier._keys
    state = torch.get_rng_state()
    first = [mixed(modifier, step, given).images for step in (0, 1, 0)]
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert modifier._drawn is places[0]
    assert modifier._keys is places[1]


@pytest.mark.parametrize("kind", KINDS)
def test_memory_format_box_and_mean(kind):
    given, modifier = batch(shape=(3, 8, 8)), kind()
    given = given._replace(images=given.images.contiguous(memory_format=torch.channels_last))
    modifier.begin(network(), RUN)
    for step in range(10):
        got = mixed(modifier, step, given)
        assert got.images.is_contiguous(memory_format=torch.channels_last)
        assert got.images.min() >= 0
        assert got.images.max() <= 1
        torch.testing.assert_close(got.labels.sum(1), torch.ones(12))


@pytest.mark.parametrize("kind", KINDS)
def test_a_repeated_batch_is_mixed_in_the_same_way(kind):
    given, modifier = batch(), kind()
    modifier.begin(network(), RUN)
    method = PGDAT(network(), Settings(0.1, None, None, "linf"))
    method.repeats = 3
    found = []
    for step in range(6):
        modifier.before_step(StepInfo(step, 100, 1, 0.1, method, RUN.seed))
        found.append(modifier.batch(given).images)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[3], found[5])
    assert not torch.equal(found[2], found[3])


@pytest.mark.parametrize("kind", KINDS)
def test_labels_that_are_mixed_already(kind):
    given, modifier = batch(), kind()
    modifier.begin(network(), RUN)
    soft = given._replace(labels=one_hot(given.labels, 5).float())
    assert torch.equal(mixed(modifier, 3, soft).labels, mixed(modifier, 3, given).labels)


@pytest.mark.parametrize("word", ["cutmix", "mixup"])
@pytest.mark.parametrize("method", ["standard", "pgd-at"])
def test_lambda_1_is_the_run_without_it(tmp_path, monkeypatch, word, method):
    course(tmp_path / "base", method=method, epochs=2)
    monkeypatch.setattr(type(make(word)), "draw_lambda", lambda self, random: 1.0)
    course(tmp_path / "mixed", word, method=method, epochs=2)
    base, mixed = (outcome(tmp_path / name) for name in ("base", "mixed"))
    # torch adds the same terms up in another order where labels are probabilities: of the loss, not of its gradient.
    losses = [[row.pop("train_loss") for row in found["history"]] for found in (base, mixed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert_same(mixed, base)


def test_cutmix_with_lambda_0_swaps_whole_images(monkeypatch):
    # A box as large as the image, around its middle.
    given, modifier = batch(shape=(1, 8, 8)), CutMix()
    modifier.begin(network(), RUN)
    modifier.before_step(
        StepInfo(0, 100, 1, 0.1, PGDAT(network(), Settings(0.1, None, None, "linf")), 0)
    )
    modifier._drawn.copy_(torch.tensor([0.0, 0.5, 0.5]))
    partner = modifier._keys.argsort()
    got = modifier.batch(given)
    assert torch.equal(got.images, given.images[partner])
    assert torch.equal(got.labels, one_hot(given.labels, 5).float()[partner])


@pytest.mark.parametrize("word", ["cutmix", "mixup:alpha=1.4"])
def test_resumed_in_the_middle_of_an_epoch(tmp_path, word):
    assert_resumes(tmp_path, word)


def test_bad_values(tmp_path):
    for word in ("cutmix:alpha=0", "mixup:alpha=-1", "cutmix:alpha=x"):
        with pytest.raises(ValueError, match="alpha must be a finite number > 0"):
            train(network(), images(), modifiers=[word], out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_cutmix_wants_images(tmp_path):
    x, y = images()
    flat = torch.nn.Sequential(torch.nn.Linear(64, 3))
    with pytest.raises(ValueError, match=r"cutmix: images must have shape \[B, C, H, W\]"):
        train(flat, (x.flatten(1), y), modifiers=["cutmix"], out=tmp_path, progress=False, epochs=1)


def test_batches_of_a_loader_that_are_larger(tmp_path):
    data = images()
    loader = DataLoader(TensorDataset(*data), batch_size=50)
    with pytest.raises(ValueError, match="a batch has 50 samples, more than batch_size=48"):
        course(tmp_path, "cutmix", data=loader, val=data, augment=[])
