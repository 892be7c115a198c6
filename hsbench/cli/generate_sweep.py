"""``hsbench compare --phase generate``: what ``hsbench generate`` measures, over a list of contexts."""

from __future__ import annotations

from hsbench.cli.generate_task import GenerateRequest, run_generate
from hsbench.cli.parse import parse_list
from hsbench.cli.request import LISTS, Request
from hsbench.errors import UsageError

GENERATE = "generate"

_SHARED = (
    *("batch", "sparsity", "key_sparsity", "value_sparsity", "pruner", "basis", "plan", "sink", "local", "methods"),
    *("dtype", "device", "seed", "format", "output", "manifest"),
)
_OWN = {"model": "--model", "text": "--text", "new_tokens": "--new-tokens"}


def sweeps_generate(request: Request) -> bool:
    """Whether it is this phase that is asked for.

    Raises:
        UsageError: it is, among others; or what it alone knows is given without it.
    """
    phases = [] if request.phase is None else parse_list(request.phase, "phase")
    if GENERATE in phases:
        if len(phases) > 1:
            raise UsageError("phase", request.phase, f"{GENERATE} runs a model: compare the other phases apart")
        return True
    for name, option in _OWN.items():
        if (typed := getattr(request, name)) is not None:
            raise UsageError(option, typed, f"is of --phase {GENERATE}; leave it out")
    return False


def sweep_generate(request: Request) -> int:
    """Runs it, and returns the exit code.

    Raises:
        UsageError, UnavailableError: what is wrong, before any work.
    """
    if request.model is None:
        raise UsageError("--model", "MODEL", f"missing; --phase {GENERATE} runs one, such as random:Llama-3.1-8B")
    for name, typed in request.given().items():
        if name not in (*_SHARED, *_OWN, "phase", "seq"):
            raise UsageError(name, typed, f"is not of --phase {GENERATE}; leave it out")
    for name in (name for name in LISTS if name in _SHARED):
        typed = getattr(request, name)
        if typed is not None and "," in typed:
            raise UsageError(name, typed, f"--phase {GENERATE} takes a list of --seq alone; run it for each")
    given = {name: getattr(request, name) for name in (*_SHARED, *_OWN)}
    try:
        return run_generate(GenerateRequest(**given, context=request.seq), default_format="csv")
    except UsageError as error:
        if error.option in ("context", "contexts"):
            raise UsageError("seq", error.value, error.remedy) from error
        raise
