"""The CUDA probe: what it times is a read, or a copy, of every byte."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hsbench import measure
from hsbench.kernels import library
from hsbench.kernels.device import CUDA
from hsbench.machine import ceilings

pytestmark = pytest.mark.gpu


def xor_of(x: Tensor) -> int:
    while len(x) > 1:
        if len(x) % 2:
            x = torch.cat([x, x.new_zeros(1)])
        x = x[::2] ^ x[1::2]
    return int(x)


WAYS = [(way, False) for way in library.PROBE_WAYS] + [("loads", True)]
"""How it reads, and whether it copies."""


def probe_params(src: Tensor, checksum: Tensor, way: str, dst: Tensor | None = None) -> Any:
    fields = {} if dst is None else {"dst": dst}
    params = library.make(
        "hsb_probe_params", bytes=src.nbytes, src=src, checksum=checksum, way=library.PROBE_WAYS[way], **fields
    )
    params.stream = torch.cuda.current_stream().cuda_stream
    return params


@pytest.mark.parametrize("pages", [1, 2, 3, 5, 255, 256, 4 * 132 * 12 + 1, 100_003])
@pytest.mark.parametrize(("way", "copies"), WAYS)
def test_every_byte_is_read_and_copied(way: str, copies: bool, pages: int) -> None:
    words = pages * 4096 // 8
    src = torch.randint(-(2**62), 2**62, (words,), dtype=torch.int64, device="cuda")
    dst = torch.full((words + 16,), -1, dtype=torch.int64, device="cuda")
    checksum = torch.zeros(1, dtype=torch.int64, device="cuda")
    library.load("cuda").call("hsb_cuda_probe", probe_params(src, checksum, way, dst if copies else None))
    assert int(checksum) == xor_of(src)
    assert torch.equal(dst[:words], src) == copies
    assert (dst[words:] == -1).all()


@pytest.mark.parametrize("way", library.PROBE_WAYS)
def test_what_lies_beyond_is_not_read(way: str) -> None:
    """Nothing of a larger buffer but the bytes asked for changes the result."""
    src = torch.randint(-(2**62), 2**62, (1 << 20,), dtype=torch.int64, device="cuda")
    part = src[: 37 * 512]
    checksums = torch.zeros(2, dtype=torch.int64, device="cuda")
    for i in range(2):
        library.load("cuda").call("hsb_cuda_probe", probe_params(part, checksums[i:], way))
        src[len(part) :] += 1
    assert int(checksums[0]) == int(checksums[1]) == xor_of(part)


def test_reads_are_a_ceiling_that_copies_do_not_pass() -> None:
    """Of far more than L2 holds; and never by much less, or decode would pass it."""
    clock = measure.clock_for(CUDA)
    read, copy = (measure.probe(ceilings.ceiling(CUDA, kind), clock).value for kind in ("read", "copy"))
    assert read >= 0.95 * copy


def test_the_ring_does_not_copy() -> None:
    x = torch.zeros(1024, dtype=torch.int64, device="cuda")
    with pytest.raises(library.NativeError, match="only reads"):
        library.load("cuda").call("hsb_cuda_probe", probe_params(x, x, "ring", x))


def test_bad_sizes_are_refused() -> None:
    x = torch.zeros(1024, dtype=torch.int64, device="cuda")
    for size in (0, -4096, 100):
        with pytest.raises(library.NativeError, match="multiple of 4096"):
            library.load("cuda").call("hsb_cuda_probe", library.make("hsb_probe_params", bytes=size, src=x, checksum=x))
