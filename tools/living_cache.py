"""Times a cache that lives on a GPU: append, decode against a finished cache, and ragged batches against even ones.

    python tools/living_cache.py [--most-lengths 1.03] [--most-ragged 1.10]

Llama-3.1-8B's heads in fp16, every block 2:4. Each is a captured graph, L2 flushed before a replay, the median of the
replays; of append, 64 steps in one graph, so that a block leaves the window. Prints microseconds. Exit code 1 if decode
takes longer by more than it may: than over a finished cache of the same length (of 8k tokens, where to look a length up
is a tenth of all, it is only printed), or over sequences of different lengths than over as many tokens in even ones.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import torch

import hsbench

K = 1024
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
PLAIN = {"pruner": "magnitude", "sink": 0, "local": 0}
REPLAYS, WARM_UP = 30, 200
EVEN = [32 * K] * 8
RAGGED = {
    "128k, 64k, 32k, .. 2k": [128 * K, 64 * K, 32 * K, 16 * K, 8 * K, 4 * K, 2 * K, 2 * K],
    "4 of 1k, 4 of 60k to 64k": [K] * 4 + [64 * K, 64 * K, 60 * K, 64 * K],
    "128k and 7 of 18.7k": [128 * K] + [18_725] * 7,
}


def drawn(batch: int, heads: int, tokens: int) -> torch.Tensor:
    return torch.randn(batch, heads, tokens, HEAD_DIM, device="cuda", dtype=torch.float16)


def timed(run: Callable[[], object], times: int = 1) -> float:
    """Microseconds of one of so many runs in a graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()  # loads what is loaded once
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            run()
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    found = []
    for _ in range(WARM_UP + REPLAYS):  # behind the making of a cache much has still to settle
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) * 1e3 / times)
    return statistics.median(found[WARM_UP:])


def living(lengths: list[int], room: int = 0) -> hsbench.Cache:
    cache = hsbench.Cache(
        len(lengths), KV_HEADS, HEAD_DIM, max(lengths) + room, torch.float16, "cuda", **PLAIN
    )  # fmt: skip
    for i, length in enumerate(lengths):  # one at a time, for all of them take room
        x = drawn(1, KV_HEADS, length).expand(len(lengths), -1, -1, -1)
        cache.append(x, x, lengths=[length if i == one else 0 for one in range(len(lengths))])
    return cache


def append_us(lengths: list[int]) -> float:
    steps = 64 * (WARM_UP + REPLAYS + 2)
    cache, token = living(lengths, room=steps), drawn(len(lengths), KV_HEADS, 1)
    return timed(lambda: cache.append(token, token), times=64)


def decode_us(lengths: list[int]) -> float:
    cache, q = living(lengths), drawn(len(lengths), HEADS, 1)
    return timed(lambda: cache.decode(q))


def finished_us(lengths: list[int]) -> float:
    x, q = drawn(len(lengths), KV_HEADS, lengths[0]), drawn(len(lengths), HEADS, 1)
    kv = hsbench.compress(x, x, **PLAIN)
    return timed(lambda: hsbench.decode(q, kv))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most-lengths", type=float, default=1.03)
    parser.add_argument("--most-ragged", type=float, default=1.10)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("living_cache: needs an NVIDIA GPU")
    print(torch.cuda.get_device_name())
    for name, lengths in (("1 x 8k", [8 * K]), ("8 x 32k", EVEN)):
        print(f"append, {name}: {append_us(lengths):.1f}", flush=True)
    good = True
    for name, lengths in (("1 x 8k", [8 * K]), ("1 x 128k", [128 * K]), ("8 x 32k", EVEN)):
        finished, found = finished_us(lengths), decode_us(lengths)
        print(f"decode, {name}: finished {finished:.1f}, living {found:.1f}, {found / finished:.3f}", flush=True)
        good &= max(lengths) <= 8 * K or found <= options.most_lengths * finished
    even = decode_us(EVEN)
    for name, lengths in RAGGED.items():
        found = decode_us(lengths)
        print(f"decode, {name}: {found:.1f}, {found / even:.3f} of even", flush=True)
        good &= found <= options.most_ragged * even
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
