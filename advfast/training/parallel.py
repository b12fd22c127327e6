"""The processes (ranks) of one run, each with its share of every batch.

There is no DistributedDataParallel around the model. Each rank attacks its share on the bare model, without
communication, and after the backward pass the gradients are summed over the ranks in buckets of about 25 MB. What the
wrapper would gain, an all-reduce that overlaps with the backward pass, is little here: the attack is most of a step.
And what it forbids is used: several backward passes a step, gradients of gradients, gradients at other weights.
"""

from __future__ import annotations

import atexit
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from advfast.attacks.state import model_device
from advfast.data import Share

T = TypeVar("T")

BUCKET = 25 * 2**20
"""Bytes that are summed at once."""

PROMPT = timedelta(minutes=10)
"""The longest wait for a rank that does the same work."""

PATIENT = timedelta(days=1)
"""The longest wait for what rank 0 does alone. A rank that has ended is noticed at once all the same."""


class LostRank(ConnectionError):
    """Another rank has ended, or has not answered in time."""


class Ranks:
    """A run in one process; `Group` is one in several. What is collective must be called by all ranks.

    Attributes:
        rank: number of this process, from 0.
        world: number of processes.
        weight: share of the samples of the step at hand that are this process's.
    """

    rank, world, weight = 0, 1, 1.0

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and shows."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        return Share(self.rank, self.world)

    def reduce(self, tensors: Sequence[Tensor]) -> None:
        """Collective: the sum over the ranks, in place."""

    def agree(self, values: list[int]) -> list[int]:
        """Collective: the largest of each over the ranks."""
        return values

    def total(self, values: list[float]) -> list[float]:
        """Collective: the sum of each over the ranks."""
        return values

    def alone(self, work: Callable[[], T]) -> T:
        """Collective: done by rank 0 while the others wait; its result, or its error, in all of them."""
        return work()

    def gathered(self, value: T) -> list[T]:
        """Collective: the values of all ranks."""
        return [value]

    def same(self, what: str, values: Mapping[str, object]) -> None:
        """Collective.

        Raises:
            ValueError: one of the values is another one in another rank.
        """

    def begin(self, model: nn.Module) -> None:
        """Collective: weights and buffers of rank 0 in all ranks.

        Raises:
            ValueError: two ranks compute on the same GPU; another kind of device or of model.
        """

    def align(self) -> None:
        """Collective: torch's generators as in rank 0."""

    def check(self, model: nn.Module) -> None:
        """Collective.

        Raises:
            RuntimeError: the weights of the ranks are not the same bits.
        """

    @contextmanager
    def updating(self, model: nn.Module) -> Iterator[None]:
        """Collective: around gradient and optimiser's step, where layers may look at all ranks' samples."""
        yield

    @contextmanager
    def step(self, model: nn.Module) -> Iterator[None]:
        """Collective: around crafting and update; afterwards floating-point buffers are the same in all ranks."""
        yield


