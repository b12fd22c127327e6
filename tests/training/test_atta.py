"""ATTA: perturbations that are carried over epochs, sample by sample, by hand; what it refuses."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advfast.data import Loader, as_source
from advfast.training import checkpoint, methods, train
from advfast.training.methods.atta import START

from .by_hand import EPS, batch_of, image_gradient, settings


def smooth():
    """Gradients that are far from zero, so that float32 has their signs."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, 3))


def loader_of(augment, size=20):
    batch = batch_of(size, torch.float32)
    return Loader(as_source(batch[:2]), 8, device="cpu", seed=4, augment=augment), batch


def begun(model, loader, **changes):
    method = methods.make("atta", model, settings(**changes))
    method.begin(loader, torch.rand(2, 1, 8, 8))
    return method


PAD = 2


@pytest.mark.parametrize("augment", [("crop:2", "flip"), ("flip", "crop:2"), ("flip",), ()])
@pytest.mark.parametrize("steps", [None, 2])
def test_perturbations_are_carried_in_the_coordinates_of_the_image(augment, steps):
    model = smooth()
    loader, _ = loader_of(augment)
    method = begun(model, loader, steps=steps)
    crops, flips = "crop:2" in augment, "flip" in augment
    pad = PAD if crops else 0
    side = 8 + 2 * pad
    kept = None
    for epoch in (1, 2, 3):
        method.begin_epoch(epoch, loader)
        if kept is None:
            kept = method.delta.view(20, 1, side, side).clone()
            assert 0.5 * START < kept.std() < 1.5 * START
        drawn = loader.augment.draw(4, epoch, 20).tolist()
        for batch in loader.batches(epoch):
            crafted = method.craft(batch)
            for row, number in enumerate(batch.indices.tolist()):
                words = dict(zip(_columns(augment), drawn[number], strict=True))
                top, left = words.get("top", 0), words.get("left", 0)
                flip = flips and words["flip"]
                if crops and flip and augment[0] == "flip":
                    left = 2 * pad - left  # the window of the flipped image, in the image
                window = kept[number, :, top : top + 8, left : left + 8]
                seen = window.flip(2) if flip else window
                x = batch.images[row]
                a = (x + seen.clamp(-EPS, EPS)).clamp(0, 1)
                for _ in range(steps or 1):
                    g = image_gradient(model, a[None], batch.labels[row : row + 1])[0]
                    a = (x + (a + EPS / 4 * g.sign() - x).clamp(-EPS, EPS)).clamp(0, 1)
                torch.testing.assert_close(crafted[row], a, rtol=0, atol=1e-6)
                window.copy_((a - x).flip(2) if flip else a - x)
    torch.testing.assert_close(method.delta.view(kept.shape), kept, rtol=0, atol=1e-6)
    assert kept.abs().max() == pytest.approx(min(EPS, 3 * (steps or 1) * EPS / 4), abs=4 * START)


def _columns(augment):
    names = {"crop:2": ("top", "left"), "flip": ("flip",)}
    return [name for step in augment for name in names[step]]


def test_the_images_that_the_places_name_are_those_of_the_loader():
    # Zeros around, so that a crop can show the margin.
    loader, everything = loader_of(("crop:2", "flip"))
    padded = nn.functional.pad(everything.images, (2, 2, 2, 2)).flatten(2)
    assert loader.augment.canvas == (12, 12)
    for batch in loader.batches(5):
        places = loader.augment.places(loader.drawn(5)[batch.indices])
        found = padded[batch.indices].gather(2, places.flatten(1)[:, None])
        assert torch.equal(found.view(batch.images.shape), batch.images)


def test_all_begin_anew_in_the_published_epochs():
    model = smooth()
    loader, _ = loader_of(())
    method = begun(model, loader, options={"reset_every": 3})
    fresh = []
    for epoch in range(1, 8):
        method.begin_epoch(epoch, loader)
        fresh.append(bool(method.delta.abs().max() < 6 * START))
        for batch in loader.batches(epoch):
            method.craft(batch)
        # Resumed in the middle of it: what there is stays.
        before = method.delta.clone()
        method.begin_epoch(epoch, loader)
        assert torch.equal(method.delta, before)
    assert fresh == [True, False, True, False, False, True, False]


def test_more_epochs_are_a_stronger_attack():
    model = smooth()
    loader, _ = loader_of(("flip",), size=64)
    method = begun(model, loader)
    losses = []
    for epoch in range(1, 7):
        method.begin_epoch(epoch, loader)
        total = 0.0
        for batch in loader.batches(epoch):
            crafted = method.craft(batch)
            assert (crafted - batch.images).abs().max() <= EPS + 1e-7
            assert crafted.min() >= 0 and crafted.max() <= 1
            total += method.loss(crafted, batch).loss.item()
        losses.append(total)
    assert losses[0] < losses[1] < losses[2] < losses[3]
    assert losses[5] > 1.02 * losses[0]


def test_crafting_leaves_the_model_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))
    loader, _ = loader_of(())
    before = copy.deepcopy(model.state_dict())
    method = begun(model, loader)
    method.begin_epoch(1, loader)
    method.craft(next(loader.batches(1)))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert all(module.training for module in model.modules())


def test_parts_are_crafted_as_the_batch(tiny):
    found = []
    for size in (None, 3):
        torch.manual_seed(1)
        loader, _ = loader_of(("flip",))
        method = begun(smooth(), loader, micro_batch=size)
        method.begin_epoch(1, loader)
        found.append(torch.cat([method.craft(batch) for batch in loader.batches(1)]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_a_run_after_a_clean_prefix(tmp_path, tiny):
    result = train(
        smooth(), tiny, method="atta", eps=EPS, epochs=3, clean_prefix=2, batch_size=48,
        out=tmp_path, progress=False,
    )  # fmt: skip
    method = checkpoint.read(tmp_path / "last.pt")["run"]["method"]
    assert (result.config["steps"], method["begun"]) == (1, 3)
    assert method["delta"].shape == (110, 1, 64)


def refused(folder, data, message, **changes):
    with pytest.raises(ValueError, match=message):
        train(smooth(), data, method="atta", eps=EPS, out=folder, progress=False, **changes)
    assert not folder.exists()


def test_what_it_cannot_do(tmp_path, tiny):
    loader = DataLoader(TensorDataset(*tiny), 50)
    refused(tmp_path / "run", loader, "not a DataLoader of your own", val=tiny)
    flat = tiny[0].flatten(1), tiny[1]
    refused(tmp_path / "run", flat, r"atta needs images \(C, H, W\), the data have \(64,\)")
    refused(
        tmp_path / "run", tiny, "reset_every must be an integer >= 1", method_options={"reset_every": 0}
    )  # fmt: skip
    method = methods.make("atta", smooth(), settings())
    assert (method.reset_every, method.steps, method.alpha) == (10, 1, EPS / 4)
    assert method.passes() == 5 and not method.soft_labels
