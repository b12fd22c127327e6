"""Networks as others publish them: state dicts under their key names, and what they compute, in plain functions.

Nothing of the library is used here: shapes and order of operations are those of the public definitions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


class Weights:
    """Collects random float64 weights under the names that are asked for."""

    def __init__(self, seed: int = 5) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.state: State = {}

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def conv(self, name: str, outputs: int, inputs: int, side: int, bias: bool = False) -> None:
        scale = (inputs * side * side) ** -0.5
        self.state[f"{name}.weight"] = self.normal(outputs, inputs, side, side) * scale
        if bias:
            self.state[f"{name}.bias"] = self.normal(outputs)

    def bn(self, name: str, channels: int) -> None:
        self.state[f"{name}.weight"] = 1 + 0.2 * self.normal(channels)
        self.state[f"{name}.bias"] = 0.2 * self.normal(channels)
        self.state[f"{name}.running_mean"] = 0.2 * self.normal(channels)
        self.state[f"{name}.running_var"] = 1 + 0.1 * self.normal(channels).abs()
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(9)

    def linear(self, name: str, outputs: int, inputs: int) -> None:
        self.state[f"{name}.weight"] = self.normal(outputs, inputs) * inputs**-0.5
        self.state[f"{name}.bias"] = self.normal(outputs)


def conv(s: State, name: str, x: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
    return F.conv2d(x, s[f"{name}.weight"], s.get(f"{name}.bias"), stride, padding)


def bn(s: State, name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (
        s[f"{name}.{part}"].reshape(1, -1, 1, 1)
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def linear(s: State, name: str, x: Tensor) -> Tensor:
    return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]


def pooled(x: Tensor) -> Tensor:
    return x.flatten(2).mean(2)


def wide_trades(depth: int, width: int, sub_block: bool) -> State:
    w = Weights()
    w.conv("conv1", 16, 3, 3)
    inputs, count = 16, (depth - 4) // 6
    names = ["block1", "block2", "block3"]
    if sub_block:
        names.append("sub_block1")
    for name in names:
        outputs = 16 * width * {"1": 1, "2": 2, "3": 4}[name[-1]]
        inputs = 16 if name.endswith("1") else outputs // 2
        for i in range(count):
            block = f"{name}.layer.{i}"
            w.bn(f"{block}.bn1", inputs)
            w.conv(f"{block}.conv1", outputs, inputs, 3)
            w.bn(f"{block}.bn2", outputs)
            w.conv(f"{block}.conv2", outputs, outputs, 3)
            if inputs != outputs:
                w.conv(f"{block}.convShortcut", outputs, inputs, 1)
            inputs = outputs
    w.bn("bn1", 64 * width)
    w.linear("fc", 10, 64 * width)
    return w.state


def wide_trades_forward(s: State, x: Tensor, depth: int) -> Tensor:
    x = conv(s, "conv1", x)
    for group in (1, 2, 3):
        for i in range((depth - 4) // 6):
            block = f"block{group}.layer.{i}"
            stride = 2 if group > 1 and i == 0 else 1
            activated = bn(s, f"{block}.bn1", x).relu()
            out = bn(s, f"{block}.bn2", conv(s, f"{block}.conv1", activated, stride)).relu()
            if f"{block}.convShortcut.weight" in s:
                x = conv(s, f"{block}.convShortcut", activated, stride, 0)
            x = x + conv(s, f"{block}.conv2", out)
    return linear(s, "fc", pooled(bn(s, "bn1", x).relu()))


def wide_deepmind(depth: int, width: int) -> State:
    w = Weights()
    w.conv("init_conv", 16, 3, 3)
    inputs = 16
    for group in range(3):
        outputs = 16 * width * 2**group
        for i in range((depth - 4) // 6):
            block = f"layer.{group}.block.{i}"
            w.bn(f"{block}.batchnorm_0", inputs)
            w.conv(f"{block}.conv_0", outputs, inputs, 3)
            w.bn(f"{block}.batchnorm_1", outputs)
            w.conv(f"{block}.conv_1", outputs, outputs, 3)
            if inputs != outputs:
                w.conv(f"{block}.shortcut", outputs, inputs, 1)
            inputs = outputs
    w.bn("batchnorm", inputs)
    w.linear("logits", 10, inputs)
    return w.state


def _same(s: State, name: str, x: Tensor, stride: int) -> Tensor:
    """TensorFlow's SAME for a 3x3 convolution of an even side."""
    return conv(s, name, F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1)), stride, 0)


