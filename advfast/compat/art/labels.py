"""Labels as ART takes them."""

from __future__ import annotations

import numpy as np


def as_targets(y: object, samples: int, classes: int) -> np.ndarray:
    """int64 [N], or float32 [N, K] where the rows are probabilities and not one-hot.

    Args:
        y: indices [N] or [N, 1], or one row of K numbers a sample.

    Raises:
        TypeError, ValueError: another type, shape or range.
    """
    if not isinstance(y, np.ndarray):
        raise TypeError(f"y must be a numpy array, got {type(y).__name__}")
    if y.shape == (samples, classes) and classes > 1:
        if np.array_equal(np.floor(y), np.ceil(y)):
            return y.argmax(axis=1)
        return y.astype(np.float32)
    if y.shape not in ((samples,), (samples, 1)):
        raise ValueError(
            f"y must have shape ({samples},), ({samples}, 1) or ({samples}, {classes}), got {y.shape}"
        )
    indices = y.reshape(-1).astype(np.int64)
    if not np.array_equal(indices, y.reshape(-1)):
        raise ValueError("y must hold whole numbers: the indices of classes")
    if indices.size and not 0 <= indices.min() <= indices.max() < classes:
        raise ValueError(f"y must be 0 .. {classes - 1}, got {indices.min()} .. {indices.max()}")
    return indices


def one_hot(targets: np.ndarray, classes: int) -> np.ndarray:
    """float32 [N, K] of what `as_targets` gives."""
    if targets.ndim == 2:
        return targets
    return np.eye(classes, dtype=np.float32)[targets]
