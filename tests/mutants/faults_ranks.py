"""The faults of training in several processes."""

from __future__ import annotations

from tests.mutants.faults import fault

PARALLEL = "advfast/training/parallel.py"
SYNC_BN = "advfast/training/sync_bn.py"
SHARE = "advfast/data/share.py"
FOREIGN = "advfast/data/foreign.py"
LOADER = "advfast/data/loader.py"
LOOP = "advfast/training/loop.py"
RUN = "advfast/training/run.py"
STEP = "advfast/training/step.py"
INPUTS = "advfast/evaluation/inputs.py"
ASSEMBLE = "advfast/training/assemble.py"

FAULTS = [
    fault("ranks", "gradients stay apart", STEP, "        self.ranks.reduce([p.grad for p in parameters if p.grad is not None])", "        pass"),
    fault("ranks", "awp's gradients stay apart", STEP, "        self.ranks.reduce([gradient for gradient in total if gradient is not None])", "        pass"),
    fault("ranks", "every rank weighs alike", LOOP, "self.ranks.share.weight(count)", "1 / self.ranks.world"),
    fault("ranks", "a rank's loss counts for its samples alone", LOOP, "            count = self.loader.whole(self.step)\n", "            count = len(batch.labels)\n"),
    fault("ranks", "running statistics stay apart", PARALLEL, "                self.reduce(changes)\n", ""),
    fault("ranks", "statistics of the rank's own samples", PARALLEL, "synced(model, self) if self.sync_bn else nullcontext()", "nullcontext()"),
    fault("ranks", "statistics that crafting moves stay apart", STEP, "        with self.ranks.step(self.model):\n            with nvtx_range(\"advfast.craft\"):\n                images = method.craft(batch)\n", "        images = method.craft(batch)\n        with self.ranks.step(self.model):\n"),
    fault("ranks", "borrowed samples count in the statistics", SYNC_BN, "float(ranks.weight > 0)", "1.0"),
    fault("ranks", "no gradient through the others' statistics", SYNC_BN, "_Sum.apply(gradients[0].contiguous(), ctx.ranks) * ctx.counts", "gradients[0] * ctx.counts"),
    fault("ranks", "biased running variance", SYNC_BN, "variance.detach() * number / (number - 1)", "variance.detach()"),
    fault("ranks", "a sample in two parts", SHARE, "min(self.rank, longer)", "0"),
    fault("ranks", "a rank with one sample", SHARE, "min(self.world, total // 2)", "min(self.world, total)"),
    fault("ranks", "the whole batch in every rank", LOADER, "chosen[self.share.read(len(chosen))]", "chosen"),
    fault("ranks", "starts by place in the rank", FOREIGN, "batch.labels[part], numbers[part]", "batch.labels[part], batch.indices"),
    fault("ranks", "every rank validates all", ASSEMBLE, "shard=(ranks.rank, ranks.world),", ""),
    fault("ranks", "numbers of a part begin at 0", INPUTS, "numbers + of.first if of.first else numbers", "numbers"),
    fault("ranks", "a signal ends one rank", LOOP, "[self.interrupt.asked, int(self.state.stop)", "[0, int(self.state.stop)"),
    fault("ranks", "a callback stops one rank", LOOP, "        self.state.stop = bool(stop)\n", ""),
    fault("ranks", "an error of rank 0 is its own", PARALLEL, "        if failure is not None:", "        if False:"),
    fault("ranks", "all ranks begin with the sums of all", LOOP, "            self._loss_sum.zero_()\n            self._correct.zero_()\n", "            pass\n"),
    fault("ranks", "one rank's sums are saved", LOOP, "self.ranks.total([float(self._loss_sum), int(self._correct)])", "(float(self._loss_sum), int(self._correct))"),
    fault("ranks", "free goes on with rank 0's perturbation", RUN, "if not self.method.per_rank:", "if True:"),
    fault("ranks", "weights that differ pass", PARALLEL, "        if any(other != found[0] for other in found):", "        if False:"),
    fault("ranks", "other arguments pass", PARALLEL, "                if first != here:", "                if False:"),
]  # fmt: skip
