"""What the residual networks have in common."""

from __future__ import annotations

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}
PADDINGS = ("symmetric", "end")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def conv3x3(
    inputs: int, outputs: int, stride: int = 1, padding: str = "symmetric"
) -> tuple[nn.Module, nn.Conv2d]:
    """(what pads, the convolution), to be called one after the other.

    "symmetric" pads by 1 on every side. "end" does so too at stride 1, but at stride 2 pads only the last row and
    column, as TensorFlow's and Haiku's SAME does for even sides. The padding is a layer of its own, so that the
    convolution is an ordinary one for whatever reads its settings.
    """
    if padding == "end" and stride == 2:
        return nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(inputs, outputs, 3, stride=2, bias=False)
    return nn.Identity(), nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def initialise_he(model: nn.Module) -> None:
    """Every convolution from N(0, 2 / (outputs * kernel area)) (He et al., ICCV 2015, fan-out)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
