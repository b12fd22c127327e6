"""The study of layers that a network needs."""

import copy
import csv
import json

import pytest
import torch
from torch import nn
from torch.nn.utils import weight_norm

import advfast
from advfast import cli, models
from advfast.data import load
from advfast.studies import criticality, load_study, preset
from advfast.studies.criticality_measure import Layer, find_layers, fresh_tensors, measure
from advfast.studies.resets import Program
from advfast.studies.result import draw_of
from advfast.studies.runs import open_run

from .test_criticality_tables import PUBLISHED


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Net(nn.Module):
    """A residual block, and logits large enough that predictions differ."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        h = self.bn1(self.conv1(x)).relu()
        return 8 * self.fc((h + self.block(h)).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net()
    for _ in range(3):
        net(torch.rand(16, 1, 8, 8))  # running statistics
    return net


@pytest.fixture(scope="module")
def images():
    return load("digits").test.batch(torch.arange(30))


def batches_of(images, labels, size):
    def begin():
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            yield images[part], None if labels is None else labels[part]

    return begin


def naive(model, layers, images, labels, trials):
    """The paper's loop: a whole pass for every layer and trial, of a copy whose one layer is re-initialised."""

    def cosine(p, q):
        return (p * q).sum(1) / (p.norm(dim=1) * q.norm(dim=1))

    found = {}
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        p = model(images).double().softmax(1)
        own = (p.argmax(1) == labels).double().mean()
        for layer in layers:
            for trial in trials:
                changed = copy.deepcopy(model)
                changed.load_state_dict(fresh_tensors(model, layer, trial, "module"), strict=False)
                q = changed(images).double().softmax(1)
                accuracy = (q.argmax(1) == labels).double().mean()
                found[layer.name, trial] = [
                    float(value)
                    for value in (
                        1 - cosine(p, q).mean(), (p - q).abs().sum(1).mean(), (p - q).norm(dim=1).mean(),
                        accuracy, accuracy / own,
                    )
                ]  # fmt: skip
    return found


KINDS = ("conv", "linear", "bn")
MEASURES = ("criticality", "l1", "l2", "accuracy", "recovered_accuracy")


@pytest.mark.parametrize(("size", "max_bytes"), [(30, 2**30), (13, 2**30), (30, 20_000)])
def test_the_measures_are_those_of_whole_passes(net, images, size, max_bytes):
    layers = find_layers(net, KINDS)
    assert [layer.name for layer in layers] == ["conv1", "bn1", "block.0", "block.1", "fc"]
    found, reason = measure(
        net, layers, batches_of(*images, size), range(2), max_bytes=max_bytes
    )  # fmt: skip
    assert reason == ""
    expected = naive(net, layers, *images, range(2))
    assert found.keys() == expected.keys()
    for key, moved in found.items():
        values = (moved.criticality, moved.l1, moved.l2, moved.accuracy, moved.recovered_accuracy)
        assert values == pytest.approx(expected[key], abs=1e-6), key
    assert found["conv1", 0] != found["conv1", 1]
    assert max(moved.criticality for moved in found.values()) > 0.1


def test_no_more_is_kept_than_allowed(net, images, monkeypatch):
    taken = []
    original = Program.original

    def watched(program, batch):
        taken.append((len(batch), program.kept_bytes))
        return original(program, batch)

    monkeypatch.setattr(Program, "original", watched)
    layers = find_layers(net, KINDS)
    measure(net, layers, batches_of(*images, 30), [0])
    assert taken[-1][0] == 30 and taken[-1][1] > 20_000
    measure(net, layers, batches_of(*images, 30), [0], max_bytes=20_000)
    assert taken[-1][0] < 30 and taken[-1][1] <= 20_000


@pytest.mark.parametrize("traced", [True, False])
def test_a_layer_put_back_to_itself_has_criticality_zero(net, images, traced):
    if not traced:
        forward = net.forward
        net.forward = lambda x: forward(x) if x.sum() > 0 else forward(-x)
    found, reason = measure(
        net, find_layers(net, KINDS), batches_of(*images, 13), [0, 1], init=lambda layer: None
    )  # fmt: skip
    assert traced == (reason == "")
    for moved in found.values():
        assert (moved.criticality, moved.l1, moved.l2) == (0.0, 0.0, 0.0)
        assert moved.recovered_accuracy == 1.0


