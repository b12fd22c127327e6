"""The study of injected features: what is trained on and measured, its probes, and what it expects."""

import csv
import importlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy

import advfast
from advfast import cli
from advfast.data import carriers, inject, load
from advfast.models import LowPass
from advfast.studies import co_features, load_study, preset
from advfast.studies.co_features_expected import expectations
from advfast.studies.co_features_figures import pixels
from advfast.studies.co_features_methods import listed, method_of
from advfast.studies.co_features_probe import (
    FeatureMonitor,
    attacked_accuracies,
    evaluation_sets,
    local_shape,
)
from advfast.studies.co_features_subject import Subject
from advfast.studies.curvature import input_curvature
from advfast.studies.networks import conv_net
from advfast.studies.result import StudyResult
from advfast.studies.room import Room
from advfast.training import checkpoint, finish, recipes
from advfast.training.methods.gradalign import published as published_lam

SHORT = {
    "model": "conv-2", "samples": 150, "limit": 60, "probe": 30, "shape": 6, "restarts": 1, "epochs": 2,
    "batch_size": 32, "progress": False,
}  # fmt: skip
GRID = {"methods": ("fgsm", "n-fgsm:k=1"), "betas": (0.0, 0.1), "eps": 0.2}


@pytest.fixture(autouse=True, scope="module")
def _one_thread_and_no_pictures_of_runs():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "_pictures", lambda *arguments: None)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("co") / "out"
    return co_features(**GRID, **SHORT, out=out)


def timeline(study):
    with open(study.path / "timeline.csv") as stream:
        return list(csv.DictReader(stream))


def last_network(study, name, margin):
    """The network of the images as they are, from the run's last checkpoint."""
    net = Room(margin).network(conv_net((1, 8, 8), 10, (32, 64), (1, 2)), 1)
    file = study.path / "runs" / name / "last.pt"
    checkpoint.fill(net, checkpoint.read(file), file)
    return net.net.eval()


def right(net, x, y):
    with torch.no_grad():
        return float((net(x).argmax(1) == y).double().mean())


def test_rows_are_of_the_last_checkpoint_and_the_unclipped_images(study):
    assert [(row["beta"], row["method"]) for row in study.rows] == [
        (0.0, "fgsm"), (0.0, "n-fgsm:k=1"), (0.1, "fgsm"), (0.1, "n-fgsm:k=1"),
    ]  # fmt: skip
    row = study.select(method="fgsm", beta=0.1)[0]
    # FGSM reaches eps further than the images, which leave [0, 1] by beta.
    net = last_network(study, "fgsm-beta0.1-eps0.2-seed0", 0.1 + 0.2)
    test = load("digits").test
    x, y = test.batch(torch.arange(60))
    v = carriers(10, (1, 8, 8))
    assert row["injected"] == right(net, x + 0.1 * v[y], y)
    assert row["original"] == right(net, x, y)
    assert row["reverse"] == right(net, x - 0.1 * v[y], y)
    assert row["carrier"] == right(net, 0.1 * v, torch.arange(10))
    leaf = (x + 0.1 * v[y]).requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(net(leaf), y), leaf)
    fgsm = right(net, leaf.detach() + 0.2 * gradient.sign(), y)
    assert abs(row["fgsm"] - fgsm) <= 1 / 60
    assert row["gap"] == row["fgsm"] - row["pgd"] and row["pgd"] <= row["injected"]
    assert (row["alarm"], row["collapsed"]) == (None, 0)


