"""REAT and AT-BSL: weights, attacks, losses and counts against what the specification says, written out slowly."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advfast.data import Batch, Loader, Mixed, TensorSource, long_tail_counts
from advfast.training import methods
from advfast.training.methods.reat import class_weights
from advfast.training.methods.tail import Features, linear_layer

from .by_hand import (
    EPS,
    assert_same_weights,
    batch_of,
    descend,
    image_gradient,
    network,
    one_step,
    settings,
    uniform,
)

COUNTS = [9, 4, 2]


def made(name, model, batch, **options):
    changes = {key: options.pop(key) for key in ("steps", "precision") if key in options}
    method = methods.make(name, model, settings(options={"counts": COUNTS} | options, **changes))
    method.begin(None, batch.images[:2])
    method.begin_epoch(1, None)
    return method


def weights_by_hand(predicted, counts):
    found = []
    for a, n in zip(predicted, counts, strict=True):
        effective = sum(((n - 1) / n) ** power for power in range(a))  # the geometric series
        found.append(1 / (effective + 1e-5))
    return [w * len(found) / sum(found) for w in found]


@pytest.mark.parametrize(
    ("predicted", "counts"),
    [(COUNTS, COUNTS), ([15, 0, 0], COUNTS), ([3, 70, 2], [1, 40, 300]), ([0, 0, 0], [5, 5, 5])],
)
def test_weights_are_by_the_effective_number(predicted, counts):
    weight = class_weights(torch.tensor(predicted), torch.tensor(counts))
    assert weight.tolist() == pytest.approx(weights_by_hand(predicted, counts), rel=1e-9)
    assert (weight > 0).all() and weight.mean() == pytest.approx(1)


def test_a_class_that_is_predicted_rarely_weighs_more():
    weight = class_weights(torch.tensor([50, 5, 20]), torch.tensor([30, 30, 30]))
    assert weight[1] > weight[2] > weight[0]


def convnet(dtype=torch.float32):
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Flatten(), nn.Linear(72, 3),
    ).to(dtype)  # fmt: skip


def crafted(name, predicted=None, dtype=torch.float32, norm="linf", bn="eval", **options):
    model, batch = convnet(dtype), batch_of(48, dtype)
    base = {} if name == "pgd-at" else {"counts": COUNTS} | options
    method = methods.make(name, model, settings(options=base, norm=norm, bn=bn, steps=10))
    method.begin(None, batch.images[:2])
    if predicted is not None:
        method.predicted.copy_(torch.tensor(predicted))
    method.begin_epoch(1, None)
    torch.manual_seed(9)
    return method.craft(batch)


@pytest.mark.parametrize("predicted", [None, [15, 0, 0], [1, 40, 7]])
def test_released_weights_change_no_bit_of_the_images(predicted):
    assert torch.equal(crafted("reat", predicted), crafted("pgd-at"))


def test_released_weights_change_no_direction_in_l2_but_do_where_samples_are_coupled():
    for dtype, norm, bn, same in (
        (torch.float64, "l2", "eval", True),
        (torch.float64, "linf", "train", False),
    ):
        pair = (crafted(name, dtype=dtype, norm=norm, bn=bn) for name in ("reat", "pgd-at"))
        assert torch.allclose(*pair, atol=1e-9) == same


@pytest.mark.parametrize("rbl", ["logit-adjust", "step-scale"])
def test_other_forms_of_the_balance_do_change_the_images(rbl):
    plain, found = crafted("pgd-at"), crafted("reat", [1, 40, 7], rbl=rbl)
    assert (plain != found).flatten(1).any(1).float().mean() > 0.9
    assert (found - batch_of(48, torch.float32).images).abs().max() <= EPS + 1e-6


def test_logit_adjust_leads_to_classes_that_were_predicted_rarely():
    model, batch = convnet(), batch_of(48, torch.float32)
    counts = {}
    for predicted in ([1, 40, 40], [40, 40, 1]):
        images = crafted("reat", predicted, rbl="logit-adjust")
        counts[predicted[0]] = model.eval()(images).argmax(1).bincount(minlength=3)
    assert counts[1][0] > counts[40][0] and counts[40][2] > counts[1][2]
    assert len(batch.labels) == counts[1].sum()


def test_equal_counts_are_plain_cross_entropy():
    batch = batch_of()
    method = made("at-bsl", network(), batch, counts=[7, 7, 7])
    loss, logits = method.loss(batch.images, batch)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, batch.labels).item(), rel=1e-12)
    other = made("at-bsl", network(), batch)
    shifted, same = other.loss(batch.images, batch)
    assert torch.equal(logits, same)  # what is evaluated and counted is not shifted
    expected = -sum(
        math.log(
            n[y] * math.exp(z[y]) / sum(count * math.exp(v) for count, v in zip(n, z, strict=True))
        )
        for n, y, z in zip(
            [COUNTS] * len(batch.labels), batch.labels.tolist(), logits.tolist(), strict=True
        )
    )
    assert shifted.item() == pytest.approx(expected / len(batch.labels), rel=1e-12)
    assert other.counts.tolist() == COUNTS


def test_reat_without_its_parts_is_at_bsl():
    batch = batch_of()
    pair = [network(), network()]
    for model, name, options in (
        (pair[0], "reat", {"tail": "off"}),
        (pair[1], "at-bsl", {"start": "uniform"}),
    ):
        torch.manual_seed(4)
        one_step(made(name, model, batch, **options), batch)
    assert_same_weights(*pair, rtol=0, atol=1e-12)


def pgd_by_hand(model, batch, steps, rbl, weight):
    images = batch.images
    x = uniform(images, EPS, batch.indices)
    alpha = torch.full((len(images), 1, 1, 1), EPS / 4, dtype=images.dtype)
    if rbl == "step-scale":
        alpha *= (
            torch.tensor(weight, dtype=images.dtype).clamp(0.5, 2)[batch.labels].view(-1, 1, 1, 1)
        )
    for _ in range(steps):
        if rbl == "logit-adjust":
            shift = torch.tensor([math.log(w) for w in weight], dtype=images.dtype)
            shifted = nn.Sequential(model, Shift(shift)).train(model.training)
            gradient = image_gradient(shifted, x, batch.labels)
        else:
            gradient = image_gradient(model, x, batch.labels)
        x = x + alpha * gradient.sign()
        x = torch.minimum(torch.maximum(x, images - EPS), images + EPS).clamp(0, 1)
    return x.detach()


class Shift(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, logits):
        return logits + self.by


def slow_tail(features, labels, pairwise):
    """As `tail_by_hand`, in torch."""
    counts = torch.tensor(COUNTS, dtype=features.dtype)
    value = (counts.sum() / counts).sqrt()
    anchors = [i for i, y in enumerate(labels.tolist()) if y == 2]
    total = 0.0
    for i in anchors:
        p = torch.softmax(features[i].detach(), 0)
        for j in range(len(features)):
            q = torch.log_softmax(features if not pairwise else features[j : j + 1], 1)
            k = F.kl_div(q, p.expand_as(q), reduction="sum")
            k = k if pairwise else k / q.numel()
            sign = -1 if labels[i] == labels[j] else 1
            total = total + k * sign * (value[labels[i]] + value[labels[j]])
    return total / len(features) / len(anchors)


OPTIONS = [
    {},
    {"tail": "off"},
    {"tail": "pairwise", "tail_weight": 0.1},
    {"rbl": "logit-adjust"},
    {"rbl": "step-scale", "tail": "off"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_two_epochs_are_those_written_by_hand(options):
    model = network()
    expected = copy.deepcopy(model)
    batches = [batch_of(12, seed=seed) for seed in (5, 6)]
    method = made("reat", model, batches[0], steps=3, **options)
    predicted, rows = COUNTS, []
    for epoch in (1, 2):
        weight, found = weights_by_hand(predicted, COUNTS), [0, 0, 0]
        method.begin_epoch(epoch, None)
        for number, batch in enumerate(batches):
            torch.manual_seed(10 * epoch + number)
            images = pgd_by_hand(expected, batch, 3, options.get("rbl", "released"), weight)
            one_step(method, batch)
            features = expected[:4](images)
            logits = expected[4](features)
            for row in logits.argmax(1).tolist():
                found[row] += 1
            loss = F.cross_entropy(
                logits + torch.tensor(COUNTS, dtype=torch.float64).log(), batch.labels
            )
            tail = options.get("tail", "released")
            if tail != "off":
                penalty = slow_tail(features, batch.labels, tail == "pairwise")
                loss = loss + options.get("tail_weight", 1.0) * penalty
            descend(expected, loss)
        method.after_epoch(epoch)
        rows.append({"epoch": epoch} | {f"class_{c}": n for c, n in enumerate(found)})
        predicted = found
    assert_same_weights(model, expected, rtol=1e-9, atol=1e-11)
    assert method.rows == rows and method.tables() == {"ae_predictions.csv": rows}
    assert method.predicted.tolist() == predicted and method.found.tolist() == [0, 0, 0]
    assert method.counts.tolist() == COUNTS


def test_counts_come_from_the_training_data():
    counts = long_tail_counts(3, 20, 0.2)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    source = TensorSource(torch.rand(len(labels), 1, 8, 8), labels)
    loader = Loader(source, 8, device="cpu", seed=0)
    method = methods.make("reat", network(torch.float32), settings())
    method.begin(loader, source.images[:2])
    assert method.counts.tolist() == method.predicted.tolist() == counts
    assert method.is_tail.tolist() == [False, False, True]
    mixed = Mixed(source, source, 8, extra_share=0.5, device="cpu", seed=0)
    with pytest.raises(ValueError, match=r"not known \(extra data are mixed in\): give the method"):
        method.begin(mixed, source.images[:2])
    with pytest.raises(ValueError, match=r"not known \(a DataLoader\)"):
        method.begin(None, source.images[:2])
    few = Loader(TensorSource(source.images[:20], labels[:20]), 8, device="cpu", seed=0)
    with pytest.raises(ValueError, match="class 1 has no training image"):
        method.begin(few, source.images[:2])


class Named(nn.Module):
    """Features that are not the input of the last Linear by order, and a module that is not called."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
        self.spare = nn.Linear(6, 3)

    def forward(self, images):
        return self.head(self.body(images).relu())