def _swish(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def wide_deepmind_forward(s: State, x: Tensor, depth: int) -> Tensor:
    x = conv(s, "init_conv", x)
    for group in range(3):
        for i in range((depth - 4) // 6):
            block = f"layer.{group}.block.{i}"
            stride = 2 if group and i == 0 else 1
            activated = _swish(bn(s, f"{block}.batchnorm_0", x))
            out = _swish(
                bn(s, f"{block}.batchnorm_1", _same(s, f"{block}.conv_0", activated, stride))
            )
            if f"{block}.shortcut.weight" in s:
                x = conv(s, f"{block}.shortcut", activated, stride, 0)
            x = x + conv(s, f"{block}.conv_1", out)
    return linear(s, "logits", pooled(_swish(bn(s, "batchnorm", x))))


def preact(width: int, final_bn: bool) -> State:
    w = Weights()
    w.conv("conv1", width, 3, 3)
    inputs = width
    for group in range(4):
        outputs = width * 2**group
        for i in range(2):
            block = f"layer{group + 1}.{i}"
            w.bn(f"{block}.bn1", inputs)
            w.conv(f"{block}.conv1", outputs, inputs, 3)
            w.bn(f"{block}.bn2", outputs)
            w.conv(f"{block}.conv2", outputs, outputs, 3)
            if inputs != outputs:
                w.conv(f"{block}.shortcut.0", outputs, inputs, 1)
            inputs = outputs
    if final_bn:
        w.bn("bn", inputs)
    w.linear("linear", 10, inputs)
    return w.state


def preact_forward(s: State, x: Tensor, raw_shortcut: bool) -> Tensor:
    x = conv(s, "conv1", x)
    for group in range(4):
        for i in range(2):
            block = f"layer{group + 1}.{i}"
            stride = 2 if group and i == 0 else 1
            activated = bn(s, f"{block}.bn1", x).relu()
            if f"{block}.shortcut.0.weight" in s:
                x = conv(s, f"{block}.shortcut.0", x if raw_shortcut else activated, stride, 0)
            out = bn(s, f"{block}.bn2", conv(s, f"{block}.conv1", activated, stride)).relu()
            x = x + conv(s, f"{block}.conv2", out)
    if "bn.weight" in s:
        x = bn(s, "bn", x).relu()
    return linear(s, "linear", pooled(x))


def preact_deepmind(width: int) -> State:
    w = Weights()
    w.conv("conv_2d", width, 3, 3)
    inputs = width
    for group in range(4):
        outputs = width * 2**group
        for i in range(2):
            block = f"layer_{group}.{i}"
            w.bn(f"{block}.batchnorm_0", inputs)
            w.conv(f"{block}.conv_2d_1", outputs, inputs, 3)
            w.bn(f"{block}.batchnorm_1", outputs)
            w.conv(f"{block}.conv_2d_2", outputs, outputs, 3)
            if inputs != outputs:
                w.conv(f"{block}.shortcut", outputs, inputs, 3)
            inputs = outputs
    w.bn("batchnorm", inputs)
    w.linear("logits", 10, inputs)
    return w.state


def preact_deepmind_forward(s: State, x: Tensor) -> Tensor:
    x = conv(s, "conv_2d", x)
    for group in range(4):
        for i in range(2):
            block = f"layer_{group}.{i}"
            stride = 2 if group and i == 0 else 1
            activated = _swish(bn(s, f"{block}.batchnorm_0", x))
            if f"{block}.shortcut.weight" in s:
                x = _same(s, f"{block}.shortcut", x, stride)
            out = _same(s, f"{block}.conv_2d_1", activated, stride)
            x = x + conv(s, f"{block}.conv_2d_2", _swish(bn(s, f"{block}.batchnorm_1", out)))
    return linear(s, "logits", pooled(_swish(bn(s, "batchnorm", x))))


def resnet18(width: int) -> State:
    w = Weights()
    w.conv("conv1", width, 3, 3)
    w.bn("bn1", width)
    inputs = width
    for group in range(4):
        outputs = width * 2**group
        for i in range(2):
            block = f"layer{group + 1}.{i}"
            w.conv(f"{block}.conv1", outputs, inputs, 3)
            w.bn(f"{block}.bn1", outputs)
            w.conv(f"{block}.conv2", outputs, outputs, 3)
            w.bn(f"{block}.bn2", outputs)
            if inputs != outputs:
                w.conv(f"{block}.shortcut.0", outputs, inputs, 1)
                w.bn(f"{block}.shortcut.1", outputs)
            inputs = outputs
    w.linear("linear", 10, inputs)
    return w.state


def resnet18_forward(s: State, x: Tensor) -> Tensor:
    x = bn(s, "bn1", conv(s, "conv1", x)).relu()
    for group in range(4):
        for i in range(2):
            block = f"layer{group + 1}.{i}"
            stride = 2 if group and i == 0 else 1
            out = bn(s, f"{block}.bn1", conv(s, f"{block}.conv1", x, stride)).relu()
            out = bn(s, f"{block}.bn2", conv(s, f"{block}.conv2", out))
            if f"{block}.shortcut.0.weight" in s:
                x = bn(s, f"{block}.shortcut.1", conv(s, f"{block}.shortcut.0", x, stride, 0))
            x = (x + out).relu()
    return linear(s, "linear", pooled(x))


_RESNET50 = (3, 4, 6, 3)


def resnet50(width: int) -> State:
    w = Weights()
    w.conv("conv1", width, 3, 7)
    w.bn("bn1", width)
    inputs = width
    for group, count in enumerate(_RESNET50):
        planes = width * 2**group
        for i in range(count):
            block = f"layer{group + 1}.{i}"
            for name, outs, ins, side in (
                ("1", planes, inputs, 1),
                ("2", planes, planes, 3),
                ("3", 4 * planes, planes, 1),
            ):
                w.conv(f"{block}.conv{name}", outs, ins, side)
                w.bn(f"{block}.bn{name}", outs)
            if i == 0:
                w.conv(f"{block}.downsample.0", 4 * planes, inputs, 1)
                w.bn(f"{block}.downsample.1", 4 * planes)
            inputs = 4 * planes
    w.linear("fc", 10, inputs)
    return w.state


def resnet50_forward(s: State, x: Tensor) -> Tensor:
    x = F.max_pool2d(bn(s, "bn1", conv(s, "conv1", x, 2, 3)).relu(), 3, 2, 1)
    for group, count in enumerate(_RESNET50):
        for i in range(count):
            block = f"layer{group + 1}.{i}"
            stride = 2 if group and i == 0 else 1
            out = bn(s, f"{block}.bn1", conv(s, f"{block}.conv1", x, 1, 0)).relu()
            out = bn(s, f"{block}.bn2", conv(s, f"{block}.conv2", out, stride)).relu()
            out = bn(s, f"{block}.bn3", conv(s, f"{block}.conv3", out, 1, 0))
            if i == 0:
                x = bn(s, f"{block}.downsample.1", conv(s, f"{block}.downsample.0", x, stride, 0))
            x = (x + out).relu()
    return linear(s, "fc", pooled(x))


def mnist() -> State:
    w = Weights()
    w.conv("0", 16, 1, 4, bias=True)
    w.conv("2", 32, 16, 4, bias=True)
    w.linear("5", 100, 1568)
    w.linear("7", 10, 100)
    return w.state


def mnist_forward(s: State, x: Tensor) -> Tensor:
    x = conv(s, "2", conv(s, "0", x, 2).relu(), 2).relu()
    return linear(s, "7", linear(s, "5", x.flatten(1)).relu())
