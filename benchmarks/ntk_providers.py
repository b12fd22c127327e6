"""Who computes the kernels of the ntk suite. Each maker takes the scene and returns call() -> [N, N, R, R].

`torch_func` is the Jacobian contraction that PyTorch's tutorial on NTKs describes, `hooks` what a user with hooks and
an afternoon writes; both are written here. `neural_tangents` and `nngeometry` are libraries, called as documented.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

Call = Callable[[], Tensor]
NT_PYTHON = "ADVFAST_NT_PYTHON"
JAX_NETWORKS = ("strided-cnn", "resnet18")


@dataclass(frozen=True)
class Scene:
    """What all providers of a case are given."""

    network: str
    model: nn.Module
    images: Tensor  # [N, C, H, W]
    readout: str | Tensor  # full | sum, or [R, O]


@functools.cache
def measure_rates_anew() -> None:
    """The planner's rates are measured in this process, once, in place of read from a file of who knows what hour."""
    folder = tempfile.TemporaryDirectory(prefix="advfast-rates-")
    atexit.register(folder.cleanup)
    os.environ["XDG_CACHE_HOME"] = folder.name


def outputs(scene: Scene, logits: Tensor) -> Tensor:
    if isinstance(scene.readout, Tensor):
        return logits @ scene.readout.T
    return logits if scene.readout == "full" else logits.sum(-1, keepdim=True)


def with_torch_func(scene: Scene, *, once: bool = False) -> Call:
    """Per-sample Jacobians of all parameters by vmap(jacrev), then one product a parameter.

    The tutorial's function takes two sets of images and computes the Jacobians of both; `once`: one serves both sides.
    """
    parameters = {name: p.detach() for name, p in scene.model.named_parameters()}
    buffers = dict(scene.model.named_buffers())

    def single(p: dict[str, Tensor], image: Tensor) -> Tensor:
        logits = functional_call(scene.model, (p, buffers), (image.unsqueeze(0),))
        return outputs(scene, logits).squeeze(0)

    def run() -> Tensor:
        def jacobians() -> list[Tensor]:
            found = vmap(jacrev(single), (None, 0))(parameters, scene.images)
            return [j.flatten(2) for j in found.values()]

        left = jacobians()
        right = left if once else jacobians()
        return sum_of(torch.einsum("Naf,Mbf->NMab", j, k) for j, k in zip(left, right, strict=True))

    return run


def sum_of(parts: Iterator[Tensor]) -> Tensor:
    total = next(parts)
    for part in parts:
        total += part
    return total


def with_hooks(scene: Scene) -> Call:
    """Inputs and output gradients by hooks, each layer's per-sample gradients in full, one product a layer."""
    layers = [
        m for m in scene.model.modules() if next(m.parameters(recurse=False), None) is not None
    ]
    known = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm)
    for module in layers:
        if not isinstance(module, known):
            raise NotImplementedError(f"no rule for the parameters of {type(module).__name__}")

    def run() -> Tensor:
        seen: list[tuple[nn.Module, Tensor, Tensor]] = []
        handles = [
            m.register_forward_hook(lambda m, args, out: seen.append((m, args[0].detach(), out)))
            for m in layers
        ]
        try:
            # Output gradients are asked for alone, so autograd leaves out those of the weights.
            with torch.enable_grad():
                out = outputs(scene, scene.model(scene.images))
        finally:
            for handle in handles:
                handle.remove()
        edges = [output for _, _, output in seen]
        count = out.shape[1]
        taken = [
            torch.autograd.grad(out[:, r].sum(), edges, retain_graph=r + 1 < count)
            for r in range(count)
        ]
        n = len(scene.images)
        kernel = out.new_zeros(n * count, n * count)
        for place, (module, x, _) in enumerate(seen):
            g = torch.stack([grads[place] for grads in taken], 1)  # [N, R, ...]
            for rows in gradients(module, x, g):
                kernel.addmm_(rows, rows.T)
        return kernel.view(n, count, n, count).transpose(1, 2)

    return run


