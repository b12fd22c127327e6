"""Extra data in whole runs."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from advfast.training import train

from .runs import Terminate, assert_resumes, course, images, network


def more(count=60):
    generator = torch.Generator().manual_seed(7)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 3


class Seen:
    def __init__(self):
        self.shares, self.batches = [], []

    def on_step_end(self, state):
        self.shares.append((state.batch.indices >= 110).float().mean().item())
        self.batches.append(state.batch.indices.tolist())


def test_batches_of_a_run(tmp_path):
    seen = Seen()
    result = course(tmp_path, extra=more(), extra_share=0.25, callbacks=[seen])
    assert len(seen.shares) == 9
    assert set(seen.shares) == {0.25}
    assert result.environment["samples"]["extra"] == 60
    assert (result.config["extra"], result.config["extra_share"]) == ("<tuple from Python>", 0.25)


def test_resumed_in_the_middle_of_an_epoch(tmp_path):
    assert_resumes(tmp_path, extra=more())


def test_from_a_file(tmp_path):
    path = tmp_path / "more.npz"
    x, y = more()
    np.savez(path, images=x.numpy(), labels=y.numpy())
    one, other = Seen(), Seen()
    course(tmp_path / "file", extra=str(path), callbacks=[one])
    course(tmp_path / "pair", extra=more(), callbacks=[other])
    assert one.batches == other.batches


def test_resume_with_other_extra_data_is_refused(tmp_path):
    with pytest.raises(SystemExit):
        course(tmp_path, extra=more(), callbacks=[Terminate(2)])
    with pytest.raises(ValueError, match="another training data"):
        course(tmp_path, extra=more(61))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extra": more(), "extra_share": 1.0}, "extra_share must be above 0 and below 1"),
        ({"extra": (more()[0], more()[1] + 1)}, r"labels of extra must be 0 \.\. 2"),
        ({"extra": (torch.rand(5, 1, 9, 8), torch.zeros(5).long())}, "images of extra|extra must have"),
        ({"data": DataLoader(TensorDataset(*images())), "val": images(), "extra": more(), "augment": []},
         "extra cannot be mixed into the batches of a DataLoader"),
    ],
)  # fmt: skip
def test_bad_values(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        course(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_network_by_name_is_made_for_the_data(tmp_path):
    result = train(
        "small-cnn", images(), extra=more(), epochs=1, steps=1, out=tmp_path, progress=False
    )
    assert result.environment["model"]["kwargs"]["mean"] == pytest.approx([0.5], abs=0.02)
    assert network() is not None
