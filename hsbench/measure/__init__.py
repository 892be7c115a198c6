"""The measuring room: how long something takes, how sure that is, and what else went on meanwhile.

It knows nothing of attention. A subject is a callable; one turn of it is

    before    keep the machine under the subject's own load for a while (`sustain`, where asked for), poison an
              output, put the caches in order (`policy`), then wait until our own threads have stopped spinning
              (`settle`)
    [clock starts] run [clock stops]
    on_sample read the GPU's clocks and power while they are still those of the run (`Telemetry`)

and `sample_in_turn` takes turns, A B C, C A B and so on, until the medians are known well enough or the time is
up. Only the run is inside the timed window. `ratio_interval` compares two subjects, round by round. `copy_ceiling`,
`read_ceiling` and `gemm_ceiling` are the machine's ceilings, to be measured alone (`probe`) or in turn with the
rest. NVTX ranges (domain "hsbench") nest as subject / prepare, warm-up, sample.

Importing the room touches no device and does not import torch.
"""

from .available import FreeMemory, free_memory, release_memory, thread_bytes
from .cache import COLD_FACTOR, CachePolicy, Flusher, flush_bytes, last_level_cache_bytes, policy
from .clock import Clock, ClockError, CudaClock, HostClock, ProfiledClock, Retake, clock_for, take_sample
from .cpu import CpuFacts, cpu_facts
from .footprint import Footprint
from .load import sustain
from .probes import Ceiling, Probe, copy_ceiling, fastest, gemm_bytes, gemm_ceiling, probe, read_ceiling
from .quiet import OtherLoad, Settled, background_cpu_s, process_cpu_s, settle
from .quota import QuotaWatch
from .ranges import annotate, mark, mirrored, recorder
from .sampling import Samples, Sampling, StopRule, Subject, sample_in_turn
from .statistics import Ratio, Summary, ratio_interval, relative_half_width, summarize
from .telemetry import GpuFacts, GpuProcess, Reading, Telemetry, TelemetrySummary

__all__ = [
    "COLD_FACTOR",
    "CachePolicy",
    "Ceiling",
    "Clock",
    "ClockError",
    "CpuFacts",
    "CudaClock",
    "Flusher",
    "Footprint",
    "FreeMemory",
    "GpuFacts",
    "GpuProcess",
    "HostClock",
    "OtherLoad",
    "Probe",
    "ProfiledClock",
    "QuotaWatch",
    "Ratio",
    "Reading",
    "Retake",
    "Samples",
    "Sampling",
    "Settled",
    "StopRule",
    "Subject",
    "Summary",
    "Telemetry",
    "TelemetrySummary",
    "annotate",
    "background_cpu_s",
    "clock_for",
    "copy_ceiling",
    "cpu_facts",
    "fastest",
    "flush_bytes",
    "free_memory",
    "gemm_bytes",
    "gemm_ceiling",
    "last_level_cache_bytes",
    "mark",
    "mirrored",
    "policy",
    "probe",
    "process_cpu_s",
    "ratio_interval",
    "read_ceiling",
    "recorder",
    "relative_half_width",
    "release_memory",
    "sample_in_turn",
    "settle",
    "summarize",
    "sustain",
    "take_sample",
    "thread_bytes",
]
