"""Features of the class in the images: carriers, and the sets made with them."""

import numpy as np
import pytest
import scipy.fft
import torch

from advfast.data import TensorSource, carriers, inject, load

PUBLISHED = [(0, 1), (1, 0), (1, 1), (2, 1), (1, 2)]


def cosine(row, column, height, width):
    """The inverse DCT-II of one coefficient, [H, W]."""
    coefficients = np.zeros((height, width))
    coefficients[row, column] = 1.0
    return torch.from_numpy(scipy.fft.idctn(coefficients, norm="ortho")).float()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 16, 12)], ids=str)
def test_ten_classes_have_the_published_frequencies_and_their_negatives(shape):
    v = carriers(10, shape)
    assert v.shape == (10, *shape) and v.dtype == torch.float32
    for number, (row, column) in enumerate(PUBLISHED):
        # One coefficient, and not all of a row and a column.
        expected = cosine(row, column, *shape[1:]).sign()
        assert expected.abs().eq(1).all()
        for channel in range(shape[0]):
            assert torch.equal(v[number, channel], expected)
    assert torch.equal(v[5:], -v[:5])
    assert torch.linalg.matrix_rank(v.flatten(1).double()) == 5


@pytest.mark.parametrize(
    ("classes", "shape"), [(3, (1, 4, 4)), (7, (1, 8, 8)), (100, (3, 32, 32)), (4, (1, 7, 5))], ids=str
)  # fmt: skip
def test_other_numbers_of_classes_go_along_the_zigzag(classes, shape):
    v = carriers(classes, shape)
    assert v.abs().eq(1).all()
    assert torch.linalg.matrix_rank(v.flatten(1).double()) == classes
    order = [(0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 3), (1, 2), (2, 1), (3, 0)]
    for number, (row, column) in enumerate(order[:classes]):
        wave = cosine(row, column, *shape[1:])
        seen = wave.abs() > 1e-6  # at an exact zero scipy has any sign
        assert torch.equal(v[number, 0][seen], wave.sign()[seen])


def test_a_cosine_of_zero_has_the_sign_before_it():
    v = carriers(3, (1, 7, 6))
    # Frequency (1, 0) of 7 rows: cos((2i + 1) pi / 14) is 0 in row 3.
    assert v[1, 0, :, 0].tolist() == [1, 1, 1, 1, -1, -1, -1]
    # Frequency (2, 0), with no zero in 7 rows; of 6 it is 0 in rows 1 and 4.
    assert carriers(3, (1, 6, 6))[2, 0, :, 0].tolist() == [1, 1, -1, -1, -1, 1]
    for size in (5, 6, 7, 14, 28):
        assert carriers(10, (1, size, size)).abs().eq(1).all()


def test_pairs_are_an_option():
    one, pairs = carriers(10, (1, 8, 8), paired=False), carriers(6, (1, 8, 8), paired=True)
    assert torch.linalg.matrix_rank(one.flatten(1).double()) == 10
    assert torch.equal(pairs[3:], -pairs[:3]) and torch.equal(pairs[:3], carriers(3, (1, 8, 8)))
    with pytest.raises(ValueError, match="need an even number of classes, got 5"):
        carriers(5, (1, 8, 8), paired=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, (1, 2, 8)), "too few cosines for 10 classes"),
        ((4, (1, 2, 2)), "images of 2 x 2 pixels have too few cosines for 4 classes"),
        ((1, (1, 8, 8)), "classes must be 2 or more"),
        ((10, (8, 8)), r"shape must be \(C, H, W\)"),
    ],
)
def test_impossible_carriers(arguments, message):
    with pytest.raises(ValueError, match=message):
        carriers(*arguments)


def parts(count=40):
    torch.manual_seed(0)
    return torch.rand(count, 2, 8, 8), torch.arange(count) % 10


