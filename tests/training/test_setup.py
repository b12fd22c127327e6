import torch

from advfast.training.setup import run_data


def numbered(total, classes=4):
    """Images that carry their own number."""
    images = torch.arange(total).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4) / total
    return images, torch.arange(total) % classes


def numbers(source, total):
    images, _ = source.batch(torch.arange(len(source)))
    return {round(float(image.max()) * total) for image in images}


def test_held_out_split_is_disjoint_and_stratified():
    parts = run_data(numbered(200), None, None, None, seed=0)
    kept, held_out = numbers(parts.train, 200), numbers(parts.val, 200)
    assert (len(kept), len(held_out)) == (170, 30)
    assert kept | held_out == set(range(200))
    assert not kept & held_out
    assert set(parts.val.labels.bincount().tolist()) <= {7, 8}
    assert parts.test is None


def test_held_out_split_is_at_most_2000_and_depends_on_the_seed():
    parts = [run_data(numbered(20000), None, None, None, seed=seed) for seed in (0, 0, 1)]
    assert [len(part.val) for part in parts] == [2000] * 3
    images = [part.val.batch(torch.arange(2000))[0] for part in parts]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_given_held_out_data_leave_the_training_data_whole():
    parts = run_data(numbered(50), numbered(10), numbered(7), None, seed=0)
    assert (len(parts.train), len(parts.val), len(parts.test)) == (50, 10, 7)


def test_digits_train_on_nothing_of_the_test_set():
    parts = run_data("digits", None, None, None, seed=0)
    flat = [source.images.flatten(1) for source in (parts.train, parts.val, parts.test)]
    assert torch.cdist(flat[0], flat[1]).min() > 0
    assert torch.cdist(flat[0], flat[2]).min() > 0
    assert torch.cdist(flat[1], flat[2]).min() > 0
    own = run_data("digits", None, numbered(9), None, seed=0)
    assert len(own.test) == 9
