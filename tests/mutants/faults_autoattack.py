"""The faults of AutoAttack's driver."""

from __future__ import annotations

from tests.mutants.faults import fault

LOOP = "advfast/attacks/autoattack/loop.py"
SAMPLES = "advfast/attacks/autoattack/samples.py"
STATE = "advfast/attacks/autoattack/state.py"
SESSION = "advfast/attacks/autoattack/session.py"
PARTS = "advfast/attacks/autoattack/parts.py"
VERSIONS = "advfast/attacks/autoattack/versions.py"
NAMED = "advfast/evaluation/named.py"

FAULTS = [
    fault("autoattack", "what an attack claims is believed", LOOP, "wrong = (predicted != labels[hit]).nonzero()[:, 0]", "wrong = torch.arange(len(hit))"),
    fault("autoattack", "sample numbers within the batch", LOOP, "task.ids[index].to(task.device)", "torch.arange(len(index))"),
    fault("autoattack", "broken ones are attacked again", STATE, "list(self.stages.values())[-1].nonzero()[:, 0]", 'self.stages["clean"].nonzero()[:, 0]'),
    fault("autoattack", "flags without their images", LOOP, "run.images[where] = images[wrong].to(run.images.device)", "pass"),
    fault("autoattack", "labels of the clean images", LOOP, "run.predicted[where] = predicted[wrong].to(run.images.device)", "pass"),
    fault("autoattack", "place in the part lost", STATE, 'into.done, into.nonfinite = content["done"], content["nonfinite"]', 'into.nonfinite = content["nonfinite"]'),
    fault("autoattack", "images of the earlier run lost", STATE, 'into.images[index] = content["images"].to(device)', "pass"),
    fault("autoattack", "a state of other weights", SESSION, '"weights": weights_of(of.model)', '"weights": ""'),
    fault("autoattack", "a state of other images", STATE, "digest.update(raw.numpy().data)", "pass"),
    fault("autoattack", "nothing written at a stage's end", LOOP, "self._store.save(run, now=True)", "self._store.save(run)"),
    fault("autoattack", "NaN counts as right", SAMPLES, "& ~clean.isnan().any(1)", ""),
    fault("autoattack", "targets not clipped", PARTS, "most = self._classes - 1", "most = 10**9"),
    fault("autoattack", "judged on the folded model", "advfast/attacks/autoattack/autoattack.py", "fold=self.fold and not plain", "fold=self.fold"),
    fault("autoattack", "apgd-t raises the cross-entropy", VERSIONS, '{"loss": "dlr", **of["apgd_targeted"]', '{"loss": "ce", **of["apgd_targeted"]'),
    fault("autoattack", "cw on the cross-entropy", NAMED, 'settings["loss"] = "margin"', 'settings["loss"] = "ce"'),
]  # fmt: skip
