"""``--ranks``: ranks on this machine, started by torch.distributed's launcher; and what became of them, in one line."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence

from hsbench.distributed.environment import LAUNCHER, Place
from hsbench.errors import HsbenchError

#: Exit code of a rank that ends because another one did, and has said nothing.
FOLLOWED = 75

_LOGGERS = ("torch.distributed.elastic", "torch.distributed.launcher", "torch.distributed.run")
_PR_SET_PDEATHSIG = 1
_ENDING_S = 15  # for rows that are to be written, before SIGKILL


def launch(ranks: int, command: Sequence[str], threads: int | None = None) -> int:
    """Runs a command on so many ranks of this machine.

    Args:
        ranks: 2 or more.
        command: the words behind ``python``.
        threads: of each rank's CPU kernels; None leaves it to OMP_NUM_THREADS.

    Returns:
        The exit code: of the rank that ended otherwise than well, which has said why; 128 and the signal's number where
        one came.

    Raises:
        HsbenchError: a rank was killed, or they could not be started.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in _LOGGERS:  # what they say of a rank that failed, it has said itself
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(_ENDING_S)
    if threads is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    with tempfile.TemporaryDirectory(prefix="hsbench-ranks-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=ranks,
            run_id=f"hsbench-{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # any port that is free
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, sys.executable)(*command)
        except SignalException as error:
            return 128 + int(error.sigval)
        except ChildFailedError as error:
            return _outcome({rank: failure.exitcode for rank, failure in error.failures.items()}, ranks)
        except (RuntimeError, OSError) as error:
            words = " ".join(str(error).split())[:200]
            raise HsbenchError(f"torch.distributed's launcher cannot start {ranks} ranks ({words})") from error
    return 0


def _outcome(codes: dict[int, int], ranks: int) -> int:
    """The exit code that stands for all.

    Args:
        codes: of the ranks that did not end well; negative for the number of a signal.
    """
    # What ends the others because one has is SIGTERM, or SIGKILL to those that do not hear that.
    killed = {rank: -code for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM}
    own = {rank: code for rank, code in codes.items() if code > 0 and code not in (FOLLOWED, 128 + signal.SIGTERM)}
    if own:
        return own[min(own)]
    if killed:
        rank = min(killed)
        name = signal.Signals(killed[rank]).name
        hint = ": dmesg tells whether the machine ran out of memory" if killed[rank] == signal.SIGKILL else ""
        raise HsbenchError(f"rank {rank} of {ranks} was killed ({name}), and the others were ended{hint}")
    if 128 + signal.SIGTERM in codes.values():
        return 128 + signal.SIGTERM
    raise HsbenchError(f"the {ranks} ranks lost one another; run the command again")


def end_with_launcher(place: Place) -> None:
    """From now on, SIGTERM comes when the process that started this rank ends, however it does: none is left over.

    Raises:
        HsbenchError: it has ended already.
    """
    if place.launcher is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != place.launcher:
        raise HsbenchError("the process that started this rank has ended")
