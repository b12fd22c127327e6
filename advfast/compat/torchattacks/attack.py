"""The base class: modes, targets, normalisation and devices as scripts written for torchattacks use them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from advfast.attacks.state import crafting, model_device

from .saving import Saving


def _attacks_in(value: object) -> Iterator[Attack]:
    if isinstance(value, Attack):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _attacks_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _attacks_in(item)


def _inner_too(method: Callable) -> Callable:
    """Repeats a setter on every attack that this one holds in an attribute, a list or a dict."""

    @functools.wraps(method)
    def both(self, *args, **kwargs):
        method(self, *args, **kwargs)
        for inner in _attacks_in(vars(self)):
            getattr(inner, method.__name__)(*args, **kwargs)

    return both


def _per_channel(values: Sequence[float] | Tensor) -> Tensor:
    return torch.as_tensor(values).detach().cpu().float().reshape(1, -1, 1, 1)


class Attack(Saving):
    """What torchattacks.attack.Attack is to its attacks, and to users' own: subclass it and write `forward`.

    The model is left as it was found after every call, each submodule's mode and the buffers included, also when
    `forward` raises. Calls work where the caller switched gradients off.

    Args:
        name: shown by repr, kept in `.attack`.
        model: an nn.Module or any callable, images [B, ...] in [0, 1] -> logits [B, K].
    """

    def __init__(self, name: str, model: Callable[[Tensor], Tensor]) -> None:
        # The order of the attributes is that in which repr shows them.
        self.attack = name
        self.set_model(model)
        self.device = model_device(model)
        self.attack_mode = "default"
        self.supported_mode = ["default"]
        self.targeted = False
        self._target_map_function: Callable | None = None
        self._kth_min = 1
        self.normalization_used: dict[str, Tensor] | None = None
        # True: inputs come normalised. False: an attack is at work on pixels. None: no normalisation.
        self._normalization_applied: bool | None = None
        self._model_training = False
        self._batchnorm_training = False
        self._dropout_training = False
        mean, std = getattr(model, "mean", None), getattr(model, "std", None)
        if type(model).__name__ == "RobModel" and mean is not None and std is not None:
            mean, std = _per_channel(mean), _per_channel(std)
            if (mean != 0).all() or (std != 1).all():
                self.set_normalization_used(mean.flatten(), std.flatten())

    def forward(self, inputs: Tensor, labels: Tensor | None = None, *args, **kwargs) -> Tensor:
        """The attack itself, on pixels: images [B, ...], labels [B] -> adversarial images. For subclasses."""
        raise NotImplementedError

    def __call__(self, inputs: Tensor, labels: Tensor | None = None, *args, **kwargs) -> Tensor:
        """Adversarial images: what `forward` returns, normalised again if the inputs came normalised."""
        bn = "train" if self._model_training else "eval"
        with torch.inference_mode(False), torch.enable_grad(), crafting(self.model, bn):
            # autograd cannot save a tensor made in inference mode
            inputs = inputs.clone() if inputs.is_inference() else inputs
            labels = labels.clone() if labels is not None and labels.is_inference() else labels
            if self._model_training and isinstance(self.model, nn.Module):
                self._to_training_mode(self.model)
            if self._normalization_applied is not True:
                return self.forward(inputs, labels, *args, **kwargs)
            self._set_normalization_applied(False)
            try:
                crafted = self.forward(self.inverse_normalize(inputs), labels, *args, **kwargs)
            finally:
                self._set_normalization_applied(True)
            return self.normalize(crafted)

    def __repr__(self) -> str:
        info = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        for name in ("model", "attack", "supported_mode"):
            del info[name]
        info["normalization_used"] = self.normalization_used is not None
        return f"{self.attack}({', '.join(f'{name}={value}' for name, value in info.items())})"

    # --- model, device, mode of the model ---

    @_inner_too
    def set_model(self, model: Callable[[Tensor], Tensor]) -> None:
        self.model = model
        self.model_name = type(model).__name__

    @_inner_too
    def set_device(self, device: torch.device | str) -> None:
        """Where inputs are moved to; at first the model's device, or None: left where they are."""
        self.device = device if device is None else torch.device(device)

    @_inner_too
    def set_model_training_mode(
        self,
        model_training: bool = False,
        batchnorm_training: bool = False,
        dropout_training: bool = False,
    ) -> None:
        """Attack in train mode (say, for cuDNN's RNNs), batch norm and dropout in it or in eval mode.

        Running statistics are put back after the attack.
        """
        self._model_training = model_training
        self._batchnorm_training = batchnorm_training
        self._dropout_training = dropout_training

    def _to_training_mode(self, model: nn.Module) -> None:
        model.train()
        for module in model.modules():
            kind = type(module).__name__
            if ("BatchNorm" in kind and not self._batchnorm_training) or (
                "Dropout" in kind and not self._dropout_training
            ):
                module.eval()

    def get_logits(self, inputs: Tensor, labels: Tensor | None = None, *args, **kwargs) -> Tensor:
        """The model's output; while an attack on normalised inputs is at work, for pixels."""
        if self._normalization_applied is False:
            inputs = self.normalize(inputs)
        return self.model(inputs)

    @torch.no_grad()
    def get_output_with_eval_nograd(self, inputs: Tensor) -> Tensor:
        with crafting(self.model, "eval"):
            return self.get_logits(inputs)

    # --- normalisation ---

    @_inner_too
    def set_normalization_used(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Inputs come, and results go, normalised by these; eps stays in pixel units of [0, 1]."""
        self.normalization_used = {"mean": _per_channel(mean), "std": _per_channel(std)}
        self._normalization_applied = True

    @_inner_too
    def _set_normalization_applied(self, flag: bool) -> None:
        self._normalization_applied = flag

    def _normalization(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if self.normalization_used is None:
            raise ValueError("no normalisation is set: call set_normalization_used(mean, std)")
        shape = [1, -1, *[1] * (inputs.dim() - 2)]
        used = self.normalization_used
        return used["mean"].to(inputs).reshape(shape), used["std"].to(inputs).reshape(shape)

    def normalize(self, inputs: Tensor) -> Tensor:
        mean, std = self._normalization(inputs)
        return (inputs - mean) / std

    def inverse_normalize(self, inputs: Tensor) -> Tensor:
        mean, std = self._normalization(inputs)
        return inputs * std + mean

    # --- targets ---

    def get_mode(self) -> str:
        return self.attack_mode

    @_inner_too
    def set_mode_default(self) -> None:
        self.attack_mode = "default"
        self.targeted = False
        print("Attack mode is changed to 'default.'")

    def _set_targeted(self, mode: str, target: Callable | None, quiet: bool) -> None:
        if "targeted" not in self.supported_mode:
            raise ValueError(f"{self.attack}: targeted mode is not supported")
        self.targeted = True
        self.attack_mode = mode
        self._target_map_function = target
        if not quiet:
            print(f"Attack mode is changed to '{mode}'.")

    @_inner_too
    def set_mode_targeted_by_function(
        self, target_map_function: Callable, quiet: bool = False
    ) -> None:
        """Targets are target_map_function(inputs, labels)."""
        self._set_targeted("targeted(custom)", target_map_function, quiet)

    @_inner_too
    def set_mode_targeted_random(self, quiet: bool = False) -> None:
        """Targets are drawn evenly from the other classes."""
        self._set_targeted("targeted(random)", None, quiet)

    @_inner_too
    def set_mode_targeted_least_likely(self, kth_min: int = 1, quiet: bool = False) -> None:
        """Targets are the other classes with the kth smallest logit."""
        if kth_min < 1:
            raise ValueError(f"kth_min must be 1 or more, got {kth_min}")
        self._kth_min = kth_min
        self._set_targeted("targeted(least-likely)", None, quiet)

    @_inner_too
    def set_mode_targeted_by_label(self, quiet: bool = False) -> None:
        """The labels given at the call are the targets."""
        self._set_targeted("targeted(label)", None, quiet)

    def get_target_label(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """Target classes [B] in the mode that is set. `labels` None: the model's predictions."""
        if self.attack_mode == "targeted(random)":
            return self.get_random_target_label(inputs, labels)
        if self.attack_mode == "targeted(least-likely)":
            return self.get_least_likely_label(inputs, labels)
        if self.attack_mode == "targeted(label)":
            if labels is None:
                raise ValueError("targeted(label): labels must be given, they are the targets")
            return labels
        if self._target_map_function is None:
            raise ValueError("no targets are set: call one of the set_mode_targeted_... methods")
        return self._target_map_function(inputs, labels)

    def get_least_likely_label(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        logits, labels = self._logits_and_labels(inputs, labels)
        if self._kth_min >= logits.shape[1]:
            raise ValueError(
                f"kth_min must be at most {logits.shape[1] - 1} for {logits.shape[1]} classes, "
                f"got {self._kth_min}"
            )
        others = logits.scatter(1, labels[:, None], torch.inf)
        return others.kthvalue(self._kth_min, dim=1).indices

    def get_random_target_label(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        logits, labels = self._logits_and_labels(inputs, labels)
        classes = logits.shape[1]
        if classes < 2:
            raise ValueError("random targets need 2 classes or more, the model has 1")
        return (labels + torch.randint_like(labels, 1, classes)) % classes

    def _logits_and_labels(self, inputs: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = self.get_output_with_eval_nograd(inputs)
        return logits, logits.argmax(1) if labels is None else labels.to(logits.device).long()
