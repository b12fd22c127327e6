"""The driver of AutoAttack, with attacks of a few lines: who is attacked, what comes back, what is refused."""

import re
from itertools import chain

import pytest
import torch
from torch import nn

import advfast
from advfast.attacks.search.base import Found

from .toys import Corners, MoreCorners, linear, samples

EPS = 0.15


@pytest.fixture
def model():
    return linear()


def evaluation(model, *attacks, eps=EPS, **settings):
    made = [kind(model, eps) for kind in attacks or (Corners, MoreCorners)]
    settings = {"verbose": False, **settings}
    return advfast.AutoAttack(model, eps=eps, version="custom", attacks_to_run=made, **settings)


def test_what_comes_back(model):
    x, y = samples(model)
    run = evaluation(model)
    images, labels = run.run_standard_evaluation(x, y, bs=7, return_labels=True)
    result = run.result
    assert images is result.images and labels is result.labels and result.complete
    assert list(result.stages) == ["clean", "corners", "morecorners"]
    robust, clean = result.robust, model(x).argmax(1) == y
    assert torch.equal(result.stages["clean"], clean) and 0 < robust.sum() < clean.sum()
    assert not (result.stages["corners"] & ~clean).any()
    assert not (robust & ~result.stages["corners"]).any()
    assert torch.equal(images[robust], x[robust]) and torch.equal(images[~clean], x[~clean])
    assert torch.equal(labels, model(images).argmax(1)) and torch.equal(labels == y, robust)
    assert (images - x).abs().max() <= EPS + 1e-6 and images.min() >= 0 and images.max() <= 1
    assert result.accuracies["clean"] == clean.float().mean()
    assert result.robust_accuracy == robust.float().mean()
    # Twice 2 forward passes of those that were right, a look at the result of those that were broken, twice.
    first = int((clean & ~result.stages["corners"]).sum())
    assert result.forwards["clean"] == 40
    assert result.forwards["corners"] == 2 * int(clean.sum()) + 2 * first
    assert result.backwards == {"clean": 0, "corners": 0, "morecorners": 0}
    left = int(result.stages["corners"].sum())
    assert result.cost == (
        round(
            result.forwards["corners"] / int(clean.sum()) + result.forwards["morecorners"] / left
        ),
        0,
    )
    assert result.to_dict()["right"]["morecorners"] == int(robust.sum())
    assert "morecorners" in str(result)


def test_only_what_is_still_right_is_attacked_in_batches(model):
    x, y = samples(model)
    seen = []

    class Looks(MoreCorners):
        def search(self, oracle, points, watch=None):
            assert torch.equal(points.labels, points.logits.argmax(1))
            assert torch.allclose(model(points.x), points.logits)
            seen.append((type(self).__name__, points.ids.tolist()))
            return super().search(oracle, points, watch)

    class First(Looks):
        tries = 2

    run = evaluation(model, First, Looks)
    run.run_standard_evaluation(x, y, bs=9)
    for name, before in (("First", "clean"), ("Looks", "first")):
        batches = [ids for kind, ids in seen if kind == name]
        assert list(chain(*batches)) == run.result.stages[before].nonzero()[:, 0].tolist()
        assert all(len(ids) == 9 for ids in batches[:-1])


def test_neither_batches_nor_order_nor_split_matter(model):
    x, y = samples(model)
    whole = evaluation(model)(x, y)
    assert torch.equal(whole, evaluation(model).run_standard_evaluation(x, y, bs=3))
    order = torch.randperm(len(x))
    assert torch.equal(whole[order], evaluation(model)(x[order], y[order], sample_ids=order))
    ids = torch.arange(len(x))
    parts = [evaluation(model)(x[i], y[i], sample_ids=i) for i in ids.split(11)]
    assert torch.equal(whole, torch.cat(parts))


def test_a_part_by_itself(model):
    x, y = samples(model)
    run = evaluation(model)
    found = run.run_standard_evaluation_individual(x, y, return_labels=True)
    together = run.run_standard_evaluation(x, y)
    assert list(found) == list(run.results) == ["corners", "morecorners"]
    alone = (model(found["morecorners"][0]).argmax(1) == y).sum()
    assert int(run.results["morecorners"].robust.sum()) == alone
    assert (model(together).argmax(1) == y).sum() <= alone
    assert torch.equal(found["corners"][1], model(found["corners"][0]).argmax(1))
    images = run.run_standard_evaluation_individual(x, y)
    assert torch.equal(images["corners"], found["corners"][0])


def test_an_attack_that_claims_too_much_is_not_believed(model):
    x, y = samples(model)

    class Claims(Corners):
        def attack(self, oracle, points, dtype, watch=None):
            return Found(points.x.clone(), torch.ones_like(points.labels, dtype=torch.bool))

    run = evaluation(model, Claims)
    assert torch.equal(run.run_standard_evaluation(x, y), x)
    assert torch.equal(run.result.robust, run.result.stages["clean"])


