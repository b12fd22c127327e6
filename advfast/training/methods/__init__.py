"""Training methods: one file each, with the crafting of the images and the loss on them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from advfast.kernels.pgd.api import nearest
from advfast.userfile import is_user_object, load_object

from .at_bsl import ATBSL
from .atta import ATTA
from .base import Backward as Backward
from .base import Method as Method
from .base import Settings as Settings
from .base import Step as Step
from .fgsm import FGSM, FGSMRS
from .free import Free
from .gradalign import GradAlign
from .mart import MART
from .n_fgsm import NFGSM
from .pgd_at import PGDAT
from .reat import REAT
from .robal import RoBal
from .standard import Standard
from .trades import TRADES
from .yopo import YOPO

Maker = Callable[[nn.Module, Settings], Method]

METHODS: dict[str, Maker] = {
    "at-bsl": ATBSL,
    "atta": ATTA,
    "fgsm": FGSM,
    "fgsm-rs": FGSMRS,
    "free": Free,
    "gradalign": GradAlign,
    "mart": MART,
    "n-fgsm": NFGSM,
    "pgd-at": PGDAT,
    "reat": REAT,
    "robal": RoBal,
    "standard": Standard,
    "trades": TRADES,
    "yopo": YOPO,
}


def make(method: str | Maker, model: nn.Module, settings: Settings) -> Method:
    """A method for a model, by name or by one's own class, also as "file.py:MyMethod".

    Raises:
        ValueError: unknown name, with the nearest one, or bad settings; the user's file failed.
        TypeError: neither a name nor something that makes a Method.
        FileNotFoundError: there is no such file.
    """
    own = own_maker(method)
    if own is not None:
        made = own(model, settings)
        if not isinstance(made, Method):
            raise TypeError(
                "method must be a name or a subclass of advfast.training.methods.Method, got "
                f"something that makes a {type(made).__name__}"
            )
        return made
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(
            f"unknown method {method!r}; expected one of {', '.join(METHODS)}"
            f"{nearest(str(method), list(METHODS))}"
        )
    return METHODS[method](model, settings)


def own_maker(method: str | Maker) -> Maker | None:
    """What makes a method that is the user's; None for a name.

    Raises:
        ValueError, TypeError, FileNotFoundError: as `advfast.userfile.load_object`.
    """
    if is_user_object(method):
        return load_object(str(method), to_call=True)
    return method if callable(method) else None
