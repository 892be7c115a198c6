"""The CUDA probe: what it times is a read, or a copy, of every byte."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hsbench import native

pytestmark = pytest.mark.gpu


def xor_of(x: Tensor) -> int:
    while len(x) > 1:
        if len(x) % 2:
            x = torch.cat([x, x.new_zeros(1)])
        x = x[::2] ^ x[1::2]
    return int(x)


@pytest.mark.parametrize("pages", [1, 3, 256, 100_003])
@pytest.mark.parametrize("copies", [False, True])
def test_every_byte_is_read_and_copied(copies: bool, pages: int) -> None:
    words = pages * 4096 // 8
    src = torch.randint(-(2**62), 2**62, (words,), dtype=torch.int64, device="cuda")
    dst = torch.full((words + 16,), -1, dtype=torch.int64, device="cuda")
    sink = torch.zeros(1, dtype=torch.int64, device="cuda")
    params = native.make("hsb_probe_params", bytes=words * 8, src=src, sink=sink)
    if copies:
        params.dst = dst.data_ptr()
    params.stream = torch.cuda.current_stream().cuda_stream
    native.library("cuda").call("hsb_cuda_probe", params)
    assert int(sink) == xor_of(src)
    assert torch.equal(dst[:words], src) == copies
    assert (dst[words:] == -1).all()


def test_bad_sizes_are_refused() -> None:
    x = torch.zeros(1024, dtype=torch.int64, device="cuda")
    for size in (0, -4096, 100):
        with pytest.raises(native.NativeError, match="multiple of 4096"):
            native.library("cuda").call("hsb_cuda_probe", native.make("hsb_probe_params", bytes=size, src=x, sink=x))
