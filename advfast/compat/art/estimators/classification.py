"""PyTorchClassifier: a model with its loss, its box and its preprocessing, as ART's attacks take it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from advfast.attacks.state import crafting

from ..absent import missing
from ..labels import as_targets, one_hot
from ..target import INDEX_LOSSES, standardised


class PyTorchClassifier:
    """The classifier of ART, as far as attacks and a plain training loop need it; arrays in, arrays out.

    Args:
        model: an nn.Module that maps inputs [N, *input_shape] to logits [N, nb_classes]; moved to the device.
        loss: nn.CrossEntropyLoss or another loss of (logits, indices); other callables get one-hot rows.
        input_shape: of one input.
        nb_classes: number of logits.
        optimizer: for `fit`.
        channels_first: where a vector `preprocessing` belongs: the first dimension of an input, or the last.
        clip_values: (lo, hi) of an input, numbers or arrays; None: attacks know no box.
        preprocessing: (mean, std): the model sees (x - mean) / std, attacks work on x.
        device_type: "gpu" (CUDA where there is one) or "cpu".

    Raises:
        TypeError, ValueError: what was wrong, expected and got.
        NotImplementedError: apex, or a defence as preprocessing or postprocessing.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        input_shape: tuple[int, ...],
        nb_classes: int,
        optimizer: torch.optim.Optimizer | None = None,
        use_amp: bool = False,
        opt_level: str = "O1",
        loss_scale: float | str | None = "dynamic",
        channels_first: bool = True,
        clip_values: tuple | None = None,
        preprocessing_defences: object = None,
        postprocessing_defences: object = None,
        preprocessing: tuple | None = (0.0, 1.0),
        device_type: str = "gpu",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
        if not callable(loss):
            raise TypeError(f"loss must be callable, got {type(loss).__name__}")
        if isinstance(nb_classes, bool) or not isinstance(nb_classes, int) or nb_classes < 2:
            raise ValueError(f"nb_classes must be an integer >= 2, got {nb_classes!r}")
        if device_type not in ("gpu", "cpu"):
            raise ValueError(f"device_type must be 'gpu' or 'cpu', got {device_type!r}")
        if use_amp:
            raise NotImplementedError(
                "use_amp is NVIDIA apex; give the attack precision='bf16' instead"
            )
        if preprocessing_defences or postprocessing_defences:
            raise NotImplementedError(
                "defences are classes of art: pass art's own PyTorchClassifier to the attack"
            )
        if clip_values is not None:
            if len(clip_values) != 2:
                raise ValueError(f"clip_values must be (lo, hi), got {clip_values!r}")
            if np.any(np.asarray(clip_values[0]) >= np.asarray(clip_values[1])):
                raise ValueError(f"clip_values must have lo < hi, got {clip_values!r}")
        self.model = model
        self.loss = loss
        self.input_shape = tuple(input_shape)
        self.nb_classes = nb_classes
        self.optimizer = optimizer
        self.channels_first = channels_first
        self.clip_values = clip_values
        mean, std = (0.0, 1.0) if preprocessing is None else preprocessing
        self.preprocessing = (mean, std)
        self.device_type = device_type
        on_gpu = device_type == "gpu" and torch.cuda.is_available()
        self.device = (
            torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        )
        self.network = standardised(model, mean, std, self.input_shape, channels_first).to(
            self.device
        )
        """The model after the preprocessing: inputs to logits."""

    def __repr__(self) -> str:
        shown = ("input_shape", "nb_classes", "channels_first", "clip_values", "preprocessing")
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
        names = f"model={type(self.model).__name__}, loss={type(self.loss).__name__}"
        return f"PyTorchClassifier({names}, {settings}, device_type={self.device_type!r})"

    def predict(
        self, x: np.ndarray, batch_size: int = 128, training_mode: bool = False
    ) -> np.ndarray:
        """Logits, float32 [N, nb_classes]; the modes of the model are put back."""
        found = [np.zeros((0, self.nb_classes), np.float32)]
        with torch.no_grad(), self._mode(training_mode):
            for begin in range(0, len(x), batch_size):
                logits = self.network(self._tensor(x[begin : begin + batch_size]))
                found.append(logits.float().cpu().numpy())
        return np.concatenate(found)

    def fit(
        self,
        x: np.ndarray,
        y: np.ndarray,
        batch_size: int = 128,
        nb_epochs: int = 10,
        training_mode: bool = True,
        drop_last: bool = False,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        verbose: bool = False,
    ) -> None:
        """Plain training on (x, y); `advfast.train` is the fast loop, with an adversary.

        Raises:
            ValueError: no optimizer, or labels that do not fit.
        """
        if self.optimizer is None:
            raise ValueError("fit needs an optimizer: PyTorchClassifier(..., optimizer=...)")
        # On the host: moved a batch at a time.
        data = TensorDataset(
            torch.from_numpy(np.ascontiguousarray(x, np.float32)), self._labels(y, len(x)).cpu()
        )
        loader = DataLoader(data, batch_size=batch_size, shuffle=True, drop_last=drop_last)
        with self._mode(training_mode):
            for _ in tqdm(range(nb_epochs), disable=not verbose, desc="epochs"):
                for inputs, labels in loader:
                    self.optimizer.zero_grad()
                    logits = self.network(inputs.to(self.device))
                    self.loss(logits, labels.to(self.device)).backward()
                    self.optimizer.step()
                if scheduler is not None:
                    scheduler.step()

    def compute_loss(self, x: np.ndarray, y: np.ndarray, reduction: str = "none") -> np.ndarray:
        """The loss on (x, y) in eval mode: of each sample, or its "mean" or "sum"."""
        with torch.no_grad(), self._mode(False), self._reduction(reduction) as loss:
            value = loss(self.network(self._tensor(x)), self._labels(y, len(x)))
        return value.cpu().numpy()

    def loss_gradient(
        self, x: np.ndarray, y: np.ndarray, training_mode: bool = False
    ) -> np.ndarray:
        """Gradient of the loss with respect to x, of its shape; no parameter's .grad is touched."""
        inputs = self._tensor(x).requires_grad_()
        with torch.enable_grad(), self._mode(training_mode):
            value = self.loss(self.network(inputs), self._labels(y, len(x)))
            (gradient,) = torch.autograd.grad(value.sum(), inputs)
        return gradient.cpu().numpy()

    def class_gradient(
        self,
        x: np.ndarray,
        label: int | list[int] | np.ndarray | None = None,
        training_mode: bool = False,
    ) -> np.ndarray:
        """Gradients of logits with respect to x: [N, nb_classes, ...] of all of them, or [N, 1, ...] of `label`.

        Args:
            label: one class for all samples, or one for each.

        Raises:
            ValueError: a label out of range, or not one for each sample.
        """
        if label is None:
            wanted = np.tile(np.arange(self.nb_classes), (len(x), 1))
        else:
            wanted = np.broadcast_to(np.asarray(label), (len(x),))[:, None]
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.nb_classes:
            raise ValueError(f"label must be 0 .. {self.nb_classes - 1}, got {label}")
        inputs = self._tensor(x).requires_grad_()
        columns = torch.from_numpy(wanted.astype(np.int64)).to(self.device)
        with torch.enable_grad(), self._mode(training_mode):
            logits = self.network(inputs).gather(1, columns)
            gradients = [
                torch.autograd.grad(logits[:, k].sum(), inputs, retain_graph=True)[0]
                for k in range(columns.shape[1])
            ]
        return torch.stack(gradients, 1).cpu().numpy()

    def _mode(self, training: bool):
        return crafting(self.network, "eval") if not training else self._train_mode()

    @contextmanager
    def _train_mode(self) -> Iterator[None]:
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.train()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    @contextmanager
    def _reduction(self, reduction: str) -> Iterator[Callable]:
        previous = self.loss.reduction  # type: ignore[attr-defined]
        self.loss.reduction = reduction  # type: ignore[attr-defined]
        try:
            yield self.loss
        finally:
            self.loss.reduction = previous  # type: ignore[attr-defined]

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.tensor(np.asarray(x, np.float32), device=self.device)

    def _labels(self, y: np.ndarray, samples: int) -> Tensor:
        targets = as_targets(y, samples, self.nb_classes)
        if not isinstance(self.loss, INDEX_LOSSES):
            targets = one_hot(targets, self.nb_classes)
        return torch.from_numpy(targets).to(self.device)


def __getattr__(name: str) -> NoReturn:
    raise missing(name)
