"""Which implementations and devices the suite runs on, and what every test starts from."""

import os

import hypothesis
import pytest
import torch

import advfast
from advfast import _backend


def pytest_addoption(parser):
    parser.addoption(
        "--slow", action="store_true", help="run the tests that need minutes or much memory"
    )


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


if "PYTEST_XDIST_WORKER" in os.environ:
    # Each of the side-by-side processes of `pytest -n` has its core; by default each would take all of them.
    torch.set_num_threads(1)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _variants() -> list[tuple[str, str]]:
    """(implementation, device) pairs that can run here."""
    found = [("reference", "cpu"), ("cpp", "cpu")]
    if DEVICE == "cuda":
        found += [("reference", "cuda"), ("cuda", "cuda"), ("triton", "cuda")]
    elif _backend.triton_interprets():
        found.append(("triton", "cpu"))
    only = os.environ.get("ADVFAST_TEST_IMPL")
    return [(impl, device) for impl, device in found if only in (None, impl)]


VARIANTS = [
    (impl, device)
    for impl, device in _variants()
    if impl in advfast.available_impls("pgd_step_", device)
]


def pytest_generate_tests(metafunc):
    if "variant" in metafunc.fixturenames:
        ids = [f"{impl}-{device}" for impl, device in VARIANTS]
        metafunc.parametrize("variant", VARIANTS, ids=ids)


@pytest.fixture
def impl(variant):
    return variant[0]


@pytest.fixture
def device(variant):
    return variant[1]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def nan_scratch():
    """torch.empty hands out NaN, so that reading what nobody wrote shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


# Examples per property and implementation; the interpreter is a thousand times slower than a kernel, so the usual run
# takes fewer of it (`--hypothesis-profile=full` takes them all).
_SUPPRESSED = list(hypothesis.HealthCheck)
hypothesis.settings.register_profile(
    "default", max_examples=2000, deadline=None, suppress_health_check=_SUPPRESSED, derandomize=True
)
hypothesis.settings.register_profile(
    "quick", max_examples=50, deadline=None, suppress_health_check=_SUPPRESSED, derandomize=True
)
hypothesis.settings.register_profile(
    "full", max_examples=2000, deadline=None, suppress_health_check=_SUPPRESSED
)
hypothesis.settings.load_profile("default")
