"""The random states of a process: saved in checkpoints, and left as found by a run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def state() -> dict[str, Any]:
    """Of torch (CPU and every CUDA device), NumPy and Python, as plain values and tensors."""
    kind, key, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(key, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss_next],
    }


def set_state(saved: dict[str, Any]) -> None:
    """Puts back what `state` gave; CUDA states only where there are as many devices."""
    torch.set_rng_state(saved["torch"])
    if torch.cuda.is_available() and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])
    kind, key, position, has_gauss, gauss = saved["numpy"]
    np.random.set_state((kind, key.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, gauss_next = saved["python"]
    random.setstate((version, tuple(words.tolist()), gauss_next))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All generators seeded; afterwards as before."""
    before = state()
    try:
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        set_state(before)
