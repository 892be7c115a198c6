"""What a rank of test_cache.py does: ``torchrun appending.py FOLDER``. Each leaves what it got in the folder."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import hsbench
import hsbench.distributed
from hsbench.errors import HsbenchError

BATCH, KV_HEADS, HEAD_DIM = 2, 2, 64
CAPACITY = 300  # shards of 192 and of 108 tokens


@dataclass(frozen=True)
class Story:
    """What is appended, n tokens at a time; of these a sequence gets as many as stand behind. It is attended to at the
    end, and after the appends that ``stops`` numbers."""

    appends: tuple[tuple[int, tuple[int, int]], ...]
    stops: tuple[int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def both(n: int) -> tuple[int, tuple[int, int]]:
    return n, (n, n)


#: Where both sequences are dense, or nothing but whole blocks is judged, ranks store what one cache would.
ALIKE = {
    "by tokens": Story((both(150), *[both(1)] * 60), (0, 41, 42), {"sparsity": 0.5, "local": 0}),
    "by chunks": Story((both(100), both(90), both(70), both(40)), (1, 2), {"sparsity": 0.5, "local": 0, "sink": 100}),
    "in one chunk": Story((both(250), both(1)), (0,), {"sparsity": 0.5, "local": 0, "elements": "fp8"}),
    "ragged": Story(
        ((100, (100, 40)), (120, (120, 30)), both(1), (100, (50, 100)), (100, (29, 100))),
        (0, 1, 2, 3),
        {"sparsity": 0.0, "pruner": "magnitude"},
    ),
    "one after the other": Story(
        ((250, (250, 0)), (1, (1, 0)), (220, (20, 220)), both(1)), (0, 1, 2), {"local": 0, "elements": "int4"}
    ),
}
#: Here the first shard's window stays open.
OTHERWISE = {
    "with a window": Story((both(130), *[both(1)] * 70, both(100)), (65,), {"sparsity": 0.5, "local": 70}),
    "in part": Story((both(200), both(64), (20, (20, 0))), (0,), {"key_sparsity": 0.2, "local": 10, "sink": 0}),
}


def tokens(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q of one query, k and v of n tokens, with means for a pruner to take off."""
    torch.manual_seed(seed)
    q = torch.randn(BATCH, 4 * KV_HEADS, 1, HEAD_DIM)
    k, v = (torch.randn(BATCH, KV_HEADS, n, HEAD_DIM) + torch.randn(HEAD_DIM) for _ in range(2))
    return q.half(), k.half(), v.half()


def tell(story: Story, cache: hsbench.Cache) -> list[dict[str, Any]]:
    """What there is to see of a cache at each stop."""
    seen = []
    for at, (n, counts) in enumerate(story.appends):
        q, k, v = tokens(at, n)
        cache.append(k, v, lengths=None if counts == (n, n) else counts)
        if at not in (*story.stops, len(story.appends) - 1):
            continue
        out, lse = cache.decode(q)
        found = {"out": out, "lse": lse, "stored": cache.unpack(), "lengths": cache.lengths.clone()}
        if isinstance(cache, hsbench.distributed.Cache):
            gathered = cache._gathered[q.shape]
            found |= {"own": (gathered.own_out.clone(), gathered.own_lse.clone()), "kept": cache._kv.lengths.clone()}
        seen.append(found)
    return seen


def make(**options: Any) -> hsbench.distributed.Cache:
    return hsbench.distributed.Cache(BATCH, KV_HEADS, HEAD_DIM, CAPACITY, torch.float16, **options)


def said(call: Any, *words: Any, **more: Any) -> str:
    """The error of a call."""
    try:
        call(*words, **more)
    except HsbenchError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def limits() -> dict[str, Any]:
    """What it refuses, and that nothing is then written."""
    cache = make(sparsity=0.5, local=0)
    q, k, v = tokens(0, 170)
    found: dict[str, Any] = {"nothing": cache.decode(q)}
    cache.append(k, v)
    found["first"] = cache.decode(q)
    found["full"] = said(cache.append, k, v), said(cache.append, k, v, lengths=[130, 131])
    found["unchanged"] = cache.decode(q)
    cache.append(k[:, :, :130], v[:, :, :130])
    found["all"] = cache.lengths, said(cache.append, k[:, :, :1], v[:, :, :1])
    # What only a GPU knows to be too much.
    cache._kv.append_later(k[:, :, :1], v[:, :, :1], None)
    found["a token more"] = cache.lengths, said(cache.check), said(cache.check)
    cache.reset()
    found["empty"] = cache.lengths, cache.decode(q)
    cache.append(k, v)
    found["again"] = cache.decode(q)
    counts = torch.tensor([131, 130], dtype=torch.int32)
    cache._kv.append_later(k, v, counts)
    found["a chunk more"] = cache.lengths, said(cache.check), said(cache.check)
    # Not finite, in a token of the second rank's.
    cache.reset()
    cache.append(k, v)
    bad = v[:, :, :40].clone()
    bad[1, 1, 30, 5] = float("nan")
    cache._kv.append_later(k[:, :, :40], bad, None)
    found["not finite"] = said(cache.check)
    found["at the door"] = said(cache.append, k[:, :, :40], bad)
    found["prefill"] = said(cache.prefill, q)
    found["too small"] = said(hsbench.distributed.Cache, BATCH, KV_HEADS, HEAD_DIM, 64)
    found["bytes"] = cache.memory().reserved_nbytes
    return found


def main(folder: Path) -> None:
    found: dict[str, Any] = {"without a group": said(make)}
    dist.init_process_group("gloo")
    for name, story in {**ALIKE, **OTHERWISE}.items():
        found[name] = tell(story, make(**story.options))
    found["limits"] = limits()
    alone = [dist.new_group([rank]) for rank in range(2)]  # a group of one has all of it
    story, rank = ALIKE["by chunks"], dist.get_rank()
    found["alone"] = tell(story, make(group=alone[rank], **story.options))
    found["another's group"] = said(make, group=alone[1 - rank])
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
