"""The pgd ops as hand-written attack loops spell them in plain torch: what they are compared with.

EAGER makes new tensors each step, in the order of operations of the loops in use (torchattacks.PGD
and PGDL2, the training loops descended from Madry et al. 2018). l1 has no such loop with a
Euclidean projection; here it is Duchi et al. 2008 by sorting, the form of AutoAttack's l1 attacks.
INPLACE does the same with one buffer and no new images. torch_compile compiles EAGER.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Work:
    """What one provider works on: its own x, buffer and out; grad and x0 are shared, only read."""

    x: Tensor  # [B, ...]
    x0: Tensor  # [B, ...]
    grad: Tensor  # [B, ...]
    alpha: float
    eps: float
    out: Tensor | None = None
    scale: Tensor | None = None  # [1, C, 1, 1]
    shift: Tensor | None = None  # [1, C, 1, 1]
    buffer: Tensor = field(init=False)
    out_buffer: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.buffer = torch.empty_like(self.x)
        if self.out is not None:
            self.out_buffer = torch.empty_like(self.x)


Result = tuple[Tensor, Tensor | None]  # the images, and the next model input
Sequence = Callable[[Work], Result]
TINY = 1e-10  # torchattacks' eps_for_division


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


def _norms(v: Tensor, p: int) -> Tensor:
    """[B, 1, ...] norms of the samples without a flattened copy."""
    return torch.linalg.vector_norm(v, p, dim=tuple(range(1, v.dim())), keepdim=True)


def _next_input(w: Work, x: Tensor) -> Result:
    if w.out is None:
        return x, None
    return x, ((x - w.shift) * w.scale).to(w.out.dtype)


def _next_input_inplace(w: Work) -> Result:
    if w.out is None:
        return w.x, None
    assert w.out_buffer is not None
    if w.out.dtype == w.x.dtype:
        torch.sub(w.x, w.shift, out=w.out).mul_(w.scale)
    else:
        torch.sub(w.x, w.shift, out=w.out_buffer).mul_(w.scale)
        w.out.copy_(w.out_buffer)
    return w.x, w.out


def _threshold(sizes: Tensor, radius: float) -> Tensor:
    """theta [B, 1] with sum(max(sizes - theta, 0)) = radius."""
    ordered = sizes.sort(dim=1, descending=True).values
    count = torch.arange(1, sizes.shape[1] + 1, device=sizes.device, dtype=sizes.dtype)
    theta = (ordered.cumsum(1) - radius) / count
    last = (ordered > theta).sum(1, keepdim=True).clamp(min=1)
    return theta.gather(1, last - 1)


def _to_l1_ball(delta: Tensor, eps: float) -> Tensor:
    sizes = delta.abs()
    flat = sizes.reshape(len(sizes), -1)
    theta = _threshold(flat, eps).clamp(min=0)  # negative: already inside
    return delta.sign() * (sizes - _per_sample(theta, delta)).clamp(min=0)


def _to_l2_ball(delta: Tensor, eps: float) -> Tensor:
    norms = delta.reshape(len(delta), -1).norm(p=2, dim=1)
    factor = torch.min(eps / norms, torch.ones_like(norms))
    return delta * _per_sample(factor, delta)


def step_linf(w: Work) -> Result:
    adv = w.x.detach() + w.alpha * w.grad.to(w.x.dtype).sign()
    delta = torch.clamp(adv - w.x0, min=-w.eps, max=w.eps)
    return _next_input(w, torch.clamp(w.x0 + delta, min=0, max=1).detach())


def step_l2(w: Work) -> Result:
    grad = w.grad.to(w.x.dtype)
    norms = grad.reshape(len(grad), -1).norm(p=2, dim=1) + TINY
    adv = w.x.detach() + w.alpha * (grad / _per_sample(norms, grad))
    delta = _to_l2_ball(adv - w.x0, w.eps)
    return _next_input(w, torch.clamp(w.x0 + delta, min=0, max=1).detach())


def step_l1(w: Work) -> Result:
    grad = w.grad.to(w.x.dtype)
    norms = grad.reshape(len(grad), -1).norm(p=1, dim=1) + TINY
    adv = w.x.detach() + w.alpha * (grad / _per_sample(norms, grad))
    delta = _to_l1_ball(adv - w.x0, w.eps)
    return _next_input(w, torch.clamp(w.x0 + delta, min=0, max=1).detach())


def step_linf_inplace(w: Work) -> Result:
    if w.grad.dtype == w.x.dtype:
        torch.sign(w.grad, out=w.buffer)
    else:
        w.buffer.copy_(w.grad).sign_()
    w.x.add_(w.buffer, alpha=w.alpha).sub_(w.x0).clamp_(-w.eps, w.eps).add_(w.x0).clamp_(0, 1)
    return _next_input_inplace(w)


def step_l2_inplace(w: Work) -> Result:
    w.buffer.copy_(w.grad)
    w.buffer.mul_(w.alpha / (_norms(w.buffer, 2) + TINY))
    w.x.add_(w.buffer).sub_(w.x0)
    w.x.mul_((w.eps / _norms(w.x, 2)).clamp_(max=1)).add_(w.x0).clamp_(0, 1)
    return _next_input_inplace(w)


def step_l1_inplace(w: Work) -> Result:
    w.buffer.copy_(w.grad)
    w.buffer.mul_(w.alpha / (_norms(w.buffer, 1) + TINY))
    w.x.add_(w.buffer).sub_(w.x0)
    _to_l1_ball_inplace(w)
    return _next_input_inplace(w)


def _to_l1_ball_inplace(w: Work) -> None:
    """w.x holds the difference from x0, and then the projected image."""
    torch.abs(w.x, out=w.buffer)
    theta = _threshold(w.buffer.reshape(len(w.x), -1), w.eps).clamp_(min=0)
    w.buffer.sub_(_per_sample(theta, w.x)).clamp_(min=0)
    w.x.sign_().mul_(w.buffer).add_(w.x0).clamp_(0, 1)


def project_linf(w: Work) -> Result:
    delta = torch.clamp(w.x - w.x0, min=-w.eps, max=w.eps)
    return _next_input(w, torch.clamp(w.x0 + delta, min=0, max=1))


def project_l2(w: Work) -> Result:
    return _next_input(w, torch.clamp(w.x0 + _to_l2_ball(w.x - w.x0, w.eps), min=0, max=1))


def project_l1(w: Work) -> Result:
    return _next_input(w, torch.clamp(w.x0 + _to_l1_ball(w.x - w.x0, w.eps), min=0, max=1))


def project_linf_inplace(w: Work) -> Result:
    w.x.sub_(w.x0).clamp_(-w.eps, w.eps).add_(w.x0).clamp_(0, 1)
    return _next_input_inplace(w)


def project_l2_inplace(w: Work) -> Result:
    w.x.sub_(w.x0)
    w.x.mul_((w.eps / _norms(w.x, 2)).clamp_(max=1)).add_(w.x0).clamp_(0, 1)
    return _next_input_inplace(w)


def project_l1_inplace(w: Work) -> Result:
    w.x.sub_(w.x0)
    _to_l1_ball_inplace(w)
    return _next_input_inplace(w)


def start_linf(w: Work) -> Result:
    start = w.x0 + torch.empty_like(w.x0).uniform_(-w.eps, w.eps)
    return torch.clamp(start, min=0, max=1).detach(), None


def start_l2(w: Work) -> Result:
    delta = torch.empty_like(w.x0).normal_()
    norms = delta.reshape(len(delta), -1).norm(p=2, dim=1)
    radius = torch.rand_like(norms) ** (1 / delta[0].numel())
    delta = delta * _per_sample(radius * w.eps / norms, delta)
    return torch.clamp(w.x0 + delta, min=0, max=1).detach(), None


def start_l1(w: Work) -> Result:
    sizes = torch.empty_like(w.x0).exponential_()
    total = sizes.reshape(len(sizes), -1).sum(1)
    total = total + torch.empty_like(total).exponential_()
    signs = torch.empty_like(w.x0).uniform_(-1, 1).sign()
    delta = signs * sizes * _per_sample(w.eps / total, sizes)
    return torch.clamp(w.x0 + delta, min=0, max=1).detach(), None


def start_linf_inplace(w: Work) -> Result:
    return w.buffer.uniform_(-w.eps, w.eps).add_(w.x0).clamp_(0, 1), None


def start_l2_inplace(w: Work) -> Result:
    norms = _norms(w.buffer.normal_(), 2)
    radius = torch.rand_like(norms) ** (1 / w.buffer[0].numel())
    return w.buffer.mul_(radius * w.eps / norms).add_(w.x0).clamp_(0, 1), None


def start_l1_inplace(w: Work) -> Result:
    w.x.exponential_()
    total = _norms(w.x, 1)
    total = total + torch.empty_like(total).exponential_()
    w.buffer.uniform_(-1, 1).sign_().mul_(w.x)
    return w.buffer.mul_(w.eps / total).add_(w.x0).clamp_(0, 1), None


EAGER: dict[tuple[str, str], Sequence] = {
    ("pgd_step_", "linf"): step_linf,
    ("pgd_step_", "l2"): step_l2,
    ("pgd_step_", "l1"): step_l1,
    ("project_", "linf"): project_linf,
    ("project_", "l2"): project_l2,
    ("project_", "l1"): project_l1,
    ("random_start", "linf"): start_linf,
    ("random_start", "l2"): start_l2,
    ("random_start", "l1"): start_l1,
}
INPLACE: dict[tuple[str, str], Sequence] = {
    ("pgd_step_", "linf"): step_linf_inplace,
    ("pgd_step_", "l2"): step_l2_inplace,
    ("pgd_step_", "l1"): step_l1_inplace,
    ("project_", "linf"): project_linf_inplace,
    ("project_", "l2"): project_l2_inplace,
    ("project_", "l1"): project_l1_inplace,
    ("random_start", "linf"): start_linf_inplace,
    ("random_start", "l2"): start_l2_inplace,
    ("random_start", "l1"): start_l1_inplace,
}
