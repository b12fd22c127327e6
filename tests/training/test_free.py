"""Free adversarial training: algorithm 1 in float64, what it becomes with a reset, and its options."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from advfast.data import Batch
from advfast.training import checkpoint, methods, train
from advfast.training.modifiers import Modifier

from .by_hand import (
    EPS,
    LR,
    assert_same_weights,
    batch_of,
    image_gradient,
    made,
    network,
    one_step,
    settings,
)
from .passes import counted


def by_hand(model, batches, m, alpha, reset=False):
    """Shafahi et al., algorithm 1, with the clamp of their code; the perturbations that were trained on."""
    delta = torch.zeros_like(batches[0].images)
    seen = []
    for images, labels, *_ in batches:
        if reset:
            delta.zero_()
        for _ in range(m):
            d = delta[: len(images)].clone().requires_grad_()
            seen.append(d.detach())
            x = images + d
            inside = ((x >= 0) & (x <= 1)).detach()
            x = torch.where(inside, x, x.detach().clamp(0, 1))
            loss = cross_entropy(model(x), labels)
            *gradients, ascent = torch.autograd.grad(loss, [*model.parameters(), d])
            delta[: len(images)] = (d.detach() + alpha * ascent.sign()).clamp(-EPS, EPS)
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= LR * gradient
    return delta, seen


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("alpha", [None, 0.06])
def test_steps_are_those_of_the_paper(reset, alpha):
    model = network()
    plain = copy.deepcopy(model)
    batches = [batch_of(12, seed=1), batch_of(12, seed=2), batch_of(5, seed=3)]
    method = made("free", model, batches[0], alpha=alpha, options={"m": 3, "reset": reset})
    expected, seen = by_hand(plain, batches, 3, EPS if alpha is None else alpha, reset)
    for batch in batches:
        for _ in range(method.repeats):
            one_step(method, batch)
    torch.testing.assert_close(method.delta, expected, rtol=0, atol=1e-15)
    assert_same_weights(model, plain, rtol=1e-11, atol=1e-13)
    # The shorter batch moved the first rows alone, and began with what they held.
    assert (len(seen[-1]), method.delta.abs().max()) == (5, EPS)
    assert seen[3].any() == (not reset)


def test_where_the_image_is_clamped_the_perturbation_stays():
    model, batch = network(), batch_of()
    gradient = image_gradient(model, batch.images, batch.labels, "train")
    method = made("free", model, batch, options={"m": 3})
    for _ in range(3):
        one_step(method, batch)
    below = (batch.images == 0) & (gradient < 0)
    assert below.sum() > 10
    assert (method.delta[below] == -EPS).all()


def run(folder, data, method="free", model=None, **changes):
    wanted = {
        "eps": EPS, "epochs": 2, "batch_size": 48, "lr": 0.05, "progress": False, "out": folder,
    } | changes  # fmt: skip
    return train(network(torch.float32) if model is None else model, data, method=method, **wanted)


def last(folder):
    return checkpoint.read(folder / "last.pt")


def test_once_with_a_reset_is_standard_training_that_leaves_fgsm_behind(tmp_path, tiny):
    run(tmp_path / "free", tiny, method_options={"m": 1, "reset": True})
    run(tmp_path / "clean", tiny, "standard")
    found, expected = (last(tmp_path / name)["state"] for name in ("free", "clean"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    model, batch = network(), batch_of()
    fgsm = made("fgsm", model, batch, bn="train").craft(batch)
    method = made("free", model, batch, options={"m": 1, "reset": True})
    one_step(method, batch)
    torch.testing.assert_close((batch.images + method.delta).clamp(0, 1), fgsm, rtol=0, atol=1e-15)


def test_twice_with_a_reset_is_fgsm_where_the_first_step_leaves_the_weights(tmp_path, tiny):
    # Then the second of two steps trains on FGSM of the weights of the moment, from the image itself.
    def rate(step):
        return 0.1 / (1 + step)

    def plain():
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3))

    run(
        tmp_path / "free", tiny, model=plain(), method_options={"m": 2, "reset": True}, momentum=0,
        schedule=lambda step: rate(step // 2) if step % 2 else 0.0,
    )  # fmt: skip
    run(tmp_path / "fgsm", tiny, "fgsm", plain(), momentum=0, schedule=rate)
    found, expected = (last(tmp_path / name)["state"] for name in ("free", "fgsm"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


class Steps(Modifier):
    """The images that each step is about."""

    def __init__(self):
        self.seen = []

    def batch(self, batch):
        self.seen.append(batch.images)
        return batch


def test_a_run_repeats_each_batch(tmp_path, tiny):
    steps = Steps()
    result = run(tmp_path, tiny, epochs=1, method_options={"m": 4}, modifiers=[steps])
    assert len(steps.seen) == 3 * 4
    for first in range(0, 12, 4):
        assert all(torch.equal(x, steps.seen[first]) for x in steps.seen[first : first + 4])
    assert not torch.equal(steps.seen[0], steps.seen[4])
    assert (result.config["alpha"], result.config["steps"]) == (EPS, 1)
    assert last(tmp_path)["run"]["method"]["delta"].shape == (48, 1, 8, 8)


def test_from_a_dataloader_of_unknown_batch_size(tmp_path, tiny):
    class Two(torch.utils.data.Sampler):
        def __iter__(self):
            yield from (range(20), range(20, 60), range(60, 70))

        def __len__(self):
            return 3

    loader = DataLoader(TensorDataset(*tiny), batch_sampler=Two())
    run(tmp_path, loader, val=tiny, epochs=1, method_options={"m": 2})
    delta = last(tmp_path)["run"]["method"]["delta"]
    assert delta.shape == (40, 1, 8, 8) and delta.abs().amax((1, 2, 3)).min() > 0


def test_one_pass_a_step():
    batch = batch_of(dtype=torch.float32)
    assert made("free", network(torch.float32), batch).passes() == 3
    assert counted(lambda model: made("free", model, batch), batch) == 3


def test_defaults_and_options():
    method = methods.make("free", network(), settings(steps=9))
    assert (method.repeats, method.alpha, method.steps) == (8, EPS, 1)
    assert not method.separable
    for options, message in (
        ({"m": 0}, "m must be an integer >= 1, got 0"),
        ({"reset": 1}, "reset must be true or false, got 1"),
        ({"n": 1}, "has no option 'n'"),
    ):
        with pytest.raises(ValueError, match=message):
            methods.make("free", network(), settings(options=options))
    with pytest.raises(ValueError, match="micro_batch must be None, got 16"):
        methods.make("free", network(), settings(micro_batch=16))


def test_a_gradient_that_is_not_finite_does_not_spoil_the_perturbation():
    class Overflows(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 3)

        def forward(self, x):
            return self.linear(x.flatten(1) * torch.inf).nan_to_num()

    batch = batch_of(dtype=torch.float32)
    method = made("free", Overflows(), batch)
    one_step(method, Batch(batch.images * 0, batch.labels, None))
    assert method.delta.isfinite().all()
