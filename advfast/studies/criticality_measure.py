"""Criticality of layers: how far the predictions move when one layer is put back to a random initialisation.

For logits f(x) [B, K], p = softmax(f(x)) and q = softmax(f(x) with layer l re-initialised), over the images
(arXiv 2410.14470, as its released code computes it):

    criticality(l) = 1 - mean cos(p, q)        0 .. 1
    l1(l) = mean sum_k |p_k - q_k|             0 .. 2, twice the total variation
    l2(l) = mean sqrt(sum_k (p_k - q_k)^2)

with the network in eval mode throughout.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advfast.kernels.pgd.api import nearest
from advfast.training import rng

from .resets import Network, layer_tensors, network, tensors_of

KINDS: dict[str, type[nn.Module]] = {"conv": nn.Conv2d, "linear": nn.Linear, "bn": nn.BatchNorm2d}
INITS = ("module", "network")
Init = str | Callable[[nn.Module], object]
Maker = Callable[[], nn.Module]
Batches = Callable[[], Iterator[tuple[Tensor, Tensor | None]]]
"""Begins anew: (images [B, C, H, W], labels [B] or None) of every batch."""

MAX_BYTES = 2**30


@dataclass(frozen=True)
class Layer:
    """
    Attributes:
        name: in the model.
        kind: one of `KINDS`.
    """

    name: str
    kind: str


@dataclass(frozen=True)
class Moved:
    """What became of the predictions with one layer re-initialised.

    Attributes:
        criticality, l1, l2: see above; None where predictions were not finite.
        accuracy: share of right predictions; None without labels.
        recovered_accuracy: that over the network's own; None where that is 0.
    """

    criticality: float | None
    l1: float | None
    l2: float | None
    accuracy: float | None
    recovered_accuracy: float | None


def check_kinds(kinds: Sequence[str]) -> None:
    """
    Raises:
        ValueError: none, or one that there is not.
    """
    if isinstance(kinds, str) or not kinds:
        raise ValueError(f"layers must be some of {', '.join(KINDS)}, got {kinds!r}")
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(
                f"layers must be of {', '.join(KINDS)}, got {kind!r}{nearest(kind, list(KINDS))}"
            )


def find_layers(model: nn.Module, kinds: Sequence[str]) -> list[Layer]:
    """The modules that are exactly of these kinds (a subclass is another kind of layer), in the order of the model.

    Raises:
        ValueError: an unknown kind; no such layer; a layer whose weight is computed from others.
    """
    check_kinds(kinds)
    by_type = {KINDS[kind]: kind for kind in kinds}
    found = []
    for name, module in model.named_modules():
        if type(module) not in by_type or not tensors_of(module):
            continue
        if hasattr(module, "weight") and "weight" not in module._parameters:
            raise ValueError(
                f"the weight of {name} is no parameter of its own (weight normalisation?), so that it cannot be "
                "re-initialised"
            )
        found.append(Layer(name, by_type[type(module)]))
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no layer of exactly "
            f"{' or '.join(KINDS[kind].__name__ for kind in kinds)}"
        )
    return found


def fresh_tensors(
    model: nn.Module, layer: Layer, trial: int, init: Init, other: nn.Module | None = None
) -> dict[str, Tensor]:
    """Name in the model -> re-initialised weight or buffer, of one layer; the model is left as it is.

    Drawn on the CPU from a generator of (trial, name of the layer), so that it does not matter which other layers and
    trials there are, or where the model is.

    Args:
        init: "module": the layer's own `reset_parameters`; "network": what `other` has there, but batch normalisation
            begins with weight 1 in any case; or a function that changes a copy of the layer in place.
        other: a freshly made network of the same kind.

    Raises:
        ValueError: `other` has the very weights of the model there.
    """
    module = model.get_submodule(layer.name)
    made = copy.deepcopy(module).cpu()
    with torch.no_grad(), rng.seeded(zlib.crc32(f"{trial}:{layer.name}".encode())):
        if callable(init):
            init(made)
        elif init == "network" and layer.kind != "bn":
            assert other is not None
            made.load_state_dict(other.get_submodule(layer.name).state_dict())
        else:
            made.reset_parameters()  # type: ignore[operator]  # every kind has it
    names, old = layer_tensors(model, layer.name), tensors_of(module)
    new = tensors_of(made)
    found = {names[own]: new[own].detach().to(old[own]) for own in names}
    if init == "network" and all(torch.equal(found[names[own]], old[own]) for own in names):
        raise ValueError(
            f"init='network': a network made anew has the same weights in {layer.name}; what makes it must not load any"
        )
    return found


def measure(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Batches,
    trials: Sequence[int],
    *,
    init: Init = "module",
    maker: Maker | None = None,
    max_bytes: int = MAX_BYTES,
    seen: Callable[[int], None] | None = None,
) -> tuple[dict[tuple[str, int], Moved], str]:
    """Every layer of `layers` in every trial.

    What comes before a layer is computed once a batch and kept (see `resets`). A trial is a pass of its own: with
    several of them side by side in one larger batch, passes were no faster.

    Args:
        model: images [B, C, H, W] -> logits [B, K]; copied, so that no weight of it is touched.
        trials: their numbers, from which the initialisations are drawn.
        maker: makes a network for init="network".
        max_bytes: of what is kept of a batch; batches that need more are taken in parts.
        seen: told the number of images done, after every batch.

    Returns:
        ((name of the layer, trial) -> what moved, why passes were whole ones: "" where they were not).

    Raises:
        ValueError: logits of another shape, or not finite without any change.
    """
    net = copy.deepcopy(model).eval()
    fresh = {}
    for trial in trials:
        other = None
        if init == "network":
            assert maker is not None
            # Not by the number alone: a training with it as its seed began with those very weights.
            with rng.seeded(zlib.crc32(f"{trial}:network".encode())):
                other = maker()
        for layer in layers:
            fresh[layer.name, trial] = fresh_tensors(net, layer, trial, init, other)
    sums: dict[tuple[str, int], Tensor] = {}
    networks: dict[tuple[int, ...], Network] = {}
    images_seen, right, labelled, reason = 0, 0.0, True, ""
    device = next(iter(tensors_of(net).values())).device
    for whole, whole_labels in batches():
        whole = whole.to(device)
        size = len(whole)
        while True:  # halved until what is kept of it fits
            shape = (min(size, len(whole)), *whole.shape[1:])
            if shape not in networks:
                networks[shape] = network(net, whole[: shape[0]], [layer.name for layer in layers])
            if networks[shape].kept_bytes <= max_bytes or size == 1:
                break
            size = -(-size // 2)
        for images, labels in _parts(whole, whole_labels, size):
            key = tuple(images.shape)
            if key not in networks:
                networks[key] = network(net, images, [layer.name for layer in layers])
            program = networks[key]
            reason = program.reason
            logits, kept = program.original(images)
            _check(logits, len(images))
            p = logits.double().softmax(1)
            labelled = labelled and labels is not None
            right += float(_right(logits, labels))
            for (name, trial), tensors in fresh.items():
                changed = program.changed(kept, name, tensors)
                moved = _distances(p, changed, labels)
                sums[name, trial] = sums[name, trial] + moved if (name, trial) in sums else moved
            images_seen += len(images)
        if seen is not None:
            seen(images_seen)
    found = {
        key: _moved(total, images_seen, right if labelled else None) for key, total in sums.items()
    }
    return found, reason


def _parts(
    images: Tensor, labels: Tensor | None, size: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        yield images[part], None if labels is None else labels[part]


def _check(logits: Tensor, images: int) -> None:
    if logits.dim() != 2 or len(logits) != images or logits.shape[1] < 2:
        raise ValueError(
            f"the network must return logits [{images}, 2 classes or more], got {tuple(logits.shape)}"
        )
    if not logits.isfinite().all():
        raise ValueError("the network's own logits are not finite")


def _right(logits: Tensor, labels: Tensor | None) -> Tensor:
    if labels is None:
        return logits.new_zeros(())
    return (logits.argmax(1) == labels.to(logits.device)).sum()


def _distances(p: Tensor, logits: Tensor, labels: Tensor | None) -> Tensor:
    """Sums over a batch of 1 - cosine, L1, L2 and right predictions, [4]; of p [B, K] and logits [B, K]."""
    q = logits.double().softmax(1)
    # For p = q both are the same number, so that the quotient is 1 and not one rounding beside it.
    cosine = (p * q).sum(1) / ((p * p).sum(1) * (q * q).sum(1)).sqrt()
    difference = p - q
    return torch.stack([
        (1 - cosine).sum(), difference.abs().sum(), difference.square().sum(1).sqrt().sum(),
        _right(logits, labels).double(),
    ])  # fmt: skip


def _moved(sums: Tensor, images: int, right: float | None) -> Moved:
    cosine, l1, l2, own = (sums / images).tolist()
    finite = bool(sums.isfinite().all())
    criticality = min(max(cosine, 0.0), 1.0)  # rounding
    return Moved(
        criticality if finite else None, l1 if finite else None, l2 if finite else None,
        None if right is None else own, None if not right else own * images / right,
    )  # fmt: skip
