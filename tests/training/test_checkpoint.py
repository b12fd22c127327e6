import pickle
import warnings

import pytest
import torch
from torch import nn

from advfast import models
from advfast.training import checkpoint, load, names


@pytest.fixture
def saved(tmp_path):
    model = models.make("small-cnn", in_shape=(1, 8, 8), classes=3, mean=[0.1], std=[0.2])
    path = tmp_path / "best.pt"
    state = checkpoint.state_of(model)
    checkpoint.save(path, model, state, epoch=4, metrics={"val_clean": 0.5}, config={"eps": 0.1})
    return path, model


def test_round_trip(saved):
    path, model = saved
    model.eval()
    for where in (path, str(path), path.parent):
        again = load(where)
        assert not again.training
        assert models.spec(again) == models.spec(model)
        x = torch.rand(5, 1, 8, 8)
        assert torch.equal(again(x), model(x))


def test_content_is_plain(saved):
    content = torch.load(saved[0], weights_only=True)
    assert content["epoch"] == 4
    assert content["config"] == {"eps": 0.1}
    assert content["versions"]["torch"] == torch.__version__


def test_state_is_a_copy():
    model = nn.Linear(2, 2)
    state = checkpoint.state_of(model)
    before = state["weight"].clone()
    nn.init.zeros_(model.weight)
    assert torch.equal(state["weight"], before)


def test_model_of_the_user(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2))
    path = tmp_path / "own.pt"
    state = checkpoint.state_of(model)
    checkpoint.save(path, model, state, epoch=1, metrics={}, config={})
    with pytest.raises(ValueError, match=r"Sequential.*advfast\.load\(checkpoint, model\)"):
        load(path)
    other = nn.Sequential(nn.Linear(3, 2))
    assert load(path, other) is other
    assert torch.equal(other[0].weight, model[0].weight)


def test_checkpoint_of_another_model(saved):
    with pytest.raises(ValueError, match="holds a small-cnn whose weights do not fit this Linear"):
        load(saved[0], nn.Linear(2, 2))


def test_not_a_checkpoint(tmp_path, saved):
    class Payload:
        def __reduce__(self):
            return (warnings.warn, ("the payload ran",))

    whole = saved[0].read_bytes()
    contents = {
        "text": b"hello",
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "pickle": pickle.dumps(Payload()),
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is not an advfast checkpoint"):
            load(path)
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt is not an advfast checkpoint"):
        load(tmp_path / "other.pt")
    torch.save(Payload(), tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt is not an advfast checkpoint"):
        load(tmp_path / "evil.pt")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.pt")


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot make the folder"):
        names.run_folder(tmp_path / "file" / "run", "name", overwrite=False, resume=False)


def test_published_weights(tmp_path):
    # The names of Rice et al.'s PreActResNet-18, saved behind DataParallel.
    made = models.make("preact-resnet18", in_shape=(3, 16, 16), classes=4, width=4)
    theirs = {}
    for name, value in made.state_dict().items():
        if not name.startswith("normalise."):
            name = name.replace("shortcut.weight", "shortcut.0.weight")
            theirs["module." + name] = torch.rand_like(value.float()).to(value.dtype)
    models.load_published(made, theirs)
    torch.save(theirs, tmp_path / "theirs.pt")
    model = models.make("preact-resnet18", in_shape=(3, 16, 16), classes=4, width=4)
    assert load(tmp_path / "theirs.pt", model) is model
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(model(images), made.eval()(images))
    with pytest.raises(ValueError, match="not an advfast checkpoint"):
        load(tmp_path / "theirs.pt")
    with pytest.raises(ValueError, match="not an advfast checkpoint"):
        load(tmp_path / "theirs.pt", nn.Linear(4, 2))
