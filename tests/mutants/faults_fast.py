"""The faults of the methods that need few passes."""

from __future__ import annotations

from tests.mutants.faults import fault

FGSM = "advfast/training/methods/fgsm.py"
NFGSM = "advfast/training/methods/n_fgsm.py"
FREE = "advfast/training/methods/free.py"
YOPO = "advfast/training/methods/yopo.py"
ATTA = "advfast/training/methods/atta.py"
AUGMENT = "advfast/data/augment.py"

FAULTS = [
    fault("fast", "fgsm from a random start", FGSM, "random_start: ClassVar[bool] = False", "random_start: ClassVar[bool] = True"),
    fault("fast", "fgsm-rs with a step of eps", FGSM, '"alpha_of_eps": 1.25', '"alpha_of_eps": 1.0'),
    fault("fast", "fgsm takes more steps", FGSM, "super().strength(eps, alpha, 1)", "super().strength(eps, alpha, steps)"),
    fault("fast", "n-fgsm in the ball of eps around the noise", NFGSM, "self.fgsm.eps = self.alpha * (self.eps > 0) if self.noisy else self.eps", "self.fgsm.eps = self.eps"),
    fault("fast", "n-fgsm ignores k", NFGSM, "eps=self.k * self.eps", "eps=2.0 * self.eps"),
    fault("fast", "n-fgsm warms up its noise alone", NFGSM, "        super().strength(eps, alpha, steps)\n        self._ball()", "        super().strength(eps, alpha, steps)\n        self.fgsm.eps = eps"),
    fault("fast", "free begins anew with each batch", FREE, "        rows = self.delta[:count]", "        self.delta.zero_()\n        rows = self.delta[:count]"),
    fault("fast", "free does not reset", FREE, "(self.turn != 0)", "(self.turn != -1)"),
    fault("fast", "free steps through the clamp", FREE, "(images + noise).clamp(0, 1)", "((images + noise).clamp(0, 1) - images - noise).detach() + images + noise"),
    fault("fast", "free forgets its perturbation", FREE, "        self.delta.copy_(state[\"delta\"])", "        pass"),
    fault("fast", "free forgets the repeat", FREE, "        self.turn.copy_(state[\"turn\"])", "        pass"),
    fault("fast", "yopo: one step a round", YOPO, "for _ in range(self.n):", "for _ in range(1):"),
    fault("fast", "yopo: no gradient of the first layer alone", YOPO, "if self.hamiltonian:", "if False:"),
    fault("fast", "yopo: descends", YOPO, "(gradient,) = torch.autograd.grad(z, leaf, p)", "(gradient,) = torch.autograd.grad(z, leaf, -p)"),
    fault("fast", "yopo: through the clamp of the start", YOPO, "leaf.clamp(0, 1)", "leaf"),
    fault("fast", "yopo: the start in the box", YOPO, "            bounds=None,\n", ""),
    fault("fast", "yopo: the first module, not the first that is called", YOPO, "module, output = found[0]", "module, output = found[-1]"),
    fault("fast", "atta: flips are not undone", ATTA, "kept.scatter_(2, places,", "kept.scatter_(2, places.flip(2),"),
    fault("fast", "atta: nothing is carried", ATTA, "        self.delta.index_copy_(0, numbers, kept)", "        pass"),
    fault("fast", "atta: no reset", ATTA, "epoch % self.reset_every == 0", "False"),
    fault("fast", "atta: resets where it is resumed", ATTA, "        if epoch > self.begun:", "        if True:"),
    fault("fast", "atta: crops of the first epoch", ATTA, "batches.drawn(epoch)", "batches.drawn(1)"),
    fault("fast", "atta: forgets on resume", ATTA, "        self.delta.copy_(state[\"delta\"])", "        pass"),
    fault("fast", "places: the flip of the canvas is left out", AUGMENT, "    margin = 0\n    moved = __call__", "    margin = 0\n\n    def moved(self, images: Tensor, drawn: Tensor) -> Tensor:\n        return images"),
]  # fmt: skip
