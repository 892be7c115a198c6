"""The protocol of a method: what it can do, and a prepared run of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from hsbench.kernels.device import Device
from hsbench.problem.elements import Element
from hsbench.problem.inputs import Inputs
from hsbench.problem.workload import Workload


@dataclass(kw_only=True)
class Prepared(ABC):
    """A method bound to its tensors, ready to be timed: ``run()`` does only what a serving engine would do per step.

    Attributes:
        out: ``[batch, q_heads, q_len, head_dim]``, what the last run wrote.
        lse: fp32 ``[batch, q_heads, q_len]``, natural log; None where the method does not give it.
        products: the type that q and the probabilities are rounded to, where it is coarser than the output's.
        memory: stored bytes of the KV cache by component.
        achieved_sparsity: share of elements pruned; None for dense methods.
        achieved_evict: share of eligible blocks that are evicted; None for dense methods.
        evict_by: what chose these; None where there are none.
        compress: prunes and packs again, for timing; None where there is nothing to prune.
    """

    out: Tensor
    lse: Tensor | None = None
    products: Element | None = None
    memory: dict[str, int] = field(default_factory=dict)
    achieved_sparsity: float | None = None
    achieved_evict: float | None = None
    evict_by: str | None = None
    compress: Callable[[], None] | None = None

    @abstractmethod
    def run(self) -> None:
        """Computes ``out`` (and ``lse``) once. Allocates as little as the method allows, and nothing on CUDA."""

    def write_to(self, out: Tensor, lse: Tensor) -> bool:
        """Has runs write ``out`` and ``lse`` there; whether the method can, else it keeps its own."""
        return False

    def pruned(self, batch: int, kv_head: int) -> tuple[Tensor, Tensor] | None:
        """The K and V ``[seq, head_dim]`` of one head that ``out`` must agree with, unpacked from what is stored;
        None where they are the inputs themselves."""
        return None

    def left(self, batch: int, kv_head: int) -> Tensor | None:
        """Which tokens these K and V are of, int64, ascending, where some are evicted; None where none is."""
        return None

    def poison(self) -> None:
        """Fills the outputs with NaN, so that what a run does not write fails its check."""
        self.out.fill_(float("nan"))
        if self.lse is not None:
            self.lse.fill_(float("nan"))

    @property
    def kv_bytes(self) -> int:
        """Stored bytes, which is also what one decode step must read."""
        return sum(self.memory.values())


class Method(ABC):
    """One row of the table.

    Attributes:
        name: ``family`` or ``family:variant``.
        dense: whether it attends to all of K and V, and so may be the baseline of a speedup.
        on_request: whether it runs only when its full name is asked for, not with its family.
    """

    name: str
    dense: bool = False
    on_request: bool = False

    def unavailable(self, device: Device) -> str | None:
        """Why this machine lacks what the method needs, with the remedy; None if it has it."""
        return None

    def unsupported(self, workload: Workload, device: Device) -> str | None:
        """Why the method cannot do this workload on any such device; None if it can."""
        return None

    def why_not_sharded(self, workload: Workload) -> str | None:
        """Why it cannot attend to a part of the sequence so that parts can be combined; None if it can."""
        return "gives no log-sum-exp, by which parts of a sequence are combined"

    def estimate_bytes(self, workload: Workload) -> int:
        """Memory that preparing and running it takes beyond q, k and v; known before anything is allocated."""
        return 0

    def held_bytes(self, workload: Workload) -> int:
        """Of these, what it still holds between its runs, while the other methods have their turns."""
        return self.estimate_bytes(workload)

    @abstractmethod
    def prepare(self, workload: Workload, inputs: Inputs) -> Prepared:
        """Prunes, packs and allocates.

        Raises:
            NonFiniteError: K or V holds a NaN or an infinity.
            UnsupportedError: the method refuses these tensors.
        """

    def prepare_part(self, workload: Workload, inputs: Inputs) -> Prepared:
        """As :meth:`prepare`, of a part of a sequence, with the log-sum-exp of its own tokens."""
        return self.prepare(workload, inputs)
