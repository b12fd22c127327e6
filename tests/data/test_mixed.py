import pytest
import torch
from torch.utils.data import TensorDataset

from advfast.data import Loader, Mixed, TensorSource, as_source
from advfast.data.joined import JoinedSource, joined


def numbered(count, first=0, dtype=torch.float32):
    """Images that tell their number."""
    images = ((first + torch.arange(count)) % 256).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    images = images.to(torch.uint8) if dtype == torch.uint8 else images.float() / 255
    return TensorSource(images.contiguous(), torch.arange(count) % 3)


def mixed(count=50, extra=30, batch_size=20, share=0.7, **settings):
    settings = {"device": "cpu", "seed": 5} | settings
    return Mixed(numbered(count), numbered(extra, 100), batch_size, extra_share=share, **settings)


def numbers(batch):
    return (batch.images[:, 0, 0, 0] * 255).round().long()


def test_every_batch_has_the_share():
    loader = mixed()
    assert len(loader) == 3
    own = []
    for batch in loader.batches(1):
        assert len(batch.labels) == 20
        extra = batch.indices >= 50
        assert extra.sum() == 14
        # The extra ones come from the other source, with their labels.
        seen = numbers(batch)
        assert torch.equal(seen, torch.where(extra, batch.indices + 50, batch.indices))
        assert torch.equal(batch.labels, torch.where(extra, batch.indices - 50, batch.indices) % 3)
        assert not extra[:6].all() or not extra[6:].all()
        own.append(batch.indices[~extra])
    # A permutation of the first source, as far as it gets.
    assert len(torch.cat(own).unique()) == 18


def test_extra_is_drawn_with_replacement_over_everything():
    loader = mixed(count=400, extra=10, batch_size=40, share=0.5)
    drawn = torch.cat([batch.indices for batch in loader.batches(1)])
    counts = torch.bincount(drawn[drawn >= 400] - 400, minlength=10)
    assert counts.sum() == 200
    assert counts.min() >= 8
    assert counts.max() <= 40


def test_a_source_that_is_smaller_than_its_part_comes_again():
    loader = mixed(count=5, extra=3, batch_size=20, share=0.3)
    (batch,) = loader.batches(1)
    counts = torch.bincount(batch.indices[batch.indices < 5], minlength=5)
    assert sorted(counts.tolist()) == [2, 3, 3, 3, 3]


def test_order_depends_on_seed_and_epoch_alone_and_starts_anywhere():
    whole = [batch.indices for batch in mixed().batches(2)]
    again = mixed()
    list(again.batches(1))
    later = [batch.indices for batch in again.batches(2, 1)]
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], later, strict=True))
    other = [batch.indices for batch in mixed().batches(3)]
    # Both kinds are drawn anew in each epoch, and so are their places.
    for kind in (lambda found: found[found < 50], lambda found: found[found >= 50]):
        assert not torch.equal(
            kind(torch.cat(whole)).sort().values, kind(torch.cat(other)).sort().values
        )
    assert not torch.equal(whole[0] < 50, other[0] < 50)
    assert not torch.equal(whole[0], next(mixed(seed=6).batches(2)).indices)


@pytest.mark.parametrize("kind", ["other dtype", "dataset"])
def test_where_the_two_are_not_stored_alike(kind):
    first = numbered(50)
    second = numbered(30, 100, torch.uint8)
    if kind == "dataset":
        # Not a TensorDataset, which is taken as the pair that it holds.
        second = as_source(
            torch.utils.data.Subset(TensorDataset(second.images, second.labels), range(30))
        )
    source = joined(first, second)
    assert isinstance(source, JoinedSource)
    loader = Mixed(
        first, second, 20, extra_share=0.7, device="cpu", seed=5, augment=["flip", "crop:1"]
    )
    plain = mixed(augment=["flip", "crop:1"])
    for one, other in zip(loader.batches(1), plain.batches(1), strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.labels, other.labels)
        torch.testing.assert_close(one.images, other.images, rtol=0, atol=1e-6)


def test_a_joined_source():
    source = JoinedSource(numbered(5), numbered(4, 100))
    assert len(source) == 9
    images, labels = source.batch(torch.tensor([8, 0, 5, 4]))
    assert (images[:, 0, 0, 0] * 255).round().tolist() == [103, 0, 100, 4]
    assert labels.tolist() == [0, 0, 0, 1]
    assert source.batch(torch.tensor([1]))[0].shape == (1, 1, 4, 4)
    subset = source.subset(torch.tensor([1, 3, 6]))
    assert (subset.batch(torch.arange(3))[0][:, 0, 0, 0] * 255).round().tolist() == [1, 3, 101]
    with pytest.raises(ValueError, match="must have those of the first one first"):
        source.subset(torch.tensor([6, 1]))


def test_without_extra_nothing_changes():
    # The order of a plain loader is a method now.
    loader = Loader(numbered(50), 20, device="cpu", seed=5)
    found = torch.cat([batch.indices for batch in loader.batches(1)])
    assert torch.equal(found, loader.order(1))
    assert sorted(found.tolist()) == list(range(50))


@pytest.mark.parametrize("share", [0, 1, -0.1, True, "0.5"])
def test_bad_share(share):
    with pytest.raises(ValueError, match="extra_share must be above 0 and below 1"):
        mixed(share=share)


def test_a_share_without_samples():
    with pytest.raises(ValueError, match=r"extra_share=0.01 of batch_size=20 is 0 samples"):
        mixed(share=0.01)
    with pytest.raises(ValueError, match="is 20 samples: at least one of each kind"):
        mixed(share=0.99)


def test_other_shape():
    other = TensorSource(torch.zeros(3, 1, 5, 4), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"extra must have images of shape \(1, 4, 4\), as data"):
        Mixed(numbered(9), other, 4, extra_share=0.5, device="cpu", seed=0)
