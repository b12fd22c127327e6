"""The faults of FAB, of the projection onto a hyperplane, and of torchattacks' names for attacks that search."""

from __future__ import annotations

from tests.mutants.faults import fault

FAB = "advfast/attacks/search/fab.py"
RUNS = "advfast/attacks/search/fab_runs.py"
BOUNDARY = "advfast/attacks/search/fab_boundary.py"
STARTS = "advfast/attacks/search/fab_starts.py"
REFERENCE = "advfast/kernels/hyperplane/reference.py"
CORE = "csrc/cpu/hyperplane.cpp"
COMPAT = "advfast/compat/torchattacks/search.py"

FAULTS = [
    fault("fab", "the image's projection left out", BOUNDARY, "moved = (x + self.eta * own) * (1 - alpha) + (x0 + self.eta * clean) * alpha", "moved = x + self.eta * own"),
    fault("fab", "no overshoot for the image", BOUNDARY, "(x0 + self.eta * clean)", "(x0 + clean)"),
    fault("fab", "b in float32", BOUNDARY, "(at.w.double() * x)", "(at.w * x)"),
    fault("fab", "the furthest class", BOUNDARY, "nearer = distance < found[0]", "nearer = distance > found[0]"),
    fault("fab", "distances to boundaries in the norm itself", BOUNDARY, '{"linf": "l1", "l2": "l2", "l1": "linf"}[norm]', "norm"),
    fault("fab", "the label among the other classes", BOUNDARY, "number + (number >= labels)", "number + (number > labels)"),
    fault("fab", "not pulled back", RUNS, "runs.x[rows] = x0 + (x - x0) * self._beta", "runs.x[rows] = x"),
    fault("fab", "a stale boundary after a late crossing", RUNS, "left.difference[rows], left.w[rows] = at.difference, at.w", "pass"),
    fault("fab", "beyond eps counts", RUNS, "distance <= self._eps)", "distance <= 2 * self._eps)"),
    fault("fab", "done samples go on", RUNS, "if finished == len(done):", "if False:"),
    fault("fab", "asks twice where once is enough", RUNS, "runs.known = runs.crossed\n", "runs.known = torch.ones_like(runs.crossed)\n"),
    fault("fab", "the last image, not the closest", RUNS, "closer = distance < runs.distance[rows]", "closer = distance < torch.inf"),
    fault("fab", "likeliest classes from the wrong end", FAB, "sort(dim=1).indices.flip(1)", "sort(dim=1).indices"),
    fault("fab", "restarts share a start", FAB, "stream=target * self.restarts + restart", "stream=0"),
    fault("fab", "starts at the wall of the ball", STARTS, "* 0.5", "* 1.0"),
    fault("hyperplane", "reference: out of reach stays", REFERENCE, "torch.where(c > 0, t, 0.0), torch.inf)", "torch.where(c > 0, t, 0.0), 0.0)"),
    fault("hyperplane", "reference: the wall before", REFERENCE, "(before + wall * slope < c).sum", "(before + wall * slope <= 0.9 * c).sum"),
    fault("hyperplane", "reference: excess in float32", REFERENCE, "(w.double() * points.double()).sum(1, keepdim=True) - b[:, None]", "(w * points).sum(1, keepdim=True) - b[:, None]"),
    fault("hyperplane", "one step of Newton", CORE, "        t = next;\n    }", "        return next;\n    }"),
    fault("hyperplane", "what is left behind the last group", CORE, "    if (i == row.dim)\n        return;", "    return;"),
    fault("hyperplane", "tiny entries move", CORE, "row.cut = cuts ?", "row.cut = false ?"),
    fault("hyperplane", "the last of equals first", CORE, "(one == other && a < b)", "(one == other && a > b)"),
    fault("torchattacks-search", "targets of the wrong samples", COMPAT, "[points.ids] for _ in group]", "[: len(points)] for _ in group]"),
    fault("torchattacks-search", "a schedule that is not stretched", COMPAT, "rescale_schedule=self.rescale_schedule", "rescale_schedule=False"),
    fault("torchattacks-search", "n_classes targets", COMPAT, "self.n_target_classes = n_classes - 1", "self.n_target_classes = n_classes - 2", count=2),
    fault("torchattacks-search", "train mode ignored", COMPAT, "if self._model_training:", "if False:"),
]  # fmt: skip
