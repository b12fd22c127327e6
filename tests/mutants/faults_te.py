"""The faults of temporal ensembling and of the methods that it guides."""

from __future__ import annotations

from tests.mutants.faults import fault

TE = "advfast/training/modifiers/te.py"
GUIDE = "advfast/training/methods/guide.py"
PGD_AT = "advfast/training/methods/pgd_at.py"
TRADES = "advfast/training/methods/trades.py"
TRAIN = "advfast/training/train.py"

FAULTS = [
    fault("te", "ramp falls", TE, "math.exp(-5 * (1 - min(", "math.exp(-5 * (0 + min("),
    fault("te", "begins an epoch late", TE, "if epoch < start:", "if epoch <= start:"),
    fault("te", "epochs from 0", TE, "rise(epoch + 1, *self._ramp)", "rise(epoch, *self._ramp)"),
    fault("te", "shares are not of this run", TE, "round(value * epochs, 9) if value < 1", "round(value * 200, 9) if value < 1"),
    fault("te", "rows keep their sums", TE, "return averages / averages.sum(1, keepdim=True)", "return averages"),
    fault("te", "momentum of the new", TE, "momentum * self.rows[places] + (1 - momentum) * found[first]", "(1 - momentum) * self.rows[places] + momentum * found[first]"),
    fault("te", "averages are not kept", TE, "        self.rows.index_copy_(0, places, averages)\n", ""),
    fault("te", "each of two counts", TE, "found[first]", "found"),
    fault("te", "predictions in train mode", TE, 'batch.images, "eval")', 'batch.images, "train")'),
    fault("te", "pass moves statistics", TE, 'batch.images, "eval")', 'batch.images, "train-update")'),
    fault("te", "of the branch for attacked images", TE, "method.clean_logits, batch.images", "method.logits, batch.images"),
    fault("te", "active in a clean prefix", TE, "ramp > 0 and info.method.guided", "ramp > 0"),
    fault("te", "a graph for both kinds of step", TE, "        return self.active\n", "        return None\n"),
    fault("te", "soft labels not restored", TE, '        self._labels.take(state["soft_labels"])', "        pass"),
    fault("te", "16-bit soft labels", TE, "else torch.float32\n", "else torch.bfloat16\n"),
    fault("te", "all of the ranks keep the first block", TE, "self.first = min(rows * ranks.rank, samples)", "self.first = 0"),
    fault("te", "what keeps others company counts", TE, "everyones[part], theirs[part] = found[mine], numbers[mine]", "everyones[read], theirs[read] = found, numbers"),
    fault("te", "a rank's block is saved for all", TE, "        self.ranks.reduce([whole])\n", ""),
    fault("te", "guides of the first samples", TE, "return guides[read]", "return guides[: len(found)]"),
    fault("te", "a DataLoader's numbers are trusted", TRAIN, 'getattr(loader, "samples", None) if loader.stateful else None', 'getattr(loader, "samples", None)'),
    fault("te", "sum over the classes in the loss", GUIDE, "apart.square().mean()\n", "apart.square().sum(1).mean()\n"),
    fault("te", "sum over the classes in the attack", GUIDE, "apart.square().mean(1)", "apart.square().sum(1)"),
    fault("te", "the attack lowers the term", GUIDE, "return weight[:, 0] * apart", "return -weight[:, 0] * apart"),
    fault("te", "objective in 16 bits", GUIDE, "    logits = widen(logits)\n", ""),
    fault("te", "one pass over the whole batch", GUIDE, "method.settings.micro_batch or len(images)", "len(images)"),
    fault("te", "pgd-at: the attack does not see it", PGD_AT, "if batch.guide is None:\n            return self.pgd", "if True:\n            return self.pgd"),
    fault("te", "pgd-at: the loss has no term", PGD_AT, "step.loss + guide.pull(step.logits, batch)", "step.loss"),
    fault("te", "trades: term on the attacked", TRADES, "guide.pull(clean, batch)", "guide.pull(adversarial, batch)"),
    fault("te", "trades: KL without beta", TRADES, "guide.table(self.beta * clean, batch)", "guide.table(clean, batch)"),
    fault("te", "trades: from the uniform start", TRADES, "self.attack(GaussianPGD, std=std, loss=guide.objective)", "self.attack(loss=guide.objective)"),
    fault("te", "trades: clean prediction in eval mode", TRADES, "batch.images, self.settings.bn)", 'batch.images, "eval")'),
]  # fmt: skip
