"""Jacobians by torch.func, and captured factors held against them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advfast.kernels.ntk import reference
from advfast.ntk.capture import Capture
from advfast.ntk.subject import Subject
from advfast.ntk.terms import Factor, Layer, Product, Rows


def jacobian(
    subject: Subject, x: Tensor, cotangents: Tensor, *, looped: bool = False
) -> dict[str, Tensor]:
    """[n, R, elements] of each parameter, by vmap(jacrev); or by autograd for a sample and an output at a time."""
    parameters = subject.parameters
    with subject.running():
        if looped:
            found: dict[str, Tensor] = {}
            for name, p in parameters.items():
                rows = []
                for one in x:
                    logits = subject.logits(one[None])[0]
                    rows.append(
                        torch.stack(
                            [
                                torch.autograd.grad(
                                    logit, p, retain_graph=True, materialize_grads=True, allow_unused=True
                                )[0].flatten()
                                for logit in logits
                            ]
                        )
                    )  # fmt: skip
                found[name] = torch.stack(rows)
        else:
            function = torch.func.jacrev(lambda p, one: subject.logits(one[None], p)[0])
            values = {name: p.detach() for name, p in parameters.items()}
            found = torch.func.vmap(function, (None, 0))(values, x)
            found = {name: j.reshape(*j.shape[:2], -1) for name, j in found.items()}
    return {name: cotangents @ j for name, j in found.items()}


def theta(j: Tensor) -> Tensor:
    return torch.einsum("irp,jsp->irjs", j, j).flatten(2).flatten(0, 1)


def contracted(layer: Layer, factor: Factor) -> dict[str, Tensor]:
    """The layer's kernel [n*R, n*R] in each order that its kind has."""
    if isinstance(factor, Rows):
        return {"M": theta(factor.j)}
    if not isinstance(factor, Product):
        table = factor.g.new_zeros(
            *factor.g.shape[:2], layer.columns // layer.channels, layer.channels
        )
        for i, ids in enumerate(factor.ids):
            table[i].index_add_(1, ids, factor.g[i])
        return {"M": theta(table.flatten(2))}
    x, g, taps = factor.x, factor.g, layer.taps
    rows = reference.ntk_rows(x, g, taps)
    n, readouts, groups, positions, channels = g.shape
    assert (groups, positions, channels) == (layer.groups, layer.positions, layer.channels)
    assert x.shape == (n, groups, layer.pixels, layer.features)
    assert rows[0, 0].numel() == layer.columns and layer.window == rows.shape[4]
    found = {"M": theta(rows.flatten(2))}
    for order, add in (("C", reference.ntk_chain_), ("G", reference.ntk_hadamard_)):
        out = x.new_zeros(n * readouts, n * readouts)
        add(out, x, g, x, g, taps, taps, "fp64", False)
        found[order] = out
    return found


def check_capture(
    model: nn.Module,
    x: Tensor,
    *,
    readout="full",
    y: Tensor | None = None,
    rows: Tensor | None = None,
    looped: bool = False,
    tolerance: float = 1e-11,
    **settings,
) -> Capture:
    """Every parameter's kernel in every order is that of its Jacobian."""
    subject = Subject(model.double(), **settings)
    capture = Capture(subject, readout, x[:1], y if y is None else y[:1])
    factors = capture(x, y, rows)
    assert len(factors) == len(capture.layers)
    with torch.no_grad(), subject.running():
        logits = subject.logits(x)
    assert capture.outputs == logits.shape[1]
    cotangents = capture.cotangents(logits, y, rows)
    assert capture.readouts == cotangents.shape[1]
    jacobians = jacobian(subject, x, cotangents, looped=looped)

    homes: dict[tuple[str, ...], list[tuple[Layer, Factor]]] = {}
    for layer, factor in zip(capture.layers, factors, strict=True):
        for t in vars(factor).values():
            assert t.is_contiguous() and not t.requires_grad and len(t) == len(x)
        homes.setdefault(layer.parameters, []).append((layer, factor))
    for names, members in homes.items():
        expected = theta(torch.cat([jacobians.pop(name) for name in names], 2))
        for order in ("M", "C", "G"):
            got = sum(
                (found.get(order, found["M"]) for found in (contracted(*m) for m in members)),
                torch.zeros_like(expected),
            )
            scale = expected.abs().max()
            assert (got - expected).abs().max() <= tolerance * scale, (names, order)
    assert set(jacobians) == set(capture.unused)
    for name, j in jacobians.items():
        assert not j.any(), name
    return capture
