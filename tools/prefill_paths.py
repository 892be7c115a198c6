"""Times the CUDA prefill kernels against each other, and checks that `auto` takes the better one.

    python tools/prefill_paths.py [--most 1.05] [--living]

Over a grid of shapes (head_dim, q_len, seq, heads, share of 2:4 blocks): each path by events around a captured graph of
launches, L2 warm, in turns, the median of the turns. Prints a CSV with the times of one launch in microseconds. Exit
code 1 if `auto` takes longer than the better path by more than ``--most``, or where this machine cannot run both paths.
csrc/cuda/prefill/estimate.h is what `auto` goes by. With ``--living`` over caches that grow, full, last chunks mostly,
and of batches too; the last column is then what sm80 takes over a finished cache of the same.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from itertools import product

import torch

import hsbench
from hsbench.attention import calls

PATHS = ("sm80", "sm90", "auto")
FINISHED = "sm80_finished"
PLAIN = {"pruner": "magnitude", "sink": 0, "local": 0}
TURNS = 9
TURN_S = 2e-3


@dataclass(frozen=True)
class Shape:
    """A problem: 2:4 blocks are a share ``2 * sparsity`` of all."""

    head_dim: int
    q_len: int
    seq: int
    q_heads: int
    kv_heads: int
    sparsity: float

    def __str__(self) -> str:
        return f"{self.head_dim},{self.q_len},{self.seq},{self.q_heads}/{self.kv_heads},{self.sparsity:g}"


HEADER = "head_dim,q_len,seq,heads,sparsity"


def shapes() -> list[Shape]:
    """The grid: short and long prompts, and last chunks of long ones."""
    found = []
    for head_dim, (q_heads, kv_heads), sparsity in product((64, 128), ((8, 2), (32, 8)), (0.0, 0.25, 0.5)):
        whole = [(n, n) for n in (64, 256, 512, 1024, 2048, 4096, 8192)]
        chunks = [(n, seq) for n in (1, 16, 65, 130, 260, 520) for seq in (1024, 8192, 32768)]
        found += [Shape(head_dim, n, seq, q_heads, kv_heads, sparsity) for n, seq in whole + chunks]
    return found


def living_shapes() -> list[Shape]:
    """Of caches that grow: first chunks, and later ones; the most heads are those of a batch."""
    found = []
    for head_dim, (q_heads, kv_heads), sparsity in product((64, 128), ((8, 2), (32, 8), (256, 64)), (0.0, 0.25, 0.5)):
        chunks = [(n, n) for n in (64, 256, 1024)] + [(n, seq) for n in (1, 16, 130, 520) for seq in (1024, 8192)]
        found += [Shape(head_dim, n, seq, q_heads, kv_heads, sparsity) for n, seq in chunks]
    return found


def time_of(shape: Shape, living: bool = False) -> dict[str, float]:
    """Seconds of one launch by path."""
    draw = torch.Generator("cuda").manual_seed(0)

    def random(heads: int, tokens: int) -> torch.Tensor:
        return torch.randn(1, heads, tokens, shape.head_dim, device="cuda", dtype=torch.float16, generator=draw)

    k, v = random(shape.kv_heads, shape.seq), random(shape.kv_heads, shape.seq)
    kv = hsbench.compress(k, v, sparsity=shape.sparsity, **PLAIN)
    q = random(shape.q_heads, shape.q_len)
    made = {path: calls.prefill_call(q, kv, path) for path in PATHS}
    if living:
        cache = hsbench.Cache(
            1, shape.kv_heads, shape.head_dim, shape.seq, k.dtype, "cuda", sparsity=shape.sparsity, **PLAIN
        )
        cache.append(k, v)
        grown = cache._kv
        finished = {FINISHED: made["sm80"]}
        made = {path: calls.growing_prefill_call(q, grown.k, grown.v, grown.lengths, path) for path in PATHS} | finished
    graphs = {path: _graph(call) for path, call in made.items()}
    seconds: dict[str, list[float]] = {path: [] for path in made}
    for _ in range(TURNS):
        for path, (graph, launches) in graphs.items():
            seconds[path].append(_timed(graph) / launches)
    return {path: statistics.median(samples) for path, samples in seconds.items()}


def _graph(call: calls.NativeCall) -> tuple[torch.cuda.CUDAGraph, int]:
    """Launches for a turn, and how many they are."""

    def of(launches: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(launches):
                call.run()
        return graph

    call.run()
    torch.cuda.synchronize()
    once = of(4)
    _timed(once)
    launches = max(4, min(400, round(TURN_S / (_timed(once) / 4))))
    graph = of(launches)
    _timed(graph)
    return graph, launches


def _timed(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=float, default=1.05, help="auto's time over the better path's")
    parser.add_argument("--living", action="store_true", help="over caches that grow")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("prefill_paths: needs an NVIDIA GPU")
    if why := calls.why_not_path("sm90"):
        sys.exit(f"prefill_paths: {why}")
    columns = (*PATHS, FINISHED) if given.living else PATHS
    print(f"{HEADER},{','.join(f'{path}_us' for path in columns)},auto/best")
    worst = 0.0
    for shape in living_shapes() if given.living else shapes():
        seconds = time_of(shape, given.living)
        ratio = seconds["auto"] / min(seconds[path] for path in PATHS)
        worst = max(worst, ratio)
        print(f"{shape},{','.join(f'{seconds[path] * 1e6:.1f}' for path in columns)},{ratio:.3f}", flush=True)
    print(f"prefill_paths: auto is at worst {worst:.3f} of the better path's time", file=sys.stderr)
    return int(worst > given.most)


if __name__ == "__main__":
    sys.exit(main())
