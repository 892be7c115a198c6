"""A device as a value: which kind, which one of them, and which rank of a process group uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

KINDS = ("cpu", "cuda")


@dataclass(frozen=True)
class Device:
    """Where something runs.

    Attributes:
        kind: one of :data:`KINDS`.
        index: which GPU, as torch counts them; None for the current one, and on the CPU.
        rank: of the process in its group; 0 alone.

    Raises:
        ValueError: a kind that hsbench does not know, or a CPU with an index.
    """

    kind: str
    index: int | None = None
    rank: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS or (self.index is not None and self.kind == "cpu"):
            raise ValueError(f"no such device: {self}")

    @classmethod
    def of(cls, device: str | torch.device | Device) -> Device:
        """The device that torch calls ``cpu``, ``cuda`` or ``cuda:1``."""
        if isinstance(device, Device):
            return device
        kind, _, index = str(device).partition(":")
        # torch numbers its one CPU, too
        return cls(kind, int(index) if index and kind != "cpu" else None)

    @property
    def is_cuda(self) -> bool:
        """Whether it is an NVIDIA GPU."""
        return self.kind == "cuda"

    def __str__(self) -> str:
        """As torch names it."""
        return self.kind if self.index is None else f"{self.kind}:{self.index}"


CPU, CUDA = (Device(kind) for kind in KINDS)
