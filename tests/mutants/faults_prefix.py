"""The faults of clean epochs at the beginning: the rule, the run, and the stages of the steps ramp."""

from __future__ import annotations

from tests.mutants.faults import fault

RULE = "advfast/training/clean_prefix.py"
PREFIX = "advfast/training/prefix.py"
RUN = "advfast/training/run.py"
ASSEMBLE = "advfast/training/assemble.py"
PROGRESS = "advfast/training/progress.py"
PATIENCE = "advfast/training/early_stopping.py"
SCHEDULES = "advfast/training/schedules.py"
RAMPS = "advfast/training/modifiers/ramps.py"
N_FGSM = "advfast/training/methods/n_fgsm.py"
PROBE = "advfast/ntk/probe.py"

FAULTS = [
    fault("prefix", "the distance must be above the threshold", RULE, "if distance >= self.distance:", "if distance > self.distance:"),
    fault("prefix", "a fast kernel ends it", RULE, "if velocity < self.velocity:", "if velocity > self.velocity:"),
    fault("prefix", "the last failing epoch counts", RULE, "                return epoch, f\"kernel distance", "                found = epoch, f\"kernel distance"),
    fault("prefix", "a check more than is needed", RULE, "if len(distances) + 1 >= latest else None", "if len(distances) >= latest else None"),
    fault("prefix", "up to the first milestone", RULE, "most = int(first / 2 + 1e-9)", "most = int(first + 1e-9)"),
    fault("prefix", "most may be more", RULE, "if rule.most is not None and rule.most < most:", "if rule.most is not None:"),
    fault("prefix", "small numbers are texts", RULE, "float(value) if key in (\"distance\", \"velocity\") else yaml.safe_load(value)", "yaml.safe_load(value)"),
    fault("prefix", "the formula counts the last epochs", RULE, "1 - sum(units) / (len(units) * full)", "sum(units) / (len(units) * full)"),
    fault("prefix", "milestones in epochs are shares", SCHEDULES, "return [share * epochs for share in _shares(", "return [share for share in _shares("),
    fault("prefix", "one epoch less", PREFIX, "chosen or (len(self.checks) + 1, \"\")", "chosen or (len(self.checks), \"\")"),
    fault("prefix", "velocity from the first kernel", PREFIX, "        self._last = clean\n", "        self._last = clean if self._last is None else self._last\n"),
    fault("prefix", "the kernel is forgotten on resume", PREFIX, "list(state[\"checks\"]), state[\"kernel\"]", "list(state[\"checks\"]), None"),
    fault("prefix", "every rank measures", PREFIX, "self.checks.append(self.ranks.alone(lambda: self._check(epoch)))", "self.checks.append(self._check(epoch))"),
    fault("prefix", "the checks cost nothing", PREFIX, "1 - (sum(spent) + self.seconds) / (total * later)", "1 - sum(spent) / (total * later)"),
    fault("prefix", "standard may look too", PREFIX, "isinstance(rule, CleanPrefix) and own.trains_on == \"clean\"", "False"),
    fault("prefix", "a DataLoader's generator moves", PREFIX, "        rng.set_state(before)\n", "        pass\n"),
    fault("prefix", "decided after saving", RUN, "        if not self.finished:\n            state.prefix.after_epoch(state.epoch, lambda: self.seconds)\n        # Before last.pt: a kill between the two repeats the epoch, and with it this.\n        self.keep(state.epoch, last=self.finished)\n        self.loop.next_epoch()\n        self.save()\n", "        self.keep(state.epoch, last=self.finished)\n        self.loop.next_epoch()\n        self.save()\n        if not self.finished:\n            state.prefix.after_epoch(state.epoch, lambda: self.seconds)\n"),
    fault("prefix", "not restored", RUN, "            self.state.prefix.load_state_dict(run[\"clean_prefix\"])", "            pass"),
    fault("prefix", "an epoch longer", ASSEMBLE, "epoch <= state.prefix.epochs", "epoch <= state.prefix.epochs + 1"),
    fault("prefix", "clean accuracy is called robust", PROGRESS, "return \"accuracy\" if state.method and state.method.trains_on == \"clean\" else \"robust\"", "return \"robust\""),
    fault("prefix", "patience counts clean epochs", PATIENCE, "max(best[\"epoch\"], state.prefix.epochs)", "best[\"epoch\"]"),
    fault("prefix", "adversarial kernel of clean images", PROBE, "images[\"adversarial\"] = self._attacked(model, images[\"clean\"], labels, eps, norm)", "images[\"adversarial\"] = images[\"clean\"]"),
    fault("prefix", "stages begin a step late", RAMPS, "sum(done >= epoch - 1e-9 for epoch in begins)", "sum(done > epoch for epoch in begins)"),
    fault("prefix", "no steps, but noise", RAMPS, "        if not steps:\n            eps = 0.0\n", "        if not steps:\n            pass\n"),
    fault("prefix", "radius stays 0 after a stage of no steps", RAMPS, "        elif method.eps:\n", "        else:\n"),
    fault("prefix", "n-fgsm steps without radius", N_FGSM, "self.alpha * (self.eps > 0) if self.noisy", "self.alpha if self.noisy"),
]  # fmt: skip
