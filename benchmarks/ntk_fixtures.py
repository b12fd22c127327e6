"""Writes tests/ntk/fixtures: small kernels in float64 by neural-tangents, for tests/ntk/test_fixtures.py.

    benchmarks/make_ntk_peers_env.sh .venv-ntk-peers
    .venv-ntk-peers/bin/python benchmarks/ntk_fixtures.py

A file holds the weights (names and order of dimensions as torch has them), the images and the kernel [N, N, O, O]. Two
of neural-tangents' implementations must agree on it before it is written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import neural_tangents
import numpy
from jax import lax
from jax.nn import relu, softmax

jax.config.update("jax_enable_x64", True)
FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "ntk" / "fixtures"
Weights = dict[str, Any]
CONSTANTS = ("running_mean", "running_var")


def linear(p: Weights, name: str, x: Any) -> Any:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def conv(p: Weights, name: str, x: Any, stride: int, padding: tuple[int, int]) -> Any:
    y = lax.conv_general_dilated(
        x, p[f"{name}.weight"], (stride, stride), [(side, side) for side in padding],
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
    )  # fmt: skip
    return y + p[f"{name}.bias"][:, None, None]


def batch_norm(p: Weights, name: str, x: Any) -> Any:
    scale, shift, mean, var = (
        p[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias", *CONSTANTS)
    )
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + shift


def layer_norm(p: Weights, name: str, x: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return normal * p[f"{name}.weight"] + p[f"{name}.bias"]


def mlp(p: Weights, x: Any) -> Any:
    x = jnp.tanh(linear(p, "0", x))
    x = relu(linear(p, "2", x))
    return linear(p, "4", x)


def convolutions(p: Weights, x: Any) -> Any:
    x = relu(conv(p, "conv1", x, 2, (1, 1)))
    x = jnp.tanh(conv(p, "conv2", x, 1, (0, 1)))
    return linear(p, "linear", x.reshape(len(x), -1))


def residual(p: Weights, x: Any) -> Any:
    x = conv(p, "conv1", x, 1, (1, 1))
    y = conv(p, "conv2", relu(batch_norm(p, "bn", x)), 1, (1, 1))
    return linear(p, "linear", (x + y).mean((2, 3)))


def attention(p: Weights, x: Any) -> Any:
    """One head, pre-norm, positions as a parameter; x [N, tokens, dim]."""
    x = x + p["positions"]
    normal = layer_norm(p, "norm1", x)
    query, key, value = (linear(p, name, normal) for name in ("query", "key", "value"))
    scores = query @ key.transpose(0, 2, 1) / jnp.sqrt(float(query.shape[-1]))
    x = x + linear(p, "projection", softmax(scores) @ value)
    x = x + linear(p, "mlp2", jnp.tanh(linear(p, "mlp1", layer_norm(p, "norm2", x))))
    return linear(p, "linear", x.mean(1))


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _conv(name: str, inputs: int, outputs: int, *kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs, *kernel), f"{name}.bias": (outputs,)}


def _norm(name: str, size: int, *more: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{kind}": (size,) for kind in ("weight", "bias", *more)}


CASES: dict[str, tuple[Callable[[Weights, Any], Any], tuple[int, ...], dict[str, Any]]] = {
    "mlp": (mlp, (6, 7), _linear("0", 7, 11) | _linear("2", 11, 9) | _linear("4", 9, 3)),
    "convolutions": (
        convolutions, (4, 2, 9, 8),
        _conv("conv1", 2, 5, 3, 3) | _conv("conv2", 5, 4, 1, 3) | _linear("linear", 80, 3),
    ),
    "residual": (
        residual, (4, 3, 5, 5),
        _conv("conv1", 3, 6, 3, 3) | _norm("bn", 6, *CONSTANTS) | _conv("conv2", 6, 6, 3, 3)
        | _linear("linear", 6, 4),
    ),
    "attention": (
        attention, (4, 5, 6),
        {"positions": (5, 6)} | _norm("norm1", 6) | _linear("query", 6, 6) | _linear("key", 6, 6)
        | _linear("value", 6, 6) | _linear("projection", 6, 6) | _norm("norm2", 6)
        | _linear("mlp1", 6, 10) | _linear("mlp2", 10, 6) | _linear("linear", 6, 3),
    ),
}  # fmt: skip


def drawn(shapes: dict[str, tuple[int, ...]], random: numpy.random.Generator) -> Weights:
    found = {}
    for name, shape in shapes.items():
        value = random.normal(size=shape) / numpy.sqrt(max(1, numpy.prod(shape[1:])))
        found[name] = numpy.abs(value) + 0.5 if name.endswith("running_var") else value
    return found


def kernel(apply: Callable[[Weights, Any], Any], weights: Weights, images: Any, how: int) -> Any:
    constants = {name: w for name, w in weights.items() if name.endswith(CONSTANTS)}
    parameters = {name: jnp.asarray(w) for name, w in weights.items() if name not in constants}
    found = neural_tangents.empirical_ntk_fn(
        lambda p, x: apply(p | constants, x), trace_axes=(), vmap_axes=0, implementation=how
    )
    return numpy.asarray(found(jnp.asarray(images), None, parameters))


def main() -> None:
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for seed, (name, (apply, shape, shapes)) in enumerate(CASES.items()):
        random = numpy.random.default_rng(seed)
        weights, images = drawn(shapes, random), random.normal(size=shape)
        contracted, structured = (kernel(apply, weights, images, how) for how in (1, 3))
        error = numpy.abs(contracted - structured).max() / numpy.abs(contracted).max()
        assert error < 1e-12 and contracted.dtype == numpy.float64, (name, error)
        path = FIXTURES / f"{name}.npz"
        numpy.savez_compressed(
            path, images=images, kernel=contracted, made_by=f"neural-tangents "
            f"{neural_tangents.__version__}, jax {jax.__version__}", **weights,
        )  # fmt: skip
        print(
            f"{name}: {contracted.shape}, implementations within {error:.1e}, {path.stat().st_size} bytes"
        )


if __name__ == "__main__":
    main()
