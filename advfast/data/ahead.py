"""Work done before it is asked for: on other threads, and on another stream of the GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

import torch

from .sources import Batch

T = TypeVar("T")


def in_threads(tasks: Iterable[Callable[[], T]], threads: int) -> Iterator[T]:
    """Results of the tasks, in their order; one more than there are threads is under way or waiting.

    An exception of a task is raised where its result would be. The threads end with the iterator, also when it is
    closed before its end.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="advfast-data")
    waiting: deque[Future[T]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True)


def on_stream(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches, each made on a stream of its own while the one before is used.

    Args:
        batches: makes a batch on `device` on the current stream when it is asked for the next.
    """
    stream = torch.cuda.Stream(device)
    # What the batches are made of may still be on its way on the stream of the caller.
    stream.wait_stream(torch.cuda.current_stream(device))

    def make() -> Batch | None:
        with torch.cuda.stream(stream):
            return next(batches, None)

    with closing(batches):  # type: ignore[type-var]
        ahead = make()
        while ahead is not None:
            ready = ahead
            user = torch.cuda.current_stream(device)
            user.wait_stream(stream)
            for tensor in ready:
                # Its memory is of the other stream: without this it could be handed out again there while it is used.
                if tensor is not None:
                    tensor.record_stream(user)
            ahead = make()
            yield ready
