import pytest
import torch

from advfast import training

SHORT = ["train", "--epochs", "1", "--steps", "1"]


@pytest.fixture(autouse=True)
def _threads():
    # `train` sets the number of threads of the process.
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def trained(tmp_path_factory):
    """The folder of a short run on digits; not to be written to."""
    out = tmp_path_factory.mktemp("runs") / "run"
    training.train(data="digits", eps=0.15, epochs=3, steps=2, lr=0.2, out=out, progress=False)
    return out


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that folder."""
    import shutil

    return shutil.copytree(trained, tmp_path / "run")
