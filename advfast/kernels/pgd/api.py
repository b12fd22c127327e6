"""The pgd family: one PGD step, the projection and the random start, each one pass over memory.

Definitions (`reference.py` is the code of them; eps, alpha and bounds are in pixel units, images in [0, 1]):

* linf: ``x <- clamp(x0 + clamp(x + alpha*sign(grad) - x0, -eps, eps), lo, hi)`` in this order of operations, with
  sign(0) = 0. All implementations give the same bits, with fl(x0 - eps) <= x <= fl(x0 + eps).
* l2: ``x + alpha*grad/||grad||_2``, Euclidean projection onto the ball, box.
* l1: ``x + alpha*grad/||grad||_1`` (the normalised gradient of foolbox; not the steepest l1 direction, which
  moves one coordinate, and not the top-q sign step of SLIDE), Euclidean projection onto the ball (Duchi et al., ICML
  2008; not a rescaling), box.

For l2 and l1 the float64 norm of x - x0 is at most eps*(1 + 1e-6): numbers are rounded toward x0. x0 must lie in the
box. An entry with a non-finite gradient does not move (l2, l1: its sample does not) and is counted. The norms are taken
per sample, over all dimensions but the first.

Source of the step: Madry et al., ICLR 2018, section 2.1.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .ops import pgd_step_op, project_op, random_start_op

NORMS = ("linf", "l2", "l1")
L2_ORDERS = ("ball-box", "box-ball-box")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Number = float | Tensor
PerChannel = float | Sequence[float] | Tensor
Bounds = tuple[PerChannel | None, PerChannel | None] | None


def nearest(name: str, valid: Sequence[str]) -> str:
    """A hint for a misspelt name: "; did you mean 'linf'?", or nothing."""
    close = difflib.get_close_matches(str(name).lower(), valid, n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_norm(op: str, norm: object) -> str:
    """The norm in lower case ("Linf" and "linf" are the same)."""
    name = norm.lower() if isinstance(norm, str) else norm
    if name in NORMS:
        return name
    raise ValueError(
        f"{op}: norm must be one of {', '.join(NORMS)}, got {norm!r}{nearest(str(norm), NORMS)}"
    )


def _format_of(x: Tensor) -> torch.memory_format:
    """The memory format of a dense tensor: NCHW or NHWC (also for 5-D)."""
    if not x.is_contiguous():
        if x.dim() == 4:
            return torch.channels_last
        if x.dim() == 5:
            return torch.channels_last_3d
    return torch.contiguous_format


def _dense(t: Tensor) -> bool:
    if t.is_contiguous():
        return True
    if t.dim() == 4:
        return t.is_contiguous(memory_format=torch.channels_last)
    return t.dim() == 5 and t.is_contiguous(memory_format=torch.channels_last_3d)


def _check_images(op: str, name: str, t: Tensor, like: Tensor | None = None) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(t).__name__}")
    if t.dim() == 0:
        raise ValueError(f"{op}: {name} must have a batch dimension, got a 0-d tensor")
    if torch.is_grad_enabled() and t.requires_grad:
        raise ValueError(f"{op}: {name} requires grad; pass {name}.detach() or call under no_grad")
    if not _dense(t):
        raise ValueError(
            f"{op}: {name} must be contiguous or channels_last, got shape {tuple(t.shape)} with "
            f"strides {t.stride()}; no hidden copy is made: call .contiguous() yourself"
        )
    if like is None:
        return
    if t.shape != like.shape:
        raise ValueError(
            f"{op}: {name} must have shape {tuple(like.shape)} like x, got {tuple(t.shape)}"
        )
    if t.device != like.device:
        raise ValueError(f"{op}: {name} must be on {like.device} like x, got {t.device}")


def _check_layout(op: str, name: str, t: Tensor, x: Tensor) -> None:
    wanted = _format_of(x)
    if not t.is_contiguous(memory_format=wanted):
        raise ValueError(
            f"{op}: {name} must have the memory format of x ({wanted}), got strides {t.stride()}; "
            f"no hidden copy is made: call {name}.contiguous(memory_format={wanted})"
        )


class _Operand(NamedTuple):
    number: float
    tensor: Tensor | None


def _tensor_operand(op: str, name: str, t: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """t at x's rank and device, in `dtype`: one number, per sample, per channel, or of x's shape and layout."""
    if t.device != x.device:
        raise ValueError(f"{op}: {name} must be on {x.device} like x, got {t.device}")
    if t.dim() == 0:
        return t.to(dtype).reshape([1] * x.dim())
    wanted = tuple(x.shape)
    broadcasts = t.dim() == x.dim() and all(
        a in (1, b) for a, b in zip(t.shape, wanted, strict=True)
    )
    if not broadcasts:
        ones = ", 1" * (x.dim() - 1)
        raise ValueError(
            f"{op}: {name} must be a number or broadcast over x of shape {wanted} with the same "
            f"number of dimensions, for example ({x.shape[0]}{ones}); got shape {tuple(t.shape)}"
        )
    t = t.to(dtype)
    varying = [i for i, size in enumerate(t.shape) if size != 1]
    if varying in ([], [0], [1]):
        return t.contiguous()
    return t.expand(x.shape).contiguous(memory_format=_format_of(x))


def _check_number(op: str, name: str, value: float, *, finite: bool) -> float:
    number = float(value)
    if not number >= 0 or (finite and number == math.inf):
        kind = "finite number >= 0" if finite else "number >= 0"
        raise ValueError(f"{op}: {name} must be a {kind}, got {value}")
    return number


def _operand(op: str, name: str, value: Number, x: Tensor, *, finite: bool) -> _Operand:
    if isinstance(value, Tensor):
        return _Operand(0.0, _tensor_operand(op, name, value, x, x.dtype))
    return _Operand(_check_number(op, name, value, finite=finite), None)


def _eps(op: str, value: Number, x: Tensor, norm: str) -> _Operand:
    eps = _operand(op, "eps", value, x, finite=False)
    if norm != "linf" and eps.tensor is not None and eps.tensor.shape[1:].numel() != 1:
        raise ValueError(
            f"{op}: for {norm} eps must be a number or one value a sample, "
            f"got shape {tuple(eps.tensor.shape)}"
        )
    return eps


def _per_channel(op: str, name: str, value: PerChannel, x: Tensor) -> _Operand:
    """A number, or C numbers (sequence, [C], [1, C, 1, 1]), in x's dtype."""
    if isinstance(value, (int, float)):
        return _Operand(float(value), None)
    t = value if isinstance(value, Tensor) else torch.tensor(value, dtype=x.dtype, device=x.device)
    if t.dim() == 1 and x.dim() > 1:
        t = t.reshape(1, -1, *[1] * (x.dim() - 2))
    t = _tensor_operand(op, name, t, x, x.dtype)
    if t.numel() != 1 and (x.dim() < 2 or t.numel() != x.shape[1]):
        raise ValueError(
            f"{op}: {name} must be a number or one value a channel, got shape {tuple(t.shape)} "
            f"for images of shape {tuple(x.shape)}"
        )
    return _Operand(0.0, t)


