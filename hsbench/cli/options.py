"""Every option of the commands, each declared once.

All are taken as text: parsing them is ``request.py``'s work, so that every mistake gets the same kind of
message, whichever parser it would have come from. An option that is not given is None there, which tells "the
default" from "asked for", and the defaults live in one place.
"""

from __future__ import annotations

import copy
from typing import Annotated, Any

import typer

_SHAPE, _SPARSITY, _RUN, _OUTPUT = "Shape", "Sparsity", "What runs", "Output"
_PROFILE = "Looking inside"


def _option(name: str, metavar: str, help: str, panel: str) -> Any:
    return typer.Option(name, metavar=metavar, help=help, rich_help_panel=panel, show_default=False)


def _listed(option: Any) -> Any:
    """The same option for ``compare``, which takes a comma-separated list."""
    listed = copy.copy(option)
    listed.metavar, listed.help = f"{option.metavar},...", f"{option.help} A list runs each."
    return listed


_WORKLOAD = _option("--workload", "NAME", "Model whose attention shape is used (Llama-3.1-8B).", _SHAPE)
_SEQ = _option("--seq", "SIZE", "Tokens in the KV cache, such as 4096 or 128k (32k).", _SHAPE)
_BATCH = _option("--batch", "N", "Sequences at a time (1).", _SHAPE)
_DTYPE = _option("--dtype", "DTYPE", "fp16 or bf16 (fp16).", _SHAPE)
_SPARSITY_OF_BOTH = _option(
    "--sparsity",
    "SHARE",
    "Share of K and V to prune, 0 to 0.5; at 0.5 every eligible block is 2:4 (0.5).",
    _SPARSITY,
)

Text = str | None

Workload = Annotated[Text, _WORKLOAD]
Workloads = Annotated[Text, _listed(_WORKLOAD)]
Seq = Annotated[Text, _SEQ]
Seqs = Annotated[Text, _listed(_SEQ)]
Batch = Annotated[Text, _BATCH]
Batches = Annotated[Text, _listed(_BATCH)]
Dtype = Annotated[Text, _DTYPE]
Dtypes = Annotated[Text, _listed(_DTYPE)]
Sparsity = Annotated[Text, _SPARSITY_OF_BOTH]
Sparsities = Annotated[Text, _listed(_SPARSITY_OF_BOTH)]
Phases = Annotated[Text, _listed(_option("--phase", "PHASE", "decode or prefill (decode).", _SHAPE))]
QHeads = Annotated[Text, _option("--q-heads", "N", "Query heads; a multiple of --kv-heads (32).", _SHAPE)]
KvHeads = Annotated[Text, _option("--kv-heads", "N", "Key-value heads (8).", _SHAPE)]
HeadDim = Annotated[Text, _option("--head-dim", "N", "64 or 128 (128).", _SHAPE)]
QLen = Annotated[
    Text,
    _option("--q-len", "SIZE", "Queries of a prefill, the last of --seq: a chunk (all of --seq).", _SHAPE),
]
KeySparsity = Annotated[Text, _option("--key-sparsity", "SHARE", "Of K alone (--sparsity).", _SPARSITY)]
ValueSparsity = Annotated[Text, _option("--value-sparsity", "SHARE", "Of V alone (--sparsity).", _SPARSITY)]
Sink = Annotated[Text, _option("--sink", "SIZE", "First tokens whose blocks stay dense (0).", _SPARSITY)]
Local = Annotated[Text, _option("--local", "SIZE", "Last tokens whose blocks stay dense (0).", _SPARSITY)]
Methods = Annotated[
    Text,
    _option("--methods", "NAME,...", "Families or family:variant; hsbench doctor lists them (all).", _RUN),
]
Device = Annotated[Text, _option("--device", "DEVICE", "auto, cuda or cpu (auto: CUDA where there is one).", _RUN)]
Kv = Annotated[Text, _option("--kv", "FILE", "Captured layers.N.q, .k and .v in a safetensors file.", _RUN)]
Layer = Annotated[Text, _option("--layer", "N", "Layer of --kv (the first there).", _RUN)]
Tensors = Annotated[
    Text,
    _option("--tensors", "KIND", "Synthetic tensors: gaussian, or outliers as in real K (gaussian).", _RUN),
]
Seed = Annotated[Text, _option("--seed", "N", "Seed of the synthetic tensors (0).", _RUN)]
Cache = Annotated[Text, _option("--cache", "STATE", "cold or warm when a sample starts (cold).", _RUN)]
Time = Annotated[Text, _option("--time", "SECONDS", "Time to sample each method for, at most (4).", _RUN)]
Sustain = Annotated[
    Text,
    _option(
        "--sustain",
        "SECONDS",
        "Run a method untimed for so long before each of its samples: clocks under its own load (0).",
        _RUN,
    ),
]
Format = Annotated[
    Text,
    _option("--format", "FORMAT", "table, csv, json or markdown; else by --output: .txt, .csv, .json or .md.", _OUTPUT),
]
Output = Annotated[Text, _option("--output", "FILE", "Write results there instead of to stdout (-).", _OUTPUT)]
Manifest = Annotated[
    Text,
    _option("--manifest", "FILE", "Write what the run depends on there (FILE.manifest.json beside a CSV).", _OUTPUT),
]
Replay = Annotated[
    Text, _option("--replay", "FILE", "Repeat the run that a manifest, or a JSON of results, tells of.", _RUN)
]
Profile = Annotated[
    bool,
    typer.Option(
        "--profile",
        help="Then run once more under a profiler, and say where its report is.",
        rich_help_panel=_PROFILE,
        show_default=False,
    ),
]
Profiler = Annotated[
    Text, _option("--profiler", "NAME", "nsys, ncu or torch (nsys where it is, else torch).", _PROFILE)
]
ProfileDir = Annotated[
    Text, _option("--profile-dir", "DIR", "Folder of the reports, made if need be (profiles/out).", _PROFILE)
]
DoctorFormat = Annotated[Text, _option("--format", "FORMAT", "table or json (table).", _OUTPUT)]
Probe = Annotated[
    bool,
    typer.Option("--probe/--no-probe", help="Measure copy and read bandwidth (--probe).", show_default=False),
]
