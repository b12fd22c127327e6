"""Temporal ensembling: its algebra by hand, the training loop by hand, and what it goes with."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from advfast.attacks import PGDAttack
from advfast.attacks.gaussian import GaussianPGD
from advfast.data import Batch, Loader, TensorSource, stratified_split
from advfast.models import branch, use_norm_layers
from advfast.training import checkpoint, methods, train
from advfast.training.methods import guide
from advfast.training.modifiers import TE, RunInfo, StepInfo, make, te
from advfast.training.parallel import Ranks

from .. import ranks
from ..by_hand import EPS, batch_of, made
from ..by_hand import network as normalised
from ..passes import counted
from ..test_captured import both
from ..test_resume import assert_same
from .runs import assert_resumes, course, images

RAMP = "te:start=2,end=3"
GUIDED = ("pgd-at", "trades")


def run_of(epochs, samples=40, steps=1):
    return RunInfo(3, 12, epochs, steps, seed=0, samples=samples)


def begun(modifier, model, run):
    modifier.begin(model, run)
    return modifier


def guided(modifier, method, batch, epoch, run):
    """The batch of the first step of an epoch, as the modifier returns it."""
    step = (epoch - 1) * run.steps_per_epoch
    modifier.before_step(StepInfo(step, run.steps_per_epoch, run.epochs, 0.1, method, 0))
    return modifier.batch(batch)


def weight_in(epoch, epochs, word="te"):
    model, batch, run = normalised(), batch_of(), run_of(epochs)
    batch = guided(begun(make(word), model, run), made("pgd-at", model, batch), batch, epoch, run)
    return None if batch.guide is None else batch.guide_weight.item()


def test_the_published_ramp():
    assert te.rise(89, 90, 150) == 0
    assert te.rise(90, 90, 150) == pytest.approx(math.exp(-5), rel=1e-12)
    assert te.rise(120, 90, 150) == pytest.approx(math.exp(-1.25), rel=1e-12)
    assert te.rise(150, 90, 150) == te.rise(200, 90, 150) == 1
    assert weight_in(89, 200) is None
    assert weight_in(90, 200) == pytest.approx(2.0214, abs=1e-4)
    assert weight_in(120, 200) == pytest.approx(85.9514, abs=1e-4)
    assert weight_in(150, 200) == weight_in(200, 200) == 300


def test_defaults_scale_with_the_run_and_epochs_do_not():
    assert weight_in(44, 100) is None
    assert weight_in(45, 100) == pytest.approx(weight_in(90, 200), rel=1e-12)
    assert weight_in(60, 100) == pytest.approx(weight_in(120, 200), rel=1e-12)
    assert weight_in(7, 100, "te:start=0.07,end=0.5") is not None
    assert weight_in(6, 100, "te:start=0.07,end=0.5") is None
    word = "te:start=90,end=150,weight=10"
    assert weight_in(89, 400, word) is None
    assert weight_in(120, 400, word) == pytest.approx(10 * math.exp(-1.25), rel=1e-12)


def test_averages_by_hand():
    model, batch, run = normalised(), batch_of(), run_of(4)
    method = made("pgd-at", model, batch)
    modifier = begun(TE(1, 2, momentum=0.75), model, run)
    expected = torch.zeros(40, 3, dtype=torch.float64)
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for epoch in (1, 2, 3):
        model.train()
        one = batch._replace(images=(batch.images + 0.2 * epoch).clamp(max=1))
        out = guided(modifier, method, one, epoch, run)
        with torch.no_grad():
            p = copy.deepcopy(model).eval()(one.images).softmax(1)
        for row, number in enumerate(batch.indices.tolist()):
            for k in range(3):
                old = float(expected[number, k])
                expected[number, k] = 0.75 * old + 0.25 * float(p[row, k])
        rows = expected[batch.indices]
        torch.testing.assert_close(out.guide, rows / rows.sum(1, keepdim=True))
        assert not out.guide.requires_grad and torch.equal(out.images, one.images)
        torch.testing.assert_close(modifier.state_dict()["soft_labels"], expected)
        if epoch == 1:
            torch.testing.assert_close(out.guide, p)
        assert all(module.training for module in model.modules())
        assert_same(dict(model.state_dict()), dict(state))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.3)
        state = copy.deepcopy(model.state_dict())
    assert expected[:7].abs().sum() == 0 and expected[19:].abs().sum() == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_of_a_sample_that_comes_twice_the_first_one_counts():
    labels = te.SoftLabels(5, 2, torch.float32, torch.device("cpu"), Ranks())
    found = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.3, 0.7], [0.2, 0.8]])
    guides = labels.follow(torch.tensor([4, 1, 4, 1]), found, 0.5)
    torch.testing.assert_close(guides, found[[0, 1, 0, 1]])
    torch.testing.assert_close(labels.rows[[4, 1]], found[:2] / 2)
    assert labels.rows[[0, 2, 3]].abs().sum() == 0


def test_what_is_kept_is_wide(tmp_path):
    for precision in ("fp32", "bf16"):
        course(tmp_path / precision, RAMP, precision=precision, method="trades")
        (state,) = checkpoint.read(tmp_path / precision / "last.pt")["run"]["modifiers"]
        assert state["soft_labels"].dtype == torch.float32
        torch.testing.assert_close(state["soft_labels"].sum(1), torch.full((110,), 0.19))
    # Softmax in float32 of logits in 16 bits: not all values are those of 16 bits.
    rounded = state["soft_labels"].bfloat16().float()
    assert (rounded != state["soft_labels"]).float().mean() > 0.5


def test_the_objective_of_the_attack_by_hand():
    torch.manual_seed(0)
    logits, target, g = (torch.randn(6, 4, dtype=torch.float64) for _ in range(3))
    target, g = target.softmax(1), g.softmax(1)
    batch = Batch(logits, None, None, g, torch.tensor(7.0, dtype=torch.float64))
    found = guide.objective(logits, guide.table(3 * target, batch))
    for row in range(6):
        powers = [math.exp(z) for z in logits[row].tolist()]
        q = [power / sum(powers) for power in powers]
        kl = sum(t * math.log(t / a) for t, a in zip(target[row].tolist(), q, strict=True))
        entropy = -sum(t * math.log(t) for t in target[row].tolist())
        apart = sum((a - b) ** 2 for a, b in zip(q, g[row].tolist(), strict=True)) / 4
        assert found[row].item() == pytest.approx(3 * (kl + entropy) + 7 * apart, rel=1e-12)
    # 16 bits are taken to float32 first.
    narrow = guide.objective(logits.bfloat16(), guide.table(3 * target, batch).float())
    wide = guide.objective(logits.bfloat16().float(), guide.table(3 * target, batch).float())
    assert narrow.dtype == torch.float32 and torch.equal(narrow, wide)


@pytest.mark.parametrize("bn", ["eval", "train", "train-update"])
@pytest.mark.parametrize(
    ("name", "options"), [("pgd-at", {}), ("trades", {}), ("trades", {"start": "uniform"})]
)
def test_without_weight_the_attack_is_the_plain_one(name, options, bn):
    batch = batch_of()
    weightless = batch._replace(
        guide=torch.rand(12, 3, dtype=torch.float64).softmax(1), guide_weight=torch.tensor(0.0)
    )
    outcomes = []
    for one in (batch, weightless, weightless._replace(guide_weight=torch.tensor(300.0))):
        model = normalised().train()
        method = made(name, model, batch, bn=bn, options=options)
        torch.manual_seed(2)
        outcomes.append((method.craft(one), model[1].running_mean.clone()))
    plain, same, drawn = outcomes
    torch.testing.assert_close(same, plain, rtol=0, atol=1e-12)
    assert not torch.allclose(drawn[0], plain[0], atol=EPS / 10)


def by_hand(name, model, data, *, epochs, start, end, smoothing, eps, alpha, seed=4):
    """The loop of the paper on advfast's batches and starts: losses of the epochs, and soft labels.

    The iterate is float64, as such a network's is; in float32 a pixel may then be another one in its last place.
    """
    kept, _ = stratified_split(data[1], round(0.15 * len(data[1])), seed=seed)
    source = TensorSource(*data).subset(kept)
    loader = Loader(source, 24, device="cpu", seed=seed, augment=["flip"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    start_of = PGDAttack if name == "pgd-at" else GaussianPGD
    soft, losses = torch.zeros(len(kept), 3, dtype=torch.float64), []
    torch.manual_seed(seed)
    for epoch in range(1, epochs + 1):
        done, total = min(1.0, (epoch - start) / (end - start)), 0.0
        w = 20 * math.exp(-5 * (1 - done) ** 2) if epoch >= start else 0.0
        for x, y, numbers, *_ in loader.batches(epoch):
            model.eval()
            with torch.no_grad():
                p = model(x).softmax(1)
            g = p
            if w:
                soft[numbers] = 0.9 * soft[numbers] + 0.1 * p
                g = soft[numbers] / soft[numbers].sum(1, keepdim=True)
            attacked = start_of(model, eps, alpha, 0)(x.double(), y, sample_ids=numbers)
            for _ in range(2):
                attacked = attacked.detach().requires_grad_()
                logits = model(attacked)
                q = logits.softmax(1)
                if name == "pgd-at":
                    raised = F.cross_entropy(logits, y)
                else:
                    raised = 6 * F.kl_div(logits.log_softmax(1), p, reduction="batchmean")
                raised = raised + w * (q - g).square().mean()
                (gradient,) = torch.autograd.grad(raised, attacked)
                moved = attacked.detach() + alpha * gradient.sign()
                attacked = (x + (moved - x).clamp(-eps, eps)).clamp(0, 1)
            model.train()
            attacked = attacked.float()
            if name == "pgd-at":
                logits = model(attacked)
                loss = F.cross_entropy(logits, y, label_smoothing=smoothing)
            else:
                logits = model(x)
                loss = F.cross_entropy(logits, y, label_smoothing=smoothing)
                log_q = model(attacked).log_softmax(1)
                loss = loss + 6 * F.kl_div(log_q, logits.softmax(1), reduction="batchmean")
            loss = loss + w * (logits.softmax(1) - g).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(y)
        losses.append(total / len(kept))
    return losses, soft


@pytest.mark.parametrize("name", GUIDED)
def test_training_is_the_loop_by_hand(tmp_path, name):
    data = images(71)
    model = ranks.network(bn=True)
    result = train(
        model, data, method=name, eps=1 / 8, alpha=1 / 32, steps=2, epochs=4, batch_size=24, lr=0.05, seed=4,
        schedule="constant", augment=["flip"], label_smoothing=0.1, modifiers=["te:start=2,end=4,weight=20"],
        out=tmp_path, progress=False,
    )  # fmt: skip
    plain = ranks.network(bn=True)
    losses, soft = by_hand(
        name, plain, data, epochs=4, start=2, end=4, smoothing=0.1, eps=1 / 8, alpha=1 / 32
    )
    assert [row["train_loss"] for row in result.history] == pytest.approx(losses, rel=1e-6)
    saved = checkpoint.read(tmp_path / "last.pt")["run"]
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(saved["weights"][key], value, rtol=0, atol=1e-6)
    torch.testing.assert_close(saved["modifiers"][0]["soft_labels"], soft, rtol=0, atol=1e-7)


class Weights:
    """Of the ends of epochs."""

    def __init__(self):
        self.states = []

    def on_epoch_end(self, state):
        self.states.append(
            copy.deepcopy(dict(state.model.state_dict())) | {"rng": torch.get_rng_state()}
        )


@pytest.mark.parametrize("name", GUIDED)
def test_before_the_start_it_is_the_base_method(tmp_path, name):
    plain, ensembled = Weights(), Weights()
    course(tmp_path / "plain", method=name, callbacks=[plain])
    course(tmp_path / "te", "te:start=3,end=4", method=name, callbacks=[ensembled])
    assert_same(ensembled.states[:2], plain.states[:2])
    assert not torch.equal(ensembled.states[2]["5.weight"], plain.states[2]["5.weight"])


def test_a_clean_prefix_is_left_alone(tmp_path):
    plain, ensembled = Weights(), Weights()
    course(tmp_path / "plain", clean_prefix=2, callbacks=[plain])
    course(tmp_path / "te", "te:start=1,end=2", clean_prefix=2, callbacks=[ensembled])
    assert_same(ensembled.states[:2], plain.states[:2])
    (state,) = checkpoint.read(tmp_path / "te" / "last.pt")["run"]["modifiers"]
    torch.testing.assert_close(state["soft_labels"].sum(1), torch.full((110,), 0.1))


@pytest.mark.parametrize("name", GUIDED)
def test_in_parts_it_is_the_whole_batch(tmp_path, name):
    # No layer looks at the batch.
    states = []
    for size in (None, 5):
        course_of = {
            "method": name,
            "micro_batch": size,
            "eps": EPS,
            "steps": 2,
            "epochs": 2,
            "batch_size": 16,
        }
        train(
            ranks.network(), ranks.data(), modifiers=["te:start=1,end=2"], out=tmp_path / str(size), seed=4,
            progress=False, **course_of,
        )  # fmt: skip
        states.append(checkpoint.read(tmp_path / str(size) / "last.pt")["run"])
    whole, parts = states
    for key, value in whole["weights"].items():
        torch.testing.assert_close(parts["weights"][key], value, rtol=0, atol=1e-9)
    soft = [state["modifiers"][0]["soft_labels"] for state in states]
    torch.testing.assert_close(*soft, rtol=0, atol=1e-9)


def test_no_pass_has_more_than_the_micro_batch():
    seen = []
    model = normalised()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    batch, run = batch_of(), run_of(2)
    for name in GUIDED:
        method = made(name, model, batch, micro_batch=5)
        method.craft(guided(begun(TE(1, 2), model, run), method, batch, 1, run))
    assert max(seen) == 5 and min(seen) == 2


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_it_has_the_bits_of_an_eager_run(tmp_path, monkeypatch, name, precision):
    eager, captured, launches = both(
        tmp_path, images(102), monkeypatch, modifiers=[RAMP], method=name, precision=precision
    )
    assert_same(captured, eager)
    assert launches[-1] == 10


def same_labels(folder, steps):
    whole, *others = (
        checkpoint.read(folder / name / "last.pt")["run"]["modifiers"]
        for name in ("whole", *map(str, steps))
    )
    for other in others:
        assert_same(other, whole)
    return whole


@pytest.mark.parametrize("name", GUIDED)
def test_resumed_in_the_middle_of_an_epoch(tmp_path, name):
    steps = (2, 4, 6, 8)
    assert_resumes(
        tmp_path, RAMP, "awp", "ema:decay=0.8", steps=steps, method=name, extra=images(40), extra_share=0.3
    )  # fmt: skip
    labels = same_labels(tmp_path, steps)[0]["soft_labels"]
    assert labels.shape == (150, 3) and (labels.sum(1) > 0).sum() > 100


def test_resumed_from_what_was_saved_between_steps(tmp_path):
    class Die:
        def on_step_end(self, state):
            if state.global_step == 8:
                raise RuntimeError("died")

    course(tmp_path / "whole", RAMP)
    with pytest.raises(RuntimeError, match="died"):
        course(tmp_path / "7", RAMP, save_every=7, callbacks=[Die()])
    assert checkpoint.read(tmp_path / "7" / "last.pt")["run"]["loop"]["step"] == 1
    course(tmp_path / "7", RAMP, save_every=7)
    same_labels(tmp_path, [7])
    whole, cut = (checkpoint.read(tmp_path / name / "last.pt")["run"] for name in ("whole", "7"))
    assert_same(cut["weights"], whole["weights"])


def test_averaged_weights_have_no_part_in_it(tmp_path):
    course(tmp_path / "plain", RAMP)
    course(tmp_path / "ema", RAMP, "ema:decay=0.9")
    plain, ema = (checkpoint.read(tmp_path / name / "last.pt")["run"] for name in ("plain", "ema"))
    assert_same(ema["weights"], plain["weights"])
    assert_same(ema["modifiers"][0], plain["modifiers"][0])


def test_trades_follows_its_clean_branch():
    model, batch, run = normalised(), batch_of(), run_of(2)
    use_norm_layers(model, "dual-batch")
    with torch.no_grad(), branch(model, "clean"):
        model.train()(batch.images + 1)  # now the branches have other statistics
    found = []
    for name, own in (("pgd-at", "adversarial"), ("trades", "clean")):
        method = made(name, model, batch)
        found.append(guided(begun(TE(1, 2), model, run), method, batch, 1, run).guide)
        with torch.no_grad(), branch(model, own):
            expected = copy.deepcopy(model).eval()(batch.images).softmax(1)
        torch.testing.assert_close(found[-1], expected)
    assert not torch.allclose(*found, atol=1e-3)


def test_it_costs_one_pass_where_it_is_active():
    batch, run = batch_of(dtype=torch.float32), run_of(2)
    modifier = begun(TE(2, 3), normalised(), run)
    assert modifier.extra_passes() == 0
    for epoch, expected in ((1, 0.0), (2, 1.0)):
        guided(modifier, made("pgd-at", normalised(torch.float32), batch), batch, epoch, run)
        assert (modifier.extra_passes(), modifier.graph_key()) == (expected, bool(expected))

    class FromTheStart(TE):
        def begin(self, model, run):
            super().begin(model, run_of(2))

    def passes(*modifiers):
        return counted(lambda model: made("pgd-at", model, batch), batch, modifiers=modifiers)

    assert passes(FromTheStart(1, 2)) == passes() + 1


def test_names_and_defaults():
    default = make("te")
    assert (default.start, default.end, default.weight, default.momentum) == (0.45, 0.75, 300, 0.9)
    own = make("te:start=90,end=0.75,weight=30,momentum=0")
    assert (own.start, own.end, own.weight, own.momentum) == (90, 0.75, 30, 0)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("te:start=-1", "start must be an epoch from 1 or a share of the run below 1, got -1"),
        ("te:start=2.5", "start must be an epoch from 1 or a share of the run below 1, got 2.5"),
        ("te:end=x", "end must be an epoch from 1 or a share of the run below 1, got 'x'"),
        ("te:weight=-1", "weight must be a finite number >= 0, got -1"),
        ("te:momentum=1", "momentum must be at least 0 and below 1, got 1"),
        ("te:momentum=true", "momentum must be at least 0 and below 1, got True"),
        ("te:start=4", "start must be at most the 3 epochs of the run, got 4"),
        ("te:start=2,end=2", "end must lie behind start, got epochs 2 and 2 of 3"),
        ("te:start=0.9,end=2", "end must lie behind start, got epochs 2.7 and 2 of 3"),
        ("te:decay=0.9", "options are written te:KEY=VALUE"),
    ],
)
def test_bad_values(tmp_path, word, message):
    with pytest.raises(ValueError, match=message):
        course(tmp_path / "run", word)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mixing", ["cutmix", "mixup"])
@pytest.mark.parametrize("order", [1, -1])
def test_mixed_images_are_refused(tmp_path, mixing, order):
    with pytest.raises(ValueError, match="'te' follows the predictions on each image, and another"):
        course(tmp_path / "run", *["te", mixing][::order])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", sorted(methods.METHODS.keys() - set(GUIDED)))
def test_methods_that_are_not_guided_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"ensembled ones, which method '{name}' does not do"):
        course(tmp_path / "run", "te", method=name, steps=None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("numbered", [False, True])
def test_a_data_loader_is_refused(tmp_path, numbered):
    x, y = images()
    parts = (x, y, torch.arange(130)) if numbered else (x, y)
    with pytest.raises(
        ValueError, match=r"te keeps a prediction of each sample.* not a DataLoader"
    ):
        course(
            tmp_path / "run", "te", data=DataLoader(TensorDataset(*parts), 48), val=(x, y), test=(x, y), augment=[]
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
