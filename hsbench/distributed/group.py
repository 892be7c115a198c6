"""The ranks of a run as one value: what they exchange beside the tensors of attention.

Two groups: collectives of the timed runs go through one, whose backend is the device's (NCCL, gloo); what ranks agree
on goes through gloo, on the host. They cannot meet in each other's collectives, and no agreement queues GPU work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from hsbench.distributed.environment import Place
from hsbench.errors import HsbenchError
from hsbench.kernels.device import Device

Value = TypeVar("Value")

#: For ranks that wait while another makes tensors, or measures alone; one that dies is known at once.
PATIENCE = timedelta(hours=2)


class RankLostError(HsbenchError):
    """Another rank is gone, or has failed and says why itself."""


@dataclass(frozen=True, eq=False)
class Group:
    """The ranks of a run, seen from one of them.

    Attributes:
        place: this one's.
        device: where it runs.
        data: for tensors, on the device.
        control: for what is agreed on, on the host.
    """

    place: Place
    device: Device
    data: dist.ProcessGroup
    control: dist.ProcessGroup
    _tick: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tick", torch.zeros(1, device=str(self.device)))

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def size(self) -> int:
        return self.place.size

    def all(self, value: Value) -> list[Value]:
        """What every rank gave, in the order of the ranks."""
        found: list[Any] = [None] * self.size
        with losing():
            dist.all_gather_object(found, value, group=self.control)
        return found

    def tell(self, value: Value | None = None) -> Value:
        """What rank 0 gave; the others wait for it."""
        told: list[Any] = [value]
        with losing():
            dist.broadcast_object_list(told, src=0, group=self.control)
        result: Value = told[0]
        return result

    def largest(self, *values: float) -> tuple[float, ...]:
        """Of each value, the largest that a rank gave."""
        given = torch.tensor(values, dtype=torch.float64, device="cpu")
        with losing():
            dist.all_reduce(given, op=dist.ReduceOp.MAX, group=self.control)
        return tuple(given.tolist())

    def meet(self) -> None:
        """Returns once all ranks have called it; on the host."""
        self.largest(0.0)

    def queue_meeting(self) -> None:
        """On a GPU: what the current stream holds next begins on all ranks at once, within microseconds."""
        dist.all_reduce(self._tick, group=self.data)

    def clock(self, now: Callable[[], float]) -> Callable[[], float]:
        """Rank 0's clock, which all read alike: for what ranks are to decide by time."""
        return lambda: float(self.tell(now() if self.rank == 0 else None))

    def close(self) -> None:
        """Ends the groups, once the last collective is done."""
        with losing():
            dist.destroy_process_group()

    def abort(self) -> None:
        """Ends collectives that wait for a rank that is gone, from another thread than the one that hangs in them."""
        for group in (self.data, self.control):
            with contextlib.suppress(Exception):  # whatever state it is in
                abort = getattr(group._get_backend(torch.device(self.device.kind)), "abort", None)
                if abort is not None:
                    abort()


@contextlib.contextmanager
def losing() -> Iterator[None]:
    """What torch.distributed raises inside becomes a :class:`RankLostError`."""
    try:
        yield
    except RuntimeError as error:  # all of its errors are
        words = " ".join(str(error).split())[:200]
        raise RankLostError(f"another rank is gone ({words}); see what it said, and run the command again") from error
