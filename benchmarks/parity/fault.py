"""A pytest plugin that breaks our attacks: a suite that still passes does not test them.

ADVFAST_PARITY_FAULT=clean: they give back the images they got. raise: they raise, so that it is seen whether a suite
that judges nothing reaches them at all.
"""

from __future__ import annotations

import os

from torch import Tensor

from advfast import PGDAttack


def _clean(self: PGDAttack, images: Tensor, *args: object, **kwargs: object) -> Tensor:
    return images.clone()


def _raise(self: PGDAttack, images: Tensor, *args: object, **kwargs: object) -> Tensor:
    raise RuntimeError("broken on purpose")


PGDAttack.__call__ = {"clean": _clean, "raise": _raise}[os.environ["ADVFAST_PARITY_FAULT"]]  # type: ignore[method-assign]
