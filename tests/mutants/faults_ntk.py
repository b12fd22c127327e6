"""The faults of the NTK engine and of its kernels."""

from __future__ import annotations

from tests.mutants.faults import fault

REFERENCE = "advfast/kernels/ntk/reference.py"
PAIRS = "csrc/cpu/ntk.cpp"
DISPATCH = "csrc/cpu/ntk_dispatch.cpp"
LANES = "csrc/cpu/ntk_lanes.h"
ROWS = "csrc/cpu/ntk_rows.cpp"
TRITON = "advfast/kernels/ntk/triton.py"
CUDA = "csrc/cuda/ntk.cu"
MMA = "csrc/cuda/mma.cuh"
MATH = "csrc/ntk_math.h"
CAPTURE = "advfast/ntk/capture.py"
CLAIMS = "advfast/ntk/claims.py"
CALLS = "advfast/ntk/calls.py"
RULES = "advfast/ntk/rules.py"
CONV = "advfast/ntk/rules_conv.py"
SUMMANDS = "advfast/ntk/summands.py"
GENERIC = "advfast/ntk/generic.py"
SUBJECT = "advfast/ntk/subject.py"
READOUTS = "advfast/ntk/readouts.py"
PLANNER = "advfast/ntk/planner.py"
COSTS = "advfast/ntk/costs.py"
CONTRACT = "advfast/ntk/contract.py"
FACTORS = "advfast/ntk/factors.py"
ENGINE = "advfast/ntk/engine.py"
STORE = "advfast/ntk/store.py"
SHARDS = "advfast/ntk/shards.py"
CHECK = "advfast/ntk/check.py"
OPERATOR = "advfast/ntk/operator.py"
PRODUCTS = "advfast/ntk/products.py"
ESTIMATORS = "advfast/ntk/estimators.py"
EIGEN = "advfast/ntk/eigen.py"
QUADRATURE = "advfast/ntk/quadrature.py"
SOLVE = "advfast/ntk/solve.py"
EXACT = "advfast/ntk/exact.py"
BATCHES = "advfast/ntk/batches.py"
METRICS = "advfast/ntk/metrics.py"
LABELS = "advfast/ntk/labels.py"
REDUCERS = "advfast/ntk/reducers.py"
REDUCTION = "advfast/ntk/reduction.py"
LEADING = "advfast/ntk/leading.py"
ADVERSARIAL = "advfast/ntk/adversarial.py"
RECORDER = "advfast/ntk/recorder.py"
PROBE = "advfast/ntk/probe.py"

