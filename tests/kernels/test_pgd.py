"""pgd_step_, project_ and random_start: every implementation against the definition, and its promises on any input."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advfast.kernels import pgd_step_, project_, random_start
from advfast.kernels.pgd import reference

from .cases import Case, laid_out, make, norm_of

EXAMPLES = 2000
INTERPRETED = 150  # the interpreter takes tens of milliseconds a call; profile "full" runs all

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SHAPES = (
    (1, 1), (3, 3073), (2, 1), (0, 3, 4, 4), (3, 3, 5, 7), (4, 1, 6, 6), (2, 3, 8), (1, 5, 1, 1),
    (2, 3, 2, 3, 4), (5,), (2, 17, 3, 3), (2, 3, 0, 4),
)  # fmt: skip


def outputs(arguments: dict) -> list:
    return [arguments["x"], arguments.get("out"), arguments["nonfinite"]]


def run(case: Case, device: str, impl: str) -> list:
    arguments = make(case, device)
    assert pgd_step_(**arguments, impl=impl) is arguments["x"]
    return outputs(arguments)


def layouts_of(shape) -> list[str]:
    return ["nchw", *{4: ["nhwc"], 5: ["ndhwc"]}.get(len(shape), [])]


def supported(case: Case, impl: str) -> bool:
    return impl in ("reference", "cpp") or case.dtype == torch.float32


@st.composite
def step_cases(draw) -> Case:
    shape = draw(st.sampled_from(SHAPES))
    norm = draw(st.sampled_from(["linf", "l2", "l1"]))
    box = draw(st.sampled_from([(0.0, 1.0), (0.0, 1.0), (-1.0, 2.0), (None, None), (0.0, None)]))
    operands = ["number", "number", "sample", "full"] + (["channel"] if len(shape) > 1 else [])
    return Case(
        shape=shape,
        layout=draw(st.sampled_from(layouts_of(shape))),
        dtype=draw(st.sampled_from([torch.float32, torch.float32, torch.float64])),
        grad_dtype=draw(st.sampled_from(FLOATS)),
        norm=norm,
        eps=draw(
            st.sampled_from([0.0, 1e-38, 1e-30, 1e-8, 1e-3, 8 / 255, 0.5, 3.0, 1e6, float("inf")])
        ),
        alpha=draw(st.sampled_from([0.0, 1e-9, 2 / 255, 0.1, 1.0, 1e5])),
        lo=box[0],
        hi=box[1],
        specials=draw(st.sampled_from([0, 0, 1, 4])),
        spread=draw(st.sampled_from([0.0, 1e-6, 0.05, 2.0])),
        mask=draw(st.booleans()),
        operands=draw(st.sampled_from(operands)),
        out_dtype=draw(st.sampled_from([None, torch.float32, torch.float16, torch.bfloat16])),
        out_layout=draw(st.sampled_from(layouts_of(shape))),
        affine=draw(st.booleans()),
        l2_order=draw(st.sampled_from(["ball-box", "box-ball-box"])),
        seed=draw(st.integers(0, 2**31)),
    )


def check_promises(case: Case, before: dict, x: torch.Tensor, out) -> None:
    """Ball and box, whatever came in."""
    x0 = before["x0"]
    lo = -torch.inf if case.lo is None else case.lo
    hi = torch.inf if case.hi is None else case.hi
    assert ((x >= lo) & (x <= hi)).all()
    eps = before["eps"]
    if case.norm == "linf":
        radius = (
            eps
            if isinstance(eps, torch.Tensor)
            else torch.tensor(eps, dtype=x.dtype, device=x.device)
        )
        assert ((x >= x0 - radius) & (x <= x0 + radius)).all()
    else:
        radius = eps.double().reshape(-1) if isinstance(eps, torch.Tensor) else eps
        assert (norm_of(x.double() - x0.double(), case.norm) <= radius * (1 + 1e-6) + 1e-300).all()
    if out is not None and not case.affine:
        # Rounding never goes away from x0, unless no number of the format lies between.
        farther = (out.double() - x0.double()).abs() > (x.double() - x0.double()).abs()
        representable = x0.to(out.dtype).to(x0.dtype) == x0
        assert not (farther & representable).any()


def check_held(case: Case, before: dict, x: torch.Tensor) -> None:
    """What must not move keeps its bits, if it was inside."""
    grad, x_before, x0 = before["grad"], before["x"], before["x0"]
    active = torch.ones_like(grad, dtype=torch.bool)
    if before["mask"] is not None:
        active = before["mask"].expand(grad.shape)
    bad = active & ~torch.isfinite(grad)
    assert before["nonfinite"].item() == 0
    if case.norm == "linf":
        eps = before["eps"]
        radius = (
            eps
            if isinstance(eps, torch.Tensor)
            else torch.tensor(eps, dtype=x.dtype, device=x.device)
        )
        inside = (x_before >= x0 - radius) & (x_before <= x0 + radius)
        held = bad | ~active
    else:
        flat = norm_of(x_before.double() - x0.double(), case.norm)
        radius = before["eps"]
        radius = radius.double().reshape(-1) if isinstance(radius, torch.Tensor) else radius
        samples = (flat <= radius * (1 - 1e-6)) & bad.reshape(
            bad.shape[0], bad.shape[1:].numel()
        ).any(1)
        inside = samples.reshape(-1, *[1] * (x.dim() - 1)).expand(x.shape)
        held = torch.ones_like(active)
    lo = -torch.inf if case.lo is None else case.lo
    hi = torch.inf if case.hi is None else case.hi
    inside = inside & (x_before >= lo) & (x_before <= hi)
    keep = held & inside
    assert torch.equal(x[keep], x_before[keep])


def bits(t: torch.Tensor) -> torch.Tensor:
    return t.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(bits(a), bits(b))


def step_property(case: Case, impl: str, device: str) -> None:
    if not supported(case, impl):
        case = replace(case, dtype=torch.float32)
    before = make(case, device)
    x, out, nonfinite = run(case, device, impl)
    check_promises(case, before, x, out)
    check_held(case, before, x)
    expected_x, expected_out, expected_count = run(case, device, "reference")
    assert torch.equal(nonfinite, expected_count)
    if case.norm == "linf":
        assert same_bits(x, expected_x)
        assert out is None or same_bits(out, expected_out)
    elif x.numel():
        # A few float steps of the largest number that took part (l1 subtracts a threshold of the size of the step).
        reach = 4.0 + 1.5 * (case.alpha if case.norm == "l1" else min(case.eps, case.alpha + 2.0))
        tolerance = (4e-7 if x.dtype == torch.float32 else 1e-12) * reach
        assert (x - expected_x).abs().max().item() <= tolerance
        if out is not None and not case.affine:
            step = torch.finfo(out.dtype).eps
            assert (
                out.double() - expected_out.double()
            ).abs().max() <= tolerance + 2 * step * reach


def for_examples(impl: str, device: str, strategy, check) -> None:
    """check(case) on as many examples as the profile asks for; fewer where the kernel is interpreted."""
    examples = settings.default.max_examples
    if impl == "triton" and device == "cpu" and settings.get_current_profile_name() != "full":
        examples = min(examples, INTERPRETED)

    @settings(max_examples=examples)
    @given(case=strategy)
    def holds(case):
        check(case)

    holds()


def test_step_keeps_its_promises(impl, device, nan_scratch):
    for_examples(impl, device, step_cases(), lambda case: step_property(case, impl, device))


# --- the definition, against formulas written independently ----------------------------------------------------------


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (3, 3, 5, 7), (2, 1, 1, 3073)], ids=str)
def test_linf_step_is_the_usual_sequence(impl, device, shape, layout):
    arguments = make(Case(shape=shape, layout=layout, spread=8 / 255), device)
    x, grad, x0 = arguments["x"].clone(), arguments["grad"], arguments["x0"]
    moved = x + 2 / 255 * grad.sign()
    delta = torch.clamp(moved - x0, min=-8 / 255, max=8 / 255)
    expected = torch.clamp(x0 + delta, min=0, max=1)
    assert torch.equal(pgd_step_(**arguments, impl=impl), expected)


@pytest.mark.parametrize("order", ["ball-box", "box-ball-box"])
def test_l2_step_in_both_orders(impl, device, order):
    case = Case(norm="l2", eps=0.5, alpha=0.3, spread=0.2, l2_order=order)
    arguments = make(case, device)
    x, grad, x0 = (arguments[name].double() for name in ("x", "grad", "x0"))
    size = grad.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    moved = x + 0.3 * grad / size
    if order == "box-ball-box":
        moved = moved.clamp(0, 1)
    delta = moved - x0
    length = delta.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    expected = (x0 + delta * torch.clamp(0.5 / length, max=1.0)).clamp(0, 1)
    got = pgd_step_(**arguments, impl=impl)
    assert (got.double() - expected).abs().max() < 2e-7


def l1_projection_by_bisection(delta: torch.Tensor, eps: float) -> torch.Tensor:
    """Rows of delta onto the l1 ball in float64, by bisection on the threshold: nothing shared with the code."""
    sizes = delta.abs()
    low, high = torch.zeros_like(sizes[:, :1]), sizes.amax(1, keepdim=True)
    for _ in range(200):
        middle = (low + high) / 2
        above = (sizes - middle).clamp(min=0).sum(1, keepdim=True) > eps
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    shrunk = delta.sign() * (sizes - high).clamp(min=0)
    return torch.where(sizes.sum(1, keepdim=True) > eps, shrunk, delta)


@pytest.mark.parametrize("eps", [0.1, 3.0, 40.0])
def test_l1_projection_is_euclidean(impl, device, eps):
    generator = torch.Generator().manual_seed(1)
    x0 = torch.rand(6, 200, generator=generator)
    x = x0 + torch.randn(6, 200, generator=generator) * torch.logspace(-3, 0, 6)[:, None]
    expected = x0.double() + l1_projection_by_bisection(x.double() - x0.double(), eps)
    got = project_(x.to(device), x0.to(device), eps=eps, norm="l1", bounds=None, impl=impl)
    assert (got.cpu().double() - expected).abs().max() < 3e-7
    # A rescaling would keep every entry non-zero.
    assert eps == 40.0 or (got.cpu() == x0).sum() > 100


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("scale", [1e-42, 1e-20, 1e18, 3e37])
def test_direction_does_not_depend_on_the_size_of_the_gradient(impl, device, norm, scale):
    case = Case(norm=norm, eps=10.0, alpha=0.3)
    plain, scaled = make(case, device), make(case, device)
    digits = torch.tensor([1.0, -2.0, 4.0, 0.0]).repeat(scaled["grad"].numel() // 4 + 1)
    digits = digits[: scaled["grad"].numel()].reshape(case.shape).to(device)
    plain["grad"], scaled["grad"] = digits.clone(), (digits.double() * scale / 4).float()
    a = pgd_step_(**plain, impl=impl)
    b = pgd_step_(**scaled, impl=impl)
    # 1e-42 has only ten bits.
    assert (a - b).abs().max() < (1e-3 if scale < 1e-37 else 1e-6)
    assert scaled["nonfinite"].item() == 0


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e200, 1e307])
def test_double_gradients_of_any_size(norm, scale):
    for impl in ("reference", "cpp"):
        case = Case(norm=norm, eps=10.0, alpha=0.3, grad_dtype=torch.float64)
        plain, scaled = make(case), make(case)
        scaled["grad"] = plain["grad"].clamp(-4, 4) * scale
        plain["grad"] = plain["grad"].clamp(-4, 4)
        a, b = pgd_step_(**plain, impl=impl), pgd_step_(**scaled, impl=impl)
        assert (a - b).abs().max() < 1e-6, impl


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_zero_gradient_does_not_move(impl, device, norm):
    arguments = make(Case(norm=norm, eps=10.0, spread=0.0), device)
    arguments["grad"].zero_()
    x0 = arguments["x0"].clone()
    assert torch.equal(pgd_step_(**arguments, impl=impl), x0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_nonfinite_gradient_is_counted_and_held(impl, device, norm):
    arguments = make(Case(norm=norm, eps=0.5, alpha=0.1, spread=0.001), device)
    for value, at in (
        (torch.nan, (0, 0, 0, 0)),
        (torch.inf, (0, 1, 2, 3)),
        (-torch.inf, (2, 0, 0, 1)),
    ):
        arguments["grad"][at] = value
    before = arguments["x"].clone().clamp(0, 1)
    arguments["x"].clamp_(0, 1)
    arguments["nonfinite"].fill_(5)
    x = pgd_step_(**arguments, impl=impl)
    assert arguments["nonfinite"].item() == 8
    if norm == "linf":
        assert x[0, 0, 0, 0] == before[0, 0, 0, 0] and x[2, 0, 0, 1] == before[2, 0, 0, 1]
        assert (x[0] != before[0]).float().mean() > 0.5
    else:
        assert torch.equal(x[0], before[0]) and torch.equal(x[2], before[2])
        assert (x[1] != before[1]).float().mean() > 0.5


@pytest.mark.parametrize("why", ["masked", "nan"])
def test_held_entry_keeps_its_bits(impl, device, why):
    """Also where x0 + (x - x0) is not x, as for a small pixel beside a larger centre."""
    x0 = torch.rand(4, 64, device=device) * 0.05 + 0.01
    x = torch.rand(4, 64, device=device) * 1e-5
    assert (x0 + (x - x0) != x).any()
    grad, mask = torch.randn(4, 64, device=device), None
    held = torch.arange(64, device=device) % 2 == 0
    if why == "masked":
        mask = ~held.expand(4, 64).contiguous()
    else:
        grad[:, held] = torch.nan
    before = x.clone()
    pgd_step_(x, grad, x0, alpha=0.01, eps=0.1, mask=mask, impl=impl)
    assert same_bits(x[:, held], before[:, held])
    assert (x[:, ~held] != before[:, ~held]).float().mean() > 0.4


def test_samples_do_not_touch_each_other(impl, device):
    for norm in ("linf", "l2", "l1"):
        case = Case(shape=(5, 3, 9, 9), norm=norm, eps=0.3, alpha=0.2)
        whole = make(case, device)
        parts = [
            pgd_step_(
                whole["x"][i : i + 1].clone(), whole["grad"][i : i + 1].clone(),
                whole["x0"][i : i + 1].clone(), alpha=0.2, eps=0.3, norm=norm, impl=impl,
            )
            for i in range(5)
        ]  # fmt: skip
        assert torch.equal(pgd_step_(**whole, impl=impl), torch.cat(parts))


def test_layout_changes_no_value(impl, device):
    for norm in ("linf", "l2", "l1"):
        nchw = make(Case(norm=norm, eps=0.3, alpha=0.2), device)
        nhwc = make(Case(norm=norm, eps=0.3, alpha=0.2, layout="nhwc"), device)
        a, b = pgd_step_(**nchw, impl=impl), pgd_step_(**nhwc, impl=impl)
        assert b.is_contiguous(memory_format=torch.channels_last)
        if norm == "linf":
            assert torch.equal(a, b)
        else:
            assert (a - b).abs().max() < 2e-7


def test_result_does_not_depend_on_threads():
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            for norm in ("linf", "l2", "l1"):
                case = Case(shape=(7, 3, 64, 65), norm=norm, eps=0.3, alpha=0.2)
                results.append((norm, run(case, "cpu", "cpp")[0]))
        for norm, x in results:
            assert all(torch.equal(x, other) for name, other in results if name == norm)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("out_layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_out_is_the_normalised_next_input(impl, device, out_dtype, out_layout):
    arguments = make(Case(out_dtype=out_dtype, out_layout=out_layout), device)
    mean, std = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]
    arguments.update(shift=mean, scale=[1 / s for s in std])
    x = pgd_step_(**arguments, impl=impl)
    shift = torch.tensor(mean, device=device).reshape(1, 3, 1, 1)
    scale = torch.tensor([1 / s for s in std], device=device).reshape(1, 3, 1, 1)
    assert torch.equal(arguments["out"], ((x - shift) * scale).to(out_dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_sixteen_bit_result_stays_in_the_ball(impl, device, dtype, norm):
    eps = 8 / 255 if norm == "linf" else 0.5
    x0 = torch.rand(16, 3, 8, 8, device=device).to(dtype)
    x = random_start(x0.float(), eps=eps, norm=norm, seed=1, bounds=None, impl=impl)
    x = x0.float() + (x - x0.float()) * 2
    out = torch.empty_like(x0)
    project_(x, x0.float(), eps=eps, norm=norm, out=out, impl=impl)
    slack = 1.0 if norm == "linf" else 1 + 1e-6
    limit = torch.tensor(eps, dtype=torch.float32).item() * slack
    assert norm_of(out.double() - x0.double(), norm).max() <= limit * (1 + 1e-7)
    assert ((out >= 0) & (out <= 1)).all()


@pytest.mark.slow
def test_more_than_two_to_the_31_elements(impl, device):
    """17 GB; projected, as a gradient would not fit beside it on a small machine."""
    if impl in ("reference", "triton") and device == "cpu":
        pytest.skip("too slow")
    n = 2**31 + 5
    x = torch.full((1, n), 0.9, device=device)
    x0 = torch.full((1, n), 0.5, device=device)
    project_(x, x0, eps=0.25, impl=impl)
    assert (x[0, -5:] == 0.75).all() and x.min() == 0.75 and x.max() == 0.75


# --- project_ --------------------------------------------------------------------------------------------------------


def project_property(case: Case, impl: str, device: str) -> None:
    if not supported(case, impl):
        case = replace(case, dtype=torch.float32)
    before = make(case, device)

    def projected(name: str) -> torch.Tensor:
        arguments = make(case, device)
        keep = ("x", "x0", "eps", "norm", "bounds", "out", "scale", "shift")
        return project_(**{k: v for k, v in arguments.items() if k in keep}, impl=name)

    x = projected(impl)
    check_promises(case, before, x, None)
    # A second projection changes nothing.
    again = project_(
        x.clone(),
        before["x0"],
        eps=before["eps"],
        norm=case.norm,
        bounds=before["bounds"],
        impl=impl,
    )
    if case.norm == "linf":
        assert same_bits(again, x) and same_bits(x, projected("reference"))
    elif x.numel():
        expected = projected("reference")
        assert (x - expected).abs().max() <= 2e-6 * max(1.0, case.spread)
        assert (again - x).abs().max() <= 2e-6 * max(1.0, case.spread)


def test_projection_keeps_its_promises(impl, device, nan_scratch):
    for_examples(impl, device, step_cases(), lambda case: project_property(case, impl, device))


# --- random_start ----------------------------------------------------------------------------------------------------


def test_philox_known_answers():
    """Random123's kat_vectors for philox4x32-10."""

    def words(counter, key):
        as_tensors = [torch.tensor([c]) for c in counter]
        return [
            int(w)
            for w in reference.philox(tuple(as_tensors), tuple(torch.tensor([k]) for k in key))[0]
        ]

    ones = 0xFFFFFFFF
    assert words((0, 0, 0, 0), (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert words((ones,) * 4, (ones,) * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert words(pi, (0xA4093822, 0x299F31D0)) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_start_words_are_philox(impl, device):
    """The words of an implementation, read back from an linf start around 0: x = uniform(word) exactly."""
    seed, offset, ids = 0x299F31D0A4093822, 0x85A308D3, torch.tensor([7, 2**40 + 3])
    x0 = torch.zeros(2, 1, 3, 3, device=device)
    x = random_start(
        x0, eps=1.0, bounds=None, seed=seed, offset=offset, sample_ids=ids.to(device), impl=impl
    )
    got = ((x.double() * 2**24 + 2**24 - 1) / 2).reshape(2, 9).long().cpu()
    words = reference.start_words(torch.arange(3), offset, ids, torch.tensor([seed]))
    assert torch.equal(got, (words.reshape(2, 12) >> 8)[:, :9])


@st.composite
def start_cases(draw) -> Case:
    shape = draw(st.sampled_from([s for s in SHAPES if s[0] < 5]))
    norm = draw(st.sampled_from(["linf", "l2", "l1"]))
    operands = ["number", "sample"] + (
        ["channel", "full"] if len(shape) > 1 and norm == "linf" else []
    )
    return Case(
        shape=shape,
        norm=norm,
        layout=draw(st.sampled_from(layouts_of(shape))),
        dtype=draw(st.sampled_from([torch.float32, torch.float64])),
        eps=draw(st.sampled_from([0.0, 1e-30, 1e-3, 0.1, 5.0, 1e6])),
        lo=draw(st.sampled_from([0.0, None])),
        hi=draw(st.sampled_from([1.0, None])),
        operands=draw(st.sampled_from(operands)),
        seed=draw(st.integers(0, 2**31)),
    )


def start_property(case: Case, impl: str, device: str) -> None:
    if not supported(case, impl):
        case = replace(case, dtype=torch.float32)
    arguments = make(case, device)
    x0, settings_ = arguments["x0"], {k: arguments[k] for k in ("eps", "norm", "bounds")}
    x = random_start(x0, **settings_, seed=case.seed, offset=case.seed % 7, impl=impl)
    expected = random_start(x0, **settings_, seed=case.seed, offset=case.seed % 7, impl="reference")
    assert x.stride() == x0.stride() and x.dtype == x0.dtype
    check_promises(case, arguments, x, None)
    if case.norm == "linf":
        assert same_bits(x, expected)
    elif x.numel():
        gap = norm_of(x.double() - expected.double(), "l2")
        size = norm_of(expected.double() - x0.double(), "l2")
        # Rounding of x0 + delta is the same for both; what is left is that of the draws.
        grain = torch.finfo(x.dtype).eps * 4 * (x[0].numel() ** 0.5)
        assert (gap <= 1e-5 * size + grain).all()


def test_start_keeps_its_promises(impl, device, nan_scratch):
    for_examples(impl, device, start_cases(), lambda case: start_property(case, impl, device))


def test_start_depends_on_seed_stream_and_sample_alone(impl, device):
    x0 = torch.rand(6, 3, 5, 5, device=device)
    for norm in ("linf", "l2", "l1"):
        whole = random_start(x0, eps=0.1, norm=norm, seed=3, impl=impl)
        ids = torch.arange(6, device=device)
        part = random_start(x0[2:5], eps=0.1, norm=norm, seed=3, sample_ids=ids[2:5], impl=impl)
        assert torch.equal(part, whole[2:5])
        nhwc = random_start(laid_out(x0, "nhwc"), eps=0.1, norm=norm, seed=3, impl=impl)
        assert (nhwc - whole).abs().max() <= (0 if norm == "linf" else 1e-6)
        device_seed = torch.tensor([3], device=device)
        assert torch.equal(random_start(x0, eps=0.1, norm=norm, seed=device_seed, impl=impl), whole)
        for other in ({"seed": 4}, {"seed": 3, "offset": 1}, {"seed": 3, "sample_ids": ids + 6}):
            assert (
                random_start(x0, eps=0.1, norm=norm, impl=impl, **other) != whole
            ).float().mean() > 0.9


def kolmogorov(values: torch.Tensor) -> float:
    """sqrt(n) times the largest gap between the empirical distribution and the uniform one on (0, 1)."""
    ordered = values.sort().values.double().cpu()
    n = ordered.numel()
    steps = torch.arange(1, n + 1) / n
    return (torch.maximum(steps - ordered, ordered - steps + 1 / n).max() * n**0.5).item()


LIMIT = 2.2  # Kolmogorov distribution: P(> 2.2) = 1.2e-4


def test_linf_start_is_uniform(impl, device):
    x0 = torch.zeros(64, 200, device=device)
    x = random_start(x0, eps=2.0, bounds=None, seed=11, impl=impl)
    assert kolmogorov((x.flatten() + 2) / 4) < LIMIT
    assert x.abs().max() <= 2 and x.abs().max() > 1.999
    # Neighbouring elements, samples and halves of the range are independent.
    centred = x.double() / 2
    for pair in (centred[:, 1:] * centred[:, :-1], centred[1:] * centred[:-1]):
        assert abs(pair.mean().item()) < 5 / 3 / pair.numel() ** 0.5


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_ball_start_is_uniform_in_the_ball(impl, device, norm):
    dim, n = 7, 400 if impl == "triton" and device == "cpu" else 4000  # interpreted: slow
    close = 4 / n**0.5
    x0 = torch.zeros(n, dim, device=device)
    x = random_start(x0, eps=3.0, norm=norm, bounds=None, seed=5, impl=impl).cpu().double() / 3
    sizes = norm_of(x, norm)
    assert kolmogorov(sizes**dim) < LIMIT  # volume grows with r^D
    assert abs(x.mean().item()) < 5 * x.std().item() / x.numel() ** 0.5
    # Directions: each coordinate has the same share, and the sign of one says nothing of another.
    share = (x.abs() / sizes[:, None]).mean(0)
    assert (share / share.mean() - 1).abs().max() < close
    signs = x.sign()
    assert ((signs.T @ signs) / n - torch.eye(dim)).abs().max() < 5 / n**0.5
    if norm == "l2":
        # A projection of the sphere in D dimensions: E[u^4] = 3 / (D (D + 2)).
        u = x / sizes[:, None]
        assert abs((u**4).mean().item() * dim * (dim + 2) / 3 - 1) < close
    else:
        # The l1 sphere: E[u^2] = 2 / (D (D + 1)).
        u = x / sizes[:, None]
        assert abs((u**2).mean().item() * dim * (dim + 1) / 2 - 1) < close
