"""The registered ops as torch sees them, forks and threads, bad input."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from advfast.kernels import pgd_step_, project_, random_start
from advfast.kernels.pgd.ops import pgd_step_op, project_op, random_start_op

from .cases import Case, make


def step_args(device: str, impl: str, norm: str = "linf", **case):
    """Positional arguments of the registered op, with every optional tensor given."""
    a = make(Case(norm=norm, mask=True, out_dtype=torch.bfloat16, affine=True, **case), device)
    ones = torch.ones(1, 1, 1, 1, device=device)
    scale, shift = (a[name].reshape(1, -1, 1, 1) for name in ("scale", "shift"))
    return (
        a["x"], a["grad"], a["x0"], 0.01, 0.03, 0.0, 1.0, norm, "ball-box", ones * 0.01, ones * 0.03,
        ones * 0.0, ones * 1.0, a["mask"], a["out"], scale, shift, a["nonfinite"], impl,
    )  # fmt: skip


CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_opcheck(impl, device, norm):
    torch.library.opcheck(pgd_step_op, step_args(device, impl, norm), test_utils=CHECKS)
    plain = make(Case(norm=norm), device)
    none = (None,) * 8
    torch.library.opcheck(
        pgd_step_op,
        (*(plain[k] for k in ("x", "grad", "x0")), 0.01, 0.03, 0.0, 1.0, norm, "ball-box", *none, None, impl),
        test_utils=CHECKS,
    )  # fmt: skip
    out = torch.empty_like(plain["x"], dtype=torch.float16)
    torch.library.opcheck(
        project_op,
        (plain["x"], plain["x0"], 0.03, 0.0, 1.0, norm, None, None, None, out, None, None, impl),
        test_utils=CHECKS,
    )
    seed = torch.tensor([3], device=device)
    torch.library.opcheck(
        random_start_op,
        (plain["x0"], 0.03, 0.0, 1.0, norm, seed, 1, None, None, None, None, impl),
        test_utils=CHECKS,
    )


def three_ops(x, grad, x0, seed, eps, impl):
    """A start, a step and a projection, as traced code would use them."""
    start = random_start(x0, eps=eps, seed=seed, impl=impl)
    x = x + (start - x0)
    pgd_step_(x, grad, x0, alpha=0.01, eps=eps, impl=impl)
    project_(x, x0, eps=eps / 2, norm="l2", impl=impl)
    return x * 2


@pytest.mark.parametrize("dynamic", [False, True])
def test_fullgraph_equals_eager(impl, device, dynamic):
    torch.compiler.reset()
    compiled = torch.compile(three_ops, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((3, 3, 5, 7), (4, 3, 6, 8), (2, 3, 9, 5)):
        a = make(Case(shape=shape), device)
        seed = torch.tensor([shape[0]], device=device)
        eager = three_ops(a["x"], a["grad"], a["x0"], seed, 0.03, impl)
        traced = compiled(a["x"], a["grad"], a["x0"], seed, 0.03, impl)
        assert torch.equal(eager, traced)


def test_in_place_change_is_noticed_by_autograd(impl, device):
    a = make(Case(out_dtype=torch.float32), device)
    versions = [a[name]._version for name in ("x", "out", "nonfinite")]
    pgd_step_(**a, impl=impl)
    after = [a[name]._version for name in ("x", "out", "nonfinite")]
    assert all(new > old for new, old in zip(after, versions, strict=True))
    weight = torch.ones((), device=device, requires_grad=True)
    product = a["x"] * weight  # saves x
    project_(a["x"], a["x0"], eps=0.01, impl=impl)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_works_in_inference_mode(impl, device):
    with torch.inference_mode():
        a = make(Case(out_dtype=torch.float16), device)
        pgd_step_(**a, impl=impl)
        random_start(a["x0"], eps=0.1, seed=0, impl=impl)
    expected = make(Case(out_dtype=torch.float16), device)
    pgd_step_(**expected, impl=impl)
    assert torch.equal(a["x"], expected["x"]) and torch.equal(a["out"], expected["out"])


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=env,
        timeout=240,
    )


def test_first_call_in_a_fresh_process_may_be_compiled():
    done = python(
        """
