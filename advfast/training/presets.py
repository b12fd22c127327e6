"""Settings that suit the built-in data sets: the defaults of the command line."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # One thread: 8x8 images leave nothing for a second core, and waiting for one on a busy machine costs far more.
    "digits": {
        "eps": 0.15,
        "steps": 10,
        "epochs": 30,
        "batch_size": 128,
        "lr": 0.2,
        "threads": 1,
    },
    "fashion-mnist": {
        "eps": 0.1,
        "steps": 7,
        "epochs": 5,
        "batch_size": 128,
        "lr": 0.1,
        "threads": None,
    },
}
