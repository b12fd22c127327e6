"""The faults of injected features, of the filter and the curvature, and of the study that uses them."""

from __future__ import annotations

from tests.mutants.faults import fault

INJECTED = "advfast/data/injected.py"
LOWPASS = "advfast/models/low_pass.py"
CURVATURE = "advfast/studies/curvature.py"
PROBE = "advfast/studies/co_features_probe.py"
SUBJECT = "advfast/studies/co_features_subject.py"
METHODS = "advfast/studies/co_features_methods.py"
EXPECTED = "advfast/studies/co_features_expected.py"

FAULTS = [
    fault("injected", "rows and columns of the frequencies are swapped", INJECTED, "torch.outer(_signs(r, height), _signs(c, width))", "torch.outer(_signs(c, height), _signs(r, width))"),
    fault("injected", "a whole row in place of a coefficient", INJECTED, "torch.outer(_signs(r, height), _signs(c, width))", "_signs(r, height)[:, None].expand(height, width)"),
    fault("injected", "the second half has no negatives", INJECTED, "torch.cat((waves, -waves))", "torch.cat((waves, waves))"),
    fault("injected", "a cosine of zero has the sign behind it", INJECTED, "(angle <= size) | (angle > 3 * size)", "(angle < size) | (angle >= 3 * size)"),
    fault("injected", "the basis is not of the rank", INJECTED, "basis = directions[values > least]", "basis = torch.linalg.qr(rows.T + 1e-9 * torch.randn_like(rows.T)).Q.T"),
    fault("injected", "the projection is kept, not taken out", INJECTED, "(flat - flat @ basis.T @ basis)", "(flat @ basis.T @ basis)"),
    fault("injected", "the reverse is the same", INJECTED, "made = images - beta * carrier[labels]", "made = images + beta * carrier[labels]"),
    fault("injected", "the clip is forgotten", INJECTED, "made.clamp(0, 1) if clip else made", "made"),
    fault("injected", "the original is handed out itself", INJECTED, "made = images.clone()", "made = images"),
    fault("low-pass", "rows alone are filtered", LOWPASS, "return self.rows.to(x.dtype) @ x @ self.columns.to(x.dtype)", "return self.rows.to(x.dtype) @ x"),
    fault("low-pass", "a transform that is not orthonormal", LOWPASS, "    waves[0] /= math.sqrt(2)\n", ""),
    fault("low-pass", "a batch of one loses its axis", LOWPASS, "@ x @ self.columns.to(x.dtype)", "@ x.squeeze() @ self.columns.to(x.dtype)"),
    fault("low-pass", "the model is switched off, not its filter", LOWPASS, "            module.enabled = False", "            model.enabled = False"),
    fault("curvature", "the product is times h, not over it", CURVATURE, "/ (2 * h)", "/ 2 * h"),
    fault("curvature", "the whole batch is one vector", CURVATURE, "v.flatten(1).norm(dim=1)", "v.norm().expand(len(v))"),
    fault("curvature", "the largest magnitude", CURVATURE, "if bool((shift < 0).any()):", "if False:"),
    fault("curvature", "batch statistics mix the samples", CURVATURE, 'with crafting(model, "eval"), torch.enable_grad():', "with torch.enable_grad():"),
    fault("co-features", "attacks of the probe are clipped", PROBE, "bounds = BOX if clip else None\n    # Of", "bounds = BOX\n    # Of"),
    fault("co-features", "the monitor probes the network in its room", PROBE, "model = plain_network(state.model, self.room)", "model = state.model"),
    fault("co-features", "the monitor probes images in their room", PROBE, "images = self.room.take(self._images[: self.shape])", "images = self._images[: self.shape]"),
    fault("co-features", "no room for n-fgsm's noise", METHODS, "return Trained(name, options, numbers, 1 + noise, made.passes())", "return Trained(name, options, numbers, 1.0, made.passes())"),
    fault("co-features", "gradalign's weight is that of the smaller radius", METHODS, 'if name == "gradalign" and options.get("lam") is None:', "if False:"),
    fault("co-features", "the radius is not scaled", SUBJECT, "eps=eps * room.scale", "eps=eps"),
    fault("co-features", "the step size is not scaled", METHODS, 'numbers["alpha"] *= scale', "pass"),
    fault("co-features", "trained without the feature", SUBJECT, "return inject(part, beta, self.kind,", 'return inject(part, beta, "original",'),
    fault("co-features", "the filter stays on", SUBJECT, "            with filters_off(model):\n", "            if True:\n"),
    fault("co-features", "a run is twice in the timeline", SUBJECT, "if any(row[n] != own[n] for n in own)", "if True"),
    fault("co-features", "one seed is enough for an expectation", EXPECTED, "(any if anywhere else all)(holds", "any(holds"),
]  # fmt: skip
