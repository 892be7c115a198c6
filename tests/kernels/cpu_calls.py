"""Calls of the CPU's attention kernels, on each instruction set; outputs and workspaces are poisoned, so that what is
not written, or read by mistake, shows. Cases and their exact results: kernel_cases.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import kernel_cases
from hsbench.kernels import library
from hsbench.problem.elements import element_by
from kernel_cases import Operands, struct_of

MISSING = library.why_missing("cpu")
needs_library = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

BEST = 0 if MISSING else library.load("cpu").number("hsb_cpu_best_isa")
ISAS = [name for name, value in library.ISAS.items() if 0 < value <= BEST]
"""Those that this machine can run; none without the library, where all tests of it are skipped with the reason."""

THREADS = (1, 3)

make_case = partial(kernel_cases.make_case, device="cpu", batch=2)


def variants() -> Iterator[dict[str, Any]]:
    """Every instruction set, by one thread and by several."""
    return ({"isa": isa, "threads": threads} for isa in ISAS for threads in THREADS)


def run(
    operation: str,
    q: Tensor,
    operands: dict[str, Operands],
    *,
    isa: str = "auto",
    threads: int = 1,
    **fields: Any,
) -> tuple[Tensor, Tensor]:
    """``decode``, ``decode_bitmap`` or ``prefill``.

    Args:
        operation: its name.
        q: ``[batch, kv_heads, group, q_len, head_dim]``.
        operands: K and V by the names of their fields in the struct.
        isa: of ``library.ISAS``.
        threads: as many compute.
        fields: others of the struct.

    Returns:
        ``out`` of q's shape; ``lse`` of q's shape without head_dim.
    """
    q = q.contiguous()
    batch, kv_heads, group, q_len, head_dim = q.shape
    out, lse = torch.full_like(q, math.nan), torch.full(q.shape[:-1], math.nan)
    seq = next(iter(operands.values())).shape[2]
    shape = dict(batch=batch, q_heads=kv_heads * group, kv_heads=kv_heads, head_dim=head_dim, seq=seq)
    struct = "hsb_prefill_params" if operation == "prefill" else "hsb_decode_params"
    if operation == "prefill":
        shape["q_len"] = q_len
    how = dict(dtype=element_by(q.dtype).code, threads=threads, isa=library.ISAS[isa], scale=1 / math.sqrt(head_dim))
    structs = {name: struct_of(operand) for name, operand in operands.items()}
    params = library.make(struct, q=q, out=out, lse=lse, **(shape | how | structs | fields))
    cpu = library.load("cpu")
    size = cpu.number(f"hsb_cpu_{operation}_workspace", params)
    room = torch.full((size + 128,), 0xFF, dtype=torch.uint8)
    start = -room.data_ptr() % 64
    params.workspace = room.data_ptr() + start
    cpu.call(f"hsb_cpu_{operation}", params)
    assert (room[start + size :] == 0xFF).all(), "written past the workspace"
    return out, lse
