"""The faults of the study of induced distributions, of its sets on disk, and of room around pixels."""

from __future__ import annotations

from tests.mutants.faults import fault

INDUCED = "advfast/studies/induced.py"
SETS = "advfast/studies/induced_sets.py"
ROWS = "advfast/studies/induced_rows.py"
SOURCE = "advfast/studies/induced_source.py"
EXPECTED = "advfast/studies/induced_expectations.py"
DISPERSION = "advfast/studies/dispersion.py"
ROOM = "advfast/studies/room.py"

FAULTS = [
    fault("induced", "pairs share a start", DISPERSION, "a, b = delta.unbind(2)", "a, b = delta[:, :, 0], delta[:, :1, 0].expand_as(delta[:, :, 0])"),
    fault("induced", "every image from the same starts", DISPERSION, "numbers[:, None] * runs", "0 * numbers[:, None]"),
    fault("induced", "shift is the size", DISPERSION, "delta.mean((1, 2)).norm(dim=1)", "delta.norm(dim=3).mean((1, 2))"),
    fault("induced", "always clipped", SETS, "box = self.clip if clip is None else clip", "box = True"),
    fault("induced", "sets are bytes", SETS, "batch.float().cpu().numpy()", "(255 * batch).round().div(255).float().cpu().numpy()"),
    fault("induced", "test images begin where training images do", SETS, 'first = 0 if name == "train" else 2**31', "first = 0"),
    fault("induced", "sets of other weights are used again", SETS, '{"weights": digest(net), "samples": len(source)}', '{"samples": len(source)}'),
    fault("induced", "a set without its record is used", SETS, 'if found is None or found["by"] != by:', 'if found is not None and found["by"] != by:'),
    fault("induced", "half a set stands under its name", SETS, 'temporary = images.with_name(f".{images.name}.{os.getpid()}.tmp")', "temporary = images"),
    fault("induced", "robust is without the box", SETS, "crafting.attack(net, 1, clip=True)", "crafting.attack(net, 1)"),
    fault("induced", "a killed study's sets are lost", ROWS, "if self._epoch is not None:", "if True:"),
    fault("induced", "the best weights count", ROWS, "        checkpoint.fill(net, checkpoint.read(last), last)\n", ""),
    fault("induced", "fresh networks of the same weights", ROWS, "self.run.fresh(seed)", "self.run.fresh(0)"),
    fault("induced", "gap the other way round", ROWS, 'of_train["robust"] - of_test["robust"]', 'of_test["robust"] - of_train["robust"]'),
    fault("induced", "held-out images are trained ones", SOURCE, 'if run.config.get("val") is None and splits.val is None:', "if False:"),
    fault("induced", "a network with its own weights passes", SOURCE, "if digest(of_seed.fresh(0)) == digest(of_seed.fresh(1)):", "if False:"),
    fault("induced", "left-over images twice", SOURCE, "whole.batch(left)]", "whole.batch(torch.arange(len(left)))]"),
    fault("induced", "the band of digits everywhere", EXPECTED, 'result.settings["data"] == "digits"', "True"),
    fault("induced", "late is early", EXPECTED, 'curve(result, f"dispersion_{part}")[-1][1]', 'curve(result, f"dispersion_{part}")[0][1]'),
    fault("induced", "augmented", INDUCED, '"batch_size": 128, "lr": 0.1, "schedule"', '"augment": ["flip"], "batch_size": 128, "lr": 0.1, "schedule"'),
    fault("room", "scaled by one margin", ROOM, "1 / (1 + 2 * self.margin)", "1 / (1 + self.margin)"),
    fault("room", "the network sees the small picture", ROOM, "return Normalised(net, [self.scale * self.margin] * channels, [self.scale] * channels)", "return net"),
    fault("room", "what is outside is cut", ROOM, "if not (low >=", "if False and not (low >="),
]  # fmt: skip