def _box(op: str, bounds: Bounds, x: Tensor) -> tuple[_Operand, _Operand]:
    lo, hi = (None, None) if bounds is None else bounds
    low = _per_channel(op, "bounds[0]", -math.inf if lo is None else lo, x)
    high = _per_channel(op, "bounds[1]", math.inf if hi is None else hi, x)
    if low.tensor is None and high.tensor is None and not low.number <= high.number:
        raise ValueError(f"{op}: bounds must be (lo, hi) with lo <= hi, got {bounds}")
    return low, high


def _check_x(op: str, x: Tensor, x0: Tensor) -> None:
    _check_images(op, "x", x)
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: x must be float32 or float64, got {x.dtype}")
    _check_images(op, "x0", x0, like=x)
    if x0.dtype != x.dtype:
        raise TypeError(f"{op}: x0 must be {x.dtype} like x, got {x0.dtype}")
    _check_layout(op, "x0", x0, x)


def _next_input(
    op: str, x: Tensor, out: Tensor | None, scale: PerChannel | None, shift: PerChannel | None
) -> tuple[Tensor | None, Tensor | None]:
    """scale and shift as tensors at x's rank, after the checks of out."""
    if out is None:
        if scale is not None or shift is not None:
            raise ValueError(f"{op}: scale and shift belong to out, which was not given")
        return None, None
    _check_images(op, "out", out, like=x)
    if out.dtype not in _FLOATS:
        raise TypeError(f"{op}: out must be a float tensor, got {out.dtype}")
    found: list[Tensor | None] = []
    for name, value in (("scale", scale), ("shift", shift)):
        if value is None:
            found.append(None)
            continue
        number, tensor = _per_channel(op, name, value, x)
        if tensor is None:
            tensor = torch.full([1] * x.dim(), number, dtype=x.dtype, device=x.device)
        found.append(tensor)
    return found[0], found[1]


