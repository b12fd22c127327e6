"""The faults of the noise of n-fgsm and of what switches it on."""

from __future__ import annotations

from tests.mutants.faults import fault

NFGSM = "advfast/training/methods/n_fgsm.py"
KERNEL = "advfast/training/probe_kernel.py"
MONITOR = "advfast/training/kernel_monitor.py"
COLLAPSE = "advfast/training/catastrophic.py"
ASSEMBLE = "advfast/training/assemble.py"

FAULTS = [
    fault("collapse", "lognormal noise is larger on average", NFGSM, "            scale = scale / scale.mean()\n", ""),
    fault("collapse", "lognormal noise ignores sigma", NFGSM, "(self.sigma * scale).exp()", "(0.5 * scale).exp()"),
    fault("collapse", "anisotropic noise is not cut by the box", NFGSM, "(images + scale.to(drawn.dtype) * drawn).clamp(0, 1)", "images + scale.to(drawn.dtype) * drawn"),
    fault("collapse", "it waits, but in the ball of the noise", NFGSM, "self.fgsm.eps = self.alpha * (self.eps > 0) if self.noisy else self.eps", "self.fgsm.eps = self.alpha * (self.eps > 0)"),
    fault("collapse", "it does not wait", NFGSM, "self.noisy = self.k > 0 and not self.waits", "self.noisy = self.k > 0"),
    fault("collapse", "the saliency of the first epoch for good", NFGSM, "if epoch > self.begun:", "if not self.begun:"),
    fault("collapse", "the saliency is looked at again when resumed", NFGSM, "if epoch > self.begun:", "if True:"),
    fault("collapse", "no saliency when it is switched on", NFGSM, "            self._ball()\n            self._look()", "            self._ball()"),
    fault("collapse", "the saliency under the eps of the warm-up", NFGSM, "eps, norm = self.settings.eps, self.settings.norm", "eps, norm = float(self.eps), self.settings.norm"),
    fault("collapse", "noise is forgotten on resume", NFGSM, "self.noisy, self.begun = bool(state[\"noisy\"]),", "self.begun ="),
    fault("collapse", "the saliency is forgotten on resume", NFGSM, "            self.scale.copy_(state[\"scale\"])\n", ""),
    fault("collapse", "a graph for every epoch", NFGSM, "plain_attributes(self, \"eps\", \"alpha\", \"begun\")", "plain_attributes(self, \"eps\", \"alpha\")"),
    fault("collapse", "a graph without noise goes on", NFGSM, "plain_attributes(self, \"eps\", \"alpha\", \"begun\")", "plain_attributes(self, \"eps\", \"alpha\", \"begun\", \"noisy\")"),
    fault("collapse", "the smallest eigenvalue", KERNEL, "vectors[:, -1].abs()", "vectors[:, 0].abs()"),
    fault("collapse", "all images count alike", KERNEL, "(weight * gradient.abs())", "gradient.abs()"),
    fault("collapse", "signs cancel in the saliency", KERNEL, "            total += (weight * gradient.abs()).sum(0)", "            total += (weight * gradient).sum(0)"),
    fault("collapse", "the kernel of clean images", MONITOR, "trace_kernel(state.model, attacked(state.model, images, labels, eps, norm))", "trace_kernel(state.model, images)"),
    fault("collapse", "velocity a check", MONITOR, "metrics.kernel_velocity(self._kernel, kernel, epochs)", "metrics.kernel_velocity(self._kernel, kernel, 1.0)"),
    fault("collapse", "the kernel before is forgotten on resume", MONITOR, "        self._kernel = state[\"kernel\"]", "        pass"),
    fault("collapse", "momentum of the collapse", COLLAPSE, "                state.optimizer.state.clear()\n", ""),
    fault("collapse", "weights are put back at every alarm", COLLAPSE, "elif self.action == \"noise\" and first:", "elif self.action == \"noise\":"),
    fault("collapse", "noise is not switched on", COLLAPSE, "            state.method.switch_on()", "            pass"),
    fault("collapse", "a method may wait for ever", ASSEMBLE, "    if own.waits and not switches:", "    if False:"),
]  # fmt: skip