def test_the_images_trained_on_carry_the_feature(study, monkeypatch, tmp_path):
    module, seen = sys.modules["advfast.studies.co_features_subject"], []

    def train(model, data, **arguments):
        seen.append((data, arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", train)
    for name, reach in (("fgsm", 1), ("n-fgsm", 3), ("pgd-at:alpha=0.05,steps=3", 1)):
        with pytest.raises(KeyboardInterrupt):
            co_features(methods=[name], betas=[0.1], eps=0.2, **SHORT)
        (images, labels), arguments = seen[-1]
        room = Room(0.1 + reach * 0.2)
        assert len(labels) == 150 and arguments["eps"] == pytest.approx(0.2 * room.scale)
        plain = room.take(images) - 0.1 * carriers(10, (1, 8, 8))[labels]
        # What is left are grey levels of digits.
        assert (16 * plain - (16 * plain).round()).abs().max() < 1e-4
        assert images.min() >= 0 and images.max() <= 1 and len(arguments["val"][1]) == 97
    assert arguments["alpha"] == pytest.approx(0.05 * room.scale) and arguments["steps"] == 3
    with pytest.raises(KeyboardInterrupt):
        co_features(methods=["fgsm"], betas=[0.1], eps=0.2, clip=True, **SHORT)
    (images, _), arguments = seen[-1]
    assert arguments["eps"] == 0.2 and images.min() == 0
    assert arguments["bn"] == "train-update" and arguments["schedule"] == "triangular"


def test_the_timeline_has_every_epoch_of_every_run(study):
    rows = timeline(study)
    assert len(rows) == 2 * len(study.rows)
    assert [row["epoch"] for row in rows] == ["1", "2"] * len(study.rows)
    net = last_network(study, "fgsm-beta0.1-eps0.2-seed0", 0.1 + 0.2)
    x, y = load("digits").test.batch(torch.arange(30))
    last = next(r for r in rows if (r["method"], r["beta"], r["epoch"]) == ("fgsm", "0.1", "2"))
    for name, (images, labels) in evaluation_sets(
        x, y, 0.1, "injected", carriers(10, (1, 8, 8)), clip=False
    ).items():
        assert float(last[name]) == right(net, images, labels)
    assert float(last["curvature"]) > 0 and -1 <= float(last["cos1"]) <= 1


def test_what_is_gone_on_with_is_the_same(study, tmp_path):
    record = study.path / "study.json"
    whole, before = record.read_text(), timeline(study)
    content = json.loads(whole)
    content["rows"] = content["rows"][:-1]  # as of a kill in the last run, after its training
    record.write_text(json.dumps(content))
    again = co_features(**GRID, **SHORT, out=study.path, resume=True)
    assert again.rows == study.rows and timeline(study) == before
    with pytest.raises(ValueError, match=r"clip was False and is now True"):
        co_features(**GRID, **SHORT, out=study.path, resume=True, clip=True)
    with pytest.raises(FileExistsError):
        co_features(**GRID, **SHORT, out=study.path)
    shown = load_study(study.path)
    assert set(shown.figures()) == {
        f"{name}.{end}" for name in ("collapse", "accuracy", "timeline") for end in ("png", "svg")
    }


def test_a_low_pass_is_off_in_the_last_columns(tmp_path):
    out = tmp_path / "out"
    found = co_features(methods=["fgsm"], betas=[0.0], eps=0.1, bandwidth=3, out=out, **SHORT)
    (row,) = found.rows
    net = nn.Sequential(LowPass(8, 8, 3), conv_net((1, 8, 8), 10, (32, 64), (1, 2)))
    whole = Room(0.1).network(net, 1)
    file = out / "runs/fgsm-beta0-eps0.1-seed0/last.pt"
    checkpoint.fill(whole, checkpoint.read(file), file)
    net.eval()
    x, y = load("digits").test.batch(torch.arange(60))
    assert row["injected"] == right(net, x, y)
    assert row["unfiltered_injected"] == right(net[1], x, y)
    unfiltered = attacked_accuracies(net[1], x, y, 0.1, clip=False, restarts=1)
    assert (row["unfiltered_fgsm"], row["unfiltered_pgd"]) == (unfiltered["fgsm"], unfiltered["pgd"])  # fmt: skip
    filtered = attacked_accuracies(net, x, y, 0.1, clip=False, restarts=1)
    assert (row["fgsm"], row["pgd"]) == (filtered["fgsm"], filtered["pgd"])


def wavy():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3))  # fmt: skip
    net(torch.rand(8, 1, 8, 8))
    return net.train()


