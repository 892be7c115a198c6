"""Every option of the commands, each declared once.

All are taken as text: parsing them is ``parse.py``'s work, so that every mistake gets the same kind of
message, whichever parser it would have come from. An option that is not given is None, which tells "the default" from
"asked for"; what the help says of a default comes from where it lives.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from hsbench.cache.pruner import ALONG_HEAD_DIM, AUTO_PRUNER, PRUNERS
from hsbench.cli.request import DEFAULT_PROFILE_DIR, DEVICES
from hsbench.problem import workload as problem
from hsbench.problem.elements import INPUTS, STORED
from hsbench.problem.phase import PHASES
from hsbench.run.quality.settings import DEPTHS, WHENS, Task
from hsbench.run.settings import CACHES, Settings

_SHAPE, _SPARSITY, _RUN, _OUTPUT = "Shape", "Sparsity", "What runs", "Output"
_PROFILE = "Looking inside"
_TEXT, _MORE = "Model and text", "More to measure"


def _option(name: str, metavar: str, help: str, panel: str) -> Any:
    return typer.Option(name, metavar=metavar, help=help, rich_help_panel=panel, show_default=False)


def _either(words: Iterable[str]) -> str:
    """``a, b or c``."""
    *most, last = words
    return f"{', '.join(most)} or {last}"


def _listed(option: Any) -> Any:
    """The same option for ``compare``, which takes a comma-separated list."""
    listed = copy.copy(option)
    listed.metavar, listed.help = f"{option.metavar},...", f"{option.help} A list runs each."
    return listed


_WORKLOAD = _option("--workload", "NAME", f"Model whose attention shape is used ({problem.DEFAULT_WORKLOAD}).", _SHAPE)
_SEQ = _option("--seq", "SIZE", f"Tokens in the KV cache, such as 4096 or 128k ({problem.DEFAULT_SEQ >> 10}k).", _SHAPE)
_BATCH = _option("--batch", "N", f"Sequences at a time ({problem.DEFAULT_BATCH}).", _SHAPE)
_DTYPE = _option("--dtype", "DTYPE", f"{_either(INPUTS)} ({problem.DEFAULT_DTYPE}).", _SHAPE)
_SPARSITY_OF_BOTH = _option(
    "--sparsity",
    "SHARE",
    f"Share of K and V to prune, 0 to 0.5; at 0.5 every eligible block is 2:4 ({problem.DEFAULT_SPARSITY:g}).",
    _SPARSITY,
)

_PRUNER = _option(
    "--pruner",
    "NAME",
    f"What stays of K and V: {', '.join(PRUNERS)}, NAME{ALONG_HEAD_DIM}, or {AUTO_PRUNER} ({problem.PAPER_PRUNER}).",
    _SPARSITY,
)

_EVICT = _option(
    "--evict",
    "SHARE",
    "Share of blocks that hierarchical and evict drop, 0 to 1 (0; of evict: as small as hierarchical's cache).",
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
Phases = Annotated[
    Text,
    _listed(
        _option(
            "--phase",
            "PHASE",
            f"{', '.join(PHASES)}; or generate, of a --model, by itself ({next(iter(PHASES))}).",
            _SHAPE,
        )
    ),
]
QHeads = Annotated[Text, _option("--q-heads", "N", "Query heads; a multiple of --kv-heads (the model's).", _SHAPE)]
KvHeads = Annotated[Text, _option("--kv-heads", "N", "Key-value heads (the model's).", _SHAPE)]
HeadDim = Annotated[Text, _option("--head-dim", "N", f"{_either(map(str, problem.HEAD_DIMS))} (the model's).", _SHAPE)]
QLen = Annotated[
    Text,
    _option("--q-len", "SIZE", "Queries of a prefill, the last of --seq: a chunk (all of --seq).", _SHAPE),
]
KeySparsity = Annotated[Text, _option("--key-sparsity", "SHARE", "Of K alone (--sparsity).", _SPARSITY)]
ValueSparsity = Annotated[Text, _option("--value-sparsity", "SHARE", "Of V alone (--sparsity).", _SPARSITY)]
Pruner = Annotated[Text, _PRUNER]
Pruners = Annotated[Text, _listed(_PRUNER)]
Evict = Annotated[Text, _EVICT]
Evicts = Annotated[Text, _listed(_EVICT)]
Basis = Annotated[
    Text, _option("--basis", "FILE", "What hsbench calibrate wrote, for the pruner calibrated; see --layer.", _SPARSITY)
]
Sink = Annotated[Text, _option("--sink", "SIZE", "First tokens whose blocks stay dense (0).", _SPARSITY)]
Local = Annotated[Text, _option("--local", "SIZE", "Last tokens whose blocks stay dense (0).", _SPARSITY)]
Methods = Annotated[
    Text,
    _option("--methods", "NAME,...", "Families or family:variant; hsbench doctor lists them (all).", _RUN),
]
Ranks = Annotated[
    Text,
    _option(
        "--ranks", "N", "Processes, each on a GPU, that the sequence is sharded over; see docs/ranks.md (1).", _RUN
    ),
]
Device = Annotated[
    Text, _option("--device", "DEVICE", f"{_either(DEVICES)} ({DEVICES[0]}: CUDA where there is one).", _RUN)
]
Kv = Annotated[Text, _option("--kv", "FILE", "Captured layers.N.q, .k and .v in a safetensors file.", _RUN)]
Layer = Annotated[Text, _option("--layer", "N", "Layer of --kv, --basis or --plan (the first there).", _RUN)]
Tensors = Annotated[
    Text,
    _option(
        "--tensors", "KIND", f"Synthetic tensors: gaussian, or outliers as in real K ({problem.DEFAULT_TENSORS}).", _RUN
    ),
]
Seed = Annotated[Text, _option("--seed", "N", "Seed of the synthetic tensors (0).", _RUN)]
Cache = Annotated[
    Text, _option("--cache", "STATE", f"{_either(CACHES)} when a sample starts ({Settings.cache}).", _RUN)
]
Time = Annotated[
    Text, _option("--time", "SECONDS", f"Time to sample each method for, at most ({Settings.budget_s:g}).", _RUN)
]
Sustain = Annotated[
    Text,
    _option(
        "--sustain",
        "SECONDS",
        "Run a method untimed for so long before each of its samples: clocks under its own load "
        f"({Settings.sustain_s:g}).",
        _RUN,
    ),
]
Format = Annotated[
    Text,
    _option("--format", "FORMAT", "table, csv, json, parquet or markdown; else by the ending of --output.", _OUTPUT),
]
Output = Annotated[Text, _option("--output", "FILE", "Write results there instead of to stdout (-).", _OUTPUT)]
Manifest = Annotated[
    Text,
    _option("--manifest", "FILE", "Write what the run depends on there (FILE.manifest.json beside a CSV).", _OUTPUT),
]
Replay = Annotated[
    Text, _option("--replay", "FILE", "Repeat the run that a manifest, or a JSON of results, tells of.", _RUN)
]
Resume = Annotated[
    Text, _option("--resume", "FILE", "Go on with the run that FILE was killed in: what is done stays.", _RUN)
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
    Text, _option("--profile-dir", "DIR", f"Folder of the reports, made if need be ({DEFAULT_PROFILE_DIR}).", _PROFILE)
]
DoctorFormat = Annotated[Text, _option("--format", "FORMAT", "table or json (table).", _OUTPUT)]
Probe = Annotated[
    bool,
    typer.Option("--probe/--no-probe", help="Measure copy and read bandwidth (--probe).", show_default=False),
]


# ---- quality ---------------------------------------------------------------------------------------------------
def _flag(name: str, help: str, panel: str) -> Any:
    return typer.Option(name, help=help, rich_help_panel=panel, show_default=False)


Context = Annotated[
    Text, _option("--context", "SIZE", f"Tokens before those that are scored ({Task.context >> 10}k).", _TEXT)
]
Score = Annotated[Text, _option("--score", "SIZE", f"Tokens that are scored, per window ({Task.score >> 10}k).", _TEXT)]
Windows = Annotated[
    Text, _option("--windows", "N", f"Stretches of the text, spread evenly, none in another ({Task.windows}).", _TEXT)
]
When = Annotated[
    Text,
    _option(
        "--when",
        "WHEN",
        f"{_either(WHENS)}: tokens are pruned as they leave --local in generation, between the chunks of a prefill, "
        f"or all before attention ({Task.when}).",
        _SPARSITY,
    ),
]
ChunkSize = Annotated[
    Text, _option("--chunk", "SIZE", f"Tokens of a chunk, with --when chunked ({Task.chunk >> 10}k).", _SPARSITY)
]
ManySparsities = Annotated[
    Text, _option("--sparsity", "SHARE,...", "Shares of K and V to prune, 0 to 0.5 (0,0.5).", _SPARSITY)
]
ManyKeySparsities = Annotated[Text, _option("--key-sparsity", "SHARE,...", "Of K alone (--sparsity).", _SPARSITY)]
ManyValueSparsities = Annotated[Text, _option("--value-sparsity", "SHARE,...", "Of V alone (--sparsity).", _SPARSITY)]
ModelEvict = Annotated[
    Text,
    _option(
        "--evict",
        "SHARE,...",
        "Shares of blocks that hierarchical and evict drop, 0 to 1 (0; of evict: as small as hierarchical's cache).",
        _SPARSITY,
    ),
]
ModelSink = Annotated[
    Text, _option("--sink", "SIZE", f"First tokens, whose blocks stay dense ({Task.sink}).", _SPARSITY)
]
ModelLocal = Annotated[
    Text, _option("--local", "SIZE", f"Last tokens whose blocks stay dense ({Task.local}).", _SPARSITY)
]
LayerPlan = Annotated[
    Text, _option("--plan", "FILE", "Sparsities by layer, as quality --plan-output wrote them; see --layer.", _SPARSITY)
]
QualityMethods = Annotated[
    Text, _option("--methods", "NAME,...", "hierarchical, dense, evict, unstructured (hierarchical).", _RUN)
]
StoredElements = Annotated[
    Text,
    _option("--elements", "NAME,...", f"What values of hierarchical and dense are: {_either(STORED)} (16bit).", _RUN),
]
KeyElements = Annotated[Text, _option("--key-elements", "NAME,...", "The same of K alone.", _RUN)]
ValueElements = Annotated[Text, _option("--value-elements", "NAME,...", "The same of V alone.", _RUN)]
Weights = Annotated[Text, _option("--weights", "DTYPE", "fp32, fp16 or bf16, of the model (on a CPU fp32).", _RUN)]
CacheDtype = Annotated[
    Text,
    _option("--dtype", "DTYPE", f"Of q, K, V in the cache: {_either(INPUTS)} (the model's; fp16 of fp32).", _RUN),
]
RunSeed = Annotated[Text, _option("--seed", "N", "Of passkeys, and of which passes are checked (0).", _RUN)]
Needle = Annotated[bool, _flag("--needle", "Passkeys too: their nats in the answer, and how many are found.", _MORE)]
Depths = Annotated[
    Text,
    _option(
        "--depths", "SHARE,...", f"Where passkeys lie in the context ({','.join(f'{one:g}' for one in DEPTHS)}).", _MORE
    ),
]
PerLayer = Annotated[
    bool, _flag("--per-layer", "Each layer alone, too: its KL, and the error of its output and its heads'.", _MORE)
]
PlanFor = Annotated[
    Text, _option("--plan-for", "KL", "Find the sparsities by layer that keep the KL within this, in nats.", _MORE)
]
PlanOutput = Annotated[Text, _option("--plan-output", "FILE", "Where the plan of --plan-for goes.", _MORE)]