def test_lines_are_printed_and_appended(model, capsys, tmp_path):
    x, y = samples(model)
    run = evaluation(model, verbose=True, log_path=tmp_path / "log.txt", progress=False)
    run.run_standard_evaluation(x, y, bs=20)
    printed = capsys.readouterr().out
    right = run.result.accuracies
    assert f"initial accuracy: {right['clean']:.2%}\n" in printed
    after = rf"robust accuracy after CORNERS: {right['corners']:.2%} \(total time \d+\.\d s, about \d+ s left\)"
    assert re.search(after, printed)
    last = f"robust accuracy after MORECORNERS: {right['morecorners']:.2%} (total time "
    assert last in printed and printed.endswith(f"robust accuracy: {right['morecorners']:.2%}\n")
    assert re.search(
        r"max Linf perturbation: 0\.15000, nan in tensor: 0, max: [01]\.\d{5}, min: 0\.\d{5}\n",
        printed,
    )
    assert (tmp_path / "log.txt").read_text() == printed
    run.verbose = False
    run.clean_accuracy(x, y)
    assert capsys.readouterr().out == ""
    assert (tmp_path / "log.txt").read_text() == f"{printed}clean accuracy: {right['clean']:.2%}\n"


def test_nothing_to_attack(model):
    x, y = samples(model)
    wrong = (model(x).argmax(1) + 1) % 4
    run = evaluation(model)
    assert torch.equal(run.run_standard_evaluation(x, wrong), x)
    assert run.result.robust_accuracy == 0 and list(run.result.stages)[-1] == "morecorners"
    run = evaluation(model, eps=0)
    assert torch.equal(run.run_standard_evaluation(x, y), x)
    assert run.result.robust_accuracy == run.clean_accuracy(x, y) == run.result.accuracies["clean"]
    images, labels = run.run_standard_evaluation(x[:0], y[:0], return_labels=True)
    assert images.shape == (0, 3, 2, 2) and labels.shape == (0,)
    assert run.result.robust_accuracy != run.result.robust_accuracy  # NaN


def test_a_sample_with_nan_logits_is_wrong(model):
    x, y = samples(model)

    class Nan(nn.Module):
        def forward(self, x):
            logits = model(x)
            logits[:, 0] = torch.where(x.flatten(1)[:, 0] > 0.5, torch.nan, logits[:, 0])
            return logits

    y = Nan()(x).argmax(1)
    run = evaluation(Nan(), eps=0)
    run.run_standard_evaluation(x, y)
    assert torch.equal(run.result.robust, x.flatten(1)[:, 0] <= 0.5)


@pytest.mark.parametrize("kind", ["one-hot", "one-hot of integers", "int32", "probabilities"])
def test_labels_of_all_kinds(model, kind):
    x, y = samples(model)
    expected = evaluation(model)(x, y)
    onehot = nn.functional.one_hot(y, 4)
    given = {
        "one-hot": onehot.float(),
        "one-hot of integers": onehot,
        "int32": y.int(),
        "probabilities": 0.9 * onehot + 0.025,
    }[kind]
    assert torch.equal(evaluation(model)(x, given), expected)


def test_images_keep_their_dtype_and_format_and_the_model_its_mode(model):
    x, y = samples(model)
    for dtype in (torch.float64, torch.bfloat16):
        images = x.to(dtype)
        labels = model(images.float()).argmax(1)
        run = evaluation(model)
        found = run.run_standard_evaluation(images, labels)
        assert found.dtype == dtype and 0 < run.result.robust_accuracy < 1
        assert torch.equal(model(found.float()).argmax(1) == labels, run.result.robust)
        assert (found.double() - images.double()).abs().max() <= EPS + 1e-7
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = evaluation(model)(x.contiguous(memory_format=torch.channels_last), y)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert model.training and all(
        torch.equal(value, before[name]) for name, value in model.state_dict().items()
    )
    assert not found.requires_grad


def test_watch_is_told_how_far_it_is(model):
    x, y = samples(model)
    told = []
    run = evaluation(model)
    run(x, y, bs=10, watch=lambda share, right: told.append((share, right)))
    shares, right = zip(*told, strict=True)
    assert shares[0] == 0 and 0.8 < shares[-1] <= 1 and all(0 <= s <= 1 for s in shares)
    assert right[0] == run.result.stages["clean"].sum() and sorted(right, reverse=True) == [*right]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"is_tf_model": True}, TypeError, "TensorFlow"),
        ({"attacks_to_run": ["square"]}, ValueError, "add version='custom', or leave"),
        ({"version": "standart"}, ValueError, "did you mean 'standard'"),
        ({"norm": "L0"}, ValueError, "norm"),
        ({"eps": -1}, ValueError, "eps"),
        ({"seed": -1}, ValueError, "seed"),
        ({"rng": "clock"}, ValueError, "rng"),
        ({"precision": "fp8"}, ValueError, "precision"),
        ({"device": "meta"}, ValueError, "the model is on cpu"),
        ({"version": "custom", "attacks_to_run": ["apgd"]}, ValueError, "apgd-ce"),
        ({"version": "custom", "attacks_to_run": ["square", "square"]}, ValueError, "twice"),
        ({"version": "custom", "attacks_to_run": "square"}, TypeError, "a list"),
        ({"version": "custom", "attacks_to_run": [print]}, TypeError, "SearchAttack"),
    ],
)
def test_bad_settings(model, settings, error, words):
    with pytest.raises(error, match=re.escape(words)):
        advfast.AutoAttack(model, **settings)


