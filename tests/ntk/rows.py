"""The kernel of a network from the rows of its Jacobian, one backward pass each."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def jacobian(network, x, c=None):
    """J [N R, P] of the readouts c [N, R, O] (default: of the logits), of the parameters that require grad."""
    params = [p for p in network.parameters() if p.requires_grad]
    rows = []
    training = network.training
    network.eval()
    with sdpa_kernel(SDPBackend.MATH):
        for i in range(len(x)):
            logits = network(x[i : i + 1])[0]
            for one in logits if c is None else c[i] @ logits:
                grads = torch.autograd.grad(one, params, retain_graph=True, allow_unused=True)
                rows.append(
                    torch.cat(
                        [
                            (torch.zeros_like(p) if g is None else g).flatten()
                            for p, g in zip(params, grads, strict=True)
                        ]
                    )
                )
    network.train(training)
    return torch.stack(rows)


def theta(network, x, c=None):
    j = jacobian(network, x, c)
    return j @ j.T


def relative(got, expected):
    return float((got - expected).norm() / expected.norm())
