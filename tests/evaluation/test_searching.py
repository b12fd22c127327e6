"""AutoAttack, its parts and CW by name in an evaluation, and as instances."""

import pytest
import torch

import advfast
from advfast.attacks import PGDAttack
from advfast.evaluation.attacks import entries

EPS = 0.06
PARTS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")


def entry(model, attack):
    (made,) = entries([attack], model, eps=EPS, norm="linf", seed=0, precision="fp32")
    return made


@pytest.fixture
def quick(monkeypatch):
    """Few steps and queries."""
    from advfast.attacks.autoattack import autoattack

    full = autoattack.knobs

    def fewer(version, norm):
        made = full(version, norm)
        for name in ("apgd", "apgd_targeted", "fab"):
            made[name].steps = 8
        made["square"].queries = 40
        return made

    monkeypatch.setattr(autoattack, "knobs", fewer)


def test_names_are_what_they_say(cnn, quick):
    model, images, labels = cnn
    report = advfast.evaluate(
        model, (images, labels), eps=EPS, batch_size=50, attacks=("clean", *PARTS, "autoattack")
    )
    right = {name: found.correct for name, found in report.results.items()}
    assert list(right) == ["clean", *PARTS, "autoattack"] and not report.errors
    assert right["autoattack"] <= min(
        right[name] for name in ("apgd-ce", "apgd-t", "fab-t", "square")
    )
    assert 0 < right["autoattack"] < right["clean"]
    assert report.attacks["apgd-ce"] == "APGD-CE, 8 steps"
    assert report.attacks["fab-t"] == "FAB-T, 8 steps, 9 targets"
    assert report.attacks["square"] == "Square, 40 queries"
    assert report.attacks["autoattack"] == (
        "AutoAttack, version standard: APGD-CE, 8 steps; APGD-T, 8 steps, 9 targets; FAB-T, 8 steps, 9 targets; "
        "Square, 40 queries"
    )
    run = advfast.AutoAttack(model, eps=EPS, verbose=False)
    run.run_standard_evaluation(images, labels)
    assert int(run.result.robust.sum()) == right["autoattack"]


@pytest.mark.parametrize("version", ["plus", "rand"])
def test_other_versions_have_a_name(cnn, quick, version):
    model, images, labels = cnn
    made = entry(model, f"autoattack-{version}")
    assert made.words.startswith(f"AutoAttack, version {version}: APGD-CE, 8 steps")
    assert ("20 gradients a step" in made.words) == (version == "rand")
    right = model(images).argmax(1) == labels
    made.craft(images[right], labels[right], right.nonzero()[:, 0])
    names = {"plus": ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]}
    assert list(made.stages) == names.get(version, ["apgd-ce", "apgd-dlr"])


def test_stages_of_the_batch_and_counts_of_all(cnn, quick):
    model, images, labels = cnn
    made = entry(model, "autoattack")
    right = (model(images).argmax(1) == labels).nonzero()[:, 0]
    told, forwards = [], 0
    made.watch = lambda share, still: told.append((share, still))
    for index in right.split(30):
        adversarial = made.craft(images[index], labels[index], index)
        assert list(made.stages) == ["apgd-ce", "apgd-t", "fab-t", "square"]
        still = model(adversarial).argmax(1) == labels[index]
        assert torch.equal(made.stages["square"], still)
        assert made.stages["apgd-ce"].sum() >= still.sum()
        assert made.forwards > forwards and 0 < made.backwards < made.forwards
        forwards = made.forwards
        assert told[-1][0] > 0.5 and told[0] == (0.0, 30)
    single = entry(model, "apgd-ce")
    single.craft(images[right], labels[right], right)
    assert single.stages == {} and single.backwards > 0


def test_cw_is_pgd_on_the_margin(cnn):
    model, images, labels = cnn
    made = entry(model, "cw-5")
    attack = PGDAttack(model, EPS, EPS / 4, 5, loss="margin", seed=0)
    expected = attack(images, labels)
    assert torch.equal(made.craft(images, labels, torch.arange(len(images))), expected)
    assert (
        made.words == "PGD, 5 steps of eps/4, one uniform start, margin of the logits, last iterate"
    )


def test_instances_keep_their_settings(cnn, quick):
    model, images, labels = cnn
    run = advfast.AutoAttack(
        model, eps=EPS, version="custom", attacks_to_run=["square", "fab-t"], verbose=False
    )
    alone = advfast.attacks.Square(model, EPS, queries=30)
    report = advfast.evaluate(model, (images, labels), eps=EPS, attacks=("clean", run, alone))
    assert list(report.results) == ["clean", "autoattack-custom", "square"]
    assert "queries=30" in report.attacks["square"] and "square, fab-t" in str(report.attacks)
    assert not report.warnings and not report.errors
    wide = advfast.attacks.Square(model, 2 * EPS, queries=30)
    report = advfast.evaluate(model, (images, labels), eps=EPS, attacks=(wide,))
    assert "outside the linf ball" in report.warnings[0]


def test_a_slip_is_told_what_was_meant(cnn):
    model, _, _ = cnn
    for slip, meant in (("autoatack", "autoattack"), ("apgd-c", "apgd-ce"), ("squares", "square")):
        with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
            entry(model, slip)


def test_nothing_depends_on_the_batches(cnn, quick):
    model, images, labels = cnn
    counts = {
        size: advfast.evaluate(
            model, (images, labels), eps=EPS, batch_size=size, attacks=("autoattack",)
        ).results["autoattack"].correct
        for size in (13, 90)
    }  # fmt: skip
    assert counts[13] == counts[90]