def test_bad_input_is_refused_before_work(model):
    x, y = samples(model)
    run = evaluation(model)
    for images, labels, words in (
        (x, y + 4, "labels must be 0 .. 3"),
        (x * 2, y, "[0, 1]|bounds"),
        (x.clone().fill_(torch.nan), y, "NaN"),
        ((x * 255).byte(), y, "divide by 255"),
        (x, y[:-1], "labels must have shape"),
        (x, nn.functional.one_hot(y, 5).float(), "K = 4"),
        (x, y.float(), "integer class"),
    ):
        with pytest.raises(
            (ValueError, TypeError), match=re.escape(words) if "|" not in words else words
        ):
            run.run_standard_evaluation(images, labels)
    assert run.result is None
    for bad in ({"bs": 0}, {"sample_ids": torch.arange(3)}):
        with pytest.raises(ValueError, match=r"bs|sample_ids"):
            run.run_standard_evaluation(x, y, **bad)
    with pytest.raises(ValueError, match="attacks_to_run is empty"):
        advfast.AutoAttack(model, version="custom", verbose=False).run_standard_evaluation(x, y)
    with pytest.raises(ValueError, match="at least 2 classes"):
        one = linear(1)
        evaluation(one).run_standard_evaluation(x, torch.zeros_like(y))
    other = advfast.AutoAttack(
        model, eps=0.1, version="custom", attacks_to_run=[Corners(model, 0.2)], verbose=False
    )
    with pytest.raises(ValueError, match=r"eps 0\.1, got norm linf and eps 0\.2"):
        other.run_standard_evaluation(x, y)


def test_settings_have_the_original_names_too(model):
    run = advfast.AutoAttack(model, verbose=False)
    run.apgd.n_restarts, run.apgd.eot_iter, run.apgd.n_iter = 2, 3, 50
    run.apgd_targeted.n_target_classes, run.square.n_queries, run.fab.n_iter = 3, 77, 60
    assert (run.apgd.restarts, run.apgd.eot, run.apgd.steps) == (2, 3, 50)
    assert (run.apgd_targeted.targets, run.square.queries, run.fab.steps) == (3, 77, 60)
    with pytest.raises(AttributeError, match=r"square has no setting 'n_querys'.*'n_queries'"):
        run.square.n_querys = 3
    with pytest.raises(AttributeError, match="apgd has no setting 'queries'"):
        _ = run.apgd.queries
    run.set_version("standard")
    assert run.apgd.n_restarts == 1 and run.square.n_queries == 5000
    assert run.seed == 0 and run.epsilon == 8 / 255


class Noisy(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x + 0.3 * torch.randn_like(x))


def test_what_is_doubtful_is_said(model, capsys):
    x, y = samples(model)
    run = evaluation(Noisy(model), verbose=True, progress=False)
    run.run_standard_evaluation(x, y)
    assert "randomised" in [finding.code for finding in run.result.findings]
    assert "warning: randomised: " in capsys.readouterr().out
    assert "randomised" in run.result.to_dict()["findings"][0]["code"]
    run.version = "rand"
    run.run_standard_evaluation(x, y)
    assert "randomised" not in [finding.code for finding in run.result.findings]
    run.version, run.sanity = "custom", False
    run.run_standard_evaluation(x, y)
    assert run.result.findings == ()
    run = evaluation(model)
    run.run_standard_evaluation(x, y)
    assert run.result.findings == ()


def test_square_beating_the_others_is_said(model, capsys):
    x, y = samples(model)

    class Square(MoreCorners):
        pass

    run = evaluation(model, Corners, Square, verbose=True, progress=False)
    run.run_standard_evaluation(x, y)
    assert [finding.code for finding in run.result.findings] == ["square-wins"]
    assert capsys.readouterr().out.count("warning: square-wins: ") == 1


def test_the_judge_is_the_plain_model():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)
    )
    with torch.no_grad():
        net(torch.rand(16, 3, 8, 8))
        x = torch.rand(5, 3, 8, 8)
        plain = net.eval()(x)
    run = advfast.AutoAttack(net.train(), verbose=False)
    assert torch.equal(run.get_logits(x), plain) and net.training
    with run.oracle(x) as oracle:
        folded = oracle.logits(oracle.iterate(x))
    assert not torch.equal(folded, plain)  # else this shows nothing
    torch.testing.assert_close(folded, plain)
