"""When an attack is captured, replayed, or run eagerly, on a stand-in for CUDA graphs."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import pytest
import torch
from torch import nn

from advfast import PGDAttack, graphs
from advfast.attacks import capture
from advfast.attacks.capture import captured_craft, forget_graphs

from ..tape import Recorder
from . import networks


@dataclasses.dataclass(frozen=True)
class Plan:
    model: object
    eps: object = 0.1
    alpha: object = 0.02
    steps: int = 3
    loss: object = "ce"
    start: object = None
    bounds: object = (0.0, 1.0)
    capturing: bool = False


class Attack:
    def __init__(self, capture, **settings):
        self.capture = capture
        self.capture_note = ""
        self.launches = 0
        vars(self).update(settings)

    def start(self):
        return 0


class Case:
    """An attack of three settings, and a craft that says whether it ran as recorded or eagerly."""

    def __init__(self, model=None, capture="auto", **settings):
        self.model = nn.Linear(4, 3) if model is None else model
        self.attack = Attack(capture)
        self.settings = settings
        self.runs = []

    def craft(self, inputs, plan):
        self.runs.append("recorded" if plan.capturing else "eager")
        eps = inputs.get("eps", plan.eps)
        alpha = inputs.get("alpha", plan.alpha)
        x = inputs["x0"].clone()
        for _ in range(plan.steps):
            logits = plan.model(x)
            if callable(plan.loss):
                logits = plan.loss(logits)
            x = (x + alpha * logits.sum(1, keepdim=True).sign()).clamp(-eps, eps)
        return x, torch.zeros(1, dtype=torch.int64)

    def __call__(self, x0, extra=None, **settings):
        plan = Plan(self.model, **{**self.settings, **settings})
        self.runs.clear()
        with torch.no_grad():
            result, _ = captured_craft(self.attack, self.craft, {"x0": x0, **(extra or {})}, plan)
            assert torch.equal(result, Case.craft(self, {"x0": x0, **(extra or {})}, plan)[0])
        self.runs.pop()
        return result

    @property
    def did(self):
        """What the last call did."""
        if "recorded" in self.runs:
            return "captured"
        return "ran" if self.runs else "replayed"


@pytest.fixture
def recorder(monkeypatch):
    tape = Recorder()
    monkeypatch.setattr(graphs, "recorder", lambda device: tape)
    yield tape
    forget_graphs()


def x(batch=2):
    return torch.rand(batch, 4)


def test_auto_captures_the_second_call(recorder):
    case = Case()
    done = []
    for _ in range(4):
        case(x())
        done.append(case.did)
        assert case.attack.capture_note == ""
    assert done == ["ran", "captured", "replayed", "replayed"]
    assert case.attack.launches == 3


def test_required_captures_the_first_call_and_off_none(recorder):
    case = Case(capture="required")
    case(x())
    assert case.did == "captured"
    case(x())
    assert case.did == "replayed"
    off = Case(case.model, capture="off")
    for _ in range(3):
        off(x())
        assert off.did == "ran" and off.attack.launches == 0


def test_numbers_ramp_without_another_capture(recorder):
    case = Case(capture="required")
    for eps in (0.1, 0.05, 0.2, 0.1):
        case(x(), eps=eps, alpha=eps / 4)
    assert len(recorder.recordings) == 1 and case.attack.launches == 4
    case(x(), {"eps": torch.tensor(0.3)}, eps=torch.tensor(9.0))
    assert len(recorder.recordings) == 2  # a tensor is another kind of input
    case(x(), {"eps": torch.tensor(0.1)}, eps=torch.tensor(9.0))
    assert len(recorder.recordings) == 3  # the plan's own tensor may be read: it is elsewhere now


def _replaced(model):
    model.weight = nn.Parameter(torch.rand(3, 4))


def _moved(model):
    model.weight.data = torch.rand(3, 4)


@pytest.mark.parametrize("change", [_replaced, _moved, nn.Module.eval, nn.Module.double])
def test_a_changed_model_is_captured_anew(recorder, change):
    case = Case(capture="required")
    case(x())
    kept = case.model.weight.data  # or the new one could lie where the old one did
    change(case.model)
    case(x().to(case.model.weight.dtype))
    assert case.did == "captured"
    del kept


def test_weights_changed_in_place_are_not(recorder):
    case = Case(capture="required")
    case(x())
    with torch.no_grad():
        case.model.weight.neg_()
        case.model.bias.add_(1)
    case(x())  # compared with an eager run
    assert case.did == "replayed"


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.temperature = 2.0
        self.scales = [1.0]
        self.offset = torch.zeros(1)

    def forward(self, x):
        return self.layer(x) * self.temperature * self.scales[0] - self.offset


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "temperature", -1.0),
        lambda model: model.scales.__setitem__(0, -1.0),
        lambda model: setattr(model, "offset", torch.full((1,), 5.0)),
        lambda model: model.layer.register_forward_hook(lambda module, args, out: -out),
        lambda model: setattr(model, "layer", nn.Linear(4, 2)),
    ],
)
def test_attributes_of_the_model_are_in_the_key(recorder, change):
    case = Case(Scaled(), capture="required")
    case(x())
    case(x())
    assert case.did == "replayed"
    change(case.model)
    case(x())
    assert case.did == "captured"


def test_another_hook_is_in_the_key(recorder):
    case = Case(capture="required")
    for sign in (1, -1):
        hook = case.model.register_forward_hook(lambda module, args, out, sign=sign: out * sign)
        case(x())
        assert case.did == "captured"
        hook.remove()


def test_settings_shapes_and_layouts_are_in_the_key(recorder):
    case = Case(capture="required")
    kinds = [
        ((x(),), {}),
        ((x(3),), {}),
        ((x(3),), {"steps": 5}),
        ((x(3),), {"steps": True}),
        ((x(3),), {"bounds": (0.0, 2.0)}),
        ((x(3),), {"bounds": [0.0, torch.ones(1)]}),
        ((x(3).t().contiguous().t(),), {}),
        ((x(3), {"mask": torch.ones(3, 1)}), {}),
    ]
    for args, settings in kinds:
        case(*args, **settings)
        assert case.did == "captured"
    assert len(recorder.recordings) == len(kinds)


def test_another_attack_with_the_same_settings_shares_the_graph(recorder):
    case = Case(capture="required")
    case(x())
    case.attack = Attack("auto")
    case(x())
    assert case.did == "replayed"
    case.attack = Attack("auto", sharpness=3.0)
    case(x())
    assert case.did == "ran"


def _scaled_loss(beta):
    return lambda logits: logits * beta


SIGN = 1.0


def _global_loss(logits):
    return logits * SIGN


class _Loss:
    beta = 1.0

    def __init__(self):
        self.beta = 1.0

    def __call__(self, logits):
        return logits * self.beta

    def method(self, logits):
        return logits * self.beta


def test_numbers_that_a_loss_sees_are_in_the_key(recorder, monkeypatch):
    case = Case(capture="required")
    own = _Loss()
    for loss in (_scaled_loss(1.0), _scaled_loss(1.0), _global_loss, own, own.method):
        case(x(), loss=loss)
    assert len(recorder.recordings) == 4  # two functions of one line with one beta are the same
    case(x(), loss=_scaled_loss(-1.0))
    assert case.did == "captured"
    monkeypatch.setitem(globals(), "SIGN", -1.0)
    case(x(), loss=_global_loss)
    assert case.did == "captured"
    own.beta = -1.0
    for loss in (own, own.method):
        case(x(), loss=loss)
        assert case.did == "captured"


def test_a_method_of_the_attack_is_not_bound_to_which_attack(recorder):
    case = Case(capture="required")
    for expected in ("captured", "replayed"):
        case.attack = Attack("required")
        case(x(), start=case.attack.start)
        assert case.did == expected


def _waits(logits):
    return logits * logits.sum().sign().item()


def test_a_loss_that_waits_runs_eagerly_with_the_reason(recorder):
    case = Case(loss=_waits)
    for _ in range(4):
        case(x())
        assert case.attack.launches == 0
    assert "waits for the device" in case.attack.capture_note
    assert recorder.failures == 1  # not tried again
    assert case.did == "ran"
    case(x(), loss="ce")
    assert case.attack.capture_note == ""
    case.attack.capture = "required"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"capture='required'.*waits for the device"):
            case(x(), loss=_waits)


def test_a_wrong_model_raises_its_own_error(recorder):
    case = Case(nn.Linear(5, 3), capture="required")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        case(x())


def test_a_cpu_runs_eagerly_with_the_reason():
    case = Case()
    case(x())
    assert case.did == "ran" and case.attack.capture_note == "no CUDA graphs on cpu"
    case.attack.capture = "required"
    with pytest.raises(RuntimeError, match=r"capture='required'.*no CUDA graphs on cpu"):
        case(x())


def test_a_plain_function_as_a_model_only_if_required(recorder):
    weight = torch.rand(4, 3)
    case = Case(lambda x: x @ weight)
    for _ in range(3):
        case(x())
        assert case.did == "ran" and "not an nn.Module" in case.attack.capture_note
    case.attack.capture = "required"
    case(x())
    case(x())
    assert case.did == "replayed" and case.attack.capture_note == ""


def test_nothing_is_captured_inside_a_compilation(recorder, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    case = Case()
    case(x())
    case(x())
    assert case.did == "ran" and "tracing" in case.attack.capture_note


def test_inside_a_capture_it_becomes_a_part_of_it(recorder, monkeypatch):
    monkeypatch.setattr(graphs, "capturing", lambda: True)
    case = Case(capture="required")
    case(x())
    assert case.runs == ["recorded"] and case.attack.launches == 0 and not recorder.recordings


def test_running_statistics_move_once_a_call(recorder):
    def craft(inputs, plan):
        out = plan.model(inputs["x0"])
        return out, torch.zeros(1, dtype=torch.int64)

    model, plain = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    attack = Attack("required")
    for _ in range(3):
        x0 = x(8)
        with torch.no_grad():
            result, _ = captured_craft(attack, craft, {"x0": x0}, Plan(model))
            assert torch.equal(result, plain(x0))
        assert torch.equal(model.running_mean, plain.running_mean)
        assert model.num_batches_tracked == plain.num_batches_tracked
    assert attack.launches == 3


def test_graphs_go_with_the_model_and_keep_nothing_else(recorder):
    case = Case(capture="required")
    case(x())
    (recording,) = recorder.recordings
    recording.calls.clear()  # the stand-in holds what it reads, a graph does not
    recording.reads.clear()
    model = weakref.ref(case.model)
    attack = weakref.ref(case.attack)
    del case
    gc.collect()
    assert model() is None and attack() is None
    assert not capture._known and recording.released


def test_the_graphs_used_last_are_kept(recorder):
    case = Case(capture="required")
    for batch in range(1, capture.KEPT + 3):
        case(x(batch))
    assert [recording.released for recording in recorder.recordings[:3]] == [True, True, False]
    case(x(capture.KEPT))
    assert case.did == "replayed"
    case(x(1))
    assert case.did == "captured"
    forget_graphs(case.model)
    assert all(recording.released for recording in recorder.recordings)


CASES = {
    "plain": {},
    "no-start": {"random_start": False},
    "l2": {"norm": "l2", "eps": 0.5, "alpha": 0.2},
    "l1": {"norm": "l1", "eps": 5.0, "alpha": 2.0},
    "kl": {"loss": "kl"},
    "margin-targeted": {"loss": "margin", "targeted": True},
    "targets": {"targets": 2},
    "targets-restarts": {"targets": 3, "restarts": 2, "loss": "margin"},
    "restarts": {"restarts": 3},
    "early-stop": {"early_stop": True, "restarts": 2},
    "early-stop-l2": {"early_stop": True, "norm": "l2", "eps": 0.5, "alpha": 0.2},
    "momentum": {"momentum": 1.0},
    "bf16": {"precision": "bf16"},
    "exact": {"fold": False},
    "long": {"steps": 40},
    "batch-statistics": {"bn": "train"},
    "draws": {"bn": "train-update", "eot": 2},
    "torch-start": {"start": "torch"},
    "pieces": {"batch_size": 6},
    "channels": {"bounds": ([0.0, 0.1, 0.2], 1.0)},
}


@pytest.mark.parametrize("name", CASES)
def test_a_replay_gives_the_bits_of_the_eager_attack(recorder, name):
    settings = {"eps": 0.1, "alpha": 0.03, "steps": 4, "seed": 7} | CASES[name]
    eager, graphed = networks.cnn(), networks.cnn()
    a = PGDAttack(eager, **settings, capture="off")
    b = PGDAttack(graphed, **settings, capture="required")
    for round in range(3):
        images = torch.rand(8, 3, 12, 12).clamp(0.2)
        labels = torch.randint(10, (8,))
        a.eps = b.eps = settings["eps"] * (1 + round / 2)
        for net in (eager, graphed):
            net.train("bn" in settings)
            with torch.no_grad():
                net[0].weight.mul_(1.5 if round else 1)  # as an optimiser does, in place
        results = []
        for attack in (a, b):
            torch.manual_seed(round)
            results.append(attack(images, labels))
        assert torch.equal(*results)
        assert a.nonfinite == b.nonfinite == 0
        assert all(map(torch.equal, eager.buffers(), graphed.buffers()))
    pieces = 2 if name == "pieces" else 1
    assert b.launches == 3 * pieces
    assert len(recorder.recordings) == pieces  # one for each size


def test_starts_differ_between_replays_and_follow_the_seed(recorder):
    images, labels = networks.batch()
    attack = PGDAttack(networks.cnn(), capture="required", steps=1, alpha=1e-6)
    first, second = attack(images, labels), attack(images, labels)
    assert not torch.equal(first, second)
    attack.seed = 3
    third = attack(images, labels)
    assert torch.equal(third, attack(images, labels))
    attack.seed = 4
    assert not torch.equal(third, attack(images, labels))
    torch.manual_seed(0)
    attack.seed = None
    again = attack(images, labels)
    torch.manual_seed(0)
    assert torch.equal(again, attack(images, labels))
    assert len(recorder.recordings) == 1 and attack.launches == 7


def test_labels_masks_and_sample_ids_of_each_call_are_used(recorder):
    net = networks.cnn()
    attack = PGDAttack(net, capture="required", seed=1)
    eager = PGDAttack(net, capture="off", seed=1)
    for _ in range(3):
        images, labels = torch.rand(4, 3, 12, 12), torch.randint(10, (4,))
        extra = {"mask": torch.rand(4, 1, 12, 12) > 0.5, "sample_ids": torch.randint(99, (4,))}
        assert torch.equal(attack(images, labels, **extra), eager(images, labels, **extra))
    assert len(recorder.recordings) == 1


def test_an_attack_by_its_defaults_is_captured_at_its_second_call(recorder):
    images, labels = networks.batch()
    attack = PGDAttack(networks.cnn())
    launches = []
    for _ in range(3):
        attack(images, labels)
        launches.append(attack.launches)
    assert launches == [0, 1, 2] and attack.capture_note == ""


def test_a_loss_of_the_user_that_waits(recorder):
    images, labels = networks.batch()
    calls = []

    def loss(logits, labels):
        calls.append(1)
        return nn.functional.cross_entropy(logits, labels) * float(logits.abs().max() > 0)

    attack = PGDAttack(networks.cnn(), loss=loss, steps=2, seed=1)
    expected = PGDAttack(attack.model, loss=loss, steps=2, seed=1, capture="off")(images, labels)
    for _ in range(3):
        assert torch.equal(attack(images, labels), expected)
    assert attack.launches == 0 and "waits" in attack.capture_note
    attack.capture = "required"
    with pytest.raises(RuntimeError, match=r"capture='required'.*waits"):
        attack(images, labels)
