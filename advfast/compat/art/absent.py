"""The names of ART that are not here."""


def missing(name: str) -> AttributeError:
    """The error for a name that a module of ART has and ours has not."""
    return AttributeError(
        f"advfast.compat.art has no {name!r}; it has ProjectedGradientDescent, FastGradientMethod, "
        "BasicIterativeMethod, MomentumIterativeMethod and PyTorchClassifier. Take the rest from "
        "art itself: both work on the same nn.Module"
    )
