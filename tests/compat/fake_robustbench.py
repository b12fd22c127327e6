"""A package with the interface of robustbench 1.1 (utils.load_model, model_zoo.model_dicts, benchmark), in a folder."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = {
    "__init__.py": "from .utils import load_model\n\ndef benchmark(*args, **kwargs):\n    raise NotImplementedError\n",
    "utils.py": """
import os
from pathlib import Path
import torch
from robustbench.model_zoo import model_dicts
from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel


def load_model(model_name, model_dir="./models", dataset=BenchmarkDataset.cifar_10,
               threat_model=ThreatModel.Linf, custom_checkpoint="", norm=None):
    dataset_, threat_model_ = BenchmarkDataset(dataset), ThreatModel(threat_model)
    entry = model_dicts[dataset_][threat_model_][model_name]
    folder = Path(model_dir) / dataset_.value / threat_model_.value
    model = entry["model"]()
    if isinstance(entry["gdrive_id"], list):
        for index, part in enumerate(model.models):
            part.load_state_dict(torch.load(f"{folder / model_name}.pt_m{index}.pt"))
        return model.train()
    path = folder / f"{model_name}.pt"
    if not os.path.isfile(path):
        raise ConnectionError("no network")
    model.load_state_dict(torch.load(path))
    return model.train()
""",
    "model_zoo/__init__.py": "from .models import model_dicts\n",
    "model_zoo/enums.py": """
from enum import Enum


class BenchmarkDataset(Enum):
    cifar_10 = "cifar10"
    cifar_100 = "cifar100"


class ThreatModel(Enum):
    Linf = "Linf"
    L2 = "L2"
""",
    "model_zoo/models.py": """
from collections import OrderedDict
from torch import nn
from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel


def small():
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 10), nn.Dropout(0.5))


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.models = nn.ModuleList([small(), small()])

    def forward(self, x):
        return self.models[0](x) + self.models[1](x)


linf = OrderedDict([
    ("Some2020Small", {"model": small, "gdrive_id": "abc123"}),
    ("Some2021Both", {"model": Both, "gdrive_id": ["abc", "def"]}),
])
model_dicts = OrderedDict([
    (BenchmarkDataset.cifar_10, OrderedDict([(ThreatModel.Linf, linf), (ThreatModel.L2, OrderedDict())])),
])
""",
}


def write(folder: Path) -> Path:
    """Writes the package; `folder` is what goes onto sys.path."""
    for name, text in _PACKAGE.items():
        file = folder / "robustbench" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder
