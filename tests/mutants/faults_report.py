"""The faults of the report of an evaluation, its progress, and of going on after an interruption."""

from __future__ import annotations

from tests.mutants.faults import fault

BATCH = "advfast/evaluation/batch.py"
CONFUSION = "advfast/evaluation/confusion.py"
CONTENT = "advfast/evaluation/content.py"
EXAMPLES = "advfast/evaluation/examples.py"
PAGE = "advfast/evaluation/page.py"
PROGRESS = "advfast/evaluation/progress.py"
REPORT = "advfast/evaluation/report.py"
RUN = "advfast/evaluation/run.py"
SAVED = "advfast/evaluation/saved.py"
SUMMARY = "advfast/evaluation/summary.py"
TALLY = "advfast/evaluation/tally.py"

FAULTS = [
    fault("report", "parts of the last batch alone", TALLY, "totals[part] += still", "totals[part] = still"),
    fault("report", "what is wrong when clean is in every part", BATCH, "part: int(still.sum()) for part, still", "part: int(still.sum()) + len(outcome.labels) - len(still) for part, still"),
    fault("report", "confusion the wrong way round", CONFUSION, "labels[seen] * classes + predicted[seen].long()", "predicted[seen].long() * classes + labels[seen]"),
    fault("report", "the least sure examples", EXAMPLES, "key=lambda one: (-one.margin, one.sample)", "key=lambda one: (one.margin, one.sample)"),
    fault("report", "examples hold their batch", EXAMPLES, "image=one.image.clone(), attacked=one.attacked.clone()", "image=one.image, attacked=one.attacked"),
    fault("report", "examples of the first attack", SUMMARY, "return min(attacks, key=lambda entry: tally.correct(entry.name), default=None)", "return next(iter(attacks), None)"),
    fault("report", "texts are not escaped", PAGE, "autoescape=True", "autoescape=False"),
    fault("report", "older reports are refused", CONTENT, "    if found not in (FORMAT, *_OLDER):", "    if found != FORMAT:"),
    fault("report", "figures of an older evaluation stay", REPORT, "            (folder / name).unlink(missing_ok=True)\n", "            pass\n"),
    fault("report", "the model is looked at in eval mode", RUN, "        if not tally.samples:\n            self._examine(", "        if not tally.samples:\n            request.model.eval()\n            self._examine("),
    fault("report", "each batch is examined", RUN, "        if not tally.samples:\n            self._examine(", "        if True:\n            self._examine("),
    fault("report", "a sanity check that breaks ends it all", RUN, "        except Exception as error:\n            # The attacks", "        except KeyError as error:\n            # The attacks"),
    fault("report", "other weights pass", SAVED, "            digest.update(_bytes(value))\n", ""),
    fault("report", "other samples pass", SAVED, "        if before != chain.value:", "        if False:"),
    fault("report", "other settings pass", SAVED, "            if was != now:", "            if False:"),
    fault("report", "the batches before are attacked again", RUN, "                if number <= done:", "                if number < done:"),
    fault("report", "the state stays", RUN, "            self.saved.remove()\n", "            pass\n"),
    fault("report", "the state is written at the end alone", RUN, "                if saved is not None:\n                    saved.write(", "                if saved is not None and tally.samples == self.of.samples:\n                    saved.write("),
    fault("report", "a failed attack comes back", TALLY, "        self.errors = dict(state[\"errors\"])", "        self.errors = {}"),
    fault("report", "findings are lost on resume", TALLY, "        self.findings = tuple(Finding.from_dict(one) for one in state[\"findings\"])\n", ""),
    fault("report", "a full disk ends it all", SAVED, "        except OSError as error:\n            if not self._told:", "        except KeyError as error:\n            if not self._told:"),
    fault("report", "time left of one attack alone", PROGRESS, "            for name in known\n", "            for name in known[:1]\n"),
    fault("report", "a line at every step", PROGRESS, "now - self._said >= _LINE_SECONDS", "now >= self._said"),
]  # fmt: skip