def test_features_are_the_input_of_a_module_and_no_hook_stays():
    model = Named()
    batch = batch_of(12, torch.float32)
    method = made("reat", model, batch, features="head")
    with Features(method.layer) as features:
        model(batch.images)
    assert torch.equal(features.input, model.body(batch.images).relu())
    method.loss(batch.images, batch)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert linear_layer(network(), None)[0] == "4"
    with pytest.raises(ValueError, match="module 'spare' is not called"):
        made("reat", model, batch)
    with pytest.raises(ValueError, match="must be the name of a module of Named, such as 'spare'"):
        made("reat", model, batch, features="neck")
    with pytest.raises(ValueError, match=r"must be features \[B, D\] = \[2, D\], got shape \(2, 1"):
        made("reat", model, batch, features="body.0")
    conv = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    with pytest.raises(ValueError, match=r"Sequential has no nn\.Linear whose input"):
        made("reat", conv, batch)
    made("reat", conv, batch, tail="off")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rbl": "on"}, "rbl must be one of released, logit-adjust, step-scale, got 'on'"),
        ({"tail": True}, "tail must be one of released, pairwise, off, got True"),
        ({"tail_weight": -1}, "tail_weight must be a finite number, 0 or more, got -1"),
        ({"counts": [1, 0, 2]}, r"counts must be a list of integers > 0, one a class, got \[1, 0"),
        ({"counts": 5}, "counts must be a list of integers > 0"),
        ({"counts": [3, 4]}, "one for each of the 3 classes of the model, got 2"),
        ({"tail_classes": [3]}, r"list of class numbers 0 .. 2, got \[3\]"),
        ({"tail_classes": 2}, "list of class numbers 0 .. 2, got 2"),
        ({"start": "normal"}, "the method has no option 'start'; it has rbl, tail"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        made("reat", network(), batch_of(), **options)


def test_more_errors():
    with pytest.raises(ValueError, match="start must be one of normal, uniform, got 'zero'"):
        made("at-bsl", network(), batch_of(), start="zero")
    parts = settings(options={"counts": COUNTS}, micro_batch=4)
    with pytest.raises(ValueError, match="tail='released' compares all samples of a batch"):
        methods.make("reat", network(), parts)


def test_the_tail_may_be_chosen():
    batch = batch_of()
    method = made("reat", network(), batch, tail_classes=[0, 1])
    assert method.is_tail.tolist() == [True, True, False]
    loss = made("reat", network(), batch, tail_classes=[]).loss(batch.images, batch).loss
    plain = made("reat", network(), batch, tail="off").loss(batch.images, batch).loss
    assert torch.equal(loss, plain)


def test_bf16_is_near_fp32():
    batch, losses = batch_of(24, torch.float32), {}
    for precision in ("fp32", "bf16"):
        model = network(torch.float32)
        method = made("reat", model, batch, precision=precision, tail="pairwise")
        images = method.craft(batch)
        losses[precision] = method.loss(batch.images, batch).loss
        losses[precision].backward()
        assert images.dtype == torch.float32
        assert all(p.grad.isfinite().all() for p in model.parameters())
    assert losses["bf16"].dtype == torch.float32
    assert 0 < (losses["bf16"] - losses["fp32"]).abs() < 0.05 * losses["fp32"].abs()


def test_pass_units():
    assert methods.make("reat", nn.Identity(), settings()).passes() == 23
    assert methods.make("at-bsl", nn.Identity(), settings(steps=7)).passes() == 17


def test_batches_are_not_changed():
    batch = batch_of()
    kept = Batch(*(part if part is None else part.clone() for part in batch))
    one_step(made("reat", network(), batch), batch)
    assert all(torch.equal(a, b) for a, b in zip(batch[:3], kept[:3], strict=True))
