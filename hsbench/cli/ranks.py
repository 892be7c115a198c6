"""``--ranks``, and torchrun: who starts the ranks, who leads, and who follows.

hsbench decode --ranks 2              checks all, starts two ranks of the same command line, says what became of them
torchrun -m hsbench decode ...        the ranks alone
  rank 0                              checks all, leads: runs the plan, writes results, has the progress bar
  rank 1                              follows, and says nothing but what goes wrong with it
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsbench.cli.parse import as_option, parse_size
from hsbench.cli.request import Request
from hsbench.cli.signals import Interruptible
from hsbench.cli.streams import say
from hsbench.cli.usage import COMMAND_LINE
from hsbench.distributed.environment import Place, place
from hsbench.errors import HsbenchError, SaidElsewhereError, UnavailableError, UsageError

if TYPE_CHECKING:
    from hsbench.run.leading import Leader
    from hsbench.run.plan import Plan


def ranks_of(request: Request) -> int:
    """How many ranks a request is for: those that there are, or those to be started.

    Raises:
        UsageError: not a number of them, or not as many as there are.
    """
    there = place()
    asked = None if request.ranks is None else parse_size(request.ranks, "ranks")
    if there is not None and asked not in (None, there.size):
        raise UsageError("ranks", asked, f"torchrun has started {there.size} ranks; give that, or leave it out")
    return there.size if there is not None else asked or 1


def resumed_ranks(request: Request, file: str) -> tuple[int, str | None]:
    """How many ranks a run that is resumed has, and its device, where that is told: its own, else the request's. What
    is wrong with either is said by whoever resumes."""
    from hsbench.results import read_stored

    try:
        asked = ranks_of(request)
        stored = read_stored(Path(file), "resume", None if request.manifest is None else Path(request.manifest))
        plan = (stored.manifest or {}).get("run") or {}
        return int(plan.get("ranks", asked if stored.manifest is None else 1)), plan.get("device", request.device)
    except (HsbenchError, AttributeError, TypeError, ValueError):
        return 1, None


def leads() -> bool:
    """Whether this process is rank 0 of ranks that have been started."""
    there = place()
    return there is not None and there.leads


def follows() -> bool:
    """Whether this process is another rank, which has no request of its own."""
    there = place()
    return there is not None and not there.leads


def follow() -> int:
    """The life of a rank other than 0; returns the exit code of the run.

    Raises:
        HsbenchError: what went wrong with this rank.
        SaidElsewhereError: what went wrong with another.
    """
    there = place()
    assert there is not None
    try:
        with Interruptible(), _among(there, None) as group:
            from hsbench.run.leading import follow

            return follow(group)
    except SaidElsewhereError:
        raise
    except HsbenchError as error:
        shown = as_option(error) if isinstance(error, UsageError) else error
        told = HsbenchError(f"rank {there.rank}: {str(shown).removeprefix(f'rank {there.rank}: ')}")
        told.exit_code = error.exit_code
        raise told from error
    except Exception as error:
        words = f"rank {there.rank}: internal error: {type(error).__name__}: {error} (HSBENCH_TRACEBACK=1 shows where)"
        raise HsbenchError(words) from error


@contextlib.contextmanager
def leading(plan: Plan) -> Iterator[Leader | None]:
    """Rank 0's group while it runs a plan; None where there is one rank.

    Raises:
        UsageError: a replayed plan is for another number of ranks than there are.
        HsbenchError: a rank is gone, or does not fit the others.
    """
    there = place()
    if there is None:
        yield None
        return
    if plan.ranks != there.size:
        raise UsageError("ranks", plan.ranks, f"torchrun has started {there.size}; start as many as the run had")
    with _among(there, plan) as group:
        from hsbench.run.leading import Leader

        leader = Leader(plan, group)
        yield leader
        if leader.lost is not None:
            raise leader.lost


def start(ranks: int, device: str) -> int:
    """Starts ranks of this command line on this machine, and waits for their end; returns the exit code.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``, which they run on.

    Raises:
        UnavailableError: there are fewer GPUs.
        HsbenchError: a rank was killed, or they could not be started.
    """
    from hsbench import measure
    from hsbench.distributed.launch import launch
    from hsbench.machine.hardware import resolve_device

    threads = None
    if resolve_device(device).is_cuda:
        import torch

        count = torch.cuda.device_count()
        if ranks > count:
            have = f"{count} GPU{'s' * (count != 1)} to see here"
            remedy = f"give at most {count}, or start torchrun on more machines"
            raise UnavailableError(f"--ranks {ranks}: {have}; {remedy}")
    else:
        threads = max(1, measure.cpu_facts().usable_cores // ranks)
    code = launch(ranks, ["-m", "hsbench", *COMMAND_LINE.get()], threads)
    if code > 128:
        say("hsbench: interrupted")
    return code


@contextlib.contextmanager
def _among(there: Place, plan: Plan | None) -> Iterator[Any]:
    """The group of a rank's run.

    Raises:
        SaidElsewhereError: another rank is gone, and somebody else says so.
        HsbenchError: what is wrong with the ranks, which this one is to say.
    """
    from hsbench.distributed.group import RankLostError
    from hsbench.distributed.handshake import join
    from hsbench.distributed.launch import FOLLOWED, end_with_launcher
    from hsbench.distributed.watch import Watch
    from hsbench.machine import software

    end_with_launcher(there)
    libraries = {name: str(digest)[:12] for name, digest in software.libraries().items()}
    facts = {
        **{name: version for name, version in software.versions().items() if version is not None},
        "libraries": ", ".join(f"{name} {digest}" for name, digest in libraries.items()),
        "command": " ".join(COMMAND_LINE.get()),
    }
    try:
        with Watch() as watch:
            group = join(there, None if plan is None else plan.device, facts)
            watch.abort = group.abort
            yield group
            group.close()
    except RankLostError as error:
        if there.launcher is None and there.leads:
            raise
        raise SaidElsewhereError(str(error), FOLLOWED) from error