def test_local_shape_against_its_definition():
    net, eps = wavy(), 0.1
    x, y = torch.rand(12, 1, 8, 8), torch.arange(12) % 3
    found = local_shape(net, x, y, eps, clip=False)
    assert net.training
    net.eval()

    def gradient(images):
        leaf = images.clone().requires_grad_()
        return torch.autograd.grad(cross_entropy(net(leaf), y, reduction="sum"), leaf)[0]

    # The mean over draws, of which the study takes one.
    draws = [
        cosine_similarity(gradient(x).flatten(1), gradient(x + eps * (2 * torch.rand_like(x) - 1)).flatten(1)).mean()
        for _ in range(40)
    ]  # fmt: skip
    spread = 4 * float(torch.stack(draws).std())
    assert found["cos1"] == pytest.approx(float(torch.stack(draws).mean()), abs=spread)
    assert found["cos1"] < 0.9999
    torch.manual_seed(1)
    z = x + eps * (2 * torch.rand_like(x) - 1)
    for _ in range(10):
        z = x + (z + eps / 4 * gradient(z).sign() - x).clamp(-eps, eps)
    cosine = cosine_similarity((eps * gradient(x).sign()).flatten(1), (z - x).flatten(1)).mean()
    assert found["cos2"] == pytest.approx(float(cosine), abs=0.1)
    assert found["curvature"] == pytest.approx(float(input_curvature(net, x, y).mean()))


def test_the_monitor_sees_the_network_of_the_images_as_they_are():
    net, room = wavy().eval(), Room(0.3)
    x, y = torch.rand(12, 1, 8, 8), torch.arange(12) % 3
    sets = evaluation_sets(x, y, 0.1, "injected", carriers(3, (1, 8, 8)), clip=False)
    monitor = FeatureMonitor(sets, room, 0.1, clip=False, shape=5)
    monitor._images, monitor._labels = room.put(sets["injected"][0]), y
    found = monitor.more(SimpleNamespace(model=room.network(net, 1)), 0.1 * room.scale, "linf")
    for name, (images, labels) in sets.items():
        assert found[name] == right(net, images, labels)
    shown = local_shape(net, sets["injected"][0][:5], y[:5], 0.1, clip=False)
    for name, value in shown.items():
        assert found[name] == pytest.approx(value, rel=1e-3)