def test_every_set_against_its_definition():
    x, y = parts()
    before, v = x.clone(), carriers(10, (2, 8, 8))
    made, labels = inject((x, y), 0.25)
    for i in range(len(x)):
        assert torch.equal(made[i], x[i] + 0.25 * v[y[i]])
    assert torch.equal(labels, y) and made.min() < 0 and made.max() > 1
    assert torch.equal(inject((x, y), 0.25, "reverse")[0], x - 0.25 * v[y])
    assert torch.equal(inject((x, y), 0.25, "original")[0], x)
    only, classes = inject((x, y), 0.25, "carrier-only")
    assert torch.equal(only, 0.25 * v) and classes.tolist() == list(range(10))
    assert torch.equal(inject((x, y), 0.25, clip=True)[0], made.clamp(0, 1))
    assert torch.equal(x, before)
    inject((x, y), 0.25, "original")[0].zero_()
    assert torch.equal(x, before)


def test_the_orthogonal_set_loses_the_five_directions_and_no_more():
    x, y = parts()
    v = carriers(10, (2, 8, 8))
    made, _ = inject((x, y), 0.25, "orthogonal")
    rest = (made - 0.25 * v[y]).flatten(1).double()
    assert (rest @ v.flatten(1).double().T).abs().max() < 1e-4
    # The removed part is the least-squares fit by the carriers, of rank 5.
    removed = x.flatten(1).double() - rest
    basis = v[:5].flatten(1).double()
    fit = torch.linalg.lstsq(basis.T, x.flatten(1).double().T).solution.T @ basis
    torch.testing.assert_close(removed, fit, atol=1e-5, rtol=0)
    assert torch.linalg.matrix_rank(removed, rtol=1e-5) == 5


def test_the_feature_alone_tells_the_classes_apart():
    """A linear rule, the carrier that an image agrees with most, is right on all images of the orthogonal set."""
    data = load("digits").test
    x, y = inject(data, 0.1, "orthogonal")
    v = carriers(10, (1, 8, 8)).flatten(1)
    gram = torch.linalg.pinv(v @ v.T)
    assert torch.equal(((x.flatten(1) @ v.T) @ gram).argmax(1), y)
    assert torch.equal(x, inject(data.batch(torch.arange(len(data))), 0.1, "orthogonal")[0])
    # Fitted to x + beta V_y by least squares, with the images' own part in it.
    x, y = inject(data, 0.2)
    flat = torch.cat((x.flatten(1), torch.ones(len(x), 1)), 1).double()
    # Pixels that are always 0 leave it without a rank: a little of a ridge, the same with every solver.
    normal = flat.T @ flat + 1e-8 * torch.eye(flat.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(normal, flat.T @ torch.nn.functional.one_hot(y).double())
    assert ((flat @ weights).argmax(1) == y).double().mean() > 0.99


def test_two_features_are_two_beta_apart():
    v = carriers(10, (3, 32, 32))
    for i in range(10):
        for j in range(i):
            assert (0.1 * (v[i] - v[j])).abs().max() == pytest.approx(0.2)


def test_bytes_and_sources_are_read_as_pixels():
    bytes_ = torch.arange(128, dtype=torch.uint8).view(2, 1, 8, 8)
    labels = torch.tensor([0, 9])
    made, _ = inject((bytes_, labels), 0.0)
    assert torch.equal(made, bytes_.float() / 255)
    assert torch.equal(inject(TensorSource(bytes_, labels), 0.0)[0], made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": 4}, r"4/255, not 4\), got 4"),
        ({"beta": -0.1}, "beta must be from 0 to 1"),
        ({"kind": "injectd"}, "kind must be one of .*did you mean 'injected'"),
        ({"carrier": torch.ones(10, 1, 8, 8)}, r"the carrier is of images \(1, 8, 8\)"),
        ({"carrier": torch.ones(5, 2, 8, 8)}, "label 9 has no carrier: there are 5 classes"),
        ({"data": (torch.rand(4, 8, 8), torch.zeros(4).long())}, r"data must be images \[N, C, H, W\]"),
        ({"data": (torch.rand(4, 1, 8, 8), torch.zeros(3).long())}, "and a label for each"),
    ],
)  # fmt: skip
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        inject(**{"data": parts(), "beta": 0.1} | change)
