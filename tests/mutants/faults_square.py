"""The faults of the Square attack and its window."""

from __future__ import annotations

from tests.mutants.faults import fault

SQUARE = "advfast/attacks/search/square.py"
BLOCK = "advfast/attacks/search/square_block.py"
DRAWS = "advfast/attacks/search/square_draws.py"
MOVES = "advfast/attacks/search/square_moves.py"
STARTS = "advfast/attacks/search/square_starts.py"
WINDOWS = "advfast/attacks/search/square_windows.py"
REFERENCE = "advfast/kernels/square/reference.py"
CPU = "csrc/cpu/square.cpp"
TRITON = "advfast/kernels/square/triton.py"

FAULTS = [
    fault("square", "accepts what is no better", BLOCK, "lower, solved = loss < left.loss, margin <= 0", "lower, solved = loss <= left.loss + 0.1, margin <= 0"),
    fault("square", "a misclassified image that lost by the loss is thrown away", BLOCK, "improved = lower | solved", "improved = lower"),
    fault("square", "the loss is not kept", BLOCK, "    left.loss = torch.where(lower, loss, left.loss)\n", ""),
    fault("square", "asks solved samples on", SQUARE, "if len(index) == len(left.at):", "if len(index) > 0:"),
    fault("square", "restarts go on with the first run's draws", SQUARE, "KeyedDraws(points.ids, self.seed, restart,", "KeyedDraws(points.ids, self.seed, 0,"),
    fault("square", "restarts begin anew with all", SQUARE, "left = (~found.success).nonzero()[:, 0]", "left = torch.arange(len(points))"),
    fault("square", "ce is the margin", SQUARE, 'ahead if self.loss == "margin" else -ce(logits, labels)', "ahead"),
    fault("square", "a block takes its last success", BLOCK, "table.amin(1)", "torch.where(table < count, table, -1).amax(1) + (table == count).all(1) * (count + 1)"),
    fault("square", "a block asks no more behind a success", BLOCK, "following[rows] = earliest + 1", "following[rows] = count"),
    fault("square", "a block skips a query", BLOCK, "following[rows] = earliest + 1", "following[rows] = earliest + 2"),
    fault("square", "a block's loss is not kept", BLOCK, "        left.loss[at] = torch.where(loss[took] < left.loss[at], loss[took], left.loss[at])\n", ""),
    fault("square", "a block asks solved samples on", BLOCK, "(following[rows] < count) & ~solved[rows]", "following[rows] < count"),
    fault("square", "a block crosses the schedule", SQUARE, "        while count > 1 and self._window(query + count - 1, sides) != window:\n            count -= 1\n", ""),
    fault("square", "a block of the first query's draws", DRAWS, "first - self._first + count)", "first - self._first + 1)"),
    fault("square", "draws keyed by the place in the batch", DRAWS, "ids = self._ids[:, None, None]", "ids = torch.arange(len(self._ids))[:, None, None]"),
    fault("square", "draws do not leave with their samples", DRAWS, "            self._ahead = self._ahead.selected(index)", "            pass"),
    fault("square", "the last row is never reached", DRAWS, "torch.tensor(rooms * 2, device=words.device) + 1", "torch.tensor(rooms * 2, device=words.device).clamp(min=1)"),
    fault("square", "signs before windows", DRAWS, "        others, turned = self._place(rooms), self.turned()", "        turned, others = self.turned(), self._place(rooms)"),
    fault("square", "horizontal stripes", STARTS, ".view(rows, channels, 1, width)", ".view(rows, channels, width, 1)"),
    fault("square", "the schedule is late", WINDOWS, "if query <= last:", "if query < last:"),
    fault("square", "even windows for l2", WINDOWS, "        side += 1\n", "        pass\n"),
    fault("square", "l2 spends its budget twice", MOVES, "(left / channels + spent**2)", "(left + spent**2)"),
    fault("square", "the second window is not emptied", MOVES, "        delta[second] = 0.0\n", ""),
    fault("square-kernel", "no box", REFERENCE, "x0 + eps), 0.0, 1.0)", "x0 + eps), -9.0, 9.0)"),
    fault("square-kernel", "C++: half a step", CPU, "static_cast<T>(2 * args.eps)", "static_cast<T>(args.eps)"),
    fault("square-kernel", "C++: signs of NHWC", CPU, "channel < 0 ? i % args.channels", "channel < 0 ? i / args.channels % args.channels"),
    fault("square-kernel", "C++: accepts all", CPU, "    if (!args.improved[sample])\n        return;\n", ""),
    fault("square-kernel", "C++: windows beyond the image", CPU, "bottom = bottom > args.height ? args.height : bottom,", ""),
    fault("square-triton", "window one row too high", TRITON, "(down >= 0) & (down < tall)", "(down >= 0) & (down <= tall)"),
    fault("square-triton", "accepts all", TRITON, "moves = good & inside & wanted", "moves = good & inside"),
]  # fmt: skip
