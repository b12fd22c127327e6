"""neural-tangents behind a pipe: the networks of networks.py in plain JAX, and kernels of them on request.

Runs in the environment of make_ntk_peers_env.sh, never in that of torch; ntk_providers.py starts it. One JSON object a
line on stdin, one a line on stdout in answer:

    {"do": "load", "path": weights and images as .npz, "network": "resnet18-w16", "implementation": 3}
                                     compiles; implementation: 1 Jacobian contraction, 3 structured derivatives
    {"do": "run"}                    computes the kernel once; answers when it is in memory
    {"do": "save", "path": ...}      writes the last kernel as .npy, [N, N, O, O]
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Parameters = dict[str, Any]
_BN_EPS = 1e-5


def limit_threads(threads: int) -> None:
    """Before JAX is imported: XLA makes as many threads as the process may use processors."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    if threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"


def convolve(x: Any, weight: Any, stride: int, padding: int) -> Any:
    """x [N, H, W, C], weight [K, K, C_in, C_out]: the layout that XLA convolves on a CPU."""
    from jax import lax

    return lax.conv_general_dilated(
        x, weight, (stride, stride), [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def strided_cnn(p: Parameters, _: Parameters, x: Any) -> Any:
    from jax.nn import relu

    x = relu(convolve(x, p["0.weight"], 2, 1) + p["0.bias"])
    x = relu(convolve(x, p["2.weight"], 2, 1) + p["2.bias"])
    # torch flattens [C, H, W].
    x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
    x = relu(x @ p["5.weight"] + p["5.bias"])
    return x @ p["7.weight"] + p["7.bias"]


def resnet18(p: Parameters, statistics: Parameters, x: Any) -> Any:
    from jax import lax
    from jax.nn import relu

    def norm(name: str, x: Any) -> Any:
        # In eval mode: statistics are constants, weight and bias parameters.
        mean, var = (statistics[f"{name}.running_{kind}"] for kind in ("mean", "var"))
        return (x - mean) * lax.rsqrt(var + _BN_EPS) * p[f"{name}.weight"] + p[f"{name}.bias"]

    x = relu(norm("1", convolve(x, p["0.weight"], 1, 1)))
    for block in range(3, 11):
        stride = 2 if block in (5, 7, 9) else 1
        y = relu(norm(f"{block}.bn1", convolve(x, p[f"{block}.conv1.weight"], stride, 1)))
        y = norm(f"{block}.bn2", convolve(y, p[f"{block}.conv2.weight"], 1, 1))
        if stride == 2:
            shortcut = convolve(x, p[f"{block}.shortcut.0.weight"], 2, 0)
            x = norm(f"{block}.shortcut.1", shortcut)
        x = relu(y + x)
    return x.mean((1, 2)) @ p["13.weight"] + p["13.bias"]


NETWORKS: dict[str, Callable[[Parameters, Parameters, Any], Any]] = {
    "strided-cnn": strided_cnn, "resnet18": resnet18,
}  # fmt: skip


def from_torch(weights: dict[str, Any]) -> tuple[Parameters, Parameters]:
    """(parameters, statistics of BN) of a state_dict's arrays; weights in JAX's order of dimensions."""
    import jax.numpy as jnp

    order = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
    parameters, statistics = {}, {}
    for name, value in weights.items():
        if not name.endswith("num_batches_tracked"):
            own = statistics if "running" in name else parameters
            own[name] = jnp.asarray(value.transpose(order[value.ndim]))
    return parameters, statistics


class Server:
    def __init__(self) -> None:
        self.call: Callable[[], Any] | None = None
        self.kernel: Any = None

    def load(self, path: str, network: str, implementation: int) -> dict[str, Any]:
        import jax
        import neural_tangents
        import numpy

        data = dict(numpy.load(path))
        images = jax.numpy.asarray(data.pop("images").transpose(0, 2, 3, 1))
        parameters, statistics = from_torch(data)
        apply = NETWORKS[network.partition("-w")[0]]
        kernel = neural_tangents.empirical_ntk_fn(
            lambda p, x: apply(p, statistics, x), trace_axes=(), vmap_axes=0,
            implementation=implementation,
        )  # fmt: skip
        # Compiled here, so that the first run is a run like the others.
        compiled = jax.jit(lambda x, p: kernel(x, None, p)).lower(images, parameters).compile()
        self.call = lambda: compiled(images, parameters).block_until_ready()
        return {"version": neural_tangents.__version__, "jax": jax.__version__}

    def run(self) -> dict[str, Any]:
        assert self.call is not None, "load first"
        self.kernel = self.call()
        return {}

    def save(self, path: str) -> dict[str, Any]:
        import numpy

        numpy.save(path, numpy.asarray(self.kernel))
        return {}


def main() -> None:
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    limit_threads(int(sys.argv[1]))
    server = Server()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(server, request.pop("do"))(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
