"""The kinds of batch normalisation in whole runs."""

import pytest
import torch
from torch import nn

from advfast.models import DualBatchNorm, norm_layers
from advfast.training import checkpoint, finish, train


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    # They take longer than the runs.
    monkeypatch.setattr(finish, "_pictures", lambda *arguments: None)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
    )


def batch(count):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 3


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("dual-batch", "pgd-at"),
        ("dual-batch", "trades"),
        ("dual-batch", "mart"),
        ("batch-no-stats", "pgd-at"),
    ],
)
def test_trained_saved_and_loaded(tmp_path, kind, method):
    data = batch(60)
    settings = {
        "test": data,
        "method": method,
        "eps": 0.1,
        "steps": 1,
        "epochs": 1,
        "batch_size": 20,
    }
    model = network()
    result = train(model, data, norm_layers=kind, out=tmp_path, progress=False, **settings)
    loaded = checkpoint.load(tmp_path, network(1))
    assert norm_layers(loaded) == kind
    for name, value in result.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    if kind == "dual-batch":
        steps = [
            int(getattr(model[1], name).num_batches_tracked) for name in ("clean", "adversarial")
        ]
        assert steps == [3 if method != "pgd-at" else 0, 3]
    with pytest.raises(ValueError, match="norm_layers was"):
        train(network(), data, out=tmp_path, progress=False, resume=True, **settings)


def test_a_checkpoint_to_start_from_is_loaded_before(tmp_path):
    data = batch(60)
    settings = {"eps": 0.1, "steps": 1, "epochs": 1, "batch_size": 20, "progress": False}
    train(network(), data, out=tmp_path / "plain", **settings)
    model = network(1)
    train(
        model,
        data,
        weights=tmp_path / "plain",
        norm_layers="dual-batch",
        out=tmp_path / "dual",
        lr=1e-12,
        **settings,
    )
    plain = checkpoint.read(tmp_path / "plain" / "best.pt")["state"]
    torch.testing.assert_close(model[1].clean.running_mean, plain["1.running_mean"])
    assert isinstance(model[1], DualBatchNorm)


def test_bad_values(tmp_path):
    with pytest.raises(ValueError, match="norm_layers must be one of batch, batch-no-stats"):
        train(network(), batch(60), norm_layers="layer", out=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="the model has no batch normalisation"):
        flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        train(flat, batch(60), norm_layers="dual-batch", out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
