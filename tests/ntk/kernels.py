"""Kernels for the tests of what is read off them."""

import torch
from torch.func import functional_call, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel


def random_kernel(n=12, r=3, rank=7, seed=0):
    """Theta [n, n, r, r] float64 of random Jacobians, of a given rank."""
    j = torch.randn(n, r, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.einsum("irp,jsp->ijrs", j + 0.3, j + 0.3)


def dense(model, x1, x2=None):
    """Theta [n1, n2, O, O] by vmap(jacrev), parameters as they are."""
    params = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def jacobian(x):
        found = vmap(
            jacrev(lambda p, one: functional_call(model, p, (one[None],))[0]), in_dims=(None, 0)
        )(params, x)
        return torch.cat([j.flatten(2) for j in found.values()], 2)

    with sdpa_kernel(SDPBackend.MATH):  # the other forms have no batching rule
        first = jacobian(x1)
        second = first if x2 is None else jacobian(x2)
    return torch.einsum("irp,jsp->ijrs", first, second)
