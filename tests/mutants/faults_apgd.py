"""The faults of Auto-PGD."""

from __future__ import annotations

from tests.mutants.faults import fault

APGD = "advfast/attacks/search/apgd.py"
RUN = "advfast/attacks/search/apgd_run.py"
SCHEDULE = "advfast/attacks/search/apgd_schedule.py"
LOSSES = "advfast/attacks/search/apgd_losses.py"
L1 = "advfast/attacks/search/apgd_l1.py"
START = "advfast/attacks/search/apgd_start.py"

FAULTS = [
    fault("apgd", "fewer rises than rho alone", SCHEDULE, "self.rises <= window * rho", "self.rises < window * rho"),
    fault("apgd", "the first comparison is with the start", SCHEDULE, "torch.zeros_like(loss), rises", "loss.clone(), rises"),
    fault("apgd", "a halved step is halved where nothing is better", SCHEDULE, "~self.halved & (self.best_at_check", "(self.best_at_check"),
    fault("apgd", "rises of all windows count", SCHEDULE, "self.rises = torch.zeros_like(self.rises)", "pass"),
    fault("apgd", "momentum of the first step", RUN, "momentum=1.0 if first else MOMENTUM", "momentum=MOMENTUM"),
    fault("apgd", "no return to the best point", RUN, "        _copy_rows(back, rows.best, rows.x)\n", ""),
    fault("apgd", "the gradient of the point that was left", RUN, "        _copy_rows(back, rows.best_gradient, rows.gradient)\n", ""),
    fault("apgd", "the gradient of one draw", RUN, "gradient = gradient + more", "gradient = more * self._plan.eot"),
    fault("apgd", "a gradient that no step follows", RUN, "        if last:\n            logits = self._oracle.logits(rows.x)", "        if False:\n            logits = self._oracle.logits(rows.x)"),
    fault("apgd", "the last run that succeeded", RUN, "torch.arange(runs, 0, -1, device", "torch.arange(1, runs + 1, device"),
    fault("apgd", "targets from the most likely class on", APGD, "-2 - number // self.restarts", "-1 - number // self.restarts"),
    fault("apgd", "the ball of the first stage to the end", APGD, "self._plan(eps, steps, last)", "self._plan(stages[0][0], steps, last)"),
    fault("apgd", "one start for all runs", START, "offset=run", "offset=0"),
    fault("apgd", "the ratio towards a target with the third alone", LOSSES, "0.5 * (ordered[:, -3] + ordered[:, -4])", "ordered[:, -3]"),
    fault("apgd", "pixels that moved in any step", L1, "_SETTLED = 0.95", "_SETTLED = 1.05"),
]  # fmt: skip