import torch, advfast
from advfast.kernels import pgd_step_
x0 = torch.rand(2, 3, 4, 4); grad = torch.randn_like(x0); x = x0.clone()
step = torch.compile(lambda x, g, x0: pgd_step_(x, g, x0, alpha=.1, eps=.1) + 1, fullgraph=True, backend="aot_eager")
assert torch.equal(step(x.clone(), grad, x0), pgd_step_(x, grad, x0, alpha=.1, eps=.1) + 1)
"""
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_can_step():
    """The threads of the parent do not exist in the child: a parallel region there would wait for ever."""
    done = python(
        """
import os, torch
from advfast.kernels import pgd_step_
torch.set_num_threads(2)
x0 = torch.rand(16, 3, 64, 64); grad = torch.randn_like(x0)
for norm in ("linf", "l2"):
    pgd_step_(x0.clone(), grad, x0, alpha=.1, eps=.1, norm=norm)
x = x0.clone()  # made here: torch's own parallel copy hangs in the child
child = os.fork()
if child == 0:
    for norm in ("linf", "l2"):
        pgd_step_(x, grad, x0, alpha=.1, eps=.1, norm=norm, impl="auto")
    os._exit(7)
import time
for _ in range(600):
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid: break
    time.sleep(.1)
else:
    os.kill(child, 9); raise SystemExit("the child hangs")