def test_the_network_is_bit_identical_afterwards(net, images):
    """The released code backs weights up by a shallow copy, so that on a CPU every reset stays and the next layers are
    measured on a network that is broken already."""
    net.train()
    before = copy.deepcopy(net.state_dict())
    layers = find_layers(net, KINDS)
    forth, _ = measure(net, layers, batches_of(*images, 30), [0])
    back, _ = measure(net, layers[::-1], batches_of(*images, 30), [0])
    assert forth == back
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert net.training


def test_weights_depend_on_trial_and_layer_alone(net, images):
    layers = find_layers(net, ("conv", "linear"))
    every, _ = measure(net, layers, batches_of(*images, 30), [0, 1, 2])
    torch.manual_seed(5)
    one, _ = measure(net, layers[1:2], batches_of(*images, 30), [2])
    assert one == {("block.0", 2): every["block.0", 2]}
    same = [fresh_tensors(net, Layer("block.0", "conv"), t, "module")["block.0.weight"] for t in (0, 0, 1)]  # fmt: skip
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])
    bound = (1 / (4 * 9)) ** 0.5  # torch's own scheme
    assert 0.8 * bound < same[0].abs().max() <= bound


def test_batch_normalisation_is_put_back_to_weight_one(net):
    nn.init.zeros_(net.block[1].weight)
    for other in (None, net):  # of a network that begins with weight 0
        init = "module" if other is None else "network"
        fresh = fresh_tensors(net, Layer("block.1", "bn"), 0, init, other)
        assert fresh["block.1.weight"].tolist() == fresh["block.1.running_var"].tolist() == [1.0] * 4  # fmt: skip
        assert fresh["block.1.bias"].tolist() == fresh["block.1.running_mean"].tolist() == [0.0] * 4


def test_a_network_made_anew_gives_the_weights(net, images):
    def make():
        other = Net()
        seen.append(other)
        return other

    seen = []
    layer = [Layer("conv1", "conv")]
    found, _ = measure(
        net, layer, batches_of(*images, 30), [0, 1], init="network", maker=make
    )  # fmt: skip
    assert len(seen) == 2 and not torch.equal(seen[0].conv1.weight, seen[1].conv1.weight)
    for trial in (0, 1):
        fresh = fresh_tensors(net, layer[0], trial, "network", seen[trial])
        assert torch.equal(fresh["conv1.weight"], seen[trial].conv1.weight)
    assert found["conv1", 0] != found["conv1", 1]


def test_a_network_made_anew_is_neither_that_of_the_training_nor_a_trained_one(images):
    def make():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    torch.manual_seed(0)
    net = make()  # as a training of seed 0 begins
    made = {"init": "network", "maker": make}
    found, _ = measure(net, [Layer("1", "linear")], batches_of(*images, 30), [0], **made)
    assert found["1", 0].criticality > 1e-3
    made["maker"] = lambda: net
    with pytest.raises(ValueError, match="has the same weights in 1; what makes it must not load"):
        measure(net, [Layer("1", "linear")], batches_of(*images, 30), [0], **made)


def test_a_function_that_loads_weights_is_not_what_makes_the_network_anew(images):
    trained = small().state_dict()

    def make():
        net = small()
        net.load_state_dict(trained)
        return net

    result = criticality(make, images[0], trials=1, init="network", layers=["conv"], progress=False)
    assert min(row["criticality"] for row in result.rows) > 0


