"""Attention over a sharded sequence: each rank its own tokens, one all-gather, one combination.

    rank 0   out_0, lse_0  -->  |            |  --> out, lse
    rank 1   out_1, lse_1  -->  | all-gather |  --> out, lse    the same bits on every rank
    rank 2   out_2, lse_2  -->  |            |  --> out, lse

The message of a rank is its out, in the 16 bits that kernels give it, and its log-sum-exp in fp32: the values that fp32
would hold, in half of the bytes and without a conversion. At 32 heads of 128 these are 8.3 kB, so that a decode step
waits for the collective's latency and not for its bytes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hsbench.attention import arguments, calls
from hsbench.attention.combine import combination
from hsbench.cache.storage import StoredKV
from hsbench.errors import UnavailableError, UnsupportedError, UsageError

# Newer versions of torch have the second name alone without a warning.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Message:
    """What ranks give: ``out`` in its own 16 bits, and behind it its log-sum-exp; of one rank, or of several.

    Args:
        like: a tensor of ``out``'s shape, type and device.
        ranks: of how many.

    Attributes:
        data: uint8 ``[ranks, bytes of a rank]``.
        outs: ``[ranks, batch, q_heads, q_len, head_dim]``, within ``data``.
        lses: fp32 ``[ranks, batch, q_heads, q_len]``, within ``data``.
    """

    def __init__(self, like: Tensor, ranks: int) -> None:
        rows = like.shape[:-1]
        out_bytes = like.numel() * like.element_size()
        self.data = torch.empty((ranks, out_bytes + 4 * rows.numel()), dtype=torch.uint8, device=like.device)
        self.outs = self.data[:, :out_bytes].view(like.dtype).unflatten(1, like.shape)
        self.lses = self.data[:, out_bytes:].view(torch.float32).unflatten(1, rows)


class Gathered:
    """The second half of a call, bound to its tensors: :meth:`run` gathers and combines what ranks have computed.

    Nothing is allocated, and on CUDA nothing waits: all is queued on the current stream, or captured there.

    Args:
        like: a tensor of ``out``'s shape, type and device.
        group: None for the default one.

    Attributes:
        own_out, own_lse: where this rank's results go before each run: a kernel that writes them there saves a copy.
        out: as ``like``, over all tokens; combined in fp32 of what the ranks computed, and rounded once.
        lse: fp32 ``[batch, q_heads, q_len]``, natural log.
        nbytes: of a rank's message.
    """

    def __init__(self, like: Tensor, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self._own, self._all = Message(like, 1), Message(like, dist.get_world_size(group))
        self.own_out, self.own_lse = self._own.outs[0], self._own.lses[0]
        self._combination = combination(self._all.outs, self._all.lses, like.dtype, may_lack=False)
        self.out, self.lse, self.nbytes = self._combination.out, self._combination.lse, self._own.data.nbytes

    def take(self, out: Tensor, lse: Tensor) -> None:
        """Copies this rank's results to where they go, unless they are there."""
        for own, given in ((self.own_out, out), (self.own_lse, lse)):
            if given.data_ptr() != own.data_ptr():
                own.copy_(given)

    def may_lack(self) -> None:
        """This rank has no tokens for some query; then others may have none either. Each rank knows of itself alone: it
        is enough, since a query lacks tokens only if it does so on all ranks."""
        self._combination.may_lack = True

    def take_nothing(self) -> None:
        """What a rank without tokens gives."""
        self.may_lack()
        self.own_out.zero_()
        self.own_lse.fill_(-math.inf)

    def run(self) -> None:
        """Gathers and combines; all ranks of the group must call it."""
        _all_gather(self._all.data.flatten(), self._own.data.flatten(), group=self._group)
        self._combination.run()

    def anew(self) -> tuple[Tensor, Tensor]:
        """:meth:`run`, with ``out`` and ``lse`` in tensors of their own."""
        self._combination.renew()
        self.out, self.lse = self._combination.out, self._combination.lse
        self.run()
        return self.out, self.lse


def decode(q: Tensor, kv: StoredKV[Any] | None, group: dist.ProcessGroup | None = None) -> tuple[Tensor, Tensor]:
    """Attention of one query per head over a cache that is sharded over the ranks of a process group.

    A collective: all ranks of the group call it, with the same q and each with its own shard, in the same order as
    their other collectives. It works in any group that torch.distributed has made, on CUDA (NCCL) on the current
    stream, where a graph may capture it, and on a CPU (gloo).

    Args:
        q: ``[batch, q_heads, 1, head_dim]``, the same on all ranks; the cache's dtype and device.
        kv: what :func:`hsbench.compress` made of this rank's tokens (:func:`hsbench.distributed.shards_of`); None where
            it has none.
        group: None for the default one.

    Returns:
        ``out [batch, q_heads, 1, head_dim]`` in q's dtype and ``lse [batch, q_heads, 1]``, fp32, natural log, as of
        :func:`hsbench.decode` over the tokens of all ranks, with the same bits on all ranks. Ranks give ``out`` in q's
        dtype; these are weighed and added in fp32, in the order of the ranks, and the sum is rounded to q's dtype: to
        round twice costs at most as much again as the one rounding of a single cache.

    Raises:
        UsageError, UnsupportedError, UnavailableError: as :func:`hsbench.decode`.
        UnavailableError: there is no process group, or it has no backend for q's device.
        RuntimeError: torch.distributed's, where another rank is gone or called another collective.
    """
    q = arguments.tensor("q", q)
    check_group(q.device, group)
    if kv is None:
        if q.ndim != 4 or q.shape[2] != 1:
            raise UnsupportedError(f"q is {list(q.shape)}: decode takes [batch, q_heads, 1, head_dim]")
        gathered = Gathered(q, group)
        gathered.take_nothing()
    else:
        call = calls.decode_call(q, arguments.cache("kv", kv))
        gathered = Gathered(q, group)
        if isinstance(call, calls.EmptyCall):
            gathered.may_lack()
        call.write_to(gathered.own_out, gathered.own_lse)
        call.run()
    gathered.run()
    return gathered.out, gathered.lse


def check_group(device: torch.device, group: dist.ProcessGroup | None) -> None:
    """Refuses a group that this process cannot use.

    Raises:
        UnavailableError: there is none, or its collectives do not take tensors of the device.
        UsageError: this process is not in it.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise UnavailableError("there is no process group: call torch.distributed.init_process_group() on all ranks")
    if dist.get_rank(group) < 0:
        raise UsageError("group", "of other ranks", "this process is not in it; give one that it is in")
    found = group or dist.group.WORLD
    assert found is not None
    try:
        found._get_backend(torch.device(device.type))
    except RuntimeError as error:
        wants = {"cuda": "cpu:gloo,cuda:nccl"}.get(device.type, "gloo")
        have = f"its backend is {dist.get_backend(group)}"
        raise UnavailableError(
            f'the group has no collectives for tensors on {device} ({have}): make it with backend="{wants}"'
        ) from error