def test_attacks_have_a_box_only_with_the_clip():
    """Logits (-s, s) of s = sum of the pixels: dark images of class 1 fall where pixels may be negative."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 16))
    x, y = torch.full((4, 1, 4, 4), 0.05), torch.ones(4, dtype=torch.long)
    free = attacked_accuracies(net, x, y, 0.1, clip=False, restarts=2)
    boxed = attacked_accuracies(net, x, y, 0.04, clip=True, restarts=2)
    assert free == {"fgsm": 0.0, "pgd": 0.0} and boxed == {"fgsm": 1.0, "pgd": 1.0}
    # At 0 the attack could only go on outside.
    assert attacked_accuracies(net, 0 * x + 0.001, y, 0.1, clip=True, restarts=1)["pgd"] <= 1
    wrong = attacked_accuracies(net, x, 1 - y, 0.1, clip=False, restarts=1)
    # An image that is wrong by itself may be right on its perturbed form; here none is.
    assert wrong == {"fgsm": 0.0, "pgd": 0.0}


def test_accuracies_are_on_attacked_images_alone():
    """FGSM of a network that has collapsed moves images to where it is right."""

    class Trap(nn.Module):
        def forward(self, x):
            s = x.flatten(1).sum(1)
            # Wrong at s = 0, with a slope that leads FGSM up to where it is right.
            return torch.stack((torch.sin(s) + 0.5, torch.zeros_like(s)), 1)

    x, y = torch.full((3, 1, 1, 1), 0.0), torch.ones(3, dtype=torch.long)
    found = attacked_accuracies(Trap(), x, y, 4.5, clip=False, restarts=1)
    with torch.no_grad():
        assert (Trap()(x).argmax(1) != y).all()
        assert (Trap()(x + 4.5).argmax(1) == y).all()
    assert found["fgsm"] == 1.0


def test_a_network_or_a_run_is_probed_as_it_is(tmp_path):
    torch.manual_seed(0)
    net = conv_net((1, 8, 8), 10, (4,), (2,)).eval()
    few = {key: SHORT[key] for key in ("limit", "probe", "shape", "restarts", "progress")}
    found = co_features("digits", net, betas=[0.0, 0.2], eps=[0.05, 0.1], **few)
    assert [(r["method"], r["eps"], r["beta"]) for r in found.rows] == [
        ("Sequential", eps, beta) for eps in (0.05, 0.1) for beta in (0.0, 0.2)
    ]
    x, y = load("digits").test.batch(torch.arange(60))
    assert found.rows[1]["injected"] == right(net, *inject((x, y), 0.2))
    assert found.expectations == [] and found.rows[0]["alarm"] is None
    advfast.train(
        "small-cnn", "digits", method="standard", epochs=1, out=tmp_path / "run", progress=False
    )
    (row,) = co_features(source=tmp_path / "run", betas=[0.1], eps=0.1, **few).rows
    assert (row["method"], row["seed"]) == ("run", 0)
    assert row["original"] == right(advfast.load(tmp_path / "run/last.pt"), x, y)
    with pytest.raises(ValueError, match="epochs: nothing is trained"):
        co_features(source=tmp_path / "run", epochs=3, **few)


def test_a_recipe_is_trained_by(monkeypatch):
    module, seen = sys.modules["advfast.studies.co_features_subject"], []

    def train(model, data, **arguments):
        seen.append((model, arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", train)
    few = {key: value for key, value in SHORT.items() if key not in ("model", "epochs")}
    recipe = {
        "data": "digits", "model": "small-cnn", "epochs": 7, "method": "trades", "lr": 0.03, "augment": ["flip"],
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        co_features(source=recipe, methods=["fgsm"], betas=[0.1], eps=0.1, **few)
    model, arguments = seen[-1]
    assert type(model.net).__name__ == "SmallCNN"
    assert (arguments["method"], arguments["epochs"], arguments["lr"]) == ("fgsm", 7, 0.03)
    assert "augment" not in arguments and "data" not in arguments
    with pytest.raises(KeyboardInterrupt):
        co_features("digits", "rice2020", methods=["fgsm"], model="conv-2", epochs=1, **few)
    published = recipes.find("rice2020").arguments
    assert seen[-1][1]["schedule_options"] == published["schedule_options"]
    # The attack is the method's, and not in pixels of another scale.
    assert "alpha" in published and not {"alpha", "steps"} & seen[-1][1].keys()


def test_methods_in_a_word():
    made = method_of("gradalign:lam=0.2,at=adversarial", 0.25, {"bn": "train"})
    assert (made.method, made.options) == ("gradalign", {"lam": 0.2, "at": "adversarial"})
    # Of the radius in pixels, not of the smaller one in the room.
    assert method_of("gradalign", 8 / 255, {}).options["lam"] == published_lam(8 / 255)
    assert method_of("pgd-at:steps=3,alpha=0.1", 0.2, {}).arguments(0.5) == {
        "method": "pgd-at", "method_options": {}, "steps": 3, "alpha": 0.05,
    }  # fmt: skip
    assert [method_of(n, 0.1, {}).reach for n in ("fgsm", "n-fgsm", "n-fgsm:k=1")] == [1, 3, 2]
    assert method_of("pgd-at", 0.1, {}).passes > method_of("fgsm", 0.1, {}).passes
    assert listed("fgsm,gradalign:lam=0.2,at=adversarial,pgd-at") == [
        "fgsm", "gradalign:lam=0.2,at=adversarial", "pgd-at",
    ]  # fmt: skip


def test_room_is_for_the_images_and_the_attack():
    splits = load("digits")
    options = dict.fromkeys(("bandwidth", "samples", "limit")) | {"probe": 8, "shape": 4, "restarts": 1}  # fmt: skip
    subject = Subject(splits, "conv-2", kind="injected", clip=False, **options)
    x, _ = subject.feature(subject.train, 0.1)
    assert subject.room([x], 0.3).margin == pytest.approx(0.4)
    assert len(subject.train[1]) + len(subject.held_out[1]) == len(splits.train)
    clipped = Subject(splits, "conv-2", kind="injected", clip=True, **options)
    assert clipped.room([x], 0.3).margin == 0
    assert clipped.feature(clipped.train, 0.1)[0].max() == 1
    one, other = subject.network(3).state_dict(), subject.network(3).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def rows_of(values, **shared):
    base = {"eps": 0.25, "seed": 0, "curvature": 1.0, "collapsed": 0, "alarm": None}
    return [
        base | shared | {"method": method, "beta": beta, "gap": gap, "pgd": pgd, "alarm": alarm}
        for method, beta, gap, pgd, alarm in values
    ]


GOOD = [
    ("fgsm", 0.0, 0.4, 0.35, None), ("fgsm", 0.1, 0.95, 0.0, 24), ("fgsm", 0.2, 0.4, 0.3, None),
    ("pgd-at", 0.1, 0.15, 0.6, None), ("n-fgsm", 0.1, 0.2, 0.45, None), ("gradalign:lam=0.2", 0.1, 0.7, 0.0, None),
    ("gradalign:lam=2", 0.1, 0.35, 0.17, None), ("fgsm", 0.3, 0.4, 0.3, None),
]  # fmt: skip


def judged(rows, **settings):
    settings = {"data": "digits", "model": "conv-4", "source": None} | settings
    return expectations(StudyResult("co-features", settings, (), (), rows))


def test_expectations_of_digits():
    rows = rows_of(GOOD)
    rows[1]["curvature"] = 5.5
    found = judged(rows)
    assert len(found) == 14 and all(one.held for one in found)
    # Each is noticed: one value is moved past its bound, of one of two seeds.
    for at, change, failing in (
        (1, {"gap": 0.89}, [0]), (0, {"gap": 0.51}, [1]), (2, {"gap": 0.51}, [2]), (1, {"alarm": None}, [4]),
        (0, {"alarm": 3}, [5]), (2, {"alarm": 3}, [6]), (3, {"gap": 0.51}, [7]), (3, {"pgd": 0.29}, [8]),
        (4, {"gap": 0.51}, [9]), (4, {"pgd": 0.29}, [10]), (5, {"pgd": 0.11}, [11]), (6, {"gap": 0.51}, [12]),
        (3, {"curvature": 1.2}, [13]), (7, {"gap": 0.51}, [3]),
    ):  # fmt: skip
        others = [*rows, rows[at] | change | {"seed": 1}]
        assert [n for n, one in enumerate(judged(others)) if not one.held] == failing
    assert all(one.held is None for one in judged(rows_of(GOOD, eps=0.2)))
    assert judged(rows, source="run.pt") == []


def test_expectations_of_the_control_and_of_the_published_grid():
    control = rows_of([("fgsm", b, 0.2, 0.7, None) for b in (0, 0.05, 0.1)], eps=0.15)
    assert [one.held for one in judged(control, model="conv-2")] == [True, True]
    control[1] |= {"gap": 0.6, "alarm": 9}
    assert [one.held for one in judged(control, model="conv-2")] == [False, False]
    eps = 6 / 255
    grid = rows_of([(m, b / 255, 0, 0, None) for m in ("fgsm", "pgd-at") for b in (0, 4, 8)], eps=eps)  # fmt: skip
    grid[1]["collapsed"] = 1
    found = judged(grid, data="cifar10", model="preact-resnet18")
    assert len(found) == 4 and all(one.held for one in found)
    for at in (0, 2, 3):
        worse = [row | {"collapsed": 1} if n == at else row for n, row in enumerate(grid)]
        assert sum(not one.held for one in judged(worse, data="cifar10")) == 1
    assert [one.held for one in judged(grid[:1] + grid[2:], data="cifar10")][1] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"betas": [0.1, 4]}, r"4/255, not 4\), got 4"),
        ({"eps": 8}, r"8/255, not 8\), got 8"),
        ({"betas": []}, "betas must be different values, at least one"),
        ({"methods": "fgsm"}, "methods must be different values"),
        ({"methods": ["fgsm", "gradalgn"]}, "unknown method 'gradalgn'"),
        ({"methods": ["fgsm", "gradalign:lam"]}, "written gradalign:KEY=VALUE, got 'lam'"),
        ({"methods": ["gradalign:lamb=1"]}, "no option 'lamb'"),
        ({"kind": "carrier-only"}, "kind must be one of injected"),
        ({"restarts": 0}, "restarts must be an integer >= 1"),
        ({"samples": 5000}, "samples must be 1 .. 1200"),
        ({"bandwidth": 0}, "bandwidth must be"),
        ({"model": "conv-3"}, "unknown model 'conv-3'"),
        ({"augment": ["flip"]}, "augment is set by the study"),
        ({"source": "nowhere"}, "no folder of a run, no checkpoint and no recipe"),
        ({"seeds": [0, -1]}, "seeds must be integers >= 0, got -1"),
    ],
)
def test_bad_arguments_before_any_run(change, message, monkeypatch):
    monkeypatch.setattr(sys.modules["advfast.studies.co_features_subject"], "train", None)
    with pytest.raises(ValueError, match=message):
        co_features(**{"methods": ["fgsm"], **SHORT} | change)


def test_a_run_that_diverged_fails_what_was_expected_of_it():
    rows = rows_of(GOOD)
    rows[1] |= {"gap": None, "pgd": None, "curvature": None}
    rows[2] |= {"gap": None, "pgd": None, "curvature": None}
    settings = {"data": "digits", "model": "conv-4", "source": None}
    result = StudyResult("co-features", settings, ("method", "beta", "eps", "seed"), ("gap",), rows)
    told = {one.text: one for one in expectations(result)}
    failed = [text for text, one in told.items() if one.found == "a run diverged"]
    assert len(failed) == 5 and all(told[text].held is False for text in failed)
    assert any("silent for fgsm at beta 0.2" in text for text in failed)


def test_a_timeline_is_of_its_study_alone(tmp_path):
    module = sys.modules["advfast.studies.co_features_subject"]
    path = tmp_path / "timeline.csv"
    module.add_timeline(path, {"beta": 0.1}, [{"epoch": 1}])
    module.add_timeline(path, {"beta": 0.2}, [{"epoch": 1}])
    module.add_timeline(path, {"beta": 0.1}, [])
    assert module.read_timeline(path) == [{"beta": "0.2", "epoch": "1"}]
    module.add_timeline(path, {"beta": 0.2}, [])
    assert not path.exists()


def test_presets():
    small, control, paper = (preset("co-features", name) for name in ("small", "control", "published"))  # fmt: skip
    assert (
        small["betas"] == (0.0, 0.1, 0.2, 0.3)
        and small["eps"] == 0.25
        and "fgsm" in small["methods"]
    )
    assert (control["model"], control["epochs"], control["eps"]) == ("conv-2", 30, 0.15)
    assert paper["data"] == "cifar10" and len(paper["betas"]) * len(paper["eps"]) == 35
    with pytest.raises(ValueError, match="preset must be one of small, control, published"):
        preset("co-features", "smal")


def test_figures_of_a_grid_of_radii():
    rows = rows_of([(m, b, 0.3, 0.2, None) for m in ("fgsm", "pgd-at") for b in (0.0, 4 / 255)])
    rows = [row | {"eps": eps, "fgsm": 0.5} for row in rows for eps in (2 / 255, 4 / 255)]
    rows[0]["pgd"] = rows[0]["fgsm"] = None  # a run that diverged
    result = StudyResult(
        "co-features", {"data": "digits"}, ("method", "beta", "eps", "seed"), ("fgsm", "pgd", "collapsed"), rows
    )  # fmt: skip
    assert load_study.__name__ and len(result.figures()) == 0
    result.draw = sys.modules["advfast.studies.co_features"].draw
    assert set(result.figures()) == {"collapse.png", "collapse.svg", "accuracy.png", "accuracy.svg"}
    assert [pixels(v) for v in (0.0, 4 / 255, 0.25, 0.1)] == ["0", "4/255", "0.25", "0.1"]


def test_the_command_line(tmp_path, capsys):
    words = [
        "study",
        "co-features",
        "--methods",
        "fgsm",
        "--betas",
        "0,25.5/255",
        "--eps",
        "0.2",
        "--model",
        "conv-2",
    ]
    words += ["--samples", "150", "--limit", "40", "--restarts", "1", "--epochs", "1", "--quiet"]
    assert cli.main([*words, "--dry-run", "--out", str(tmp_path / "none")]) == 0
    assert "passes of an image" in capsys.readouterr().err and not (tmp_path / "none").exists()
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    assert "fgsm at beta 0.1" not in capsys.readouterr().out  # that is of conv-4
    found = load_study(tmp_path / "out")
    assert [row["beta"] for row in found.rows] == [0.0, 0.1]
    assert (tmp_path / "out/report.html").is_file()
    for bad, message in (
        (["--betas", "much"], "--betas must be numbers"),
        (["--eps", "8"], "8/255, not 8"),
        (["--methods", "fgms"], "unknown method 'fgms'"),
        (["nowhere"], "no recipe"),
    ):
        code = cli.main(["study", "co-features", "--out", str(tmp_path / "bad"), *bad])
        (line,) = capsys.readouterr().err.splitlines()
        assert code and message in line and not (tmp_path / "bad").exists()


def test_the_control_is_an_option(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        advfast.studies, "co_features",
        lambda **arguments: seen.append(arguments) or StudyResult("co-features", {}, (), (), []),
    )  # fmt: skip
    assert cli.main(["study", "co-features", "--control", "--seeds", "0,1"]) == 0
    assert (seen[0]["model"], seen[0]["eps"], seen[0]["seeds"]) == ("conv-2", 0.15, [0, 1])
    assert cli.main(["study", "co-features", "run.pt", "--eps", "8/255", "--clip"]) == 0
    assert seen[1]["source"] == "run.pt" and "data" not in seen[1] and "samples" not in seen[1]
    assert seen[1]["eps"] == [8 / 255] and seen[1]["clip"]


def test_the_benchmark_has_the_images_it_had(monkeypatch):
    """x -> s (x + beta V + m) with V from rounded cosines, as benchmarks/catastrophic.py worked them out itself."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    found = importlib.import_module("catastrophic").images(0.1)
    splits = load("digits")
    whole = [part.batch(torch.arange(len(part))) for part in (splits.train, splits.test)]
    x, y = (torch.cat([part[i] for part in whole]) for i in (0, 1))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    place = (2 * torch.arange(8, dtype=torch.float64) + 1) * math.pi / 16
    half = torch.stack(
        [torch.outer((r * place).cos(), (c * place).cos()) for r, c in ((0, 1), (1, 0), (1, 1), (2, 1), (1, 2))]
    ).sign()[:, None]  # fmt: skip
    v = torch.cat((half, -half)).float()
    margin = 0.2 + 3 * 0.25
    expected = 1 / (1 + 2 * margin) * (x + 0.1 * v[y] + margin)
    assert torch.equal(torch.cat([found[n][0] for n in ("train", "val", "test")]), expected)
    assert torch.equal(found["train"][1], y[:900]) and len(found["test"][1]) == 800
