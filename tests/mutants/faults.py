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
LOOP = "advfast/training/loop.py"
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
EVALUATE = "advfast/evaluation/evaluate.py"


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
    # --- PGDAttack
    fault("attack", "stale gradient", ENGINE, "            gradient = input_gradient(logits, model_input, loss, sixteen_bit)", '            gradient = stale if (stale := locals().get("gradient")) is not None else input_gradient(logits, model_input, loss, sixteen_bit)'),
    fault("attack", "descent", ATTACK, "return -value if self.targeted else value", "return value if self.targeted else -value"),
    fault("attack", "targeted ignored", ATTACK, "return -value if self.targeted else value", "return value"),
    fault("attack", "random start ignored", ATTACK, "        if not self.random_start:\n            return x0.clone()", "        if True:\n            return x0.clone()"),
    fault("attack", "zero steps", ENGINE, "for _ in range(steps):", "for _ in range(0):"),
    fault("attack", "one step fewer", ENGINE, "for _ in range(steps):", "for _ in range(steps - 1):"),
    fault("attack", "clean images returned", ATTACK, "best, rank = (x, found)", "best, rank = (x0.clone(), found)"),
    fault("attack", "random direction", ENGINE, "_in_layout_of(x, gradient),", "_in_layout_of(x, torch.randn_like(gradient)),"),
    fault("attack", "alpha x0.1", ATTACK, "alpha=alpha,", "alpha=alpha * 0.1,"),
    fault("attack", "default alpha is eps / 10", ATTACK, "alpha = eps / 4 if", "alpha = eps / 10 if"),
    fault("attack", "last restart kept", ATTACK, "pick = better.reshape", "better = torch.ones_like(better)\n    pick = better.reshape"),
    fault("attack", "restarts ranked by loss alone", ATTACK, "better = (success & ~old_success) | ((success == old_success) & (value > old_value))", "better = value > old_value"),
    fault("attack", "restarts share a start", ATTACK, "offset=restart,", "offset=0,"),
    fault("attack", "modes not restored", STATE, "            module.training = training", "            pass"),
    fault("attack", "modes restored by train()", STATE, "        for module, training in modes:\n", "        model.train(modes[0][1])\n        for module, training in []:\n"),
    fault("attack", "buffers not restored", STATE, "buffer.copy_(values)", "pass"),
    fault("attack", "crafts in train mode", STATE, "                model.eval()", "                pass"),
    fault("attack", "weight gradients computed", ENGINE, "    (gradient,) = torch.autograd.grad(loss(logits).sum(), model_input)\n    return gradient", "    loss(logits).sum().backward()\n    return model_input.grad"),
    fault("attack", "no grad mode", ATTACK, "stack.enter_context(torch.inference_mode(False))\n            stack.enter_context(torch.enable_grad())", "pass"),
    fault("attack", "outer autocast reaches the model", ATTACK, 'self.precision != "fp32"', 'self.precision != "fp32" or torch.is_autocast_enabled("cpu")', 2),
    fault("attack", "16-bit gradient not rescaled", ENGINE, "(gradient * scale).to(logits.dtype)", "gradient.to(logits.dtype)"),
    fault("attack", "16-bit result rounded to nearest", ATTACK, "best = self._narrow(best, x0, images.dtype, eps, norm)", "best = best.to(images.dtype)"),
    fault("attack", "labels not checked", CHECKS, "if first < 0 or last >= classes:", "if False:"),
    fault("attack", "images not checked", CHECKS, "if values[2] or values[3]:", "if False:"),
    fault("attack", "sample ids ignored", ATTACK, "sample_ids=sample_ids,", "sample_ids=None,"),
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
    fault("conv", "used with fold=False", ATTACK, "fast_first_layer(self.model, x0) if self.fold else nullcontext()", "fast_first_layer(self.model, x0)"),
    # --- training
    fault("train", "trains on clean images", PGDAT, "return self.attack(batch.images, batch.labels)", "return batch.images"),
    fault("train", "no label smoothing", METHOD, "label_smoothing=self.settings.label_smoothing", "label_smoothing=0.0"),
    fault("train", "no autocast", METHOD, "return nullcontext() if dtype is None else torch.autocast(device.type, dtype)", "return nullcontext()"),
    fault("train", "gradients add up", LOOP, "optimizer.zero_grad(set_to_none=True)", "pass"),
    fault("train", "no clipping", LOOP, "torch.nn.utils.clip_grad_norm_(parameters, self.clip_grad)", "pass"),
    fault("train", "rate not set", LOOP, 'group["lr"] = state.lr * group.get("lr_scale", 1.0)', "pass"),
    fault("train", "rate by epoch", LOOP, "state.lr = self.schedule(state.global_step)", "state.lr = self.schedule((self.epoch - 1) * state.steps_per_epoch)"),
    fault("train", "non-finite loss passes", LOOP, "if not math.isfinite(value):", "if False:"),
    fault("train", "non-finite weights pass", LOOP, "        self._check_weights()\n        return", "        return"),
    fault("train", "modifier not told of the batch", LOOP, "batch = modifier.batch(batch)", "pass"),
    fault("train", "history row counts last batch alone", LOOP, "self._seen += len(batch.labels)", "self._seen = len(batch.labels)"),
    fault("train", "sums of the epoch not restored", LOOP, "        self._reset(saved)\n        self._show()", "        self._reset(None)\n        self._show()"),
    fault("train", "resumes at the epoch's beginning", LOOP, 'self.epoch, self.step = int(saved["epoch"]), int(saved["step"])', 'self.epoch, self.step = int(saved["epoch"]), 0'),
    fault("train", "optimiser not restored", RUN, 'self.state.optimizer.load_state_dict(run["optimizer"])', "pass"),
    fault("train", "random states not restored", RUN, '        rng.set_state(run["rng"])', "        pass"),
    fault("train", "modifiers not restored", RUN, "            modifier.load_state_dict(saved)", "            pass"),
    fault("train", "resumes from averaged weights", RUN, '{**content, "state": run["weights"]}', "content"),
    fault("train", "best.pt before last.pt lost", RUN, "            self.best_state = content[\"state\"]\n            self.save_best()", "            self.best_state = content[\"state\"]"),
    fault("train", "best is the last", RUN, "if not self.best or self._rank(row) > self._rank(self.best):", "if True:"),
    fault("train", "best by clean accuracy", RUN, 'return pair if self.method.trains_on == "adversarial" else pair[::-1]', "return pair[::-1]"),
    fault("train", "raw weights evaluated", RUN, "with evaluating(self.model, self.modifiers), self.loop.interrupt.at_once():", "with self.loop.interrupt.at_once():"),
    fault("train", "NumPy state forgotten", RNG, "np.random.set_state((kind, key.numpy().astype(np.uint32), position, has_gauss, gauss))", "pass"),
    fault("train", "average decays too slowly", EMA, "weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))", "weight = 1 - self.decay"),
    fault("train", "buffers not averaged", EMA, "if value.is_floating_point():", 'if value.is_floating_point() and "running" not in name:'),
    fault("train", "own weights not put back", EMA, "            model.load_state_dict(own)", "            pass"),
    fault("train", "decay a step late", SCHEDULES, "step >= share * total - 1e-6", "step > share * total"),
    fault("train", "other data accepted", TRAIN, '(("fingerprint", "training data"), ("model", "model"))', '(("model", "model"),)'),
    fault("train", "test set chooses", SETUP, "val_source = own_val if val is None else _part(val, \"val\")", "val_source = test_source or own_val or _part(val, \"val\")"),
    fault("train", "held-out images stay in training", SETUP, "source.subset(kept), source.subset(held_out)", "source, source.subset(held_out)"),
    fault("train", "last weights tested as the best", FINISH, "test_best = test(run.best_state)", "test_best = test(run.last_state)"),
    fault("train", "file written in place", FILES, "temporary = path.with_name(f\".{path.name}.{os.getpid()}.tmp\")", "temporary = path"),
    fault("train", "checkpoint runs code", CHECKPOINT, 'map_location="cpu", weights_only=True', 'map_location="cpu", weights_only=False'),
    # --- data and evaluation
    fault("data", "same order every epoch", RANDOM, "words = np.array([seed % _WORD, seed // _WORD, epoch, purpose]", "words = np.array([seed % _WORD, seed // _WORD, 0, purpose]"),
    fault("data", "last batch of one kept", LOADER, "return whole + (rest > 1) or 1", "return whole + (rest > 0)"),
    fault("evaluate", "broken samples count as right", EVALUATE, "right[entry.name] = clean.index_put((left,), still).cpu()", "right[entry.name] = (~clean).index_put((left,), still).cpu()"),
    fault("evaluate", "NaN counts as right", EVALUATE, "return (logits.argmax(1) == labels) & ~nan, nan", "return logits.argmax(1) == labels, nan"),
    fault("evaluate", "sample numbers not passed on", EVALUATE, "images[left], labels[left], numbers[left]", "images[left], labels[left], numbers[: len(left)]"),
]  # fmt: skip
