import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advfast import PGDAttack, models
from advfast.attacks import BIM, FGSM, FGSMRS, MIFGSM, TPGD
from advfast.data import as_source
from advfast.evaluation import evaluate

EPS = 0.1


@pytest.fixture
def linear():
    """A two-class linear model, images away from the edge of the box, and each image's exact margin."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    images = 0.3 + 0.4 * torch.rand(200, 3, 2, 2)
    with torch.no_grad():
        model[1].bias -= model(images).mean(0)
        logits = model(images)
    labels = torch.randint(0, 2, (200,))
    margin = (logits.gather(1, labels[:, None]) - logits.gather(1, 1 - labels[:, None]))[:, 0]
    return model, images, labels, margin


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_accuracy_of_a_linear_model_is_exact(linear, norm):
    # A linear margin falls by eps times the dual norm of w0 - w1, which PGD reaches exactly (l2: almost).
    model, images, labels, margin = linear
    weights = model[1].weight[0] - model[1].weight[1]
    reach = EPS * weights.norm(p=1 if norm == "linf" else 2).item()
    assert ((margin - reach).abs() > 1e-4).all()  # no sample on the edge
    report = evaluate(model, (images, labels), eps=EPS, norm=norm)
    assert report["clean"].correct == int((margin > 0).sum())
    assert report["pgd-20"].correct == int((margin > reach).sum())
    assert 0 < report["pgd-20"].correct < report["clean"].correct
    assert report["clean"].total == 200


@pytest.mark.parametrize("batch_size", [90, 7, 1])
def test_leaving_broken_samples_out_changes_no_result(cnn, batch_size):
    model, images, labels = cnn
    model.eval()
    right = {"clean": model(images).argmax(1) == labels}
    for name, steps in (("pgd-1", 1), ("pgd-20", 20)):
        # Every sample attacked, in one batch.
        attack = PGDAttack(model, EPS, None, steps, seed=3)
        right[name] = (model(attack(images, labels)).argmax(1) == labels) & right["clean"]
    report = evaluate(
        model, (images, labels), attacks=tuple(right), eps=EPS, seed=3, batch_size=batch_size
    )
    assert {name: report[name].correct for name in report} == {
        name: int(of.sum()) for name, of in right.items()
    }
    assert 0 < report["pgd-20"].correct < report["pgd-1"].correct < report["clean"].correct < 90
    assert report.worst.correct == int((right["pgd-1"] & right["pgd-20"]).sum())
    for name, of in right.items():
        for number in range(3):
            found = report.per_class[name][number]
            assert found.total == int((labels == number).sum())
            assert found.correct == int(of[labels == number].sum())


def test_only_samples_that_are_still_right_are_attacked(cnn):
    model, images, labels = cnn
    attacked = []

    def attack(model, x, y):
        attacked.append((x, y))
        return x

    report = evaluate(model, (images, labels), attacks=[attack], eps=EPS, batch_size=40)
    right = model.eval()(images).argmax(1) == labels
    assert 0 < right.sum() < 90
    assert torch.equal(torch.cat([x for x, _ in attacked]), images[right])
    assert torch.equal(torch.cat([y for _, y in attacked]), labels[right])
    assert report["attack"].correct == int(right.sum())
    assert "clean" not in report.results


def test_an_attack_does_not_depend_on_the_others(cnn):
    model, images, labels = cnn
    data = (images, labels)
    drawn = []

    def noise(model, x, y):
        drawn.append(torch.empty_like(x).uniform_(-EPS, EPS))
        return (x + drawn[-1]).clamp(0, 1)

    alone = evaluate(model, data, attacks=[noise], eps=EPS, batch_size=50)
    torch.rand(1)
    state = torch.get_rng_state()
    both = evaluate(model, data, attacks=["pgd-2", noise, "clean"], eps=EPS, batch_size=50)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.cat(drawn[:2]), torch.cat(drawn[2:]))
    assert not torch.equal(drawn[0][:20], drawn[1][:20])  # each batch its own
    evaluate(model, data, attacks=[noise], eps=EPS, batch_size=50, seed=1)
    assert not torch.equal(drawn[0], drawn[4])
    assert alone["noise"] == both["noise"]
    assert both["pgd-2"] == evaluate(model, data, attacks=["pgd-2"], eps=EPS)["pgd-2"]
    assert both["worst"].correct <= min(both[name].correct for name in both)
    assert list(both.rows()) == ["pgd-2", "noise", "clean", "worst"]


def test_random_starts_do_not_depend_on_the_batches(linear):
    model, images, labels, _ = linear
    seen = []

    def record(module, inputs):
        if not torch.is_grad_enabled():
            seen.append(inputs[0])

    handle = model.register_forward_pre_hook(record)
    attacked = []
    loader = DataLoader(TensorDataset(images, labels), batch_size=16)
    for data, size in (((images, labels), 200), ((images, labels), 7), (loader, 200)):
        seen.clear()
        evaluate(model, data, attacks=("pgd-1",), eps=EPS, batch_size=size)
        # After the clean images of a batch come the attacked ones, of those that are right.
        attacked.append(torch.cat(seen[1::2]))
    handle.remove()
    right = model(images).argmax(1) == labels
    # After one step the random start still shows.
    assert ((attacked[0] - images[right]).abs() < 0.9 * EPS).any()
    assert torch.equal(attacked[0], attacked[1])
    assert torch.equal(attacked[0], attacked[2])


def test_model_is_left_as_it_was():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(72, 2)
    )
    model.train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, (torch.rand(9, 1, 8, 8), torch.arange(9) % 2), eps=EPS)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_dropout_and_batch_norm_are_in_eval_mode():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(0.9), nn.Linear(4, 2))
    data = (torch.rand(24, 1, 2, 2), torch.arange(24) % 2)
    first = evaluate(model, data, attacks=("clean", "pgd-3"), eps=EPS)
    second = evaluate(model, data, attacks=("clean", "pgd-3"), eps=EPS, batch_size=1)
    assert {name: first[name] for name in first} == {name: second[name] for name in second}


def test_every_form_of_data_gives_the_same(cnn):
    model, images, labels = cnn
    dataset = TensorDataset(images, labels)
    expected = evaluate(model, (images, labels), eps=EPS, batch_size=32)
    for data in (
        dataset,
        DataLoader(dataset, batch_size=32),
        as_source((images, labels)),
    ):
        report = evaluate(model, data, eps=EPS, batch_size=32)
        assert report.results == expected.results
        assert report.per_class == expected.per_class
        assert report.samples == 90


@pytest.mark.parametrize("form", ["tensors", "loader"])
def test_limit_takes_the_first_samples(cnn, form):
    model, images, labels = cnn
    data = (images, labels)
    if form == "loader":
        data = DataLoader(TensorDataset(images, labels), batch_size=16)
    some = evaluate(model, data, eps=EPS, batch_size=16, limit=37)
    assert some.samples == 37
    assert some.results == evaluate(model, (images[:37], labels[:37]), eps=EPS).results
    assert "first 37" in some.data
    assert evaluate(model, data, eps=EPS, limit=1000).samples == 90


def test_no_more_is_read_than_the_limit():
    class Few(torch.utils.data.Dataset):
        def __len__(self):
            return 100

        def __getitem__(self, index):
            assert index < 20
            return torch.rand(1, 2, 2), index % 2

    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    loader = DataLoader(Few(), batch_size=10)
    assert evaluate(model, loader, attacks=("clean",), limit=20).samples == 20


def test_built_in_data_and_its_splits():
    model = models.make("small-cnn", in_shape=(1, 8, 8), classes=10)
    report = evaluate(model, "digits", attacks=("clean",))
    assert (report.samples, report.data) == (500, "digits (test)")
    assert report.class_names == tuple("0123456789")
    assert report.model == "small-cnn"
    assert evaluate(model, "digits", attacks=("clean",), split="train").samples == 1297
    with pytest.raises(ValueError, match="no val set; choose split='test' or 'train'"):
        evaluate(model, "digits", split="val")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_other_dtypes(cnn, dtype):
    model, images, labels = cnn
    wide = evaluate(model, (images, labels), eps=EPS)
    model = model.to(dtype)
    seen = []

    def attack(model, x, y):
        seen.append(x.dtype)
        return x.float()

    report = evaluate(model, (images, labels), attacks=["clean", "pgd-20", attack], eps=EPS)
    assert seen == [dtype]
    for name in ("clean", "pgd-20"):
        assert abs(report[name].correct - wide[name].correct) <= 3
    assert report.warnings == ()


def test_precision_is_of_the_crafting_alone(cnn):
    model, images, labels = cnn
    wide = evaluate(model, (images, labels), eps=EPS)
    narrow = evaluate(model, (images, labels), eps=EPS, precision="bf16")
    assert narrow["clean"] == wide["clean"]
    assert abs(narrow["pgd-20"].correct - wide["pgd-20"].correct) <= 3
    dtypes = set()
    handle = model.register_forward_hook(lambda module, args, logits: dtypes.add(logits.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert evaluate(model, (images, labels), eps=EPS).results == wide.results
    handle.remove()
    assert dtypes == {torch.float32}
    with torch.inference_mode():
        assert evaluate(model, (images, labels), eps=EPS).results == wide.results


def test_nan_logits_count_as_wrong(linear):
    model, images, labels, _ = linear
    broken = torch.zeros(200, dtype=torch.bool)
    broken[[3, 50]] = True

    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            logits = self.inner(x)
            far = (x[:, 0, 0, 0] > 0.95)[:, None]
            return torch.where(far, logits * torch.nan, logits)

    images[broken, 0, 0, 0] = 1.0
    labels = model(images).argmax(1)
    labels[broken] = 0  # what argmax answers where all logits are NaN
    report = evaluate(Broken(), (images, labels), attacks=("clean", "pgd-3"), eps=1e-3)
    assert report["clean"].correct == 198
    assert report["pgd-3"].correct <= 198
    assert report.warnings[0] == "clean: 2 samples have NaN among their logits; counted as wrong"


def test_gradients_that_are_not_finite_are_reported(linear):
    model, images, labels, _ = linear

    class Root(nn.Module):
        def forward(self, x):
            return model((x - x.detach()).sqrt() + x)  # infinite slope

    report = evaluate(Root(), (images, labels), attacks=("pgd-2",), eps=EPS)
    (warning,) = report.warnings
    assert "gradient entries were not finite" in warning


NAMED = {
    "fgsm": (FGSM, ()),
    "fgsm-rs": (FGSMRS, ()),
    "pgd-3": (PGDAttack, (None, 3)),
    "bim-3": (BIM, (None, 3)),
    "mi-fgsm-3": (MIFGSM, (None, 3)),
    "tpgd-3": (TPGD, (None, 3)),
}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", NAMED)
def test_an_attack_by_name_is_that_attack(cnn, name, norm):
    model, images, labels = cnn
    make, arguments = NAMED[name]
    eps = EPS if norm == "linf" else 5 * EPS
    model.eval()
    clean = model(images).argmax(1) == labels
    adversarial = make(model, eps, *arguments, norm=norm, seed=3)(images, labels)
    right = (model(adversarial).argmax(1) == labels) & clean
    report = evaluate(
        model, (images, labels), attacks=(name,), eps=eps, norm=norm, seed=3, batch_size=40
    )
    assert report[name].correct == int(right.sum()) < int(clean.sum())
    assert name.rpartition("-3")[0].upper() in report.attacks[name] or name in ("fgsm", "fgsm-rs")
    assert not report.warnings


def test_the_words_say_the_step_and_the_start():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    data = (torch.rand(4, 3, 2, 2), torch.arange(4) % 2)
    names = ("fgsm", "fgsm-rs", "pgd-1", "pgd-20", "bim-2", "mi-fgsm-2", "tpgd-2")
    words = evaluate(model, data, attacks=names, eps=0.01).attacks
    assert words["fgsm"].startswith("FGSM, one step of eps from the image")
    assert "1.25 eps from one uniform start" in words["fgsm-rs"]
    assert words["pgd-1"].startswith("PGD, 1 step of eps/4, one uniform start")
    assert words["pgd-20"] == (
        "PGD, 20 steps of eps/4, one uniform start, cross-entropy, last iterate"
    )
    assert "momentum 1" in words["mi-fgsm-2"] and "KL" in words["tpgd-2"]


UNKNOWN = {
    "pgd": "'pgd-20'",
    "pgd-0": None,
    "pgd-x": None,
    "pgd20": "'pgd-20'",
    "PGD-20": "'pgd-20'",
    "pgd-20 ": "'pgd-20'",
    "fgsm-3": "'fgsm'",
    "fgsm_rs": "'fgsm-rs'",
    "bim": "'bim-20'",
    "mifgsm-20": "'mi-fgsm-20'",
    "tpgd-0": None,
    3: None,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_attack(linear, name):
    model, images, labels, _ = linear
    with pytest.raises(ValueError, match="an attack must be 'clean', 'fgsm'") as raised:
        evaluate(model, (images, labels), attacks=(name,))
    assert f"got {name!r}" in str(raised.value)
    if UNKNOWN[name]:
        assert f"did you mean {UNKNOWN[name]}?" in str(raised.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"attacks": ()}, "at least one"),
        ({"attacks": "pgd-20"}, "must be a sequence"),
        ({"attacks": {"worst": "clean"}}, "other than 'worst'"),
        ({"batch_size": 0}, "batch_size"),
        ({"limit": 0}, "limit"),
        ({"seed": -1}, "seed"),
        ({"eps": -1}, "eps"),
        ({"eps": 8}, "8/255, not 8"),
        ({"norm": "l3"}, "norm"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"split": "dev"}, "split must be one of"),
    ],
)
def test_bad_arguments(linear, kwargs, message):
    model, images, labels, _ = linear
    with pytest.raises((ValueError, TypeError), match=message):
        evaluate(model, (images, labels), **kwargs)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (nn.Flatten(0), (torch.rand(4, 1, 2, 2), torch.zeros(4).long()), r"\[B, K\] = \[4, K\]"),
        (lambda x: [x], (torch.rand(4, 4), torch.zeros(4).long()), "got list"),
        (nn.Linear(4, 3), (torch.rand(4, 4), torch.tensor([0, 1, 2, 3])), "0 .. 2 for a model"),
        (nn.Linear(4, 3), (torch.rand(0, 4), torch.zeros(0).long()), "no samples"),
        (nn.Linear(4, 3), DataLoader([]), "no samples"),
        (nn.Linear(4, 3), (torch.rand(4, 4) * 2, torch.zeros(4).long()), "pixels in"),
        (None, (torch.rand(4, 4), torch.zeros(4).long()), "model must be callable"),
        (nn.Linear(4, 3), 7, "data must be"),
    ],
)
def test_bad_model_or_data(model, data, message):
    with pytest.raises((ValueError, TypeError), match=message):
        evaluate(model, data, eps=EPS)


def test_all_labels_are_looked_at_before_the_first_attack(linear):
    model, images, labels, _ = linear
    labels[-1] = 2
    attacked = []
    with pytest.raises(ValueError, match=r"labels must be 0 \.\. 1"):
        evaluate(
            model, (images, labels), attacks=[lambda m, x, y: attacked.append(x)], batch_size=8
        )
    assert attacked == []