assert os.waitstatus_to_exitcode(status) == 7
"""
    )
    assert done.returncode == 0, done.stderr


def test_threads_may_call_at_once(impl, device):
    if impl == "triton" and device == "cpu":
        pytest.skip("the interpreter keeps global state")
    cases = [
        Case(shape=(6, 3, 33, 31), seed=seed, norm=norm)
        for seed in range(3)
        for norm in ("linf", "l2")
    ]
    expected = [pgd_step_(**make(case, device), impl=impl) for case in cases]
    wrong = []

    def work(case, result):
        for _ in range(20):
            if not torch.equal(pgd_step_(**make(case, device), impl=impl), result):
                wrong.append(case)

    workers = [
        threading.Thread(target=work, args=pair) for pair in zip(cases, expected, strict=True)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.gpu
def test_graph_replay_equals_eager(impl, device):
    if impl == "reference" or device != "cuda":
        pytest.skip("captured on CUDA, without the reference")
    for norm in ("linf", "l2", "l1"):
        static = make(Case(shape=(8, 3, 32, 32), norm=norm, eps=0.5, alpha=0.1), device)
        warm = torch.cuda.Stream()
        with torch.cuda.stream(warm):
            pgd_step_(**static, impl=impl)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            pgd_step_(**static, impl=impl)
        for seed in range(3):
            fresh = make(
                Case(shape=(8, 3, 32, 32), norm=norm, eps=0.5, alpha=0.1, seed=seed), device
            )
            for name in ("x", "grad", "x0", "nonfinite"):
                static[name].copy_(fresh[name])
            graph.replay()
            assert torch.equal(static["x"], pgd_step_(**fresh, impl=impl))


@pytest.mark.gpu
def test_graph_random_start_varies_between_replays(impl, device):
    if impl == "reference" or device != "cuda":
        pytest.skip("captured on CUDA, without the reference")
    x0 = torch.rand(8, 3, 32, 32, device=device)
    seed = torch.zeros(1, dtype=torch.int64, device=device)
    random_start(x0, eps=0.1, seed=seed, impl=impl)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        start = random_start(x0, eps=0.1, seed=seed, impl=impl)
    for value in (1, 2):
        seed.fill_(value)
        graph.replay()
        assert torch.equal(start, random_start(x0, eps=0.1, seed=value, impl=impl))


# --- bad input -------------------------------------------------------------------------------------------------------


def bad(**changes):
    arguments = {
        k: v for k, v in make(Case()).items() if k not in ("mask", "nonfinite", "l2_order")
    }
    arguments.update(changes)
    return lambda: pgd_step_(**arguments)


IMAGES = make(Case())
WIDE = torch.rand(3, 3, 5, 14)[..., ::2]
REJECTED = {
    "norm": (bad(norm="linff"), ValueError, "did you mean 'linf'"),
    "order": (bad(l2_order="ball"), ValueError, "ball-box, box-ball-box"),
    "eps negative": (bad(eps=-0.1), ValueError, "eps must be a number >= 0, got -0.1"),
    "eps nan": (bad(eps=float("nan")), ValueError, "eps must be"),
    "alpha negative": (bad(alpha=-1.0), ValueError, "alpha must be a finite number >= 0"),
    "alpha infinite": (bad(alpha=float("inf")), ValueError, "alpha must be a finite"),
    "shape": (bad(grad=torch.rand(3, 3, 5, 8)), ValueError, r"grad must have shape \(3, 3, 5, 7\)"),
    "x dtype": (bad(x=IMAGES["x"].half()), TypeError, "x must be float32 or float64"),
    "x0 dtype": (bad(x0=IMAGES["x0"].double()), TypeError, "x0 must be torch.float32 like x"),
    "grad dtype": (bad(grad=torch.ones(3, 3, 5, 7, dtype=torch.int64)), TypeError, "float tensor"),
    "strides": (bad(x=WIDE), ValueError, "contiguous or channels_last"),
    "layouts": (
        bad(grad=IMAGES["grad"].contiguous(memory_format=torch.channels_last)),
        ValueError,
        "memory format of x",
    ),
    "bounds": (bad(bounds=(1.0, 0.0)), ValueError, "lo <= hi"),
    "bounds per channel": (bad(bounds=([0.0, 0.1], 1.0)), ValueError, "broadcast over x"),
    "eps shape": (bad(eps=torch.ones(3)), ValueError, r"for example \(3, 1, 1, 1\)"),
    "eps per channel in l2": (
        bad(norm="l2", eps=torch.ones(1, 3, 1, 1)),
        ValueError,
        "one value a sample",
    ),
    "mask dtype": (bad(mask=torch.ones(3, 3, 5, 7)), TypeError, "mask must be bool"),
    "scale without out": (bad(scale=2.0), ValueError, "belong to out"),
    "out shape": (bad(out=torch.rand(2, 3, 5, 7)), ValueError, "out must have shape"),
    "out dtype": (bad(out=torch.ones(3, 3, 5, 7, dtype=torch.int32)), TypeError, "float tensor"),
    "counter": (bad(nonfinite=torch.zeros(1)), ValueError, "one int64"),
    "impl": (bad(impl="fast"), ValueError, "impl must be one of"),
    "requires grad": (bad(x=IMAGES["x"].clone().requires_grad_()), ValueError, "requires grad"),
    "not a tensor": (bad(x0=[1.0]), TypeError, "x0 must be a tensor, got list"),
    "0-d": (bad(x=torch.ones(())), ValueError, "batch dimension"),
}  # fmt: skip


@pytest.mark.parametrize("name", REJECTED)
def test_step_rejects(name):
    call, error, message = REJECTED[name]
    with pytest.raises(error, match=message):
        call()


def test_written_memory_must_be_apart(impl, device):
    a = make(Case(), device)
    x, grad, x0 = a["x"], a["grad"], a["x0"]
    storage = torch.rand(2, *x.shape, device=device)
    whole = torch.rand(4, 3, 5, 7, device=device)
    for changed, names in (
        ({"out": x}, "x and out"),
        ({"out": x0}, "out and x0"),
        ({"out": grad}, "out and grad"),
        ({"x0": x}, "x and x0"),
        ({"x": whole[:3], "x0": whole[1:]}, "x and x0"),
    ):
        with pytest.raises(ValueError, match=f"{names} must not share memory"):
            pgd_step_(**{"x": x, "grad": grad, "x0": x0, **changed}, alpha=0.1, eps=0.1, impl=impl)
    pgd_step_(storage[0], grad, storage[1], alpha=0.1, eps=0.1, impl=impl)


def test_named_implementation_never_falls_back():
    a = make(Case(dtype=torch.float64))
    for impl in ("cuda", "triton"):
        with pytest.raises(RuntimeError, match=f"impl='{impl}' is not available"):
            pgd_step_(**a, impl=impl)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="impl='cuda' is not available"):
            pgd_step_(**make(Case()), impl="cuda")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2**70}, "64 bits"),
        ({"offset": -1}, "offset must be"),
        ({"eps": float("inf")}, "eps must be finite"),
        ({"sample_ids": torch.arange(2)}, r"int64 of shape \(3,\)"),
        ({"seed": torch.zeros(2, dtype=torch.int64)}, "one int64"),
    ],
    ids=str,
)
def test_start_rejects(change, message):
    with pytest.raises(ValueError, match=message):
        random_start(**{"x0": IMAGES["x0"], "eps": 0.1, "seed": 0, **change})


def test_error_leaves_x_alone():
    a = make(Case())
    before = a["x"].clone()
    with pytest.raises(ValueError):
        pgd_step_(**{**a, "eps": -1.0})
    assert torch.equal(a["x"], before)
