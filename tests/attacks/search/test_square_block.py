"""Queries of the Square attack that are asked at once: the same search, in fewer passes."""

import pytest
import torch

from advfast.attacks import Square
from advfast.attacks.search import square, square_block

from .test_square import NORMS, broken, network


class Counting(torch.nn.Module):
    """A model that counts its passes."""

    def __init__(self, model):
        super().__init__()
        self.model, self.passes = [model], 0

    def forward(self, x):
        self.passes += 1
        return self.model[0](x)


def run(monkeypatch, rows, norm, loss="margin", lost=10.0, queries=150):
    """(images, whether broken, rows that went through the model, passes)."""
    monkeypatch.setattr(square, "ROWS_ON_CPU", rows)
    monkeypatch.setattr(square_block, "_LOST", lost)
    model = Counting(network().double())
    x, y = data(model, count=12)
    eps = NORMS[norm] * (0.4 if norm == "l1" else 0.9)
    attack = Square(model, eps, norm=norm, loss=loss, queries=queries, restarts=2)
    model.passes = 0
    found = attack(x.double(), y)
    return found, broken(model, found, y), attack.forwards, model.passes


def data(model, count):
    x = torch.rand(count, 1, 10, 10, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, model(x.double()).argmax(1)


@pytest.mark.parametrize("loss", ["margin", "ce"])
@pytest.mark.parametrize("norm", list(NORMS))
def test_a_block_gives_what_one_query_after_another_gives(monkeypatch, norm, loss):
    one, broken_one, rows_one, passes_one = run(monkeypatch, 1, norm, loss)
    many, broken_many, rows_many, passes_many = run(monkeypatch, 200, norm, loss)
    assert 0 < broken_one.sum() < len(broken_one)
    assert torch.equal(broken_one, broken_many)
    torch.testing.assert_close(many, one, rtol=0, atol=1e-9)
    assert passes_many < 0.8 * passes_one and rows_many > rows_one


def test_few_queries_are_asked_at_once_while_many_are_taken():
    blocks = square_block.Blocks(100)
    assert blocks.count(4) == 1
    for _ in range(100):
        blocks.note(torch.tensor(0), 4, 1)
    assert blocks.count(4) == 25 and blocks.count(60) == 1 and blocks.count(1000) == 1
    for _ in range(100):
        blocks.note(torch.tensor(2), 4, 10)  # one in twenty
    assert blocks.count(4) == 5


def test_blocks_end_where_the_window_changes(monkeypatch):
    seen = []
    ask = square.ask_block

    def looked(left, moves, window, drawn, rate):
        seen.append((window, drawn.places.shape[1]))
        return ask(left, moves, window, drawn, rate)

    monkeypatch.setattr(square, "ask_block", looked)
    run(monkeypatch, 600, "linf", queries=300)
    assert len({window for window, _ in seen}) > 2
    assert max(count for _, count in seen) > 4
    # What a block may not hold is another window's query: the last ones are asked by themselves.
    attack = Square(lambda x: x, 0.1, queries=300)
    sides = (1, 10, 10)
    for query in range(300):
        window = attack._window(query, sides)
        count = attack._alike(query, 50, window, sides)
        assert {attack._window(query + i, sides) for i in range(count)} == {window}
        assert query + count == 300 or count == 50 or attack._window(query + count, sides) != window
