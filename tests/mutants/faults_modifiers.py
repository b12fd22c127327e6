"""The faults of modifiers, callbacks, mixed data and the kinds of batch normalisation."""

from __future__ import annotations

from tests.mutants.faults import fault

AWP = "advfast/training/modifiers/awp.py"
EMA = "advfast/training/modifiers/ema.py"
SWA = "advfast/training/modifiers/swa.py"
MIXING = "advfast/training/modifiers/mixing.py"
MIXUP = "advfast/training/modifiers/mixup.py"
CUTMIX = "advfast/training/modifiers/cutmix.py"
RAMPS = "advfast/training/modifiers/ramps.py"
COLLAPSE = "advfast/training/catastrophic.py"
PATIENCE = "advfast/training/early_stopping.py"
MIXED = "advfast/data/mixed.py"
JOINED = "advfast/data/joined.py"
NORM = "advfast/models/norm.py"
TRADES = "advfast/training/methods/trades.py"

FAULTS = [
    fault("modifiers", "awp moves down the loss", AWP, "torch._foreach_add_(self._weights, self._moves)", "torch._foreach_sub_(self._weights, self._moves)"),
    fault("modifiers", "awp does not move back", AWP, "            torch._foreach_sub_(self._weights, self._moves)", "            pass"),
    fault("modifiers", "awp moves normalisation too", AWP, "if p.dim() > 1 and name.endswith(\"weight\")", "if name.endswith(\"weight\")"),
    fault("modifiers", "awp lets NaN through", AWP, "            torch.nan_to_num_(move, nan=0.0, posinf=0.0, neginf=0.0)", "            pass"),
    fault("modifiers", "awp: gamma 0 is a second pass", AWP, "self.gamma > 0 and info.done", "info.done"),
    fault("modifiers", "ema: no warm-up", EMA, "if step >= 0 else 1", "if True else 1"),
    fault("modifiers", "ema: copies the parameters too", EMA, "name not in parameters", "True"),
    fault("modifiers", "swa: every epoch weighs alike with the mean", SWA, "(self.count + 1)", "2"),
    fault("modifiers", "swa: statistics of the last weights", SWA, "        with self.evaluating(model):", "        if True:"),
    fault("modifiers", "swa: momentum is not put back", SWA, "            layer.momentum = momentum", "            pass"),
    fault("modifiers", "mixing: the same in every step", MIXING, "generator(info.seed, batch, self.purpose)", "generator(info.seed, 0, self.purpose)"),
    fault("modifiers", "mixup: labels the other way round", MIXING, "share * labels + (1 - share) * labels[partner]", "(1 - share) * labels + share * labels[partner]"),
    fault("modifiers", "cutmix: lambda before the clipping", CUTMIX, "left = 1 - box.sum() / (height * width)", "left = self._drawn[0].clone()"),
    fault("modifiers", "eps-warmup: never full", RAMPS, "share = min(1.0, (info.step + 1)", "share = min(0.99, (info.step + 1)"),
    fault("modifiers", "ramps: what is full is what it was last", RAMPS, "known = self._full.setdefault(", "known = (lambda key, value: value)("),
    fault("modifiers", "collapse: also where FGSM falls", COLLAPSE, " and before[\"fgsm\"] - fgsm <= self.drop / 4", ""),
    fault("modifiers", "collapse: weights stay", COLLAPSE, "state.model.load_state_dict(self._good[\"weights\"])", "pass"),
    fault("modifiers", "collapse: averages stay", COLLAPSE, "            modifier.load_state_dict(saved)", "            pass"),
    fault("modifiers", "collapse: forgets on resume", COLLAPSE, "        self._good = state[\"good\"]", "        pass"),
    fault("modifiers", "collapse: looks in train mode", COLLAPSE, "with crafting(model, \"eval\"), torch.no_grad():", "with torch.no_grad():"),
    fault("modifiers", "patience: not looked at when resumed", PATIENCE, "        # Killed between the end of the last epoch and the decision.\n        self._look(state)", "        pass"),
    fault("modifiers", "mixed: extra without replacement of the batch's size", MIXED, "random.integers(self.base, self.samples,", "random.integers(self.base, self.base + self.extras,"),
    fault("modifiers", "mixed: the same in every epoch", MIXED, "generator(self.seed, epoch, randomness.EXTRA)", "generator(self.seed, 1, randomness.EXTRA)"),
    fault("modifiers", "joined: order of the parts", JOINED, "torch.cat(images)[order], torch.cat(labels)[order]", "torch.cat(images), torch.cat(labels)"),
    fault("modifiers", "dual: one layer for both", NORM, "self.clean = copy.deepcopy(norm)", "self.clean = self.adversarial"),
    fault("modifiers", "dual: the branch stays", NORM, "            layer.branch = value", "            pass"),
    fault("modifiers", "trades: clean images in the adversarial branch", TRADES, 'with branch(self.model, "clean"):', 'with branch(self.model, "adversarial"):'),
]  # fmt: skip
