"""The faults of the studies: their result, their grid, bn-estimators, ntk-trace and the digits table of kernels."""

from __future__ import annotations

from tests.mutants.faults import fault

RESULT = "advfast/studies/result.py"
GRID = "advfast/studies/grid.py"
EFFECTS = "advfast/studies/effects.py"
SUBJECT = "advfast/studies/subject.py"
BN = "advfast/studies/bn_estimators.py"
EXPECTED = "advfast/studies/bn_expectations.py"
TRACE = "advfast/studies/ntk_trace.py"
TRACE_ROWS = "advfast/studies/trace_rows.py"
TRACE_EXPECTED = "advfast/studies/trace_expectations.py"
TRACE_SOURCES = "advfast/studies/trace_sources.py"
INDEX = "advfast/studies/index.py"
INVOCATION = "advfast/invocation.py"
COST = "advfast/studies/cost.py"
NORM = "advfast/models/norm.py"
DIGITS = "benchmarks/ntk_digits.py"

FAULTS = [
    fault("studies", "population deviation", RESULT, "statistics.stdev(values) if len", "statistics.pstdev(values) if len"),
    fault("studies", "seeds are not summed up", RESULT, "if name != SEED)", "if True)"),
    fault("studies", "rows of other values", RESULT, "if all(row[name] == v for name, v in values.items())]", "if any(row[name] == v for name, v in values.items())]"),
    fault("studies", "notes are not kept", RESULT, '            "notes": self.notes,\n', '            "notes": [],\n'),
    fault("studies", "rows that come later are lost in a kill", GRID, "rows=[*rows, *found.values()]", "rows=rows"),
    fault("studies", "rows that are there are measured again", GRID, "        if row is not None:\n            rows.append(row)\n            continue\n", ""),
    fault("studies", "other settings pass", GRID, "        if old.get(key) != settings.get(key)\n", "        if False\n"),
    fault("studies", "effects are low minus high", EFFECTS, "append(after - before)", "append(before - after)"),
    fault("studies", "the deviation is over the pairs", EFFECTS, "setdefault(key[0], [])", "setdefault(key, [])"),
    fault("studies", "rows without a meaning count", EFFECTS, "if all(r[name] == value for name, value in factor.within.items())", "if True"),
    fault("bn-estimators", "the kernel before training is that of running statistics", BN, "    own, distance = batch, None\n    if models.norm_layers(net) == \"batch\":", "    own, distance = batch, None\n    if True:"),
    fault("bn-estimators", "the kernel is that of batch statistics", BN, "        own = ntk(net, subject.images)\n        distance = metrics.kernel_distance(own, batch)", "        distance = metrics.kernel_distance(ntk(net, subject.images), batch)"),
    fault("bn-estimators", "crafted in eval mode always", BN, "bn=crafting", 'bn="eval"'),
    fault("bn-estimators", "running statistics always", BN, '        if statistics == "batch":\n', "        if False:\n"),
    fault("bn-estimators", "tested with moving statistics", BN, 'models.fixed_statistics(net, subject.reference) if statistics == "batch" else net', "net"),
    fault("bn-estimators", "batches by running statistics", BN, "        models.use_norm_layers(moving, \"batch-no-stats\")\n", ""),
    fault("bn-estimators", "networks without batch normalisation pass", BN, "    if not any(isinstance(module, _BatchNorm)", "    if False and not any(isinstance(module, _BatchNorm)"),
    fault("bn-estimators", "never normalised", BN, 'subject.network(seed, input_norm == "on")', "subject.network(seed, False)"),
    fault("bn-estimators", "the seed is not that of the weights", SUBJECT, "with rng.seeded(seed):", "with rng.seeded(0):"),
    fault("bn-estimators", "the statistics are of the test images", SUBJECT, "self.reference, _ = self.train.batch(", "self.reference, _ = self.test.batch("),
    fault("bn-estimators", "ten times is twice", EXPECTED, "lambda a, b: a >= 10 * b", "lambda a, b: a >= 2 * b"),
    fault("bn-estimators", "unbiased variances", NORM, "axes, correction=0)\n        layer.running_mean", "axes, correction=1)\n        layer.running_mean"),
    fault("bn-estimators", "the model's own layers are fixed", NORM, "fixed = copy.deepcopy(model).eval()", "fixed = model.eval()"),
    fault("bn-estimators", "statistics go on moving", NORM, "    for hook in hooks:\n        hook.remove()\n", ""),
    fault("ntk-trace", "distances from the first record", TRACE, "points.index(epoch), start, base)", "points.index(epoch), 0, base)"),
    fault("ntk-trace", "velocity by record", TRACE_ROWS, "metrics.kernel_velocity(kernels[number - 1][kind], now, passed)", "metrics.kernel_velocity(kernels[number - 1][kind], now, 1.0)"),
    fault("ntk-trace", "the radius is not of the way", TRACE_ROWS, "start, end if moved else None)", "start, None)"),
    fault("ntk-trace", "between clean kernels alone", TRACE_ROWS, "metrics.kernel_distance(base[kind], kernels[number][kind])", 'metrics.kernel_distance(base["clean"], kernels[number]["clean"])'),
    fault("ntk-trace", "the step before", TRACE_ROWS, "step = math.ceil(epoch * steps - 1e-9)", "step = int(epoch * steps)"),
    fault("ntk-trace", "expectations of all epochs", TRACE_EXPECTED, '{"method": name, "epoch": last} for name in (standard', '{"method": name} for name in (standard'),
    fault("ntk-trace", "a drop that is negative passes", TRACE_EXPECTED, "abs(x) <= y / 2", "x <= y / 2"),
    fault("ntk-trace", "bounds of digits for all data", TRACE_EXPECTED, 'if result.settings.get("data") == "digits" and', "if True or"),
    fault("ntk-trace", "labels are not what they were trained by", TRACE_EXPECTED, "trained.get(label, label) == kind", "label == kind"),
    fault("ntk-trace", "the drop is turned round", TRACE_ROWS, 'found["clean_specialization"] - found["adversarial_specialization"]', 'found["adversarial_specialization"] - found["clean_specialization"]'),
    fault("ntk-trace", "the way to the end is from the reference", TRACE_ROWS, "metrics.kernel_distance(now, end)", "metrics.kernel_distance(start, end)"),
    fault("ntk-trace", "every checkpoint is the last", TRACE_ROWS, "run.model(epoch if run.points else None)", "run.model(None)"),
    fault("ntk-trace", "compared with another seed", TRACE, "(work.labels[0], seed)", "(work.labels[0], 0)"),
    fault("ntk-trace", "runs of two radii pass", TRACE_SOURCES, "if len(own) > 1 or own == {None}:", "if own == {None}:"),
    fault("ntk-trace", "two runs of one seed pass", TRACE_SOURCES, "            if key in runs:\n", "            if False:\n"),
    fault("ntk-trace", "the cost is of one seed", TRACE, "len(self.seeds) * passes, records", "passes, records"),
    fault("ntk-trace", "checkpoints that are missing pass", TRACE, "        if missing:\n", "        if False:\n"),
    fault("index", "another README is lost", INDEX, "if readme.exists() and _MARK not in", "if False and _MARK not in"),
    fault("index", "in the order of the folders", INDEX, "    studies.sort(", "    sorted(studies, "),
    fault("index", "the first figure by name", INDEX, "figure = chosen if chosen in pictures else", "figure = chosen if False else"),
    fault("index", "spaces in addresses", INDEX, "return quote((relative / name).as_posix())", "return (relative / name).as_posix()"),
    fault("index", "a bar ends a cell", INDEX, '("|", "&#124;")', '("|", "|")'),
    fault("studies", "the command is not kept", RESULT, '            "reproduce": self.reproduce,\n', '            "reproduce": "",\n'),
    fault("studies", "the call in place of the command line", INVOCATION, "        if asked():\n            return function(*args, **kwargs)\n", ""),
    fault("studies", "flags stay in the command", INVOCATION, "if word not in _FLAGS", "if True"),
    fault("studies", "parquet is found missing at the end", RESULT, "        if parquet:\n            check_parquet()\n        folder", "        folder"),
    fault("studies", "the cost is of one epoch", COST, 'images * arguments.get("epochs", EPOCHS) * method.passes()', "images * method.passes()"),
    fault("ntk-trace", "the digits table: distances between epochs of one network alone", DIGITS, "for network in (standard, adversarial)\n        ]", "for network in (standard, standard)\n        ]"),
    fault("ntk-trace", "the digits table: ranges to all digits", DIGITS, "round(value, digits)", "value"),
]  # fmt: skip
