"""The faults of the study of layers, and of networks that are run again in part."""

from __future__ import annotations

from tests.mutants.faults import fault

RESETS = "advfast/studies/resets.py"
MEASURE = "advfast/studies/criticality_measure.py"
TABLES = "advfast/studies/criticality_tables.py"
SUBJECTS = "advfast/studies/criticality_subjects.py"
STUDY = "advfast/studies/criticality.py"
GRID = "advfast/studies/grid.py"

FAULTS = [
    fault("criticality", "everything is run again", RESETS, "[node for node in self._all if node in dirty]", "list(self._all)"),
    fault("criticality", "values that change are kept", RESETS, "values = kept | {", "values = kept; values |= {"),
    fault("criticality", "masks are burnt in", RESETS, "        if _by_value(node):", "        if False:"),
    fault("criticality", "networks that draw are traced", RESETS, "if not float((expected - found).abs().max()) <= _AGREES * most:", "if False:"),
    fault("criticality", "networks that write to themselves are traced", RESETS, "if schema is not None and schema.is_mutable:", "if False:"),
    fault("criticality", "random numbers differ from pass to pass", RESETS, "with torch.no_grad(), rng.seeded(0):\n            return functional_call", "with torch.no_grad():\n            return functional_call"),
    fault("criticality", "zero beside a rounding", MEASURE, "((p * p).sum(1) * (q * q).sum(1)).sqrt()", "(p.norm(dim=1) * q.norm(dim=1))"),
    fault("criticality", "the network itself", MEASURE, "net = copy.deepcopy(model).eval()", "net = model.eval()"),
    fault("criticality", "in train mode", MEASURE, "net = copy.deepcopy(model).eval()", "net = copy.deepcopy(model).train()"),
    fault("criticality", "the same weights in all trials", MEASURE, 'f"{trial}:{layer.name}"', 'f"{layer.name}"'),
    fault("criticality", "weights by the order of layers", MEASURE, 'with torch.no_grad(), rng.seeded(zlib.crc32(f"{trial}:{layer.name}".encode())):', "with torch.no_grad():"),
    fault("criticality", "a fresh network is that of a training", MEASURE, 'rng.seeded(zlib.crc32(f"{trial}:network".encode()))', "rng.seeded(trial)"),
    fault("criticality", "batch normalisation without weight", MEASURE, 'init == "network" and layer.kind != "bn"', 'init == "network"'),
    fault("criticality", "subclasses count", MEASURE, "if type(module) not in by_type or", "if not isinstance(module, tuple(by_type)) or"),
    fault("criticality", "the mean over batches", MEASURE, "(1 - cosine).sum(), difference", "(1 - cosine).mean() * 30, difference"),
    fault("criticality", "squared distances", MEASURE, "difference.square().sum(1).sqrt().sum()", "difference.square().sum(1).sum()"),
    fault("criticality", "batches of any size", MEASURE, "if networks[shape].kept_bytes <= max_bytes or size == 1:", "if True:"),
    fault("criticality", "deviation over the layers", TABLES, "statistics.stdev(means) if len(means) > 1", "statistics.stdev([row[\"criticality\"] for row in chosen]) if len(means) > 1"),
    fault("criticality", "the published cosine", TABLES, '1 - float(line["pred_cos_sim"])', 'float(line["pred_cos_sim"])'),
    fault("criticality", "the unchanged network counts", TABLES, 'if line["layer"] != "original"', "if True"),
    fault("criticality", "standard training has the default's radius", SUBJECTS, 'if run.config.get("method") == "standard":', "if False:"),
    fault("criticality", "weights are not looked at", SUBJECTS, "check = zlib.crc32(content, zlib.crc32(name.encode(), check))", "check = zlib.crc32(name.encode(), check)"),
    fault("criticality", "a function that loads weights makes the network", SUBJECTS, "        if spec is not None:  # before", "        if spec is not None and label not in self.makers:  # before"),
    fault("criticality", "the first images", STUDY, "torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))[:images]", "torch.arange(len(test))[:images]"),
    fault("criticality", "cells at once are not saved", GRID, "if at_once and number < len(cells) and shown", "if at_once and shown"),
]  # fmt: skip