class Group(Ranks):
    """See `Ranks`.

    Every rank ends a step with the same weights and the same buffers. A running statistic is the mean of what the ranks
    made of it, weighted by their samples.

    Args:
        device: of the model.
        sync_bn: batch normalisation by the statistics of all ranks' samples, in the step on the weights.
    """

    def __init__(self, device: torch.device, *, sync_bn: bool) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.device = device
        self.sync_bn = sync_bn
        with self._answered():
            # What the host has to know goes by gloo: nothing of it makes a GPU wait.
            self._prompt = dist.new_group(backend="gloo", timeout=PROMPT)
            self._patient = dist.new_group(backend="gloo", timeout=PATIENT)
        self._data = dist.group.WORLD if device.type == "cuda" else self._prompt

    def close(self) -> None:
        for group in (self._prompt, self._patient):
            dist.destroy_process_group(group)

    @contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            atexit.unregister(_leave)  # it would wait for the lost one
            reason = str(error).split(" from ", 1)[-1].splitlines()[0][:200]
            raise LostRank(
                f"rank {self.rank} of {self.world}: another rank has ended or does not answer ({reason})"
            ) from error

    def sum_(self, tensor: Tensor) -> Tensor:
        """Collective: the sum over the ranks, in place, of a tensor on the device."""
        with self._answered():
            dist.all_reduce(tensor, group=self._data)
        return tensor

    def reduce(self, tensors: Sequence[Tensor]) -> None:
        waiting = []
        with self._answered(), torch.no_grad():
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                work = dist.all_reduce(flat, group=self._data, async_op=True)
                waiting.append((bucket, flat, work))
            for bucket, flat, work in waiting:
                work.wait()
                parts = flat.split([tensor.numel() for tensor in bucket])
                shaped = [part.view(of.shape) for part, of in zip(parts, bucket, strict=True)]
                torch._foreach_copy_(bucket, shaped)

    def agree(self, values: list[int]) -> list[int]:
        sent = torch.tensor(values, dtype=torch.int64)
        with self._answered():
            dist.all_reduce(sent, dist.ReduceOp.MAX, group=self._prompt)
        return sent.tolist()

    def total(self, values: list[float]) -> list[float]:
        sent = torch.tensor(values, dtype=torch.float64)
        with self._answered():
            dist.all_reduce(sent, group=self._prompt)
        return sent.tolist()

    def alone(self, work: Callable[[], T]) -> T:
        told: list[Any] = [None]
        raised: BaseException | None = None
        if self.first:
            try:
                told = [(work(), None)]
            except LostRank:
                raise
            except BaseException as error:
                raised, told = error, [(None, _sendable(error))]
        with self._answered():
            dist.broadcast_object_list(told, src=0, group=self._patient)
        result, failure = told[0]
        if raised is not None:
            raise raised
        if failure is not None:
            raise failure
        return result

    def same(self, what: str, values: Mapping[str, object]) -> None:
        found = self.gathered(dict(values))
        for rank, other in enumerate(found):
            for name in {**found[0], **other}:
                first, here = found[0].get(name), other.get(name)
                if first != here:
                    raise ValueError(
                        f"the ranks must have the same {what}: {name} is {first} in rank 0 and {here} in rank {rank}"
                    )

    def gathered(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.world
        with self._answered():
            dist.all_gather_object(found, value, group=self._prompt)
        return found

    def begin(self, model: nn.Module) -> None:
        named = [*model.named_parameters(), *model.named_buffers()]
        self.same("weights", {name: f"{list(of.shape)} {of.dtype}" for name, of in named})
        self.same("model", {"the device": self.device.type})
        places = self.gathered((socket.gethostname(), str(self.device)))
        if self.device.type == "cuda" and len(set(places)) < self.world:
            raise ValueError(
                f"each rank needs a GPU of its own, got {', '.join(':'.join(place) for place in places)}: "
                "move the model to cuda:LOCAL_RANK, or start fewer ranks"
            )
        with self._answered(), torch.no_grad():
            for _, tensor in named:
                sent = tensor.detach().contiguous().clone()
                # As bytes: gloo does not take every type.
                dist.broadcast(sent.reshape(-1).view(torch.uint8), src=0, group=self._data)
                tensor.copy_(sent)

    def align(self) -> None:
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        with self._answered():
            for state in states:
                dist.broadcast(state, src=0, group=self._prompt)
        torch.set_rng_state(states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self.device)

    def check(self, model: nn.Module) -> None:
        with torch.no_grad():
            sums = [_bits(tensor) for tensor in (*model.parameters(), *model.buffers())]
        found = self.gathered(torch.stack(sums).tolist())
        if any(other != found[0] for other in found):
            raise RuntimeError(
                "the ranks have different weights: something in the step, such as a callback or a layer, does "
                "not do the same in all of them"
            )

    @contextmanager
    def updating(self, model: nn.Module) -> Iterator[None]:
        from .sync_bn import synced

        with synced(model, self) if self.sync_bn else nullcontext():
            yield

    @contextmanager
    def step(self, model: nn.Module) -> Iterator[None]:
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        before = [buffer.detach().clone() for buffer in buffers]
        yield
        if buffers:
            with torch.no_grad():
                # Changes are averaged, not values: a constant stays the same bits.
                changes = torch._foreach_sub(buffers, before)
                torch._foreach_mul_(changes, self.weight)
                self.reduce(changes)
                torch._foreach_copy_(buffers, torch._foreach_add(before, changes))


@contextmanager
def ranks(model: object, *, sync_bn: bool) -> Iterator[Callable[[nn.Module], Ranks]]:
    """The ranks of a run, once its model is made: one process, or all of an initialised group or of torchrun.

    Under torchrun the group is made here, for the rest of the process: gloo for CPUs, and NCCL where there are GPUs, of
    which each process gets that of its LOCAL_RANK.

    Args:
        model: as `advfast.train` gets it.

    Raises:
        ValueError: more ranks than GPUs.
        LostRank: another rank did not come.
    """
    made: list[Group] = []

    def of(model: nn.Module) -> Ranks:
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return Ranks()
        group = Group(model_device(model) or torch.device("cpu"), sync_bn=sync_bn)
        made.append(group)
        group.begin(model)
        return group

    on_gpu = torch.cuda.is_available()
    if isinstance(model, nn.Module):
        device = model_device(model)
        on_gpu = device is not None and device.type == "cuda"
    if dist.is_available() and dist.is_torchelastic_launched():
        _join(on_gpu)
    yield of
    for group in made:  # not after an error: the others may not answer any more
        group.close()


def several() -> bool:
    """Whether this process is one of several of a run."""
    if not dist.is_available():
        return False
    if dist.is_initialized():
        return dist.get_world_size() > 1
    return dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


def shows() -> bool:
    """Whether this process is the one of a run that shows."""
    if not several():
        return True
    return (dist.get_rank() if dist.is_initialized() else int(os.environ["RANK"])) == 0


def _join(on_gpu: bool) -> None:
    """The GPU and the group of a process that torchrun has started."""
    local, world = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    if on_gpu:
        here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if here > gpus:
            raise ValueError(
                f"{here} ranks on a machine with {gpus} GPUs: start at most one for each (torchrun "
                f"--nproc-per-node {gpus})"
            )
        torch.cuda.set_device(local)
    if dist.is_initialized() or world == 1:
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PROMPT)
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype together, up to BUCKET bytes or a single one."""
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(tensor.dtype, []).append(tensor)
    for of_kind in kinds.values():
        bucket: list[Tensor] = []
        for tensor in of_kind:
            if bucket and sum(t.nbytes for t in bucket) + tensor.nbytes > BUCKET:
                yield bucket
                bucket = []
            bucket.append(tensor)
        yield bucket


def _bits(tensor: Tensor) -> Tensor:
    """The sum of the tensor's elements taken for integers, int64: another one where a bit is another."""
    values = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    kind = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[values.element_size()]
    return values.reshape(-1).view(kind).sum(dtype=torch.int64)


def _sendable(error: BaseException) -> BaseException:
    """The error without what refers to this process; some classes cannot be made again from their message."""
    try:
        sent = pickle.loads(pickle.dumps(error))
        return sent if isinstance(sent, BaseException) else RuntimeError(str(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
