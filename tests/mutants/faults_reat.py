"""The faults of long-tailed data and of the methods for them."""

from __future__ import annotations

from tests.mutants.faults import fault

DATA = "advfast/data/long_tail.py"
BSL = "advfast/training/methods/at_bsl.py"
REAT = "advfast/training/methods/reat.py"
TAIL = "advfast/training/methods/tail.py"
ROBAL = "advfast/training/methods/robal.py"
COSINE = "advfast/models/cosine.py"
CHECKPOINT = "advfast/training/checkpoint.py"
LOOP = "advfast/training/loop.py"

FAULTS = [
    fault("reat", "counts over C, not C - 1", DATA, "imbalance ** (number / (classes - 1))", "imbalance ** (number / classes)"),
    fault("reat", "rounded counts", DATA, "counts = [int(head", "counts = [round(head"),
    fault("reat", "the first of each class", DATA, ".permutation(most)", ".permutation(most) * 0 + np.arange(most)"),
    fault("reat", "held out of the training images", DATA, "_balanced(source.labels, rest)", "_balanced(source.labels, kept)"),
    fault("reat", "a tail that begins too early", DATA, "2 * third + 1", "2 * third"),
    fault("reat", "log of shares of one", BSL, "logits + self.log_counts", "logits - self.log_counts"),
    fault("reat", "shifted logits are what is counted", BSL, "batch.labels), logits)", "batch.labels), logits + self.log_counts)"),
    fault("reat", "weights by the training images for ever", REAT, "class_weights(self.predicted, self.counts)", "class_weights(self.counts, self.counts)"),
    fault("reat", "one b for all classes", REAT, "base = (counts.double() - 1) / counts.double()", "base = torch.full_like(counts.double(), 0.9999)"),
    fault("reat", "weights with a sum of 1", REAT, "len(weight) / weight.sum()", "1 / weight.sum()"),
    fault("reat", "logits less log w", REAT, "losses.widen(logits) + self.log_weight", "losses.widen(logits) - self.log_weight"),
    fault("reat", "steps without a limit", REAT, "self.weight.clamp(LEAST_STEP, MOST_STEP)", "self.weight"),
    fault("reat", "counts labels", REAT, "step.logits.detach().argmax(1)", "batch.labels"),
    fault("reat", "counts in every loss", REAT, "    def update(self, images: Tensor, batch: Batch, backward: Backward) -> Step:\n        step = self.loss(images, batch)", "    def update(self, images: Tensor, batch: Batch, backward: Backward) -> Step:\n        self.found += 1\n        step = self.loss(images, batch)"),
    fault("reat", "counts of two epochs", REAT, "(torch.tensor(counts))\n        self.found.zero_()", "(torch.tensor(counts))"),
    fault("reat", "counts of an epoch begun are lost", REAT, '        self.found.copy_(state["found"])', "        pass"),
    fault("ranks", "reat: counts of one rank", REAT, "self.ranks.total(self.found.tolist())", "self.found.tolist()"),
    fault("ranks", "reat: each rank's own anchors", REAT, "if self.ranks.world == 1:", "if True:"),
    fault("reat", "a method is not told of an epoch's end", LOOP, "        method.after_epoch(self.epoch)", "        pass"),
    fault("reat", "gradient through the anchors", TAIL, "_wide(of.detach())", "_wide(of)"),
    fault("reat", "signs turned", TAIL, "-1.0, 1.0)", "1.0, -1.0)"),
    fault("reat", "sum over anchors", TAIL, "share = chosen / chosen.sum().clamp(min=1)", "share = chosen"),
    fault("reat", "released: no mean over D", TAIL, ".sum() / features.shape[1]", ".sum()"),
    fault("reat", "every sample an anchor", TAIL, "chosen = is_tail[classes].to(kl.dtype)", "chosen = torch.ones_like(classes, dtype=kl.dtype)"),
    fault("reat", "the hook stays", TAIL, "        self._handle.remove()", "        pass"),
    fault("reat", "robal: margin for the others", ROBAL, "- own * self.margins", "- ~own * self.margins"),
    fault("reat", "robal: margin not scaled", ROBAL, "self.scale * self.margin +", "self.margin +"),
    fault("reat", "robal: KL of logits", ROBAL, "losses.kl(logits / self.scale, clean / self.scale)", "losses.kl(logits, clean)"),
    fault("reat", "robal: attack of logits", ROBAL, "losses.widen(logits) / self.scale", "losses.widen(logits)"),
    fault("reat", "cosine head: class vectors not of length 1", COSINE, "normalize(self.weight, dim=1, eps=_SHORTEST))", "self.weight)"),
    fault("reat", "cosine head forgotten by a checkpoint", CHECKPOINT, 'if "cosine_head" in changed:', "if False:"),
]  # fmt: skip
