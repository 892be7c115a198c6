"""A subject's own load, for as long as a chip needs to set its clocks by it.

A GPU at its power limit settles its clocks over some 100 ms. Shorter samples, taken in turn, all run at the clocks
that the mix of subjects has settled:

    A B C A B C ...                     each at the clocks of (A, B, C)
    A A A [A] B B B [B] C C C [C] ...   each at its own; [timed]
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hsbench.kernels.device import Device


def sustain(
    run: Callable[[], None], seconds: float, device: Device, *, now: Callable[[], float] = time.monotonic
) -> None:
    """Repeat a run, untimed, until so many seconds have passed; the last repetition is whole. 0 does nothing.

    Args:
        run: the work, once. On CUDA each is waited for: with no more than one queued, the time is the device's, and
            nothing is left over for the sample that follows.
        seconds: for how long.
        device: where it runs.
        now: seconds of a monotonic clock.
    """
    if seconds <= 0:
        return
    wait = _waiting(device)
    begin = now()
    while now() - begin < seconds:
        run()
        wait()


def _waiting(device: Device) -> Callable[[], None]:
    if not device.is_cuda:
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(str(device))
