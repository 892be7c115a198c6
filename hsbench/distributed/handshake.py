"""From a process that knows its place to a :class:`Group`: who is there, with what, and whether they fit together.

Every rank writes down what it is, in the store where they meet, and reads what the others are. So all come to the same
verdict, before any collective that a rank could hang in: one that is missing, runs another version, was asked for
something else, or lacks a GPU. The lowest rank that is there says it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hsbench.distributed.environment import Place
from hsbench.distributed.group import PATIENCE, Group, RankLostError, losing
from hsbench.errors import HsbenchError, SaidElsewhereError, UnavailableError, UsageError
from hsbench.kernels.device import Device

_START_S = 25.0  # 30 s after a rank failed to start, all have ended
_LOOK_S = 0.05

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class _Seen:
    """The ranks that are there, and what each is."""

    facts: dict[int, Facts]
    size: int


def join(place: Place, device: Device | None, facts: Facts, start_s: float | None = None) -> Group:
    """Meets the other ranks, and makes their group.

    Args:
        device: where the run is to be; None for a rank that takes rank 0's.
        facts: what must be the same on all ranks, in words by name.
        start_s: how long to wait for ranks to start; None for 25, or what HSBENCH_RANK_START_S says.

    Raises:
        HsbenchError: a rank does not come, or differs.
        UnavailableError: a rank lacks the device, or its collectives.
        UsageError: HSBENCH_RANK_START_S is no number of seconds.
        SaidElsewhereError: one of these, which another rank says.
    """
    if not dist.is_available():
        raise UnavailableError(f"torch {torch.__version__} has no torch.distributed: install another build")
    start_s = _start_s() if start_s is None else start_s
    wait = timedelta(seconds=start_s)
    store = dist.PrefixStore("hsbench/meet", _store(place, wait))
    if device is not None:
        store.set("device", device.kind)
    end = time.monotonic() + start_s
    kind = ""
    if device is not None:
        kind = device.kind
    elif _wait(store, ["device"], end):
        kind = store.get("device").decode()
    store.set(f"rank/{place.rank}", json.dumps({**facts, "device": _device_facts(place, kind)}))
    seen = _meet(store, place, end)
    verdict = next(_verdicts(seen, start_s), None)
    if verdict is not None:
        if place.leads and not place.has_store:
            _keep_serving(store, len(seen.facts))
        raise verdict if place.rank == min(seen.facts) else SaidElsewhereError(str(verdict), verdict.exit_code)
    return _group(place, Device(kind), store)


def _start_s() -> float:
    typed = os.environ.get("HSBENCH_RANK_START_S") or str(_START_S)
    try:
        seconds = float(typed)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UsageError("HSBENCH_RANK_START_S", typed, "must be a number of seconds above 0, such as 25")
    return seconds


def _store(place: Place, wait: timedelta) -> dist.TCPStore:
    """The store at the ranks' address: the launcher's, or rank 0's own."""
    serves = place.leads and not place.has_store
    where = f"{place.address}:{place.port}"
    try:
        return dist.TCPStore(
            place.address, place.port, is_master=serves, timeout=wait, wait_for_workers=False, multi_tenant=serves
        )
    except RuntimeError as error:
        if serves and ("EADDRINUSE" in str(error) or "already in use" in str(error)):
            raise HsbenchError(f"MASTER_PORT {place.port} is taken: give another") from error
        if serves:
            raise HsbenchError(f"rank 0 cannot listen at {where}: check MASTER_ADDR and MASTER_PORT") from error
        raise HsbenchError(f"nobody answers at {where}, where rank 0 should be: check MASTER_ADDR and MASTER_PORT; "
                            f"rank {place.rank} waited {wait.total_seconds():.0f} s") from error  # fmt: skip


def _wait(store: dist.Store, keys: list[str], end: float) -> bool:
    """Whether all keys are there before the end, by the monotonic clock. Never long in native code, where no signal is
    heard."""
    while True:
        with losing():
            if store.check(keys):
                return True
        if time.monotonic() >= end:
            return False
        time.sleep(_LOOK_S)


