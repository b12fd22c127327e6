"""The faults: what is changed in which file, and which implementation's tests must notice."""

from __future__ import annotations

from dataclasses import dataclass

REFERENCE = "advfast/kernels/pgd/reference.py"
TRITON = "advfast/kernels/pgd/triton.py"
MATH = "csrc/pgd_math.h"
CPU = "csrc/cpu/pgd.cpp"
START = "csrc/cpu/pgd_start.cpp"
CUDA = "csrc/cuda/pgd.cu"
BALL = "csrc/cuda/pgd_ball.cuh"
DEVICE = "csrc/cuda/pgd_device.cuh"
ATTACK = "advfast/attacks/pgd.py"
ENGINE = "advfast/attacks/engine.py"
STATE = "advfast/attacks/state.py"
CHECKS = "advfast/attacks/checks.py"
CONV = "csrc/cpu/conv.cpp"
FIRST = "advfast/attacks/first_layer.py"
CRAFT = "advfast/attacks/craft.py"
PLAN = "advfast/attacks/plan.py"
CALL = "advfast/attacks/call.py"
ROWS = "advfast/attacks/rows.py"
FINISHED = "advfast/attacks/finish.py"
RANKING = "advfast/attacks/ranking.py"
MOMENTUM = "advfast/attacks/momentum.py"
SPLIT = "advfast/attacks/split.py"
LOSSES = "advfast/attacks/losses.py"
CYCLES = "advfast/attacks/cycles.py"
BPDA = "advfast/attacks/bpda.py"
GAUSSIAN = "advfast/attacks/gaussian.py"
CAPTURE = "advfast/attacks/capture.py"
KEY = "advfast/attacks/graph_key.py"
CAPTURED = "advfast/graphs/captured.py"
PLAIN = "advfast/attacks/network/plain.py"
NETWORK = "advfast/attacks/network/network.py"
PROGRAM = "advfast/attacks/network/program.py"
LOWER = "advfast/attacks/network/lower.py"
STEPS = "advfast/attacks/network/steps.py"
CONVOLUTION = "advfast/attacks/network/convolution.py"
KEPT = "advfast/attacks/network/kept.py"
SEGMENT = "advfast/attacks/network/segment.py"
PASS = "advfast/attacks/network/run.py"
FINGERPRINT = "advfast/attacks/network/fingerprint.py"
ACTIVATION = "csrc/cpu/activation.cpp"
LANES = "csrc/cpu/lanes.h"
ACTIVATION_REFERENCE = "advfast/kernels/activation/reference.py"
ACTIVATION_TRITON = "advfast/kernels/activation/triton.py"
HASH = "csrc/cpu/hash.cpp"
HASH_REFERENCE = "advfast/kernels/hash/reference.py"
TORCHATTACKS = "advfast/compat/torchattacks/gradient.py"
TORCHATTACKS_BASE = "advfast/compat/torchattacks/attack.py"
FOOLBOX = "advfast/compat/foolbox/attacks/gradient_descent_base.py"
FOOLBOX_BASE = "advfast/compat/foolbox/attacks/base.py"
FOOLBOX_PGD = "advfast/compat/foolbox/attacks/projected_gradient_descent.py"
CLEVERHANS = "advfast/compat/cleverhans.py"
ART = "advfast/compat/art/batches.py"
ART_STEP = "advfast/compat/art/lp_steps.py"
ART_TARGET = "advfast/compat/art/target.py"
ART_LABELS = "advfast/compat/art/labels.py"
ART_ATTACKS = "advfast/compat/art/attacks/evasion.py"
TRADES = "advfast/compat/research/trades.py"
PERTURB = "advfast/compat/research/perturb.py"
LOOP = "advfast/training/loop.py"
STEP = "advfast/training/step.py"
WATCH = "advfast/training/watch.py"
RESUME = "advfast/training/resume.py"
RUN = "advfast/training/run.py"
TRAIN = "advfast/training/train.py"
FINISH = "advfast/training/finish.py"
SETUP = "advfast/training/setup.py"
EMA = "advfast/training/modifiers/ema.py"
SCHEDULES = "advfast/training/schedules.py"
METHOD = "advfast/training/methods/base.py"
PGDAT = "advfast/training/methods/pgd_at.py"
CHECKPOINT = "advfast/training/checkpoint.py"
RNG = "advfast/training/rng.py"
FILES = "advfast/files.py"
LOADER = "advfast/data/loader.py"
RANDOM = "advfast/data/randomness.py"
AUGMENT = "advfast/data/augment.py"
EVALUATE = "advfast/evaluation/batch.py"


@dataclass(frozen=True)
class Fault:
    name: str
    impl: str  # reference | cpp | triton: its tests; cuda: those in the emulator; others: see TESTS in run.py
    file: str
    old: str
    new: str
    count: int = 1  # how often `old` stands in the file


def fault(impl: str, name: str, file: str, old: str, new: str, count: int = 1) -> Fault:
    return Fault(name, impl, file, old, new, count)


