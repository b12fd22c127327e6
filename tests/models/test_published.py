import os
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn

from advfast import models

from . import foreign

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
NORMALISATION = {"mean": MEAN, "std": STD}
DEEPMIND = {"padding": "end", "activation": "silu"}


def wide(**kwargs):
    return models.make("wide-resnet", depth=16, width=1, **kwargs)


def preact(**kwargs):
    return models.make("preact-resnet18", width=4, **kwargs)


# name: (state dict, its function, our empty network)
NETWORKS = {
    "trades": (
        lambda: foreign.wide_trades(16, 2, sub_block=True),
        lambda s, x: foreign.wide_trades_forward(s, x, 16),
        lambda **kwargs: models.make("wide-resnet", depth=16, width=2, **kwargs),
    ),
    # Of width 1 the first group has no shortcut.
    "rice-wide": (
        lambda: foreign.wide_trades(16, 1, sub_block=False),
        lambda s, x: foreign.wide_trades_forward(s, x, 16),
        wide,
    ),
    "deepmind-wide": (
        lambda: foreign.wide_deepmind(16, 2),
        lambda s, x: foreign.wide_deepmind_forward(s, x, 16),
        lambda **kwargs: models.make("wide-resnet", depth=16, width=2, **DEEPMIND, **kwargs),
    ),
    "rice-preact": (
        lambda: foreign.preact(4, final_bn=True),
        lambda s, x: foreign.preact_forward(s, x, raw_shortcut=False),
        preact,
    ),
    "wong-repository": (
        lambda: foreign.preact(4, final_bn=True),
        lambda s, x: foreign.preact_forward(s, x, raw_shortcut=True),
        lambda **kwargs: preact(shortcut="raw", **kwargs),
    ),
    "wong-robustbench": (
        lambda: foreign.preact(4, final_bn=False),
        lambda s, x: foreign.preact_forward(s, x, raw_shortcut=True),
        lambda **kwargs: preact(shortcut="raw", final_bn=False, **kwargs),
    ),
    "deepmind-preact": (
        lambda: foreign.preact_deepmind(4),
        foreign.preact_deepmind_forward,
        lambda **kwargs: preact(shortcut="raw-3x3", **DEEPMIND, **kwargs),
    ),
    "pytorch-cifar-resnet18": (
        lambda: foreign.resnet18(4),
        foreign.resnet18_forward,
        lambda **kwargs: models.make("resnet18", width=4, **kwargs),
    ),
    "torchvision-resnet50": (
        lambda: foreign.resnet50(4),
        foreign.resnet50_forward,
        lambda **kwargs: models.make("resnet50", width=4, classes=10, **kwargs),
    ),
}


def normalised(x, mean=MEAN, std=STD):
    mean, std = (torch.tensor(value).double().reshape(1, -1, 1, 1) for value in (mean, std))
    return (x - mean) / std


def without_rounding(model):
    """In float64, with mean and std as the test has them and not rounded to float32."""
    model = model.eval().double()
    model.normalise.mean.copy_(torch.tensor(MEAN).double().reshape(1, -1, 1, 1))
    model.normalise.std.copy_(torch.tensor(STD).double().reshape(1, -1, 1, 1))
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_same_function(name):
    make_state, forward, make = NETWORKS[name]
    state, model = make_state(), without_rounding(make(**NORMALISATION))
    report = models.load_published(model, state)
    x = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(x), forward(state, normalised(x)), rtol=1e-9, atol=1e-9)
    used = [key for key in state if not key.startswith("sub_block1")]
    assert len(report.loaded) == len(used) and report.kept == ("normalise.mean", "normalise.std")
    assert len(report.ignored) == len(state) - len(used)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rice-preact", {"shortcut": "raw"}),
        ("rice-preact", {"activation": "silu"}),
        ("wong-repository", {"shortcut": "activated"}),
    ],
)
def test_what_the_keys_do_not_say_is_reported(name, change):
    """The same keys and shapes are another function, so the report has to name the option."""
    make_state, forward, _ = NETWORKS[name]
    state, model = make_state(), without_rounding(preact(**change))
    report = models.load_published(model, state)
    x = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    assert not torch.allclose(model(x), forward(state, normalised(x)), rtol=1e-3)
    (option, value) = next(iter(change.items()))
    assert f"{option}={value!r}" in report.unchecked and option in str(report)


