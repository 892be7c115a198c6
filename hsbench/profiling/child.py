"""The other side: how a run under a profiler of ours shows it what is worth recording."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from hsbench.kernels.device import Device

#: The range around all that a profiler should record, where it goes by ranges.
CAPTURE = "profiled"


@dataclass(frozen=True)
class Orders:
    """What a profiled run is to do: samples of each method, and the report to write if the profiler is torch's."""

    profiler: str
    rounds: int
    report: Path

    def words(self) -> list[str]:
        """As words of a command line."""
        return [self.profiler, str(self.rounds), str(self.report)]

    @classmethod
    def of(cls, words: Sequence[str]) -> Orders:
        """The inverse of :meth:`words`.

        Raises:
            ValueError: not such words.
        """
        profiler, rounds, report = words
        return cls(profiler, int(rounds), Path(report))


@contextmanager
def recording(orders: Orders, device: Device) -> Iterator[None]:
    """The profiler records what happens inside the block, and nothing before it; of it, ncu only the samples.

    ncu takes few launches, so that a sample's preparation (poisoned outputs, flushed caches) must not be among them.
    It is told when, through CUDA's own calls: a choice by NVTX range would find nothing wherever a range fails to
    reach ncu, with NVTX missing or its messages going unheard. On a CPU there are no such calls: nsys goes by a range.
    """
    if orders.profiler == "torch":
        with _torch_trace(orders.report, device):
            yield
        return
    if not device.is_cuda:
        from hsbench.measure import annotate

        with annotate(CAPTURE):
            yield
    elif orders.profiler == "ncu":
        from hsbench.measure import mirrored

        with mirrored(_only_samples):
            yield
    else:
        with _open_capture():
            yield


def _only_samples(name: str, payload: object) -> AbstractContextManager[object]:
    return _open_capture() if name == "sample" else nullcontext()


@contextmanager
def _open_capture() -> Iterator[None]:
    """The capture of nsys or ncu is open inside the block, for all that is queued there and for nothing else."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    try:
        yield
    finally:
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


@contextmanager
def _torch_trace(report: Path, device: Device) -> Iterator[None]:
    """Record the block, our ranges with it, and write the trace when it ends."""
    from torch.profiler import ProfilerActivity, profile, record_function

    from hsbench.measure import mirrored

    def mirror(name: str, payload: object) -> AbstractContextManager[object]:
        return record_function(name)  # a Chrome trace has no place for a payload

    activities = [ProfilerActivity.CPU]
    if device.is_cuda:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=True) as profiler, mirrored(mirror):
        yield
    profiler.export_chrome_trace(str(report))
