"""What stands between the stores and the pruners of ``cache/``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hsbench.cache.prune import choose_blocks, plan_blocks, prune_hierarchical
from hsbench.errors import unknown

DEFAULT_PRUNER = "magnitude"


@dataclass(frozen=True)
class Pruner:
    name: str
    value_axis: str = "tokens"
    shifts: bool = False
    basis: bool = False


def pruner_of(name: str) -> Pruner:
    if name != DEFAULT_PRUNER:
        raise unknown("pruner", name, (DEFAULT_PRUNER,))
    return Pruner(name)


def shifts_of(k: Tensor, v: Tensor, *, pruner: Any, basis: Any) -> Any:
    return None


def arguments(*, pruner: Any, basis: Any, shifts: Any) -> dict[str, Any]:
    return {}


def simulate(
    k: Tensor,
    v: Tensor,
    *,
    key_sparsity: float,
    value_sparsity: float,
    sink: int,
    local: int,
    pruner: Any,
    basis: Any,
    shifts: Any,
) -> tuple[Tensor, Tensor, int]:
    out = []
    nbytes = 0
    for operand, x, share in (("k", k, key_sparsity), ("v", v, value_sparsity)):
        plan = plan_blocks(x.shape[2], share, sink=sink, local=local)
        out.append(prune_hierarchical(x, operand, choose_blocks(x, operand, plan)).float())  # type: ignore[arg-type]
        heads = x.shape[0] * x.shape[1] * x.shape[3] * 64
        nbytes += heads * (2 * plan.dense + plan.sparse) + heads * plan.sparse // 8
    return out[0], out[1], nbytes


def open_basis(path: Any) -> Any:
    from hsbench.cache.basis import Basis

    return Basis.load(path)