def test_mnist_network():
    state = foreign.mnist()
    model = models.make_published("locuslab/fast_adversarial/MNIST").double()
    models.load_published(model, state)
    x = torch.rand(2, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(model(x), foreign.mnist_forward(state, x), rtol=1e-9, atol=1e-9)


def _prefixed(prefix):
    return lambda state: OrderedDict((prefix + key, value) for key, value in state.items())


WRAPPERS = {
    "plain": lambda state: state,
    "module": _prefixed("module."),
    "compiled": _prefixed("_orig_mod.module."),
    "sequential": _prefixed("module.0."),
    "after-normalisation": _prefixed("1."),
    "state_dict": lambda state: {"state_dict": _prefixed("module.")(state), "best_acc": 0.5},
    "model": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": []}},
    "net": lambda state: {"net": state, "epoch": 3},
    "ema": lambda state: {"ema_model": state},
    "averaged": lambda state: {
        "model_state_dict": _prefixed("module.0.")(state),
        "unaveraged_model_state_dict": {key: 0 * value for key, value in state.items()},
    },
    "robustness": lambda state: {
        "model": {
            **_prefixed("module.model.")(state),
            **_prefixed("module.attacker.model.")(state),
            "module.normalizer.new_mean": torch.zeros(3, 1, 1),
            "module.normalizer.new_std": torch.ones(3, 1, 1),
            "module.attacker.normalize.new_mean": torch.zeros(3, 1, 1),
            "module.attacker.normalize.new_std": torch.ones(3, 1, 1),
        }
    },
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_files_and_wrappers(wrapper, legacy, tmp_path):
    state = foreign.wide_trades(10, 1, sub_block=False)
    path = tmp_path / "weights.pt"
    torch.save(WRAPPERS[wrapper](state), path, _use_new_zipfile_serialization=not legacy)
    model = models.make("wide-resnet", depth=10, width=1)
    report = models.load_published(model, path)
    assert len(report.loaded) == len(state) + (2 if wrapper == "robustness" else 0)
    torch.testing.assert_close(model.conv1.weight, state["conv1.weight"].float())
    torch.testing.assert_close(
        model.layer3[0].shortcut.weight, state["block3.layer.0.convShortcut.weight"].float()
    )


@pytest.mark.parametrize(
    "names", [("mean", "std"), ("mu", "sigma"), ("normalize.mean", "normalize.std")]
)
@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3, 1, 1)])
def test_normalisation_of_the_file_is_taken(names, shape):
    state = foreign.preact(4, final_bn=True)
    for name, values in zip(names, (MEAN, STD), strict=True):
        state[name] = torch.tensor(values).reshape(shape)
    model = preact()
    report = models.load_published(model, state)
    assert model.normalise.mean.flatten().tolist() == pytest.approx(MEAN)
    assert model.normalise.std.flatten().tolist() == pytest.approx(STD)
    assert report.kept == () and not any("mean" in text for text in report.unchecked)


def test_half_precision_and_missing_counters():
    """Wong et al. trained with 16-bit weights; files older than torch 0.4.1 do not count batches."""
    state = foreign.preact(4, final_bn=True)
    state = {key: value.half() for key, value in state.items() if "tracked" not in key}
    model = preact()
    report = models.load_published(model, state)
    assert model.conv1.weight.dtype == torch.float32
    assert len([name for name in report.kept if name.endswith("num_batches_tracked")]) == 17


def test_mode_and_device_stay():
    model = preact().train()
    model.layer1.eval()
    models.load_published(model, foreign.preact(4, final_bn=True))
    assert model.training and not model.layer1.training