def test_layers_are_of_exactly_the_kind():
    class Own(nn.Conv2d):
        pass

    bare = nn.BatchNorm2d(2, affine=False, track_running_stats=False)
    net = nn.Sequential(Own(1, 2, 3), nn.Conv2d(2, 2, 3), bare)
    assert find_layers(net, KINDS) == [Layer("1", "conv")]
    with pytest.raises(ValueError, match="has no layer of exactly Linear"):
        find_layers(net, ["linear"])
    with pytest.raises(ValueError, match=r"got 'convs'; did you mean 'conv'"):
        find_layers(net, ["convs"])
    with pytest.warns(FutureWarning):
        old = nn.Sequential(weight_norm(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="weight of 0 is no parameter of its own"):
        find_layers(old, ["linear"])


def test_what_is_not_finite(net, images):
    x, y = images
    layers = [Layer("conv1", "conv"), Layer("fc", "linear")]

    def broken(layer):
        if isinstance(layer, nn.Linear):
            layer.weight.fill_(float("nan"))

    found, _ = measure(net, layers, batches_of(x, None, 30), [0], init=broken)
    assert found["conv1", 0].criticality == 0.0 and found["conv1", 0].accuracy is None
    assert found["fc", 0].criticality is None and found["fc", 0].l1 is None
    nn.init.constant_(net.fc.bias, float("inf"))
    with pytest.raises(ValueError, match="own logits are not finite"):
        measure(net, layers, batches_of(x, y, 30), [0])
    one = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with pytest.raises(ValueError, match=r"2 classes or more\], got \(30, 1\)"):
        measure(one, [Layer("1", "linear")], batches_of(x, y, 30), [0])


def small(width=2):
    return models.make("resnet18", in_shape=(1, 8, 8), classes=10, width=width)


RECIPE = {"method": "standard", "model": "small-cnn", "epochs": 1, "batch_size": 256, "lr": 0.05}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Recipes of two radii, a function and a network, side by side."""
    out = tmp_path_factory.mktemp("criticality")
    (out / "results.csv").write_text(PUBLISHED)
    sources = {
        "standard": RECIPE, "robust": RECIPE | {"method": "pgd-at", "eps": 0.1, "steps": 1}, "net": small(),
    }  # fmt: skip
    result = criticality(
        sources, "digits", images=40, trials=2, samples=300, tested=50, published=out / "results.csv",
        out=out / "study", progress=False,
    )  # fmt: skip
    return sources, result


def test_the_study_has_every_network_layer_and_trial(study):
    sources, result = study
    run = open_run(result.path / "runs" / "robust")
    for label, eps, model in (("robust", 0.1, run.model()), ("net", None, sources["net"])):
        layers = find_layers(model, ("conv", "linear"))
        own = [row for row in result.rows if row["model"] == label]
        assert [(row["layer"], row["seed"]) for row in own] == [
            (layer.name, trial) for trial in (0, 1) for layer in layers
        ]
        assert {row["eps"] for row in own} == {eps}
    assert {row["eps"] for row in result.rows} == {0.0, 0.1, None}
    test = load("digits").test
    chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:40]
    layers = find_layers(run.model(), ("conv", "linear"))
    expected = naive(run.model(), layers, *test.batch(chosen), (0, 1))
    for row in result.select(model="robust"):
        values = expected[row["layer"], row["seed"]]
        assert [row[name] for name in MEASURES] == pytest.approx(values, abs=1e-6)
    files = {path.name for path in result.path.iterdir()}
    figures = {
        f"{name}.{kind}" for name in ("layers", "stages", "published") for kind in ("png", "svg")
    }
    assert {"rows.csv", "stages.csv", "report.html"} | figures <= files
    assert any(line.startswith("criticality by stage, robust: ") for line in result.notes)


def test_the_table_of_stages_is_written(study):
    _, result = study
    with (result.path / "stages.csv").open() as file:
        rows = list(csv.DictReader(file))
    whole = next(row for row in rows if (row["model"], row["stage"]) == ("robust", "all"))
    assert float(whole["criticality_mean"]) == pytest.approx(
        result.mean("criticality", model="robust")
    )
    assert [(row["stage"], float(row["criticality_mean"])) for row in rows if row["source"] == "published"] == [
        ("conv1", 0.75), ("layer1", 0.375), ("all", 0.5),
    ]  # fmt: skip


def test_figures_are_drawn_again_from_the_record(study):
    _, result = study
    again = load_study(result.path, draw_of("criticality"))
    assert {name for name in again.figures() if name.endswith("png")} == {
        "layers.png", "stages.png", "published.png",
    }  # fmt: skip


def test_a_study_is_gone_on_with(study, capsys):
    sources, result = study
    arguments = {"images": 40, "samples": 300, "tested": 50, "out": result.path, "progress": False}
    more = criticality(sources, "digits", trials=3, resume=True, **arguments)
    assert [row for row in more.rows if row["seed"] < 2] == result.rows
    assert len(more.rows) == len(result.rows) * 3 // 2
    with pytest.raises(ValueError, match="images was 40 and is now 39"):
        criticality(sources, "digits", trials=2, resume=True, **arguments | {"images": 39})
    changed = sources | {"net": small(4)}
    with pytest.raises(ValueError, match=r"models was .* and is now"):
        criticality(changed, "digits", trials=2, resume=True, **arguments)
    assert capsys.readouterr().err == ""
    assert len(load_study(result.path).rows) == len(more.rows)


def test_images_alone_and_radii_that_are_given():
    x, _ = load("digits").test.batch(torch.arange(12))
    options = {"images": 12, "trials": 1, "progress": False}
    result = criticality([small], x, eps=[0.1], stage_depth=2, layers=["bn"], **options)
    assert {row["accuracy"] for row in result.rows} == {None}
    assert {row["eps"] for row in result.rows} == {0.1}
    assert {row["kind"] for row in result.rows} == {"bn"} and result.settings["layers"] == ["bn"]
    assert "layer2.0" in {row["stage"] for row in result.rows}
    network = criticality(small, x, init="network", **options)
    assert network.settings["init"] == "network" and network.rows[0]["model"] == "small"


def test_images_of_whatever_part_there_is(images):
    x, y = images
    options = {"images": 8, "trials": 1, "layers": ["linear"], "progress": False}
    test = criticality(small, {"train": (x[:9], y[:9]), "test": (x[9:], y[9:])}, **options)
    val = criticality(small, {"train": (x[:9], y[:9]), "val": (x[9:], y[9:])}, **options)
    alone = criticality(small, (x[9:], y[9:]), **options)
    assert len({one.settings["fingerprint"] for one in (test, val, alone)}) == 1
    with pytest.raises(ValueError, match="needs test images whose labels are known, got none"):
        criticality(RECIPE, (x, y), **options)


def test_what_it_costs_is_said_and_nothing_done(tmp_path, capsys):
    out = tmp_path / "out"
    result = criticality(RECIPE, "digits", images=10, out=out, dry_run=True)
    assert result.rows == [] and not out.exists()
    net = models.make("small-cnn", in_shape=(1, 8, 8), classes=10)
    passes = 1297 * 3 + 10 * (1 + 3 * len(find_layers(net, ("conv", "linear"))) / 2)
    assert f"criticality: {round(passes):,} passes" in capsys.readouterr().err


def test_bad_arguments_are_refused_before_any_work(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    for arguments, message in (
        ({"images": 0}, "images must be an integer of 1 or more, got 0"),
        ({"trials": 1.5}, "trials must be an integer of 1 or more, got 1.5"),
        ({"layers": "conv"}, "layers must be some of conv, linear, bn, got 'conv'"),
        ({"layers": ["batchnorm"]}, "layers must be of conv, linear, bn, got 'batchnorm'"),
        ({"init": "he"}, "init must be module or network, or a function, got 'he'"),
        ({"init": "network"}, "needs a way to make Sequential anew"),
        ({"eps": [0.1, 0.2]}, "eps must have a value for each of 1 networks, got 2"),
        ({"data": None}, "no network says on which data"),
    ):
        with pytest.raises(ValueError, match=message):
            criticality(net, **{"data": "digits", "progress": False, "out": tmp_path / "out", **arguments})  # fmt: skip
    with pytest.raises(ValueError, match="two networks have the same label"):
        criticality([net, net], "digits")
    with pytest.raises(ValueError, match="there are no networks"):
        criticality([], "digits")
    with pytest.raises(TypeError, match=r"<lambda> must make an nn.Module, got int"):
        criticality(lambda: 1, "digits")
    assert not (tmp_path / "out" / "study.json").exists()


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    advfast.train("small-cnn", "digits", method="standard", epochs=1, out="runs/a", progress=False)
    words = ["study", "criticality", "--images", "20", "--trials", "1", "--quiet"]
    assert (
        cli.main([*words, "a=runs/a", "b=runs/a/best.pt", "--layers", "conv", "--eps", "0,8/255"])
        == 0
    )
    printed = capsys.readouterr().out
    assert "criticality by stage, b:" in printed and "studies/criticality holds" in printed
    record = json.loads((tmp_path / "studies/criticality/study.json").read_text())
    assert {row["model"]: row["eps"] for row in record["rows"]} == {"a": 0.0, "b": 8 / 255}
    assert {row["kind"] for row in record["rows"]} == {"conv"} and record["settings"][
        "images"
    ] == 20
    assert cli.main([*words, "runs/a"]) == 1
    assert "already holds a study" in capsys.readouterr().err
    assert cli.main([*words, "runs/none", "--overwrite"]) == 1
    error = capsys.readouterr().err
    assert "neither a run's folder nor a checkpoint" in error and error.count("\n") == 1
    assert cli.main([*words, "a=runs/a", "runs/a/best.pt"]) == 2
    assert "label=source" in capsys.readouterr().err
    assert cli.main(["study", "criticality", "--preset", "published"]) == 1
    assert "advfast: error:" in capsys.readouterr().err


def test_presets_are_arguments():
    small_preset = preset("criticality", "small")
    net = small_preset["models"]["standard"]["model"]()
    assert len(find_layers(net, ("conv", "linear"))) == 21
    assert net(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert [m.get("eps") for m in small_preset["models"].values()] == [None, 0.05, 0.1]
    published = preset("criticality", "published")
    assert (published["images"], published["trials"], published["init"]) == (10_000, 3, "network")