def gradients(module: nn.Module, x: Tensor, g: Tensor) -> Iterator[Tensor]:
    """Rows [N*R, P] of a layer's weight, then of its bias; x is its input, g [N, R, ...] at its output."""
    if isinstance(module, nn.Conv2d):
        assert module.groups == 1 and not isinstance(module.padding, str)
        patches = nn.functional.unfold(
            x, module.kernel_size, module.dilation, module.padding, module.stride
        )
        g = g.flatten(3)  # [N, R, c, S]
        yield torch.einsum("nrcs,nds->nrcd", g, patches).flatten(2).flatten(0, 1)
        bias = g.sum(3)
    elif isinstance(module, nn.Linear):
        x, g = x.reshape(len(x), -1, x.shape[-1]), g.reshape(*g.shape[:2], -1, g.shape[-1])
        yield torch.einsum("nrsc,nsd->nrcd", g, x).flatten(2).flatten(0, 1)
        bias = g.sum(2)
    elif isinstance(module, nn.LayerNorm):
        normal = nn.functional.layer_norm(x, module.normalized_shape, eps=module.eps)
        yield (g * normal.unsqueeze(1)).sum(2).flatten(0, 1)
        bias = g.sum(2)
    else:
        assert isinstance(module, nn.BatchNorm2d)
        normal = nn.functional.batch_norm(
            x, module.running_mean, module.running_var, eps=module.eps
        )
        yield (g * normal.unsqueeze(1)).sum((3, 4)).flatten(0, 1)
        bias = g.sum((3, 4))
    if module.bias is not None:
        yield bias.flatten(0, 1)


def with_nngeometry(scene: Scene) -> Call:
    from nngeometry.gram import GramMatrix
    from torch.utils.data import DataLoader, TensorDataset

    labels = torch.zeros(len(scene.images), dtype=torch.int64)
    # One batch: with smaller ones it repeats the inner passes for each pair of batches.
    loader = DataLoader(TensorDataset(scene.images, labels), len(scene.images))

    def run() -> Tensor:
        gram = GramMatrix(
            scene.model, loader, function=lambda *d: outputs(scene, scene.model(d[0]))
        )
        return gram.to_torch().permute(1, 3, 0, 2).detach()  # it has [O, N, O, N]

    return run


class NeuralTangents:
    """A kernel of neural-tangents in an interpreter of its own, kept alive so that it takes its turn in the rounds."""

    def __init__(self, scene: Scene, implementation: int) -> None:
        python = os.environ.get(NT_PYTHON)
        if not python:
            raise ImportError(f"{NT_PYTHON} is not set (see make_ntk_peers_env.sh)")
        if scene.network.partition("-w")[0] not in JAX_NETWORKS or scene.readout != "full":
            raise ImportError(f"{scene.network}, {scene.readout} is not written in JAX here")
        self.folder = tempfile.TemporaryDirectory(prefix="advfast-nt-")
        script = Path(__file__).with_name("ntk_jax.py")
        with (Path(self.folder.name) / "stderr").open("w") as errors:
            self.process = subprocess.Popen(
                [python, script, str(torch.get_num_threads())], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        try:
            data = Path(self.folder.name) / "case.npz"
            write_case(data, scene)
            answer = self.ask(
                do="load", path=str(data), network=scene.network, implementation=implementation
            )
        except BaseException:
            self.close()
            raise
        self.version = f"{answer['version']}, jax {answer['jax']}"

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            said = (Path(self.folder.name) / "stderr").read_text()[-500:]
            raise RuntimeError(f"neural-tangents' interpreter ended: {said}")
        answer = dict(json.loads(line))
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def __call__(self) -> None:
        self.ask(do="run")

    def kernel(self) -> Tensor:
        import numpy

        path = Path(self.folder.name) / "kernel.npy"
        self.ask(do="save", path=str(path))
        return torch.from_numpy(numpy.load(path))

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()


def write_case(path: Path, scene: Scene) -> None:
    import numpy

    arrays = {name: t.detach().cpu().numpy() for name, t in scene.model.state_dict().items()}
    numpy.savez(path, images=scene.images.cpu().numpy(), **arrays)
