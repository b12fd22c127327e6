from contextlib import contextmanager

import pytest
import torch

from advfast.data import Batch
from advfast.data.ahead import in_threads, on_stream


def test_in_threads_reads_no_more_than_asked_ahead():
    begun = []

    def tasks(count):
        for number in range(count):
            begun.append(number)
            yield lambda number=number: number

    results = in_threads(tasks(100), 2)
    assert next(results) == 0
    assert begun == [0, 1, 2]
    results.close()
    assert begun == [0, 1, 2]
    assert list(in_threads(tasks(7), 3)) == list(range(7))
    assert list(in_threads(iter(()), 3)) == []


class FakeTensor:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def record_stream(self, stream):
        self.log.append(f"{stream.name} records {self.name}")


class FakeStream:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def log(monkeypatch):
    """What is asked of CUDA; "main" is the caller's stream, "side" the other one."""
    log = []
    main, side = FakeStream("main", log), FakeStream("side", log)

    @contextmanager
    def on(stream):
        log.append(f"on {stream.name}")
        yield
        log.append("back")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", on)
    return log


def made(count, log):
    try:
        for number in range(count):
            log.append(f"make {number}")
            yield Batch(FakeTensor(f"x{number}", log), FakeTensor(f"y{number}", log), None)
    finally:
        log.append("closed")


def test_on_stream_waits_for_a_batch_before_the_next_one_is_begun(log):
    for number, _ in enumerate(on_stream(made(2, log), torch.device("cuda"))):
        log.append(f"use {number}")
    assert log == [
        "side waits for main",
        "on side",
        "make 0",
        "back",
        "main waits for side",  # for batch 0 alone: batch 1 is not yet on the stream
        "main records x0",
        "main records y0",
        "on side",
        "make 1",
        "back",
        "use 0",
        "main waits for side",
        "main records x1",
        "main records y1",
        "on side",
        "closed",
        "back",
        "use 1",
    ]


def test_on_stream_closes_what_it_reads(log):
    batches = on_stream(made(9, log), torch.device("cuda"))
    next(batches)
    batches.close()
    assert log[-1] == "closed"


@pytest.mark.gpu
def test_on_stream_hands_out_what_was_made():
    device = torch.device("cuda")
    values = ((torch.full((1000, 1000), n, device=device), n) for n in range(20))
    batches = (Batch(value, value[0], None) for value, _ in values)
    for number, batch in enumerate(on_stream(batches, device)):
        assert (batch.images == number).all()
