"""Published checkpoints into our networks, key by key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .key_maps import Form, forms_of, supported, unwrap

# Top-level entries of a checkpoint that hold the weights which its authors evaluate.
_WEIGHTS = re.compile(r"state_dict|model_state_dict|model|net|state_dict_ema|model_ema|ema(_.+)?")
_SHOWN = 4


@dataclass(frozen=True)
class KeyReport:
    """What `load_published` did.

    Attributes:
        form: how the checkpoint names its weights.
        loaded: our names of what came from the checkpoint.
        ignored: its keys that are no part of the network's function.
        kept: our names of what the checkpoint has not: buffers that count batches, mean and std of the normalisation.
        unchecked: settings of the model on which the function depends and of which the checkpoint says nothing, as
            "name=value"; compare them with the paper (`make_published` has them right).
    """

    form: str
    loaded: tuple[str, ...]
    ignored: tuple[str, ...]
    kept: tuple[str, ...]
    unchecked: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors loaded by the key form {self.form!r}"
        if self.ignored:
            text += f", {len(self.ignored)} unused ones left out"
        if self.unchecked:
            text += f"; the file does not say, and was not checked: {', '.join(self.unchecked)}"
        return text


def load_published(
    model: nn.Module, checkpoint: str | Path | Mapping[str, Any], *, key: str | None = None
) -> KeyReport:
    """Fills one of our networks with published weights; everything is checked before anything is written.

    Args:
        model: a ResNet, PreActResNet, WideResNet or SmallCNN (28x28) of the right size, as `make_published` or `make`
            returns it.
        checkpoint: a file that torch.save wrote, opened with weights_only=True: no code in it runs; or what was read
            from one. The state dict itself or a dictionary that holds it ("state_dict", "model", "ema_model", ...).
        key: which entry of such a dictionary, where there are several.

    Returns:
        What was loaded, left out and kept. The model's mode, device and dtype do not change.

    Raises:
        OSError: the file is not there or cannot be read.
        ValueError: not a file of tensors; several or no state dicts in it; keys left over or missing, or shapes that
            differ, with the first few; or a network that is another function than `model`.
        TypeError: a model that has no published form.
    """
    forms = forms_of(model)
    if not forms:
        raise TypeError(
            f"load_published fills {', '.join(supported())}, got {type(model).__name__}"
        )
    source = "the checkpoint" if isinstance(checkpoint, Mapping) else str(checkpoint)
    content = checkpoint if isinstance(checkpoint, Mapping) else _read(Path(checkpoint))
    state = _weights(content, key, source)
    inner = unwrap(state)
    form = _form_of(model, forms, set(inner.values()), source)
    for option, wanted in form.needs.items():
        if getattr(model, option) != wanted:
            raise ValueError(
                f"{source} holds a network with {option}={wanted!r} (key form {form.name!r}), the model has "
                f"{option}={getattr(model, option)!r}: the same weights would be another function"
            )
    ours = model.state_dict()
    ignored = tuple(name for name in state if re.fullmatch(form.ignored, inner[name]))
    found: dict[str, Tensor] = {}
    left_over = []
    for name, value in state.items():
        if name in ignored:
            continue
        target = form.rename(inner[name])
        if target is None or target not in ours or target in found:
            left_over.append(name)
            continue
        if target.startswith("normalise.") and value.numel() == ours[target].numel():
            value = value.reshape(ours[target].shape)
        found[target] = value
    kept = tuple(name for name in ours if name not in found and _optional(name))
    missing = [name for name in ours if name not in found and name not in kept]
    shapes = [
        f"{name} {tuple(value.shape)} for {tuple(ours[name].shape)}"
        for name, value in found.items()
        if value.shape != ours[name].shape
    ]
    wrong = [
        f"{len(names)} {what}: {_first(names)}"
        for what, names in (
            ("keys that the model has no place for", left_over),
            ("weights of the model missing", missing),
            ("shapes differ (file, model)", shapes),
        )
        if names
    ]
    if wrong:
        raise ValueError(
            f"{source} (key form {form.name!r}) does not fit this {type(model).__name__}: "
            + "; ".join(wrong)
        )
    model.load_state_dict({**ours, **found})
    return KeyReport(form.name, tuple(found), ignored, kept, _unchecked(model, form, kept))


def _optional(name: str) -> bool:
    return name.endswith(".num_batches_tracked") or name.startswith("normalise.")


def _unchecked(model: nn.Module, form: Form, kept: tuple[str, ...]) -> tuple[str, ...]:
    settings = [f"{option}={getattr(model, option)!r}" for option in form.silent]
    for name in ("mean", "std"):
        if f"normalise.{name}" in kept:
            values = model.get_buffer(f"normalise.{name}").flatten().tolist()
            settings.append(f"{name}={[round(value, 4) for value in values]}")
    return tuple(settings)


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _form_of(model: nn.Module, forms: tuple[Form, ...], names: set[str], source: str) -> Form:
    for form in forms:
        if form.marker in names:
            return form
    known = " or ".join(f"{form.marker} ({form.name})" for form in forms)
    raise ValueError(
        f"{source} has none of the keys by which published {type(model).__name__} weights are known: expected {known}, "
        f"got {_first(sorted(names))}"
    )


def _read(path: Path) -> Any:
    with open(path, "rb"):  # says itself what is wrong with a path that cannot be read
        pass
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of bytes that are no checkpoint the unpickler raises anything
        # torch's own message goes on to advise weights_only=False, which runs what the file says.
        blocked = re.search(r"GLOBAL ([\w.]+)|class (?:type )?([\w.]+)", str(error))
        if blocked:
            raise ValueError(
                f"{path} holds Python objects besides tensors ({blocked[1] or blocked[2]}), and advfast runs no code "
                "of a file. If you trust it, read it yourself and pass the state dict"
            ) from error
        raise ValueError(f"{path} is not a file that torch.save wrote, or is damaged") from error


def _is_state(content: object) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(value, Tensor) for value in content.values())
    )


def _weights(content: Any, key: str | None, source: str) -> Mapping[str, Tensor]:
    """The state dict itself, or the one in a dictionary around it."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{source} must hold a state dict, got a {type(content).__name__}")
    if key is None and _is_state(content):
        return content
    states = [str(name) for name, value in content.items() if _is_state(value)]
    if key is None:
        usual = [name for name in states if _WEIGHTS.fullmatch(name)]
        if len(usual) == 1:
            return content[usual[0]]
        if not states:
            entries = _first(str(name) for name in content)
            raise ValueError(f"{source} holds no state dict; its entries are {entries}")
    elif key in states:
        return content[key]
    raise ValueError(
        f"{source} holds weights under {', '.join(states) or 'no key'}; "
        + ("choose one with key=" if key is None else f"got key={key!r}")
    )
