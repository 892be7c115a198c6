"""Times CUDA decode over K and V of each pair of elements, beside what the two elements take for both.

    python tools/elements_apart.py [--axis tokens]

Llama-3.1-8B's heads in fp16, every block 2:4, as `living_cache.py` times: a captured graph, L2 flushed before a replay,
the median of the replays. Prints a CSV: microseconds, MiB of K and V, and the time over the mean of what kernels of
either element alone take.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product

import torch

import hsbench
from hsbench.problem.elements import STORED
from living_cache import HEADS, KV_HEADS, K, drawn, timed

SIZES = ((1, 128 * K), (8, 32 * K))
PRUNERS = {"tokens": "magnitude", "head_dim": "magnitude:hd"}


def print_times(batch: int, tokens: int, axis: str) -> None:
    """A line for each pair, those of one element first."""
    k, v, q = (drawn(batch, heads, n) for heads, n in ((KV_HEADS, tokens), (KV_HEADS, tokens), (HEADS, 1)))
    found: dict[tuple[str, str], float] = {}
    for key, value in sorted(product(STORED, STORED), key=lambda pair: pair[0] != pair[1]):
        kv = hsbench.compress(k, v, sparsity=0.5, pruner=PRUNERS[axis], key_elements=key, value_elements=value)
        us = found[key, value] = timed(lambda kv=kv: hsbench.decode(q, kv))
        over = us / ((found[key, key] + found[value, value]) / 2)
        print(f"{batch},{tokens},{axis},{key},{value},{us:.1f},{kv.nbytes / 2**20:.0f},{over:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axis", choices=PRUNERS, help="of V's groups; both by default")
    given = parser.parse_args().axis
    if not torch.cuda.is_available():
        sys.exit("elements_apart: needs an NVIDIA GPU")
    print("batch,tokens,axis,key,value,us,mib,over_mean")
    for (batch, tokens), axis in product(SIZES, [given] if given else PRUNERS):
        print_times(batch, tokens, axis)


if __name__ == "__main__":
    main()
