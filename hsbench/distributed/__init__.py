"""A sequence that is sharded over the ranks of a process group: ``torch.distributed``'s, NCCL on CUDA, gloo on a CPU.

    shard = hsbench.distributed.shards_of(seq, world_size)[rank]
    kv = hsbench.compress(k[:, :, shard.first : shard.last], v[:, :, shard.first : shard.last],
                          sink=shard.sink(64), local=shard.local(256))
    out, lse = hsbench.distributed.decode(q, kv)         # the same on all ranks

Each rank attends to its own tokens; one all-gather of what came of it, and a combination, give the result. A sequence
that grows is kept by :class:`Cache`, which is :class:`hsbench.Cache` over ranks. Importing this package imports no
torch.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in the package's own __init__
if TYPE_CHECKING:
    from typing import Any

    from hsbench.distributed.gathered import decode as decode
    from hsbench.distributed.growing import Cache as Cache
    from hsbench.distributed.shards import Shard as Shard
    from hsbench.distributed.shards import shards_of as shards_of


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        import importlib

        for module in ("shards", "gathered", "growing"):
            found = importlib.import_module(f"hsbench.distributed.{module}")
            if name in vars(found):
                return vars(found)[name]
    raise AttributeError(f"module 'hsbench.distributed' has no attribute {name!r}")
