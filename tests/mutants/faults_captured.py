"""The faults of a training step that is one graph."""

from __future__ import annotations

from tests.mutants.faults import fault

STEP = "advfast/training/captured.py"
WATCH = "advfast/training/watch.py"
LOADER = "advfast/data/loader.py"

FAULTS = [
    fault("captured", "eps of the first step", STEP, 'method.strength(static["eps"], static["alpha"], steps)', "method.strength(eps, alpha, steps)"),
    fault("captured", "learning rate of the first step", STEP, 'group["lr"] = static[f"lr{number}"].float()', "pass"),
    fault("captured", "rehearsals count", STEP, "preserved=self._preserved(method)", "preserved=()"),
    fault("captured", "the momentum of rehearsals stays", STEP, "for state in self.optimizer.state.values():", "for state in ():"),
    fault("captured", "the key knows nothing of the method", STEP, "            method.graph_key(),\n            tuple(", "            tuple("),
    fault("captured", "the key knows nothing of modifiers", STEP, "            tuple(modifier.graph_key() for modifier in self.modifiers),\n            tuple(module", "            tuple(module"),
    fault("captured", "attributes of rehearsals stay", STEP, "for owner, attributes in own:", "for owner, attributes in ():"),
    fault("captured", "what changes on the host is not seen", STEP, "        if changed:", "        if False:"),
    fault("captured", "the first step is captured", STEP, "if again and key", "if key"),
    fault("captured", "the first bad step is overwritten", WATCH, "~loss.isfinite() & (self._first[0] == 0)", "~loss.isfinite()"),
    fault("captured", "steps are not counted", WATCH, "            self._step.add_(1)", "            pass"),
    fault("captured", "a plan's augmentation of other samples", LOADER, "drawn = self.drawn(epoch).index_select(0, order)", "drawn = self.drawn(epoch)"),
]  # fmt: skip