FAULTS = [
    # --- the reference: it must be held to something else than itself
    fault("reference", "no eps projection", REFERENCE, "_clamp(x0 + _clamp(x + alpha * sign - x0, -eps, eps), lo, hi)", "_clamp(x + alpha * sign, lo, hi)"),
    fault("reference", "no clip to the box", REFERENCE, "_clamp(x0 + _clamp(x + alpha * sign - x0, -eps, eps), lo, hi)", "x0 + _clamp(x + alpha * sign - x0, -eps, eps)"),
    fault("reference", "eps over by 5 %", REFERENCE, "_clamp(x + alpha * sign - x0, -eps, eps)", "_clamp(x + alpha * sign - x0, -1.05 * eps, 1.05 * eps)"),
    fault("reference", "step x0.1", REFERENCE, "x + alpha * sign - x0", "x + 0.1 * alpha * sign - x0"),
    fault("reference", "descent", REFERENCE, "x + alpha * sign - x0", "x - alpha * sign - x0"),
    fault("reference", "sign(0) moves", REFERENCE, "torch.where(finite, torch.sign(grad), 0)", "torch.where(finite, torch.where(grad < 0, -1.0, 1.0), 0)"),
    fault("reference", "non-finite entry moves", REFERENCE, "torch.where(active & finite, stepped, held)", "torch.where(active, stepped, held)"),
    fault("reference", "non-finite entry not counted", REFERENCE, "nonfinite += (active & ~finite).sum()", "pass"),
    fault("reference", "l2 step over the batch", REFERENCE, "        size = _size(g, norm)\n        # A sample", "        size = _size(g, norm).square().sum().sqrt().expand(g.shape[0])\n        # A sample"),
    fault("reference", "no l2 projection", REFERENCE, "_clamp(_to_ball(moved, x0, eps, norm), lo, hi)", "_clamp(moved, lo, hi)"),
    fault("reference", "l1 rescaled, not projected", REFERENCE, "shrunk = delta.sign() * (delta.abs() - _per_sample(theta, x)).clamp(min=0)", "shrunk = delta * _per_sample(radius / torch.where(size > 0, size, 1.0), x)"),
    fault("reference", "l2 order ignored", REFERENCE, 'if l2_order == "box-ball-box":', "if False:"),
    fault("reference", "16 bits rounded to nearest", REFERENCE, "return torch.where(outside & ~crosses, inner, nearest)", "return nearest"),
    fault("reference", "random start ignored", REFERENCE, "uniform.reshape(x0.shape) * eps", "uniform.reshape(x0.shape) * 0"),
    fault("reference", "same start for every sample", REFERENCE, "(block, stream, ids & _MASK, (ids >> 32) & _MASK)", "(block, stream, ids * 0, (ids >> 32) & _MASK)"),
    fault("reference", "l2 start on the sphere", REFERENCE, "factor = own ** (1.0 / max(dim, 1)) / draws", "factor = 1.0 / draws"),
    # --- the C++ core
    fault("cpp", "no eps projection", MATH, "return clamp(x0 + clamp(moved - x0, -eps, eps), lo, hi);", "(void)eps; return clamp(x0 + (moved - x0), lo, hi);"),
    fault("cpp", "no clip to the box", MATH, "return clamp(x0 + clamp(moved - x0, -eps, eps), lo, hi);", "(void)lo; (void)hi; return x0 + clamp(moved - x0, -eps, eps);"),
    fault("cpp", "eps over by 5 %", MATH, "clamp(moved - x0, -eps, eps)", "clamp(moved - x0, T(-1.05) * eps, T(1.05) * eps)"),
    fault("cpp", "step x0.1", MATH, "const T moved = x + alpha * sign;", "const T moved = x + T(0.1) * alpha * sign;"),
    fault("cpp", "descent", MATH, "const T moved = x + alpha * sign;", "const T moved = x - alpha * sign;"),
    fault("cpp", "sign(0) moves", MATH, "return T(g > 0.0f) - T(g < 0.0f);", "return T(1) - T(2) * T(g < 0.0f);"),
    fault("cpp", "non-finite entry moves", CPU, "x[i] = finite ? moved : held;", "x[i] = moved; (void)held;"),
    fault("cpp", "non-finite entry not counted", CPU, "        bad += !finite;\n        const T moved", "        const T moved"),
    fault("cpp", "mask ignored", CPU, "signs[i] = mask[i] ? signs[i] : not_a_number<T>();", "(void)mask;"),
    fault("cpp", "l2 step over the batch", CPU, "const Division by = size.norm > 0 ? division(size.norm)", "const Division by = size.norm > 0 ? division(size.norm * sqrt((double)args.batch))"),
    fault("cpp", "no l2 projection", CPU, "const bool outside = far > radius;", "const bool outside = args.norm == Norm::l1 && far > radius;"),
    fault("cpp", "l1 rescaled, not projected", CPU, "return {theta, left > radius ? radius / left : 1.0};", "(void)left; return {0.0, radius / total};"),
    fault("cpp", "l2 order ignored", CPU, "if (args.box_first)", "if (false)"),
    fault("cpp", "16 bits rounded to nearest", MATH, "return (outside & !crosses) ? inner : nearest;", "(void)outside; (void)crosses; (void)inner; return nearest;"),
    fault("cpp", "l2 sum rounded away from x0", MATH, "return far > limit ? neighbour_of_nonzero(z, moved < T(0)) : z;", "(void)far; (void)limit; return z;"),
    fault("cpp", "random start ignored", MATH, "static_cast<T>(symmetric_uniform(word)) * eps", "static_cast<T>(symmetric_uniform(word)) * T(0) * eps"),
    fault("cpp", "same start for every sample", START, "return args.sample_ids ? args.sample_ids[sample] : sample;", "return sample * 0;"),
    fault("cpp", "layout changes the draws", START, "(logical % shape.spatial) * shape.channels + logical / shape.spatial", "logical"),
    # --- CUDA, in the emulator (the maths in pgd_math.h is shared with the C++ core)
    fault("cuda", "no eps projection", CUDA, "sign[u][i], alpha[i], eps[i], lo[i], hi[i]);", "sign[u][i], alpha[i], 1e9f, lo[i], hi[i]);"),
    fault("cuda", "no clip to the box", CUDA, "sign[u][i], alpha[i], eps[i], lo[i], hi[i]);", "sign[u][i], alpha[i], eps[i], -1e9f, 1e9f);"),
    fault("cuda", "eps over by 5 %", CUDA, "sign[u][i], alpha[i], eps[i], lo[i], hi[i]);", "sign[u][i], alpha[i], 1.05f * eps[i], lo[i], hi[i]);"),
    fault("cuda", "step x0.1", CUDA, "sign[u][i], alpha[i], eps[i], lo[i], hi[i]);", "sign[u][i], 0.1f * alpha[i], eps[i], lo[i], hi[i]);"),
    fault("cuda", "descent", CUDA, "sign[u][i], alpha[i], eps[i], lo[i], hi[i]);", "-sign[u][i], alpha[i], eps[i], lo[i], hi[i]);"),
    fault("cuda", "non-finite entry moves", CUDA, "x[u][i] = on[i] && finite ? moved : held;", "x[u][i] = on[i] ? moved : held;"),
    fault("cuda", "non-finite entry not counted", CUDA, "            bad += on[i] && !finite;\n", ""),
    fault("cuda", "mask ignored", CUDA, "x[u][i] = on[i] && finite ? moved : held;", "x[u][i] = finite ? moved : held;"),
    fault("cuda", "l2 step over the batch", BALL, "x[i] = x[i] + alpha[i] * unit(g[i]);", "x[i] = x[i] + 0.5f * alpha[i] * unit(g[i]);"),
    fault("cuda", "no l2 projection", BALL, "if (shrink.shrinks) {", "if (shrink.shrinks && task.norm == Norm::l1) {"),
    fault("cuda", "l1 rescaled, not projected", BALL, "fabs(static_cast<double>(d)) - shrink.theta;", "fabs(static_cast<double>(d)) * 0.5;"),
    fault("cuda", "l2 order ignored", BALL, "if (task.box_first)", "if (task.box_first && false)"),
    fault("cuda", "16 bits rounded to nearest", DEVICE, "round_toward<O>(x[i], x0[i])", "round_to<O>(x[i])"),
    fault("cuda", "random start ignored", CUDA, "linf_start(x0[i], words[i], eps[i], lo[i], hi[i])", "linf_start(x0[i], words[i], 0.0f * eps[i], lo[i], hi[i])"),
    fault("cuda", "same start for every sample", CUDA, "task.sample_ids ? task.sample_ids[sample] : sample", "task.sample_ids ? task.sample_ids[sample] : 0 * sample"),
    # --- Triton
    fault("triton", "no eps projection", TRITON, "moved = _clamp(centre + _clamp(moved - centre, radius * -1.0, radius), low, high)", "moved = _clamp(moved, low, high)"),
    fault("triton", "no clip to the box", TRITON, "moved = _clamp(centre + _clamp(moved - centre, radius * -1.0, radius), low, high)", "moved = centre + _clamp(moved - centre, radius * -1.0, radius)"),
    fault("triton", "eps over by 5 %", TRITON, "_clamp(moved - centre, radius * -1.0, radius)", "_clamp(moved - centre, radius * -1.05, radius * 1.05)"),
    fault("triton", "step x0.1", TRITON, "moved = old + step *", "moved = old + 0.1 * step *"),
    fault("triton", "descent", TRITON, "moved = old + step *", "moved = old - step *"),
    fault("triton", "sign(0) moves", TRITON, "tl.where(g > 0, 1.0, tl.where(g < 0, -1.0, 0.0))", "tl.where(g < 0, -1.0, 1.0)"),
    fault("triton", "non-finite entry moves", TRITON, "new = tl.where(good, moved, held)", "new = moved"),
    fault("triton", "non-finite entry not counted", TRITON, "(active & (finite == 0)).to(tl.int32)", "(active & (finite == 2)).to(tl.int32)"),
    fault("triton", "mask ignored", TRITON, "(tl.load(pointer + place, mask=active, other=0) != 0)", "(tl.load(pointer + place, mask=active, other=0) != 2)"),
    fault("triton", "l2 step over the batch", TRITON, "_split(tl.where(moves, size, 1.0))", "_split(tl.where(moves, size * 1.7, 1.0))"),
    fault("triton", "no l2 projection", TRITON, "outside = far > radius.to(tl.float64)", "outside = (far > radius.to(tl.float64)) & L1"),
    fault("triton", "l1 rescaled, not projected", TRITON, "shrunk = tl.maximum(tl.abs(d) - theta, 0.0) * scale", "shrunk = tl.abs(d) * (radius / far)"),
    fault("triton", "l2 order ignored", TRITON, "if (flags >> _BOX_FIRST) & 1 != 0:", "if (flags >> _BOX_FIRST) & 1 == 2:"),
    fault("triton", "16 bits rounded to nearest", TRITON, "return tl.where(outside & (crosses == 0) & toward, inner, nearest)", "return nearest"),
    fault("triton", "l2 sum rounded away from x0", TRITON, "return tl.where(tl.abs(moved) > tl.abs(delta), inner.to(tl.float32, bitcast=True), z)", "return z"),
    fault("triton", "random start ignored", TRITON, "return draw * 5.9604644775390625e-08", "return draw * 0.0"),
    # --- PGDAttack: the loop
    fault("attack", "stale gradient", ENGINE, "        logits, gradient = self._gradient()\n", "        if step == 0:\n            self._first = self._gradient()\n        logits, gradient = self._first\n"),
    fault("attack", "descent", PLAN, "self._sign = -1 if plan.targeted else 1", "self._sign = 1 if plan.targeted else -1"),
    fault("attack", "targeted ignored", PLAN, "self._sign = -1 if plan.targeted else 1", "self._sign = 1"),
    fault("attack", "random start ignored", CRAFT, "        elif plan.random_start:", "        elif False:"),
    fault("attack", "zero steps", ENGINE, "for step in range(plan.steps):", "for step in range(0):"),
    fault("attack", "one step fewer", ENGINE, "for step in range(plan.steps):", "for step in range(plan.steps - 1):"),
    fault("attack", "clean images returned", CRAFT, "return replace(rows, x=x), stopped", "return replace(rows, x=rows.x0.clone()), stopped"),
    fault("attack", "random direction", ENGINE, "self._move(gradient, active)", "self._move(torch.randn_like(gradient), active)"),
    fault("attack", "alpha x0.1", ENGINE, "alpha=rows.alpha,", "alpha=rows.alpha * 0.1,"),
    fault("attack", "default alpha is eps / 10", ATTACK, "STEP_OF_EPS: ClassVar[float] = 0.25", "STEP_OF_EPS: ClassVar[float] = 0.1"),
    fault("attack", "restarts share a start", ATTACK, "offset=restart,", "offset=0,"),
    fault("attack", "modes not restored", STATE, "            module.training = training", "            pass"),
    fault("attack", "modes restored by train()", STATE, "        for module, training in modes:\n", "        model.train(modes[0][1])\n        for module, training in []:\n"),
    fault("attack", "buffers not restored", STATE, "buffer.copy_(values)", "pass"),
    fault("attack", "crafts in train mode", STATE, "                model.eval()", "                pass"),
    fault("attack", "ranks wait while crafting", STATE, "setattr(wrapper, name, False)", "pass"),
    fault("attack", "weight gradients computed", PLAIN, "(gradient,) = torch.autograd.grad(objective(logits).sum(), model_input)", "objective(logits).sum().backward()\n                gradient = model_input.grad"),
    fault("attack", "no grad mode", ATTACK, "stack.enter_context(torch.inference_mode(False))\n            stack.enter_context(torch.enable_grad())", "pass"),
    fault("attack", "outer autocast reaches the model", ATTACK, 'self.precision != "fp32"', 'self.precision != "fp32" or torch.is_autocast_enabled("cpu")'),
    fault("attack", "16-bit result rounded to nearest", CRAFT, "x = self._narrowed(x, samples.x0, samples.eps, plan.result_dtype)", "x = x.to(plan.result_dtype)"),
    fault("attack", "labels not checked", CHECKS, "if first < 0 or last >= classes:", "if False:"),
    fault("attack", "images not checked", CHECKS, "if values[2] or values[3]:", "if False:"),
    fault("attack", "soft labels not checked", CHECKS, "_check_probabilities(*values[4:])", "pass"),
    fault("attack", "soft labels become classes", CHECKS, "    return labels.detach()", "    return labels.argmax(1)"),
    fault("attack", "sample ids ignored", ATTACK, "sample_ids=sample_ids,", "sample_ids=None,"),
    fault("attack", "changed settings ignored", ATTACK, 'self.__dict__["_checked"], self.__dict__["_prepared"] = False, None', 'self.__dict__["_checked"] = False'),
    fault("attack", "mask ignored at the start", CRAFT, "        if samples.mask is None:", "        if True:"),
    fault("attack", "mask ignored in the steps", ENGINE, "mask=rows.mask,", "mask=None,"),
    fault("attack", "given start not projected", CALL, "project_(start, x0, eps=eps, norm=plan.norm, bounds=plan.bounds, impl=plan.impl)", "pass"),
    fault("attack", "pieces share their starts", CALL, 'if "sample_ids" not in inputs:', "if False:"),
    fault("attack", "only the first piece counted", CALL, "torch.stack(counts).sum(0)", "counts[0]"),
    fault("attack", "max_bytes too generous", SPLIT, "return max(1, kept[1] - kept[0] + 2 * largest", "return max(1, (kept[1] - kept[0]) // 16"),
    # --- what an attack can be asked for
    fault("options", "batch_size ignored", CALL, "self._limit = a.batch_size", "self._limit = None"),
    fault("options", "early stop moves on", ENGINE, "self._move(gradient, active)", "self._move(gradient, None)"),
    fault("options", "success not kept", FINISHED, "        torch.where(newly, x, self._kept, out=self._kept)\n        return", "        return"),
    fault("options", "a later success wins", FINISHED, "newly = over(success, x) & self._alive", "newly = over(success, x)"),
    fault("options", "rows come back elsewhere", FINISHED, "index_copy_(0, self._place[gone], pick(self._kept, gone))", "index_copy_(0, gone, pick(self._kept, gone))"),
    fault("options", "rows leave in another order", ROWS, "return pick(value, index) if per_row", "return pick(value, index.flip(0)) if per_row"),
    fault("options", "momentum stays behind", ENGINE, "self._momentum.keep(left)", "self._momentum._velocity = self._momentum._velocity[: len(left)]"),
    fault("options", "a later run ends an earlier one", FINISHED, "((table.cumsum(0) - table) > 0)", "((table.sum(0, keepdim=True) - table) > 0)"),
    fault("options", "coupled samples leave", ENGINE, "self._plan.compacts and not self._objective.coupled", "self._plan.compacts"),
    fault("options", "restarts of a batch share a start", CRAFT, "self._start(run // targets, samples)", "self._start(0, samples)"),
    fault("options", "last run kept", RANKING, "torch.where(best & (value == highest), number, outcome.shape[0]).amin(0)", "torch.full_like(outcome[0], outcome.shape[0] - 1)"),
    fault("options", "runs ranked by loss alone", RANKING, "best = outcome == outcome.amax(0)", "best = torch.ones_like(outcome, dtype=torch.bool)"),
    fault("options", "stopped runs ranked by loss", RANKING, "value = torch.where(outcome == STOPPED, 0.0, value)", "pass"),
    fault("options", "targets of least likelihood", RANKING, "wrong.topk(count, 1)", "(-wrong.nan_to_num(0, 1e9, 1e9)).topk(count, 1)"),
    fault("options", "the label is a target", RANKING, "wrong = logits.scatter(1, classes[:, None], -torch.inf)", "wrong = logits"),
    fault("options", "one target for all runs", CRAFT, "towards[:, run % targets]", "towards[:, 0]"),
    fault("options", "targeted runs ranked by own loss", CRAFT, "value = margin(logits, rows.classes)", "value = self._objective(logits)"),
    fault("options", "a drawing model taken for periodic", ENGINE, "self._cycles = None  #", "pass  #"),
    fault("options", "cycles with momentum", PLAN, "            and self.momentum == 0\n", ""),
    fault("options", "momentum does not decay", MOMENTUM, "self._velocity * self._decay", "self._velocity"),
    fault("options", "momentum of raw gradients", MOMENTUM, "direction = gradient / mean.clamp_(min=torch.finfo(mean.dtype).tiny)", "direction = gradient.clone()"),
    fault("options", "momentum divides by the batch's mean", MOMENTUM, "dim=tuple(range(1, gradient.dim()))", "dim=tuple(range(gradient.dim()))"),
    fault("options", "a NaN spoils the velocity", MOMENTUM, "self._velocity = _finite(direction)", "self._velocity = direction"),
    fault("options", "eot takes the last pass", ENGINE, "logits, gradient = logits + more_logits, gradient + more", "logits, gradient = more_logits, more"),
    fault("options", "eot runs judged by one pass", CRAFT, "if plan.eot > 1:", "if False:"),
    fault("options", "gaussian start by torch's generator", GAUSSIAN, "if seed is None:", "if True:"),
    fault("losses", "dlr by the first two", LOSSES, "(top[:, 0] - top[:, 2] + 1e-12)", "(top[:, 0] - top[:, 1] + 1e-12)"),
    fault("losses", "targeted dlr without the fourth", LOSSES, "top[:, 0] - (top[:, 2] + top[:, 3]) / 2", "top[:, 0] - top[:, 2]"),
    fault("losses", "targeted margin without the label", LOSSES, "return _own(logits, targets) - _own(logits, labels)", "return _own(logits, targets) - _others_max(logits, targets)"),
    fault("losses", "kl the other way round", LOSSES, "F.kl_div(log_q, log_p,", "F.kl_div(log_p, log_q,"),
    fault("losses", "closed gradient of the other sign", LOSSES, "_log_softmax_backward_data(probabilities.neg(), log_q, 1, log_q.dtype)", "_log_softmax_backward_data(probabilities, log_q, 1, log_q.dtype)"),
    fault("losses", "closed gradient not lowered", PLAN, "return lambda logits: -closed(logits, reference)", "return lambda logits: closed(logits, reference)"),
    fault("losses", "16-bit gradient not rescaled", PLAIN, "cotangent = rescaled(cotangent).to(logits.dtype)", "cotangent = cotangent.to(logits.dtype)"),
    fault("losses", "16-bit gradient of a program not rescaled", PROGRAM, "(rescaled(cotangent) if self._sixteen_bit or narrow else cotangent)", "cotangent"),
    fault("cycles", "phase off by one", CYCLES, "(self._steps - step) % suspects.period == 0", "(self._steps - step - 1) % suspects.period == 0"),
    fault("cycles", "not confirmed", CYCLES, "suspects.back = _same_bits(x[suspects.rows], suspects.copy)", "suspects.back = torch.ones_like(suspects.rows, dtype=torch.bool)"),
    fault("cycles", "zeros of either sign equal", CYCLES, "(a.view(words) == b.view(words))", "(a == b)"),
    fault("cycles", "hashes stay behind", CYCLES, "self._hashes[:, index], self._done[index]", "self._hashes[:, : len(index)], self._done[index]"),
    fault("cycles", "suspects stay behind", CYCLES, "suspects.rows = rows\n            kept.append", "kept.append"),
    fault("cycles", "confirmed where it does not pay", CYCLES, "found[(found > 0) & (found < left)]", "found[found > 0]"),
    fault("bpda", "no gradient", BPDA, "return gradient, None", "return gradient * 0, None"),
    fault("bpda", "stand-in ignored", BPDA, "x if self.stand_in is None else self.stand_in(x)", "x"),
    fault("bpda", "works in the caller's tensor", BPDA, "return x.detach().clone()", "return x.detach()"),
    # --- the network without autograd: weights
    fault("network", "BN without gamma", STEPS, "scale = weights.wide(gamma) * scale", "pass"),
    fault("network", "BN by gamma alone", STEPS, 'torch.rsqrt(weights.wide(var) + norm["eps"])', "torch.ones_like(weights.wide(var))"),
    fault("network", "BN without eps", STEPS, 'weights.wide(var) + norm["eps"]', "weights.wide(var)"),
    fault("network", "BN without mean", STEPS, "shift = -weights.wide(mean) * scale", "shift = torch.zeros_like(scale)"),
    fault("network", "BN without beta", STEPS, "shift if beta is None else shift + weights.wide(beta)", "shift"),
    fault("network", "bias before BN not scaled", CONVOLUTION, "bias = shift if bias is None else bias * scale + shift", "bias = shift if bias is None else bias + shift"),
    fault("network", "factor before a convolution lost", CONVOLUTION, "for node in layer.scales:", "for node in []:"),
    fault("network", "divisor taken for a factor", CONVOLUTION, 'return 1 / constant if sign == "/" else constant', "return constant"),
    fault("network", "weights of the first call kept", PROGRAM, "states = [step.prepare(weights) for step in self.steps]", 'states = self.__dict__.setdefault("states", [step.prepare(weights) for step in self.steps])'),
    fault("network", "constants of the first call kept", PROGRAM, "constants = constants_of(self._graph, model)", 'constants = self.__dict__.setdefault("constants", constants_of(self._graph, model))'),
    fault("network", "BN folded though its input is read again", LOWER, 'producer.kind in ("conv", "linear")\n            and not producer.relu\n            and self._alone(producer.node)', 'producer.kind in ("conv", "linear")\n            and not producer.relu'),
    fault("network", "ReLU joined though its input is read again", LOWER, '("conv", "linear", "norm", "add")\n            and not producer.relu\n            and self._alone(producer.node)', '("conv", "linear", "norm", "add")\n            and not producer.relu'),
    fault("network", "sum taken before its other part is there", LOWER, "self.layers[at] = producer\n        self.layers.remove(producer)", "del self.layers[at]"),
    # --- gradients and memory
    fault("network", "ReLU without gate", STEPS, 'gate_op(total, bits, None if other is None else like(other, strides, dtype), "auto")', "total.add_(0 if other is None else other)"),
    fault("network", "other part of a fork lost", STEPS, 'gate_op(total, bits, None if other is None else like(other, strides, dtype), "auto")', 'gate_op(total, bits, None, "auto")'),
    fault("network", "gate in another memory order", STEPS, "    total = like(total, strides, dtype)\n", "    total = total.to(dtype)\n"),
    fault("network", "third part of a fork lost", PASS, "for part, _ in parts[1:-1]:", "for part, _ in []:"),
    fault("network", "shared gradient overwritten", PASS, "        if not owned:\n            total = total.clone()\n", ""),
    fault("network", "skip gradient lost in a sum", STEPS, "            for slot in (self.reads * 2)[:2]:\n", "            for slot in self.reads[:1]:\n"),
    fault("network", "skip gradient lost behind a convolution", STEPS, "run.give(self.added, gradient, owned=gate is not None)", "pass"),
    fault("network", "skip gradient lost before BN", STEPS, "other = like(run.add(rest), strides, dtype) if rest else None", "other = None"),
    fault("network", "divisor taken for a factor backwards", STEPS, 'gradient * state if self._sign == "*" else gradient / state', "gradient * state"),
    fault("network", "mean of a square image", STEPS, "gradient / (shape[2] * shape[3])", "gradient / (shape[2] * shape[2])"),
    fault("network", "max pooling without padding", STEPS, "(module.kernel_size, stride, module.padding, module.dilation)", "(module.kernel_size, stride, 0, module.dilation)"),
    fault("network", "average over what is there", STEPS, "module.ceil_mode, module.count_include_pad,", "module.ceil_mode, not module.count_include_pad,"),
    fault("network", "rest of a strided convolution lost", CONVOLUTION, "settings = (self._padding, self._rest,", "settings = (self._padding, [0, 0],"),
    fault("network", "sum lost behind a plain convolution", CONVOLUTION, "                y.add_(other)\n", ""),
    fault("network", "sum written over what is read again", CONVOLUTION, "if not overwrite or not other.is_contiguous", "if not other.is_contiguous"),
    fault("network", "convolution overwrites its own input", STEPS, "overwrite = self.added in self.fresh and self.added != self.reads[0]", "overwrite = self.added in self.fresh"),
    fault("network", "ReLU overwrites what is read again", STEPS, "if y is x and self.reads[0] not in self.fresh:", "if False:"),
    fault("network", "image overwritten", PROGRAM, "shared: set[int] = {0}", "shared: set[int] = set()"),
    fault("network", "memory behind a view overwritten", PROGRAM, 'shared.update(step.reads, getattr(step, "writes", [step.slot]))', "pass"),
    fault("network", "values forgotten too early", PROGRAM, "if last[slot] == index)", "if slot)"),
    fault("network", "returned values forgotten", PROGRAM, "if last[slot] == index) - returned", "if last[slot] == index)"),
    fault("network", "in-place operation on what is read again", SEGMENT, "value.clone() if self._writes(node) else value", "value"),
    # --- whether the program is still the model
    fault("network", "no trial", NETWORK, "if not _try(", "if False and not _try("),
    fault("network", "a trial that never fails", NETWORK, "if not (enough and edge.all()):", "if False:"),
    fault("network", "rounding at an edge refuses a model", NETWORK, "2 * near.sum() >= len(near)", "near.all()"),
    fault("network", "denormal gradients not lifted", PLAIN, "torch.where(largest < _SMALL, 1 / _SMALL, 1.0)", "torch.ones_like(largest)"),
    fault("network", "failed trial forgotten", NETWORK, "    except Unfit as error:\n        engine.give_up(str(error))\n", "    except Unfit:\n"),
    fault("network", "fingerprint not compared", NETWORK, "known is not None and known[0] == mark", "known is not None"),
    fault("network", "attributes not in the fingerprint", FINGERPRINT, "hooks, tuple(own), tuple(tensors))", "hooks, tuple(tensors))"),
    fault("network", "globals not in the fingerprint", FINGERPRINT, "parts.extend(_surroundings(method, seen))", "pass"),
    fault("network", "hooks not looked for", NETWORK, "if has_hooks(model):", "if False:"),
    fault("network", "a forward that changes the model", NETWORK, "if fingerprint(model) != mark:", "if False:"),
    fault("network", "kept weights not compared", KEPT, "torch.equal(kept.digest, digest)", "True"),
    fault("network", "versions of the weights not looked at", KEPT, " and kept.marks == marks", ""),
    fault("network", "weights kept of another precision", KEPT, "kept.kind == kind and ", ""),
    # --- captured attacks, on a stand-in for CUDA
    fault("capture", "stale inputs", CAPTURED, "static.copy_(value, non_blocking=True)", "pass"),
    fault("capture", "eps and alpha of the capture", CAPTURED, "static.fill_(value)", "pass"),
    fault("capture", "shapes not in the key", KEY, "(name, *(_kind(value) if isinstance(value, Tensor) else ()))", "(name,)"),
    fault("capture", "places of the weights not in the key", KEY, "yield place(tensor)", "yield _kind(tensor)"),
    fault("capture", "settings not in the key", KEY, "return type(attack), kinds, settings, own,", "return type(attack), kinds,"),
    fault("capture", "eps in the key", KEY, "and field.name not in numbers", ""),
    fault("capture", "hooks not in the key", KEY, "yield hooks, *own[hooks]", "pass"),
    fault("capture", "numbers of a loss not in the key", KEY, "return _Same(value.__code__), *(_shallow(part) for part in _seen_by(value))", "return (_Same(value.__code__),)"),
    fault("capture", "captured at the first call", CAPTURE, 'if first and attack.capture == "auto":', "if False:"),
    fault("capture", "failures forgotten", CAPTURE, "known.note(key, str(error))", "pass"),
    fault("capture", "kept weights in a graph", CRAFT, "keep=not plan.capturing", "keep=True"),
    fault("capture", "rehearsals move statistics", CAPTURE, "preserved=buffers", "preserved=()"),
    fault("capture", "newest graph dropped", CAPTURED, "self._graphs.popitem(last=False)[1].release()", "self._graphs.popitem()[1].release()"),
    # --- ReLU with bits, hash
    fault("activation", "NaN closes the gate", LANES, "_CMP_NLE_UQ", "_CMP_GT_OQ", 2),
    fault("activation", "16 bits: a NaN with a sign closes it", LANES, "minus_infinity(bf16) { return -128; }", "minus_infinity(bf16) { return -1; }"),
    fault("activation", "sum forgotten", ACTIVATION, "    if (OTHER)\n        v = v + load(p.other + i);\n    store_mask", "    store_mask"),
    fault("activation", "affine backward without gate", ACTIVATION, "if (AFFINE) {\n        v = keep(v, mask) * load", "if (AFFINE) {\n        v = v * load"),
    fault("activation", "16 bits: affine backward without gate", ACTIVATION, "if (AFFINE)\n            v = keep(v, mask) * load", "if (AFFINE)\n            v = v * load"),
    fault("activation", "sum behind the gate", ACTIVATION, "            v = v + load(p.other + i);\n        v = keep(v, mask);", "            v = keep(v, mask) + load(p.other + i);\n        else\n            v = keep(v, mask);"),
    fault("activation", "every chunk begins at channel 0", ACTIVATION, "int64_t at = start % run, channel = start / run % args.channels;", "int64_t at = 0, channel = 0;\n    (void)start;"),
    fault("activation", "last byte of bits lost", ACTIVATION, "left = p.n - start, bytes = (left + 7) / 8;", "left = p.n - start, bytes = left / 8;"),
    fault("activation", "16 bits: last byte of bits lost", ACTIVATION, "left = n - i, bytes = (left + 7) / 8;", "left = n - i, bytes = left / 8;"),
    fault("activation", "reference: NaN closes the gate", ACTIVATION_REFERENCE, "passes = ~(_flat(y) <= 0)", "passes = _flat(y) > 0"),
    fault("activation", "reference: sum behind the gate", ACTIVATION_REFERENCE, "grad.copy_(torch.where(mask, total, 0.0))", "grad.copy_(torch.where(mask, grad, 0.0) + (0 if other is None else other))"),
    fault("activation-triton", "NaN closes the gate", ACTIVATION_TRITON, "passes = ((_widen(v) <= 0) == 0) & good", "passes = (_widen(v) > 0) & good"),
    fault("activation-triton", "affine backward without gate", ACTIVATION_TRITON, "v = tl.where(passes, v, 0.0) * tl.load(scale + channel, mask=good, other=0.0)", "v = v * tl.load(scale + channel, mask=good, other=0.0)"),
    fault("activation-triton", "tail not computed", ACTIVATION_TRITON, "if (tl.program_id(0) == 0) & (n % 8 != 0):", "if (tl.program_id(0) == 1) & (n % 8 != 0):", 2),
    fault("hash", "zeros of either sign differ", HASH, "return bits == minus_zero ? U(0) : bits;", "(void)minus_zero;\n    return bits;"),
    fault("hash", "last odd value left out", HASH, "if (dim % 2)", "if (false)"),
    fault("hash", "places do not count", HASH, "sum += mix(word + static_cast<uint64_t>(k + 1) * kStride);", "sum += mix(word);"),
    fault("hash", "length does not count", HASH, "return mix(sum + static_cast<uint64_t>(dim));", "return mix(sum);"),
    fault("hash", "reference: places do not count", HASH_REFERENCE, "mix(words + places)", "mix(words + 0 * places)"),
    # --- other libraries' interfaces
    fault("torchattacks", "FFGSM of 8/255", TORCHATTACKS, "alpha: float = 10 / 255,", "alpha: float = 8 / 255,"),
    fault("torchattacks", "PGDL2 of other steps", TORCHATTACKS, "alpha: float = 0.2,", "alpha: float = 0.25,"),
    fault("torchattacks", "TPGD from ten times the noise", TORCHATTACKS, "noise.mul_(0.001)", "noise.mul_(0.01)"),
    fault("torchattacks", "BIM's other bound of steps", TORCHATTACKS, "int(min(eps * 255 + 4, 1.25 * eps * 255))", "int(max(eps * 255 + 4, 1.25 * eps * 255))"),
    fault("torchattacks", "RFGSM from noise, not its sign", TORCHATTACKS, "self.alpha * noise.sign_()", "self.alpha * noise"),
    fault("torchattacks", "targets not asked for", TORCHATTACKS, "labels = self.get_target_label(images, labels)", "pass"),
    fault("torchattacks", "kth_min ignored", TORCHATTACKS_BASE, "others.kthvalue(self._kth_min, dim=1)", "others.kthvalue(1, dim=1)"),
    fault("torchattacks", "a random target may be the label", TORCHATTACKS_BASE, "torch.randint_like(labels, 1, classes)", "torch.randint_like(labels, 0, classes)"),
    fault("torchattacks", "normalised images taken for pixels", TORCHATTACKS_BASE, "self.forward(self.inverse_normalize(inputs), labels", "self.forward(inputs, labels"),
    fault("torchattacks", "batch norm trains uninvited", TORCHATTACKS_BASE, '"BatchNorm" in kind and not self._batchnorm_training', '"BatchNorm" in kind and False'),
    fault("torchattacks", "statistics not put back", TORCHATTACKS_BASE, 'bn = "train" if self._model_training', 'bn = "train-update" if self._model_training'),
    fault("foolbox", "one radius gives a row of successes", FOOLBOX_BASE, "restore(clipped[0]), restore(success[0])", "restore(clipped[0]), restore(success)"),
    fault("foolbox", "a list of results for one radius", FOOLBOX_BASE, "return [epsilons], True", "return [epsilons], False"),
    fault("foolbox", "radii of other samples", FOOLBOX, "sample, radius = part % count, part // count", "sample, radius = part // len(radii), part % len(radii)"),
    fault("foolbox", "relative step of fixed length", FOOLBOX, "return self.rel_stepsize * radius if", "return self.rel_stepsize if"),
    fault("foolbox", "raw and clipped are one tensor", FOOLBOX, "[y.clone() for y in raw]", "list(raw)"),
    fault("foolbox", "the last success kept", FOOLBOX_BASE, "better = new_success & ~success", "better = new_success"),
    fault("foolbox", "targets are left", FOOLBOX_BASE, '"target_classes")[0], True', '"target_classes")[0], False'),
    fault("foolbox", "l2 start on the sphere", FOOLBOX, "normal = torch.randn(count, size + 2,", "normal = torch.randn(count, size,"),
    fault("foolbox", "50 steps of eps / 50", FOOLBOX_PGD, "rel_stepsize: float = 0.025,", "rel_stepsize: float = 0.02,"),
    fault("cleverhans", "eps of 0 attacks", CLEVERHANS, "    if eps == 0:\n        return x\n    bounds", "    bounds"),
    fault("cleverhans", "l2 in the other order", CLEVERHANS, '        l2_order="box-ball-box",\n', ""),
    fault("cleverhans", "ties are not shared", CLEVERHANS, " / largest.sum(rest, keepdim=True)", ""),
    fault("cleverhans", "rand_minmax ignored", CLEVERHANS, "reach = eps if rand_minmax is None else rand_minmax", "reach = eps"),
    fault("cleverhans", "norm 1 never targeted", CLEVERHANS, "-loss if targeted else loss", "loss"),
    fault("cleverhans", "the least likely class for a label", CLEVERHANS, "model(x.detach()).argmax(1)", "model(x.detach()).argmin(1)"),
    fault("art", "mask ignored", ART, "sample_ids=ids, mask=piece(mask)", "sample_ids=ids, mask=None"),
    fault("art", "one start for many", ART, "attack.restarts = max(1, settings.starts)", "attack.restarts = 1"),
    fault("art", "first of the starts kept", ART, "torch.stack(made)[kept, ", "torch.stack(made)[0 * kept, "),
    fault("art", "batches share their starts", ART, "torch.arange(rows.start, rows.stop,", "torch.arange(0, rows.stop - rows.start,"),
    fault("art", "starts not from numpy", ART, "int(np.random.randint(2**63 - 1)) if settings.starts else 0", "0"),
    fault("art", "one-hot labels read upside down", ART_LABELS, "return y.argmax(axis=1)", "return y.argmin(axis=1)"),
    fault("art", "soft labels become classes", ART_LABELS, "return y.astype(np.float32)", "return y.argmax(axis=1)"),
    fault("art", "mask ignored by the lp step", ART_STEP, "gradient = torch.where(mask, gradient, 0.0)", "pass"),
    fault("art", "l1 moves the smallest", ART_STEP, "flat.abs().argmax(1, keepdim=True)", "flat.abs().argmin(1, keepdim=True)"),
    fault("art", "lp step leaves the ball", ART_STEP, "x = x0 + into_ball(x - x0, settings.eps, settings.p)", "pass"),
    fault("art", "mean forgotten", ART_TARGET, "return self.net((x - self.mean) / self.std)", "return self.net(x / self.std)"),
    fault("art", "random eps with the old step", ART_ATTACKS, "step = step / eps * drawn", "pass"),
    fault("research", "trades leaves eval mode", TRADES, "        model.train()", "        pass"),
    fault("research", "trades the other way round", TRADES, "F.log_softmax(adversarial, 1), F.softmax(reference, 1)", "F.log_softmax(reference, 1), F.softmax(adversarial, 1)"),
    fault("research", "trades passes clean images once", TRADES, "model(x_natural) if repeat_clean else clean", "clean"),
    fault("research", "trades' own l2 step", TRADES, "step_size = 2 * epsilon / max(perturb_steps, 1)", "pass"),
    fault("research", "trades draws l2 noise once", TRADES, "        noise = 0.001 * torch.randn_like(x_natural)\n        step_size", "        step_size"),
    fault("research", "delta from the clamped image", PERTURB, "(x_adv, x_adv - x) if", "(x_adv, x_adv - centre) if"),
    # --- the input gradient of a first convolution
    fault("conv", "stride ignored in rows", CONV, "oh * args.stride_h + kh", "oh + kh"),
    fault("conv", "padding ignored", CONV, "h + args.pad_h", "h"),
    fault("conv", "padding of columns ignored", CONV, "int64_t part = args.pad_w % args.stride_w, at = args.pad_w / args.stride_w;", "int64_t part = 0, at = 0;"),
    fault("conv", "kernel flipped", CONV, "kh = column % in_channel / args.kernel_w;", "kh = args.kernel_h - 1 - column % in_channel / args.kernel_w;"),
    fault("conv", "image not cleared", CONV, "padded[i] = 0.0f;", "if (sample == 0) padded[i] = 0.0f;"),
    fault("conv", "row behind the last position", CONV, "            for (int64_t i = n; i < kPositions; ++i)\n                to[i] = 0.0f;\n", ""),
    fault("conv", "channels of NHWC taken for NCHW", CONV, "if (args.grad_layout == Layout::nchw)", "if (true)"),
    fault("conv", "last group of columns", CONV, "if (column >= columns)", "if (column + 1 >= columns)"),
    fault("conv", "grouped convolutions taken", FIRST, "and module.groups == 1", ""),
    fault("conv", "dilated convolutions taken", FIRST, "and module.dilation == (1, 1)", ""),
    fault("conv", "bias forgotten", FIRST, "return torch.conv2d(image, weight, bias, stride, padding)", "return torch.conv2d(image, weight, None, stride, padding)"),
    fault("conv", "never used", FIRST, "return _Redirect(meant) if meant else nullcontext()", "return nullcontext()"),
    fault("conv", "compiled models redirected", FIRST, 'if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in modules):', "if False:"),
    fault("conv", "not taken away", FIRST, 'attributes.pop("_conv_forward", None)', "pass"),
    fault("conv", "used with fold=False", PLAIN, "fast_first_layer(model, example) if fold else nullcontext()", "fast_first_layer(model, example)"),
    # --- training
    fault("train", "trains on clean images", PGDAT, "return self.pgd(batch.images, batch.labels, sample_ids=batch.indices)", "return batch.images"),
    fault("train", "no label smoothing", METHOD, "label_smoothing=self.settings.label_smoothing", "label_smoothing=0.0"),
    fault("train", "no autocast", METHOD, "return nullcontext() if dtype is None else torch.autocast(device.type, dtype)", "return nullcontext()"),
    fault("train", "gradients add up", STEP, "self.optimizer.zero_grad(set_to_none=True)", "pass"),
    fault("train", "no clipping", STEP, "torch.nn.utils.clip_grad_norm_(parameters, self.clip_grad)", "pass"),
    fault("train", "rate not set", LOOP, 'group["lr"] = state.lr * group.get("lr_scale", 1.0)', "pass"),
    fault("train", "rate by epoch", LOOP, "state.lr = self.schedule(state.global_step)", "state.lr = self.schedule((self.epoch - 1) * state.steps_per_epoch)"),
    fault("train", "non-finite loss passes", WATCH, "if not math.isfinite(loss):", "if False:"),
    fault("train", "non-finite weights pass", LOOP, "        self._check_weights()\n", ""),
    fault("train", "modifier not told of the batch", STEP, "batch = modifier.batch(batch)", "pass"),
    fault("train", "history row counts last batch alone", LOOP, "self._seen += count", "self._seen = count"),
    fault("train", "sums of the epoch not restored", LOOP, "        self._reset(saved)\n        if", "        self._reset(None)\n        if"),
    fault("train", "resumes at the epoch's beginning", LOOP, 'self.epoch, self.step = int(saved["epoch"]), int(saved["step"])', 'self.epoch, self.step = int(saved["epoch"]), 0'),
    fault("train", "optimiser not restored", RUN, 'self.state.optimizer.load_state_dict(run["optimizer"])', "pass"),
    fault("train", "random states not restored", RUN, '        rng.set_state(run["rng"])', "        pass"),
    fault("train", "modifiers not restored", RUN, "            modifier.load_state_dict(saved)", "            pass"),
    fault("train", "resumes from averaged weights", RUN, '{**content, "state": run["weights"]}', "content"),
    fault("train", "best.pt before last.pt lost", RUN, "            self.best_state = content[\"state\"]\n            self.save_best()", "            self.best_state = content[\"state\"]"),
    fault("train", "best is the last", RUN, "if not self.best or self._rank(row) > self._rank(self.best):", "if True:"),
    fault("train", "best by clean accuracy", RUN, 'return pair if self.method.trains_on == "adversarial" else pair[::-1]', "return pair[::-1]"),
    fault("train", "raw weights evaluated", RUN, "with evaluating(self.model, self.modifiers), at_once:", "with at_once:"),
    fault("train", "NumPy state forgotten", RNG, "np.random.set_state((kind, key.numpy().astype(np.uint32), position, has_gauss, gauss))", "pass"),
    fault("train", "average decays too slowly", EMA, "1 - min(self.decay, (1 + step) / (10 + step))", "1 - self.decay"),
    fault("train", "buffers not averaged", EMA, "if not value.is_floating_point()", 'if "running" in name or not value.is_floating_point()'),
    fault("train", "own weights not put back", EMA, "            model.load_state_dict(own)", "            pass"),
    fault("train", "decay a step late", SCHEDULES, "step >= share * total - 1e-6", "step > share * total"),
    fault("train", "other data accepted", RESUME, '(("fingerprint", "training data"), ("model", "model"))', '(("model", "model"),)'),
    fault("train", "test set chooses", SETUP, "val_source = own_val if val is None else _part(val, \"val\")", "val_source = test_source or own_val or _part(val, \"val\")"),
    fault("train", "held-out images stay in training", SETUP, "source.subset(kept), source.subset(held_out)", "source, source.subset(held_out)"),
    fault("train", "last weights tested as the best", FINISH, "test_best = test(run.best_state)", "test_best = test(run.last_state)"),
    fault("train", "file written in place", FILES, "temporary = path.with_name(f\".{path.name}.{os.getpid()}.tmp\")", "temporary = path"),
    fault("train", "checkpoint runs code", CHECKPOINT, 'map_location="cpu", weights_only=True', 'map_location="cpu", weights_only=False'),
    # --- data and evaluation
    fault("data", "same order every epoch", RANDOM, "words = np.array([seed % _WORD, seed // _WORD, epoch, purpose]", "words = np.array([seed % _WORD, seed // _WORD, 0, purpose]"),
    fault("data", "last batch of one kept", LOADER, "return whole + (rest > 1) or 1", "return whole + (rest > 0)"),
    fault("evaluate", "broken samples count as right", EVALUATE, "self.clean.index_put((left,), predicted).cpu()", "outcome.labels.int().index_put((left.cpu(),), predicted.cpu())"),
    fault("evaluate", "NaN counts as right", EVALUATE, ".masked_fill(logits.isnan().any(1), -1)", ""),
    fault("evaluate", "sample numbers not passed on", EVALUATE, "self.labels[left], self.numbers[left]", "self.labels[left], self.numbers[: len(left)]"),
]  # fmt: skip
