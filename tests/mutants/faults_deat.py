"""The faults of positive-negative momentum, its rate, and of the study of lr / batch."""

from __future__ import annotations

from tests.mutants.faults import fault

PNM = "advfast/training/pnm.py"
OPTIM = "advfast/training/optim.py"
STEP = "advfast/training/captured.py"
STUDY = "advfast/studies/noise_scale.py"

FAULTS = [
    fault("deat", "the two averages swapped", PNM, 'if group["step"] % 2 else', 'if group["step"] % 2 == 0 else'),
    fault("deat", "one average alone", PNM, 'names = ("odd", "even") if group["step"] % 2 else ("even", "odd")', 'names = ("odd", "even")'),
    fault("deat", "b1 in place of its square", PNM, '1 - group["betas"][0] ** 2', '1 - group["betas"][0]'),
    fault("deat", "no negative part", PNM, "torch._foreach_lerp(n, p, 1 + group", "torch._foreach_lerp([0 * t for t in n], p, 1 + group"),
    fault("deat", "the difference is not normalised", PNM, "    return math.hypot(1 + b, b)", "    return 1.0"),
    fault("deat", "decay is always coupled", PNM, 'if group["weight_decay"] and not group["decoupled"]:', 'if group["weight_decay"]:'),
    fault("deat", "decoupled decay without the rate", PNM, '1 - rate * group["weight_decay"]', '1 - group["weight_decay"]'),
    fault("deat", "the second moment is not corrected", PNM, "torch._foreach_div_(roots, second.sqrt())", "pass"),
    fault("deat", "the largest second moment is not kept", PNM, "torch._foreach_maximum_(largest[0], squares)", "torch._foreach_copy_(largest[0], squares)"),
    fault("deat", "an infinite gradient enters the averages", PNM, "            values = list(map(self._unless_skipped, values, averages))", "            pass"),
    fault("deat", "a skipped step decays the weights", PNM, "return self._unless_skipped(rate, torch.zeros_like(rate))", "return rate"),
    fault("deat", "skipped steps count in the corrections", PNM, "steps.add_(self._unless_skipped(torch.ones_like(steps), torch.zeros_like(steps)))", "steps.add_(1)"),
    fault("deat", "the scale of the loss stays in the gradient", PNM, "        if scale is not None:", "        if False:"),
    fault("deat", "replays do not count", PNM, '        for group in self.param_groups:\n            group["step"] += 1\n\n', '        pass\n\n'),
    fault("deat", "one graph for both parities", PNM, 'return tuple(group["step"] % 2 for group in self.param_groups)', "return 0"),
    fault("deat", "a graph of the wrong parity", STEP, "group.update(kept)  # what an earlier rehearsal counted", "pass"),
    fault("deat", "b1 of 1", PNM, "            if not 0 <= beta < 1:", "            if not 0 <= beta <= 1:"),
    fault("deat", "the rate of SGD", OPTIM, '"pnm": 10.0', '"pnm": 1.0'),
    fault("deat", "a given rate is fitted too", OPTIM, '"lr" not in defaults or "lr" in given or', '"lr" not in defaults or'),
    fault("deat", "SGD's effective step without its momentum", OPTIM, ') / (1 - group["momentum"])', ')'),
    fault("noise-scale", "the gap of clean accuracies", STUDY, 'found["train_robust"] - found["test_robust"]', 'found["train_clean"] - found["test_clean"]'),
    fault("noise-scale", "the best epoch is measured", STUDY, "        checkpoint.fill(model, checkpoint.read(last), last)", "        pass"),
    fault("noise-scale", "batch size over rate", STUDY, 'found["lr_over_batch"] = lr / batch_size', 'found["lr_over_batch"] = batch_size / lr'),
    fault("noise-scale", "networks at chance generalise", STUDY, 'if row["test_robust_mean"] >= best / 2', "if True"),
    fault("noise-scale", "a divergence at the end is left out", STUDY, 'max(row["lr_over_batch_mean"] for row in result.summary)', 'max(row["lr_over_batch_mean"] for row in rows)'),
]  # fmt: skip
