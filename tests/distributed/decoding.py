"""What a rank of test_decode.py does: ``torchrun decoding.py FOLDER``. Each leaves what it got in the folder."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import hsbench
import hsbench.distributed
from hsbench.errors import HsbenchError

SEQ = 1000
PRUNER = "magnitude"  # whose result does not depend on which tokens are together


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v, the same on all ranks."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 8, 1, 64), torch.randn(2, 2, SEQ, 64), torch.randn(2, 2, SEQ, 64)
    return q.half(), k.half(), v.half()


def part(rank: int, ranks: int) -> hsbench.HierarchicalKV:
    """The cache of one rank."""
    _, k, v = problem()
    shard = hsbench.distributed.shards_of(SEQ, ranks)[rank]
    own = slice(shard.first, shard.last)
    return hsbench.compress(k[:, :, own], v[:, :, own], pruner=PRUNER)


def main(folder: Path) -> None:
    found: dict[str, object] = {}
    q, _, _ = problem()
    try:
        hsbench.distributed.decode(q, None)
    except HsbenchError as error:
        found["without a group"] = str(error)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    pair = [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // 2]
    found["4"] = hsbench.distributed.decode(q, part(rank, ranks))
    found["2"] = hsbench.distributed.decode(q, part(rank % 2, 2), pair)
    # The tokens of all on the last rank: the others have none.
    found["1"] = hsbench.distributed.decode(q, part(0, 1) if rank == ranks - 1 else None)
    # Nobody has any: all blocks are evicted on rank 0, and the others have no cache.
    _, k, v = problem()
    gone = hsbench.compress(k[:, :, :64], v[:, :, :64], 0.0, evict=1.0)
    found["0"] = hsbench.distributed.decode(q, gone if rank == 0 else None)
    found["again"] = hsbench.distributed.decode(q, part(rank, ranks))
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