def pgd_step_(
    x: Tensor,  # [B, ...]
    grad: Tensor,  # [B, ...]
    x0: Tensor,  # [B, ...]
    *,
    alpha: Number,
    eps: Number,
    norm: str = "linf",
    bounds: Bounds = (0.0, 1.0),
    mask: Tensor | None = None,
    out: Tensor | None = None,
    scale: PerChannel | None = None,
    shift: PerChannel | None = None,
    nonfinite: Tensor | None = None,
    l2_order: str = "ball-box",
    impl: str = "auto",
) -> Tensor:
    """One PGD step in place on x: move along the gradient, project onto the ball around x0, clamp to the box.

    Args:
        x: current images, shape [B, ...], float32 or float64, contiguous or channels_last; updated in place.
        grad: gradient of the loss with respect to x, shape and layout of x, float64, float32, float16 or bfloat16.
        x0: centre of the ball, inside the box; shape, dtype and layout of x.
        alpha: step size in pixel units: a number, or a tensor that broadcasts over x ([B, 1, 1, 1], [1, C, 1, 1],
            x's shape, or 0-d: then it is read on the device, without a synchronisation).
        eps: radius in pixel units, like alpha (l2 and l1: a number or one value a sample); inf for no ball.
        norm: "linf", "l2" or "l1".
        bounds: (lo, hi), each a number, one value a channel, or None; None for no box.
        mask: bool, broadcasts over x. False: the entry counts as without a gradient; for linf it keeps its bits as
            long as it lies in the ball and the box. l2 and l1 take the norm over what is unmasked.
        out: receives the next model input in the same pass, in its own dtype and memory format:
            ``(x - shift) * scale`` rounded to nearest, or without both x itself, rounded toward x0 (so that eps holds
            after the rounding, if x0 is a number of that dtype).
        scale, shift: numbers or one value a channel.
        nonfinite: int64 tensor of one element, incremented by the number of non-finite (unmasked) gradient entries.
        l2_order: for l2 and l1, "ball-box" (torchattacks, foolbox) or "box-ball-box" (cleverhans, ART: box inside
            the step, ball, box).
        impl: "auto", "reference", "cpp", "cuda" or "triton"; a named one runs or raises.

    Returns:
        x.

    Raises:
        TypeError, ValueError: what was wrong, expected and got; x is unchanged.
        RuntimeError: `impl` cannot run here, with the reason.
    """
    op = "pgd_step_"
    norm = check_norm(op, norm)
    if l2_order not in L2_ORDERS:
        raise ValueError(
            f"{op}: l2_order must be one of {', '.join(L2_ORDERS)}, got {l2_order!r}"
            f"{nearest(l2_order, L2_ORDERS)}"
        )
    _check_x(op, x, x0)
    _check_images(op, "grad", grad, like=x)
    if grad.dtype not in _FLOATS:
        raise TypeError(f"{op}: grad must be a float tensor, got {grad.dtype}")
    _check_layout(op, "grad", grad, x)
    step = _operand(op, "alpha", alpha, x, finite=True)
    radius = _eps(op, eps, x, norm)
    lo, hi = _box(op, bounds, x)
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"{op}: mask must be bool, got {mask.dtype}")
        mask = _tensor_operand(op, "mask", mask, x, torch.bool)
    scale_t, shift_t = _next_input(op, x, out, scale, shift)
    if nonfinite is not None and (
        nonfinite.dtype != torch.int64 or nonfinite.numel() != 1 or nonfinite.device != x.device
    ):
        raise ValueError(
            f"{op}: nonfinite must be one int64 on {x.device}, got {nonfinite.dtype} of shape "
            f"{tuple(nonfinite.shape)} on {nonfinite.device}"
        )
    pgd_step_op(
        x, grad, x0, step.number, radius.number, lo.number, hi.number, norm, l2_order, step.tensor,
        radius.tensor, lo.tensor, hi.tensor, mask, out, scale_t, shift_t, nonfinite, impl,
    )  # fmt: skip
    return x


