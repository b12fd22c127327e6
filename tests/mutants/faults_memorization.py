"""The faults of random labels: the data, the gradient's norm, the study and its measures of complexity."""

from __future__ import annotations

from tests.mutants.faults import fault

NOISY = "advfast/data/noisy.py"
NORM = "advfast/training/modifiers/gradient_norm.py"
OBJECTIVE = "advfast/studies/objective.py"
COMPLEXITY = "advfast/studies/complexity.py"
RANKS = "advfast/studies/rank_correlation.py"
RUNS = "advfast/studies/memorization_runs.py"
EXPECTED = "advfast/studies/memorization_expectations.py"

FAULTS = [
    fault("noisy", "labels that are drawn anew are never what they were", NOISY, "drawn = torch.from_numpy(generator.integers(classes, size=len(labels)))", "drawn = (labels + 1 + torch.from_numpy(generator.integers(classes - 1, size=len(labels)))) % classes"),
    fault("noisy", "the draw is not seeded", NOISY, "generator = np.random.default_rng(seed)\n    # All", "generator = np.random.default_rng()\n    # All"),
    fault("noisy", "labels of other data pass", NOISY, "if not inside or not torch.equal(every[self.numbers], self.original):", "if not inside:"),
    fault("noisy", "a subset is numbered anew", NOISY, "self._source.subset(indices), self.labels[rows], self._numbers[rows], self._change", "self._source.subset(indices), self.labels[rows], torch.arange(len(rows)), self._change"),
    fault("noisy", "one permutation for all", NOISY, "np.random.default_rng((seed, number)).permutation(positions)", "np.random.default_rng(seed).permutation(positions)"),
    fault("noisy", "shuffled training images, plain test images", NOISY, 'if kind == "shuffled" and test is not None:', "if False:"),
    fault("gradient-norm", "the norm is not squared", NORM, ".square().sum()", ".sum()"),
    fault("gradient-norm", "the scale of fp16 stays in", NORM, "norms / scaler.scale(self._one).double()", "norms"),
    fault("gradient-norm", "sums of the epoch go on", NORM, "            self._sums.zero_()", "            pass"),
    fault("gradient-norm", "sums of the epoch are lost in a kill", NORM, 'self._sums.copy_(state["sums"])', "pass"),
    fault("memorization", "adversarial images are held", OBJECTIVE, "anew = objective.gradient(objective.craft())", "anew = objective.gradient(held)"),
    fault("memorization", "the direction is not normalised", OBJECTIVE, "direction = [part / norm if norm > 0 else part for part in start]", "direction = list(start)"),
    fault("memorization", "other random starts at other weights", OBJECTIVE, "with rng.seeded(self.seed):\n            return", "if True:\n            return"),
    fault("memorization", "weights stay where they were moved to", OBJECTIVE, "                    parameter.copy_(value)", "                    pass"),
    fault("memorization", "batches count alike", OBJECTIVE, "loss = self.method.loss(images, batch).loss * (len(images) / self._count)", "loss = self.method.loss(images, batch).loss / len(self._batches)"),
    fault("memorization", "the norm of the weights as a matrix", COMPLEXITY, "        (v,) = torch.autograd.grad(image, v, image.detach())  # A^T A v", "        return float(torch.linalg.matrix_norm(weight.flatten(1), 2))"),
    fault("memorization", "biases have no paths", COMPLEXITY, "        for parameter in module.parameters(recurse=False):\n            parameter.square_()", "        module.weight.square_()\n        if module.bias is not None:\n            module.bias.zero_()"),
    fault("memorization", "the norm of the attack, not its dual", COMPLEXITY, '{"linf": 1, "l2": 2, "l1": math.inf}', '{"linf": math.inf, "l2": 2, "l1": 1}'),
    fault("memorization", "sharpness with images held", COMPLEXITY, "return objective.loss(objective.craft()) - start", "return objective.loss(held) - start"),
    fault("memorization", "the whole segment is the boundary", COMPLEXITY, "inside += (g > between[0]) & (g < between[1])", "inside += 1"),
    fault("memorization", "ties have the rank of the last", RANKS, "(ends - (counts - 1) / 2)[inverse]", "ends[inverse]"),
    fault("memorization", "p of one side", RANKS, "(np.abs(y[orders] @ x) >= abs(found) - 1e-9)", "(y[orders] @ x >= found - 1e-9)"),
    fault("memorization", "margins count the wrong way", EXPECTED, "(sign * row[measure], row[\"robust_gap\"])", "(row[measure], row[\"robust_gap\"])"),
    fault("memorization", "consistent in one group", EXPECTED, "min(value, least.get(row[\"measure\"], 1.0))", "max(value, least.get(row[\"measure\"], -1.0))"),
    fault("memorization", "trained on the labels of the data", RUNS, "source, net = labels.of(self.train), self.network(seed)", "source, net = self.train.subset(labels.numbers), self.network(seed)"),
    fault("memorization", "gradients of the last weights alone", RUNS, "rows = self.look.gradients(run.model(epoch), source, eps)", "rows = self.look.gradients(run.model(), source, eps)"),
]  # fmt: skip
