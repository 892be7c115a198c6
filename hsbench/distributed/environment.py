"""What a process knows of its place among ranks before torch is imported: the environment that torchrun sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from hsbench.errors import UsageError

#: Set by ``--ranks`` for the ranks that it starts: the process that did, which says what became of them.
LAUNCHER = "HSBENCH_LAUNCHER"

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """One process among the ranks of a run.

    Attributes:
        rank, size: of all of them.
        local_rank, local_size: of those on this machine.
        address, port: where they meet.
        has_store: whether a store is there already, which the launcher serves; else rank 0 does.
        launcher: the process that ``--ranks`` was typed in; None under torchrun.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    has_store: bool
    launcher: int | None

    @property
    def leads(self) -> bool:
        """Whether it writes results, and says what there is to say."""
        return self.rank == 0


def place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """This process's place; None alone.

    Raises:
        UsageError: a variable holds something else than it should.
    """
    if not all(environment.get(name) for name in _NEEDED):
        return None

    def number(name: str, otherwise: int) -> int:
        try:
            return int(environment.get(name) or otherwise)
        except ValueError:
            remedy = "must be a whole number; start the ranks by torchrun, or by --ranks"
            raise UsageError(f"{name}", environment[name], remedy) from None

    rank, size = number("RANK", 0), number("WORLD_SIZE", 1)
    if size < 2:
        return None
    if not 0 <= rank < size:
        raise UsageError("RANK", rank, f"must be 0 to {size - 1}, below WORLD_SIZE; start the ranks by torchrun")
    return Place(
        rank=rank,
        size=size,
        local_rank=number("LOCAL_RANK", rank),
        local_size=number("LOCAL_WORLD_SIZE", size),
        address=environment["MASTER_ADDR"],
        port=number("MASTER_PORT", 0),
        has_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        launcher=number(LAUNCHER, 0) or None,
    )