def project_(
    x: Tensor,  # [B, ...]
    x0: Tensor,  # [B, ...]
    *,
    eps: Number,
    norm: str = "linf",
    bounds: Bounds = (0.0, 1.0),
    out: Tensor | None = None,
    scale: PerChannel | None = None,
    shift: PerChannel | None = None,
    impl: str = "auto",
) -> Tensor:
    """Projects x in place onto the ball around x0, then clamps it to the box. Points inside both keep their bits.

    Args, returns and errors as `pgd_step_`. With `out` in 16 bits this is how a result is narrowed without leaving the
    ball.
    """
    op = "project_"
    norm = check_norm(op, norm)
    _check_x(op, x, x0)
    radius = _eps(op, eps, x, norm)
    lo, hi = _box(op, bounds, x)
    scale_t, shift_t = _next_input(op, x, out, scale, shift)
    project_op(
        x, x0, radius.number, lo.number, hi.number, norm, radius.tensor, lo.tensor, hi.tensor, out,
        scale_t, shift_t, impl,
    )  # fmt: skip
    return x


def random_start(
    x0: Tensor,  # [B, ...]
    *,
    eps: Number,
    norm: str = "linf",
    bounds: Bounds = (0.0, 1.0),
    seed: int | Tensor,
    offset: int = 0,
    sample_ids: Tensor | None = None,  # [B]
    impl: str = "auto",
) -> Tensor:
    """A random point of the ball around each sample, clamped to the box.

    linf: uniform in the cube, the same bits on every implementation. l2, l1: uniform in the ball, equal to 1e-5
    relative. The words are Philox4x32-10 (Salmon et al., SC'11) with key `seed` and counter (element, offset, sample
    id): a sample's start does not depend on the batch that it is in, nor on the memory format.

    Args:
        x0: shape [B, ...], float32 or float64, contiguous or channels_last, inside the box.
        eps: radius in pixel units, finite, as in `pgd_step_`.
        norm, bounds, impl: as in `pgd_step_`.
        seed: integer, or an int64 tensor of one element on x0's device (read there, so that a captured graph draws
            anew when the tensor changes).
        offset: number of the stream, for example the restart; 0 .. 2^32 - 1.
        sample_ids: int64, shape [B], on x0's device; default 0 .. B-1.

    Returns:
        A new tensor with the shape, dtype, device and memory format of x0.

    Raises:
        TypeError, ValueError, RuntimeError: as `pgd_step_`.
    """
    op = "random_start"
    norm = check_norm(op, norm)
    _check_x(op, x0, x0)
    radius = _eps(op, eps, x0, norm)
    if radius.number == math.inf:
        raise ValueError(f"{op}: eps must be finite, got {eps}")
    lo, hi = _box(op, bounds, x0)
    if not isinstance(seed, Tensor):
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"{op}: seed must fit into 64 bits, got {seed}")
        seed = torch.full((1,), seed, dtype=torch.int64, device=x0.device)
    if seed.dtype != torch.int64 or seed.numel() != 1 or seed.device != x0.device:
        raise ValueError(
            f"{op}: seed must be an integer or one int64 on {x0.device}, got {seed.dtype} of shape "
            f"{tuple(seed.shape)} on {seed.device}"
        )
    if not 0 <= offset < 2**32:
        raise ValueError(f"{op}: offset must be 0 .. 2^32 - 1, got {offset}")
    if sample_ids is not None:
        if sample_ids.dtype != torch.int64 or sample_ids.shape != x0.shape[:1]:
            raise ValueError(
                f"{op}: sample_ids must be int64 of shape ({x0.shape[0]},), got {sample_ids.dtype} "
                f"of shape {tuple(sample_ids.shape)}"
            )
        if sample_ids.device != x0.device:
            raise ValueError(
                f"{op}: sample_ids must be on {x0.device} like x0, got {sample_ids.device}"
            )
        sample_ids = sample_ids.contiguous()
    return random_start_op(
        x0, radius.number, lo.number, hi.number, norm, seed, offset, sample_ids, radius.tensor,
        lo.tensor, hi.tensor, impl,
    )  # fmt: skip