def _meet(store: dist.Store, place: Place, end: float) -> _Seen:
    keys = [f"rank/{rank}" for rank in range(place.size)]
    _wait(store, keys, end)
    try:
        there = [rank for rank, key in enumerate(keys) if store.check([key])]
        facts = {rank: json.loads(store.get(keys[rank])) for rank in there}
        facts.setdefault(place.rank, {})
        store.add("read", 1)
    except RuntimeError as error:
        raise RankLostError("the store where ranks meet is gone: the launcher, or rank 0, has ended") from error
    return _Seen(facts, place.size)


def _verdicts(seen: _Seen, start_s: float) -> Iterator[HsbenchError]:
    """What is wrong, the most basic first."""
    missing = [rank for rank in range(seen.size) if rank not in seen.facts]
    if missing:
        yield HsbenchError(
            f"{_ranks(missing)} of {seen.size} did not start within {start_s:g} s: "
            "see what it said, or set HSBENCH_RANK_START_S"
        )
        return
    first = seen.facts[0]
    for name in first:
        if name == "device":
            continue
        for rank in range(1, seen.size):
            here, there = first[name], seen.facts[rank].get(name)
            if here != there:
                yield HsbenchError(f"rank {rank} has {name} {there}, rank 0 {here}: start all ranks with the same")
    devices = [seen.facts[rank]["device"] for rank in range(seen.size)]
    for rank, found in enumerate(devices):
        if found["lacks"]:
            yield UnavailableError(f"rank {rank}: {found['lacks']}")
    held: dict[str, int] = {}
    for rank, found in enumerate(devices):
        if (other := held.setdefault(found["gpu"] or f"none of rank {rank}", rank)) != rank:
            remedy = "give each rank a GPU of its own (CUDA_VISIBLE_DEVICES), or fewer ranks"
            yield UnavailableError(f"ranks {other} and {rank} see the same GPU: {remedy}")
    names = {found["name"] for found in devices}
    if len(names) > 1:
        remedy = "give all ranks GPUs of one kind (CUDA_VISIBLE_DEVICES)"
        yield UnavailableError(f"ranks have different GPUs ({', '.join(sorted(map(str, names)))}): {remedy}")


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def _device_facts(place: Place, kind: str) -> dict[str, str | None]:
    """What a rank's device is, and what it lacks."""
    facts: dict[str, str | None] = {"lacks": None, "gpu": None, "name": None}
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            facts["lacks"] = "torch sees no GPU here: check CUDA_VISIBLE_DEVICES and nvidia-smi, or give --device cpu"
        elif not dist.is_nccl_available():
            facts["lacks"] = f"torch {torch.__version__} has no NCCL: install a build that has, or give --device cpu"
        elif (at := gpu_of(place)) is None:
            remedy = f"give at most {count} ranks on this machine, or show them more (CUDA_VISIBLE_DEVICES)"
            facts["lacks"] = f"sees {count} GPU{'s' * (count > 1)}, and needs the one at {place.local_rank}: {remedy}"
        else:
            properties = torch.cuda.get_device_properties(at)
            facts |= {"gpu": str(getattr(properties, "uuid", None) or f"{place.rank}"), "name": properties.name}
    elif kind and not dist.is_gloo_available():
        facts["lacks"] = f"torch {torch.__version__} has no gloo: install a build that has"
    return facts


def gpu_of(place: Place) -> int | None:
    """Which of the GPUs that torch sees is a rank's: by its number on its machine; or the only one, as where a batch
    system shows each process its own. None where there are fewer."""
    count = torch.cuda.device_count()
    if place.local_rank < count:
        return place.local_rank
    return 0 if count == 1 else None


def _keep_serving(store: dist.Store, readers: int) -> None:
    """Waits until all ranks that are there have read what this one, which serves the store, ends by."""
    end = time.monotonic() + 2.0
    while time.monotonic() < end and store.add("read", 0) < readers:
        time.sleep(0.05)


def _group(place: Place, device: Device, store: dist.Store) -> Group:
    """The process groups."""
    backend, at = "gloo", None
    if device.is_cuda:
        backend, at = "cpu:gloo,cuda:nccl", torch.device("cuda", gpu_of(place) or 0)
        torch.cuda.set_device(at)
    with losing():
        dist.init_process_group(
            backend, store=dist.PrefixStore("group", store), rank=place.rank, world_size=place.size, timeout=PATIENCE,
            device_id=at,
        )  # fmt: skip
        data = dist.group.WORLD
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert data is not None
    return Group(place, device, data, control)