FAULTS = [
    # --- the definition of the kernels
    fault("ntk-reference", "TF32 truncated", REFERENCE, "rounded = (bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF", "rounded = bits & ~0x1FFF"),
    fault("ntk-reference", "TF32 ties away from zero", REFERENCE, "(bits + 0x0FFF + ((bits >> 13) & 1))", "(bits + 0x1000)"),
    fault("ntk-reference", "bfloat16 truncated", REFERENCE, "return t.to(torch.bfloat16).to(torch.float32)", "return (t.contiguous().view(torch.int32) & ~0xFFFF).view(torch.float32)"),
    fault("ntk-reference", "three products less one", REFERENCE, "(a_high @ b_low + a_low @ b_high)", "a_high @ b_low"),
    fault("ntk-reference", "chain of the first group alone", REFERENCE, "theta = product(left.unsqueeze(1), chain.mT, precision).sum(2)", "theta = product(left.unsqueeze(1), chain.mT, precision)[:, :, 0]"),
    fault("ntk-reference", "no patch Gram in the hadamard", REFERENCE, "(b * k[:, :, :, None, :, None])", "b"),
    fault("ntk-reference", "padding reads the last pixel", REFERENCE, "index = torch.where(taps < 0, x.shape[2], taps)", "index = torch.where(taps < 0, x.shape[2] - 1, taps)"),
    fault("ntk-reference", "gram replaces what is there", REFERENCE, "out += product(j1.flatten(0, 1), j2.flatten(0, 1).mT, precision)", "out.copy_(product(j1.flatten(0, 1), j2.flatten(0, 1).mT, precision))"),
    fault("ntk-reference", "upper half without its square", REFERENCE, "        ntk_gram_(out[:at, at:], j1[:half], j2[half:], precision, False)\n", ""),
    # --- the C++ core
    fault("ntk-cpp", "padding reads the first pixel", PAIRS, "return pixel < 0 ? nullptr : x + pixel * e;", "return x + (pixel < 0 ? 0 : pixel) * e;"),
    fault("ntk-cpp", "shifted sums without the mask", PAIRS, "masked(load(row + plan.starts[at]), plan.set + at * kLanes)", "load(row + plan.starts[at])"),
    fault("ntk-cpp", "chain of the first group's gradients", PAIRS, "right + (group * panels + panel) * readouts2 * right_size", "right + panel * readouts2 * right_size"),
    fault("ntk-cpp", "pairs replace what is there", PAIRS, "to[r * args.out_stride + s] += sum;", "to[r * args.out_stride + s] = sum;", 2),
    fault("ntk-cpp", "only the last depth counts", LANES, "store(at, add ? load(at) + sums[m][v] : sums[m][v]);", "store(at, sums[m][v]);"),
    fault("ntk-cpp", "upper half without the diagonal", DISPATCH, "if (!a.upper || i <= j)", "if (!a.upper || i < j)"),
    fault("ntk-cpp", "tail of the rows replaced", ROWS, "to[i] = add ? to[i] + numbers[i] : numbers[i];", "to[i] = numbers[i];"),
    # --- Triton, in the interpreter
    fault("ntk-triton", "TF32 cut off", TRITON, "rounded = tl.add(bits, 0x0FFF + ((bits >> 13) & 1), False) & ~0x1FFF", "rounded = bits & ~0x1FFF"),
    fault("ntk-triton", "shifted sums over padding", TRITON, "both = (pixel1 >= 0)[:, None] & (pixel2 >= 0)[None, :]", "both = (pixel1 >= -1)[:, None] & (pixel2 >= 0)[None, :]"),
    fault("ntk-triton", "pixels of the tile's first sample", TRITON, "row = slot1 - slot1 % SLOT + tl.maximum(pixel1, 0)", "row = tl.maximum(pixel1, 0)"),
    fault("ntk-triton", "positions past a tile lost", TRITON, "for q0 in range(0, positions2, SLOT):", "for q0 in range(0, 1, SLOT):", 2),
    fault("ntk-triton", "groups past the first lost", TRITON, "for part in range(0, groups):", "for part in range(0, 1):", 2),
    fault("ntk-triton", "pairs replace what is there", TRITON, "tl.store(at, tl.load(at, mask=kept, other=0.0) + total, mask=kept)", "tl.store(at, total, mask=kept)", 2),
    # --- CUDA, in the emulator
    fault("ntk-cuda", "TF32 cut off", MATH, "const uint32_t rounded = (bits + 0x0fffu + ((bits >> 13) & 1u)) & ~0x1fffu;", "const uint32_t rounded = bits & ~0x1fffu;"),
    fault("ntk-cuda", "three products less one", MMA, "        multiply_bf16(c, a_low, b_high);\n", ""),
    fault("ntk-cuda", "chain replaces what is there", CUDA, "readout2 + other] += sum;", "readout2 + other] = sum;"),
    fault("ntk-cuda", "pixels of the first group", CUDA, "(unit / rows.readouts * args.groups + part) * side.pixels", "unit / rows.readouts * args.groups * side.pixels"),
    # --- what a network's gradients are
    fault("ntk-networks", "second use of a weight dropped", SUMMANDS, "uses.setdefault(name, []).append(key)", "uses.setdefault(name, [key])"),
    fault("ntk-networks", "second use of a bias replaces the first", SUMMANDS, "self._filled[:, readout] += rows", "self._filled[:, readout] = rows"),
    fault("ntk-networks", "tied uses kept apart", SUMMANDS, "if single or _disjoint([operand for operand, _, _ in alike]):", "if True:"),
    fault("ntk-networks", "second use reads the first one's pixels", SUMMANDS, "torch.where(own < 0, own, own + start)", "own"),
    fault("ntk-networks", "samples taken for outermost", CALLS, "if self.minor:", "if False:"),
    fault("ntk-networks", "input written to later not copied", CALLS, "if any(key in self._copied for key in used):", "if False:"),
    fault("ntk-networks", "repeated views of a parameter taken", CALLS, "if len(which.unique()) == which.numel():", "if True:"),
    fault("ntk-rules", "dilation ignored", CONV, "torch.arange(window[d]) * dilation[d]", "torch.arange(window[d])"),
    fault("ntk-rules", "odd padding on the left", CONV, "d * (k - 1) // 2", "(d * (k - 1) + 1) // 2"),
    fault("ntk-rules", "transposed padding reads the last pixel", CONV, "self._index = torch.where(taps < 0, size, taps)", "self._index = torch.where(taps < 0, size - 1, taps)"),
    fault("ntk-rules", "gain's factor divided by the gain", RULES, "self.source = split.front(self.func(**kept))", "gain = self.argument(\"weight\").detach()\n            self.source = split.front(self.func(**kept | {\"weight\": gain}) / gain.view(self.placed(\"weight\")))"),
    fault("ntk-networks", "product in place taken after it", RULES, "other.detach().clone() if in_place and self.func in _MULTIPLIED else None", "None"),
    fault("ntk-rules", "divisor's sign", RULES, "scale = -scale * self.operands", "scale = scale * self.operands"),
    fault("ntk-rules", "padding token counts", RULES, "return g if self.padding is None else g.masked_fill(self.padding, 0)", "return g"),
    fault("ntk-capture", "mixed samples accepted", CLAIMS, "if inputs and grads[0] is not None and bool((grads[0][others] != 0).any()):", "if False:"),
    fault("ntk-capture", "mixed token ids accepted", CLAIMS, "if bool((logits - run.logits[0]).abs().max() > 1e-4 * scale):", "if False:"),
    fault("ntk-networks", "gradients at other samples not looked at", CLAIMS, "if bool(split.front(here).flatten(1).any(1)[others].any()):", "if False:"),
    fault("ntk-networks", "unused parameters forgotten", CLAIMS, "tuple(name for name in parameters if name not in reached | claimed)", "()"),
    fault("ntk-capture", "other calls accepted", CAPTURE, "if not same or not new | reached <= set(self.generic):", "if False:"),
    fault("ntk-networks", "gradient that is none is left as it was", CAPTURE, "            g = self._like.new_zeros(call.shape)", "            return"),
    fault("ntk-networks", "one by one: the first sample's", GENERIC, "self._subject.logits(x[i : i + 1])[0]", "self._subject.logits(x[:1])[0]"),
    fault("ntk-capture", "modes not restored", SUBJECT, "module.training = mode", "pass"),
    fault("ntk-capture", "TF32 not restored", SUBJECT, "torch.backends.cuda.matmul.allow_tf32 = matmul", "pass"),
    fault("ntk-capture", "frozen variance unbiased", SUBJECT, "correction=0", "correction=1"),
    fault("ntk-capture", "gradient of the loss reversed", READOUTS, "(logits.softmax(1) - own)", "(own - logits.softmax(1))"),
    fault("ntk-capture", "margin to the own class", READOUTS, "logits.masked_fill(own.bool(), -torch.inf).argmax(1)", "logits.argmax(1)"),
    # --- plan, blocks and files
    fault("ntk-kernel", "tile changes the chunks", PLANNER, "most = min(most, wanted)", "most = min(most, wanted)\n        plan = replace(plan, blocks1=replace(plan.blocks1, chunk=plan.blocks1.block))"),
    fault("ntk-kernel", "max_bytes ignored", PLANNER, "limit = free_bytes(device) if max_bytes is None else max_bytes", "limit = free_bytes(device)"),
    fault("ntk-costs", "chain costs one side alone", COSTS, "(r * s * s * c + square * s * c)", "square * s * c"),
    fault("ntk-kernel", "padding of one position read", CONTRACT, " * (taps[0] >= 0)[None, :, None]", ""),
    fault("ntk-kernel", "all tokens meet", CONTRACT, "(ids1[i][None, :, None] == ids2[:, None, :])", "(ids1[i][None, :, None] * ids2[:, None, :] >= 0)"),
    fault("ntk-kernel", "small layers lost", FACTORS, "    if small:\n", "    if False:\n"),
    fault("ntk-kernel", "diagonal block not mirrored", ENGINE, "matrix = matrix + matrix.triu(1).mT", "pass"),
    fault("ntk-kernel", "last chunk counts twice", ENGINE, ".clamp(max=first + count - 1)", ".clamp(max=first + count - 1).flip(0)"),
    fault("ntk-kernel", "lower half missing", STORE, "matrix[j, i] = piece.matrix.mT", "pass"),
    fault("ntk-store", "manifest without weights", STORE, "_digest(*(state[name] for name in sorted(state)), *statistics)", "None"),
    fault("ntk-store", "done before it is written", STORE, "        matrix = torch.from_numpy(self._matrix)\n        put(", "        matrix = torch.from_numpy(self._matrix)\n        self._done[i, j] = 1\n        put("),
    fault("ntk-store", "what is done is computed again", STORE, "return not self._done[i, j]", "return True"),
    fault("ntk-store", "ranks overlap", SHARDS, "(len(pairs) * k // self.size for k in (self.rank, self.rank + 1))", "(0, len(pairs))"),
    fault("ntk-kernel", "check never fails", CHECK, "if not error <= limit:", "if False:"),
    # --- the operator
    fault("ntk-algorithms", "centred on one side", OPERATOR, "return self._centred(out)", "return out"),
    fault("ntk-operator", "batches replace each other", PRODUCTS, "total[i] += grad", "total[i] = grad"),
    fault("ntk-operator", "adjoint not checked", PRODUCTS, "if abs(left - right) > _ADJOINT", "if False and abs(left - right) > _ADJOINT"),
    fault("ntk-operator", "fused attention left off", PRODUCTS, "torch.backends.mha.set_fastpath_enabled(enabled)", "pass"),
    fault("ntk-algorithms", "error of one sample, not of the mean", ESTIMATORS, "float(values.std() / len(values) ** 0.5)", "float(values.std())"),
    fault("ntk-algorithms", "jackknife without its factor", ESTIMATORS, ".square().sum() * (m - 1) / m", ".square().sum() / m"),
    fault("ntk-algorithms", "Lanczos not confirmed", EIGEN, "confirmed is not None and ((found[0] - confirmed).abs() <= limit).all()", "True"),
    fault("ntk-algorithms", "one converged vector is enough", EIGEN, "if (errors[:k] <= limit).all():", "if (errors[:k] <= limit).any():"),
    fault("ntk-algorithms", "weights of the Gauss rule not squared", QUADRATURE, "vectors[:, 0].square()", "vectors[:, 0].abs()"),
    fault("ntk-algorithms", "probes not made orthogonal", QUADRATURE, "        for _ in range(2):\n", "        for _ in range(0):\n"),
    fault("ntk-algorithms", "ridge forgotten by Cholesky", SOLVE, "    diagonal += ridge\n", ""),
    fault("ntk-algorithms", "no preconditioner", SOLVE, "return lambda r: r + u @ (gain[:, None] * (u.T @ r))", "return lambda r: r"),
    fault("ntk-algorithms", "prediction without the network's own", SOLVE, " - operator.outputs().double()", ""),
    fault("ntk-algorithms", "blocks off the diagonal once", EXACT, "(1 if part.i == part.j else 2)", "1"),
    fault("ntk-operator", "other data of a later pass accepted", BATCHES, "if self._sums is None:", "if True:"),
    fault("ntk-operator", "shuffled data accepted", BATCHES, "            _refuse_shuffling(data)\n", ""),
    # --- metrics, reducers, the recorder
    fault("ntk-metrics", "trace kernel not a mean", METRICS, ".double().mean(-1)", ".double().sum(-1)"),
    fault("ntk-metrics", "top mass without squares", METRICS, "values = spectrum(kernel, of).square()", "values = spectrum(kernel, of)"),
    fault("ntk-metrics", "specialisation by row", METRICS, "m.diagonal() / m.mean(0)", "m.diagonal() / m.mean(1)"),
    fault("ntk-metrics", "centred on one side", LABELS, "    blocks = blocks - blocks.mean(-2, keepdim=True)\n", ""),
    fault("ntk-reducers", "mirror image not counted", REDUCERS, "        yield columns, rows, m.mT\n", ""),
    fault("ntk-reducers", "mean of the kernel not squared", REDUCERS, "total.square().sum((1, 2)) / n**2", "total.square().sum((1, 2)) / n"),
    fault("ntk-reducers", "first tile lost", REDUCTION, "    parts.add(first, others)\n", ""),
    fault("ntk-reducers", "sweeps not limited", REDUCTION, " and done < sweeps", ""),
    fault("ntk-reducers", "one converged value is enough", LEADING, "float(self.residuals.max()) <=", "float(self.residuals.min()) <="),
    fault("ntk-reducers", "lower bound of the rank is the upper", LEADING, "return min(low, high), high", "return high, high"),
    fault("ntk-recorder", "clean and adversarial exchanged", ADVERSARIAL, "theta[:n, n:])", "theta[n:, :n])"),
    fault("ntk-recorder", "recorder draws from training's numbers", PROBE, "            rng.set_state(before)", "            pass"),
    fault("ntk-recorder", "compared with the last, not the first", RECORDER, "self._first = self._first or kernels", "self._first = kernels"),
    fault("ntk-recorder", "velocity a record, not an epoch", RECORDER, "epoch - self.history[-1][\"epoch\"]", "1.0"),
    fault("ntk-recorder", "records beyond the last saving kept", RECORDER, " if row[\"step\"] <= step", ""),
    fault("ntk-recorder", "own attack in training mode", PROBE, "self.attack(model.eval(), ", "self.attack(model, "),
]  # fmt: skip