def unchanged(model, load, match):
    """`load` raises ValueError, and nothing of the model was written."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        load()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_left_over_missing_and_shapes():
    model, state = preact(), foreign.preact(4, final_bn=True)
    state["linear.weight"] = torch.zeros(100, 32)
    state["extra.weight"] = torch.zeros(1)
    del state["layer2.1.conv2.weight"]
    with pytest.raises(ValueError) as raised:
        models.load_published(model, state)
    for part in (
        "extra.weight",
        "layer2.1.conv2.weight",
        "linear.weight (100, 32) for (10, 32)",
    ):
        assert part in str(raised.value)
    unchanged(model, lambda: models.load_published(model, state), "does not fit")


def test_two_keys_for_one_weight():
    state = foreign.preact(4, final_bn=True)
    state["module.linear.bias"] = state["linear.bias"] + 1
    model = preact()
    unchanged(model, lambda: models.load_published(model, state), r"module\.linear\.bias")


@pytest.mark.parametrize(
    ("make", "name", "match"),
    [
        (lambda: models.make("wide-resnet", depth=16, width=2), "deepmind-wide", "padding='end'"),
        (
            lambda: models.make("wide-resnet", depth=16, width=2, padding="end"),
            "trades",
            "padding='symmetric'",
        ),
        (lambda: preact(padding="end", shortcut="raw"), "deepmind-preact", "shortcut='raw-3x3'"),
        (lambda: preact(final_bn=False), "rice-preact", "no place for: bn.weight"),
        (preact, "wong-robustbench", "missing: bn.weight"),
        (preact, "trades", "none of the keys"),
        (lambda: preact(), "pytorch-cifar-resnet18", "no place for: bn1"),
        (
            lambda: models.make("resnet18", width=4),
            "torchvision-resnet50",
            "stem='imagenet'",
        ),
        (
            lambda: models.make("resnet50", width=4, classes=10),
            "pytorch-cifar-resnet18",
            "stem='cifar'",
        ),
        (wide, "trades", "shapes differ"),
        (
            lambda: models.make("wide-resnet", depth=10, width=2),
            "trades",
            r"block1\.layer\.1",
        ),
    ],
)
def test_another_function_is_refused(make, name, match):
    model, state = make(), NETWORKS[name][0]()
    unchanged(model, lambda: models.load_published(model, state), match)


def test_several_sets_of_weights():
    state = foreign.preact(4, final_bn=True)
    other = {key: value * 0 for key, value in state.items()}
    model, content = preact(), {"state_dict": other, "state_dict_ema": state, "best": state}
    unchanged(model, lambda: models.load_published(model, content), "choose one with key=")
    unchanged(model, lambda: models.load_published(model, content, key="last"), "got key='last'")
    unchanged(model, lambda: models.load_published(model, state, key="best"), "under no key")
    models.load_published(model, content, key="best")
    torch.testing.assert_close(model.conv1.weight, state["conv1.weight"].float())


def test_model_without_a_published_form():
    with pytest.raises(TypeError, match="VisionTransformer"):
        models.load_published(models.make("vit-tiny"), {"a": torch.zeros(1)})


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def _half_of(path, content):
    torch.save(content, path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda path: path.write_text("no checkpoint"), "not a file that torch.save wrote"),
        (lambda path: path.write_bytes(b""), "not a file that torch.save wrote"),
        (lambda path: _half_of(path, foreign.mnist()), "not a file that torch.save wrote"),
        (lambda path: torch.save(nn.Linear(1, 1), path), r"Python objects .*Linear"),
        (lambda path: torch.save([torch.zeros(1)], path), "must hold a state dict, got a list"),
        (lambda path: torch.save({"epoch": 3}, path), "no state dict; its entries are epoch"),
        (lambda path: torch.save({}, path), "no state dict"),
    ],
)
def test_files_that_are_none(write, match, tmp_path):
    path = tmp_path / "weights.pt"
    write(path)
    model = preact()
    unchanged(model, lambda: models.load_published(model, path), match)


@pytest.mark.parametrize("zipped", [False, True])
def test_no_code_of_a_file_runs(zipped, tmp_path):
    path, made = tmp_path / "weights.pt", tmp_path / "made"
    content = {"state_dict": foreign.preact(4, final_bn=True), "args": Runs(made)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    model = preact()
    unchanged(model, lambda: models.load_published(model, path), "weights.pt")
    assert not made.exists()


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        models.load_published(preact(), tmp_path / "absent.pt")


@pytest.mark.parametrize("name", models.PUBLISHED)
def test_every_published_network_can_be_made(name):
    with torch.device("meta"):
        model = models.make_published(name)
    shape = (1, 28, 28) if "MNIST" in name else (3, 32, 32)
    with torch.device("meta"):
        assert model.eval()(torch.rand(1, *shape)).shape == (
            1,
            {"imagenet": 1000, "cifar100": 100}.get(name.split("/")[0], 10),
        )


def test_unknown_published_network():
    with pytest.raises(ValueError, match="did you mean 'cifar10/Linf/Carmon2019Unlabeled'"):
        models.make_published("cifar10/linf/carmon2019unlabelled")
