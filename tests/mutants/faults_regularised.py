"""The faults of TRADES, MART and GradAlign."""

from __future__ import annotations

from tests.mutants.faults import fault

TRADES = "advfast/training/methods/trades.py"
MART = "advfast/training/methods/mart.py"
ALIGN = "advfast/training/methods/gradalign.py"
GAUSSIAN = "advfast/attacks/gaussian.py"

FAULTS = [
    fault("regularised", "trades: KL the other way round", TRADES, "losses.kl(adversarial, target)", "losses.kl(target, adversarial)"),
    fault("regularised", "trades: target detached", TRADES, "clean.detach() if self.detach_target else clean", "clean.detach()"),
    fault("regularised", "trades: target never detached", TRADES, "clean.detach() if self.detach_target else clean", "clean"),
    fault("regularised", "trades: a sum over the batch", TRADES, "losses.kl(adversarial, target).mean()", "losses.kl(adversarial, target).sum()"),
    fault("regularised", "trades: cross-entropy of the attacked", TRADES, "self.cross_entropy(clean, batch.labels)", "self.cross_entropy(adversarial, batch.labels)"),
    fault("regularised", "trades: steps of eps/4", TRADES, '"alpha_of_eps": 0.007 / 0.031', '"alpha_of_eps": 0.25'),
    fault("regularised", "trades: passes of the released loop", TRADES, "2 * self.steps + 7", "3 * self.steps + 9"),
    fault("regularised", "mart: the smallest wrong class", MART, "adversarial.masked_fill(own, 0).amax(1)", "adversarial.masked_fill(own, 1).amin(1)"),
    fault("regularised", "mart: the right class is one of the wrong", MART, "adversarial.masked_fill(own, 0).amax(1)", "adversarial.amax(1)"),
    fault("regularised", "mart: weight of the attacked", MART, "clean.gather(1, labels[:, None])", "adversarial.gather(1, labels[:, None])"),
    fault("regularised", "mart: weight detached", MART, "(kl * weight).mean()", "(kl * weight.detach()).mean()"),
    fault("regularised", "mart: 1 in the logarithm", MART, "ONE_FOR_LOG, ONE_FOR_WEIGHT = 1.0001, 1.0000001", "ONE_FOR_LOG, ONE_FOR_WEIGHT = 1.0, 1.0000001"),
    fault("regularised", "mart: from the uniform start", MART, "self.attack(GaussianPGD)", "self.attack()"),
    fault("regularised", "gradalign: the first gradient learns", ALIGN, "misalignment(first.detach(), second)", "misalignment(first, second.detach())"),
    fault("regularised", "gradalign: zeros count", ALIGN, "seen.sum().clamp(min=1)", "len(first)"),
    fault("regularised", "gradalign: root of zero", ALIGN, "torch.where(seen, size, 1.0).sqrt()", "size.sqrt()"),
    fault("regularised", "gradalign: u in the box", ALIGN, "            bounds=None,\n", ""),
    fault("regularised", "gradalign: a seed for each part", ALIGN, "seed=self._seed,", "seed=torch.randint(2**62, (1,)),"),
    fault("regularised", "gradalign: from a random start", ALIGN, "random_start=False", "random_start=True"),
    fault("regularised", "gradalign: the weight grows on", ALIGN, "min(eps * 255, FITTED_TO)", "eps * 255"),
    fault("regularised", "gaussian: ten times the noise", GAUSSIAN, "self.std * noise", "10 * self.std * noise"),
]  # fmt: skip
