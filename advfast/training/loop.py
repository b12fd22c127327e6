"""The training loop: a method crafts images and makes the loss, the loop does everything else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch

from advfast import graphs
from advfast.data import Batch
from advfast.graphs import nvtx_range

from .callbacks import Callbacks, TrainState
from .interrupt import Interrupt
from .methods import Method
from .modifiers import Modifier, StepInfo
from .schedules import Schedule
from .step import TrainStep
from .watch import NonFiniteLoss as NonFiniteLoss
from .watch import Watch


class Batches(Protocol):
    """What the loop reads from: `advfast.data.Loader`, or a foreign DataLoader behind the same face."""

    stateful: bool
    """batches(epoch, start) can be repeated exactly."""

    def __len__(self) -> int: ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...

    def whole(self, step: int) -> int:
        """Samples of all ranks in the batch number `step` of an epoch, which is the one at hand."""
        ...


class Loop:
    """Steps and epochs of one run; what it carries besides the weights is in `state_dict`.

    Args:
        state: of the run, as callbacks see it.
        method: epoch -> method, so that a run may begin with another one.
        loader: batches of an epoch.
        schedule: step of the whole run -> learning rate.
        step: what is done with each batch.
        callbacks: told after every step.
        interrupt: asked after every step.
        seed: of the run.
    """

    def __init__(
        self,
        state: TrainState,
        *,
        method: Callable[[int], Method],
        loader: Batches,
        schedule: Schedule,
        step: TrainStep,
        callbacks: Callbacks,
        interrupt: Interrupt,
        device: torch.device,
        seed: int,
    ) -> None:
        self.state = state
        self.method = method
        self.loader = loader
        self.schedule = schedule
        self.train_step = step
        self.callbacks = callbacks
        self.interrupt = interrupt
        self.ranks = step.ranks
        self._failed: NonFiniteLoss | None = None
        self.seed = seed
        self.between: Callable[[], None] = lambda: None
        """Called after every step, before `stop` is looked at."""
        self.device = device
        late = device.type == "cuda" or graphs.recorder(device) is not None
        self._watch = Watch(device, late=late, where=self._where)
        self.epoch, self.step = 1, 0
        self._reset(None)

    def _reset(self, saved: dict[str, Any] | None) -> None:
        saved = saved or {"loss_sum": 0.0, "correct": 0, "seen": 0, "seconds": 0.0}
        # Sums stay on the device: reading them in every step would make a GPU wait for the CPU.
        self._loss_sum = torch.tensor(saved["loss_sum"], dtype=torch.float64, device=self.device)
        self._correct = torch.tensor(saved["correct"], device=self.device)
        self._seen = int(saved["seen"])
        self._seconds = float(saved["seconds"])

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands inside an epoch; the same for any number of ranks, all of which must call it."""
        loss_sum, correct = self._totals()
        return {
            "epoch": self.epoch,
            "step": self.step,
            "lr": self.state.lr,
            "loss_sum": loss_sum,
            "correct": correct,
            "seen": self._seen,
            "seconds": self._seconds,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.epoch, self.step = int(saved["epoch"]), int(saved["step"])
        self.state.lr = float(saved["lr"])
        self._reset(saved)
        if not self.ranks.first:
            self._loss_sum.zero_()
            self._correct.zero_()
        self._show()

    def _totals(self) -> tuple[float, int]:
        """(loss times samples, samples classified right) in this epoch, of all ranks."""
        loss_sum, correct = self.ranks.total([float(self._loss_sum), int(self._correct)])
        return loss_sum, int(correct)

    def next_epoch(self) -> None:
        """Callbacks see the epoch that has ended until the next one begins."""
        self.epoch, self.step = self.epoch + 1, 0
        self._reset(None)

    def _show(self) -> None:
        self.state.epoch, self.state.step = self.epoch, self.step

    def train_epoch(self) -> dict[str, float]:
        """What is left of the epoch at hand.

        Returns:
            Its row of the history, without validation.

        Raises:
            NonFiniteLoss: the loss, or a weight after the last step, is NaN or infinite.
            Stopped: a signal came; the step at hand is finished.
        """
        state = self.state
        self._show()
        watch, step = self._watch, self.train_step
        watch.begin(state.global_step)
        step.start, step.watched = watch.start, watch.tensors
        step.see = lambda loss: self._look(lambda: watch.see(loss))
        self.ranks.align()
        state.model.train()
        method = self.method(self.epoch)
        method.begin_epoch(self.epoch, self.loader)
        for modifier in self.modifiers:
            modifier.begin_epoch(self.epoch, self.loader)
        before = self._seconds
        started = time.perf_counter()
        # Closed also when a step raises, so that what reads ahead ends.
        with ExitStack() as stack:
            batches = step.batches(self.loader, self.epoch, self.step)
            stack.callback(getattr(batches, "close", lambda: None))
            for batch in batches:
                if state.stop and self._seen:
                    break  # resumed after it was set
                with nvtx_range("advfast.train_step"):
                    self._step(method, batch)
                self._seconds = before + time.perf_counter() - started
                state.images_per_second = self._seen / max(self._seconds, 1e-9)
                self._look(lambda: watch.look(state.global_step))
                self.callbacks.call("on_step_end", state)
                asked = self.agree()
                self.between()
                if state.stop:
                    break
                self.interrupt.check(asked)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._seconds = before + time.perf_counter() - started
        self.settle()
        self._check_weights()
        method.after_epoch(self.epoch)
        for modifier in self.modifiers:
            modifier.after_epoch(state.model, self.epoch, self.loader)
        self.ranks.check(state.model)
        columns = {k: v for modifier in self.modifiers for k, v in modifier.columns().items()}
        loss_sum, correct = self._totals()
        return {
            "epoch": state.epoch,
            "lr": state.lr,
            "train_loss": loss_sum / self._seen,
            "train_accuracy": correct / self._seen,
            **columns,
        }

    def agree(self) -> int:
        """By all ranks at the same place: each then knows what came up in any of them.

        Returns:
            The signal that was sent to the run; 0 for none. `state.stop` is set where it is in one of them.

        Raises:
            NonFiniteLoss: in one of them.
        """
        signum, stop, failed = self.ranks.agree(
            [self.interrupt.asked, int(self.state.stop), int(self._failed is not None)]
        )
        self.state.stop = bool(stop)
        if failed:
            raise self._failed or NonFiniteLoss(
                f"the loss of another rank became NaN or infinite by step {self.state.global_step}; "
                "training stopped"
            )
        return signum

    def settle(self) -> None:
        """Before anything is saved; by all ranks at the same place.

        Raises:
            NonFiniteLoss: of a step up to here, in one of them.
        """
        self._look(self._watch.finish)
        if self.ranks.world > 1:
            self.agree()

    def _look(self, see: Callable[[], None]) -> None:
        try:
            see()
        except NonFiniteLoss as error:
            if self.ranks.world == 1:
                raise
            self._failed = self._failed or error  # the others are in the step: it is gone through

    @property
    def speed(self) -> dict[str, float]:
        """The last columns of the row."""
        return {"seconds": self._seconds, "images_per_second": self._seen / self._seconds}

    @property
    def modifiers(self) -> Sequence[Modifier]:
        return self.train_step.modifiers

    def _step(self, method: Method, batch: Any) -> None:
        state = self.state
        state.lr = self.schedule(state.global_step)
        for group in state.optimizer.param_groups:
            group["lr"] = state.lr * group.get("lr_scale", 1.0)
        info = StepInfo(
            state.global_step, state.steps_per_epoch, state.epochs, state.lr, method, self.seed
        )
        state.method = method
        for modifier in self.modifiers:
            modifier.before_step(info)
        count, weight = None, 1.0
        if self.ranks.world > 1:
            count = self.loader.whole(self.step)
            self.ranks.weight = weight = self.ranks.share.weight(count)
        outcome = self.train_step(method, batch)
        self.step += 1
        self._show()
        count = len(outcome.batch.labels) if count is None else count
        state.batch, state.loss, state.correct = outcome.batch, outcome.loss, outcome.correct
        if weight != 1:
            state.loss = outcome.loss / (weight or 1)
            state.correct = outcome.correct if weight else torch.zeros_like(outcome.correct)
        self._loss_sum += outcome.loss.double() * count
        self._correct += state.correct
        self._seen += count

    def _where(self, step: int) -> str:
        """A step of the run, from 1."""
        epoch = (step - 1) // self.state.steps_per_epoch + 1
        return (
            f"step {step} (epoch {epoch} of {self.state.epochs}, "
            f"learning rate {self.schedule(step - 1):.3g})"
        )

    def _check_weights(self) -> None:
        # A finite loss can have a gradient that is not; the next loss would tell, but saving comes first.
        with torch.no_grad():
            norms = torch._foreach_norm([p.detach() for p in self.state.model.parameters()])
        if not torch.stack([norm.double() for norm in norms]).isfinite().all():
            raise NonFiniteLoss(
                f"weights became NaN or infinite in epoch {self.state.epoch} of "
                f"{self.state.epochs}. A lower learning rate usually helps"
            )


@contextmanager
def evaluating(model: torch.nn.Module, modifiers: Sequence[Modifier]) -> Iterator[None]:
    """The model with the weights that are evaluated and saved, for example averaged ones."""
    with ExitStack() as stack:
        for modifier in modifiers:
            stack.enter_context(modifier.evaluating(model))
        yield
