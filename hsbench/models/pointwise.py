"""What a step of one token does between its products: pure functions, each of them one kernel where torch compiles it.

In torch's own kernels each takes three to five, which take longer to launch than to run, and wait for one another.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hsbench.measure.out_of_memory import is_out_of_memory

_OPTIONS: dict[str, Any] = {
    "force_pointwise_cat": True,  # parts that stand behind one another by one kernel: each would be written by its own
    "compile_threads": 1,  # no processes that wait for more to compile while something is measured
}
_EARLY = "triton.enable_pdl"
"""An option of newer versions of torch: from sm_90 on, a kernel starts while the one before it ends, and waits for that
before it loads (programmatic dependent launch)."""


class NotCompiledError(Exception):
    """torch did not compile, or not run, one of the functions; says why."""


@dataclass(frozen=True)
class Pointwise:
    """The functions, compiled or not.

    Attributes:
        add_norm: see :func:`add_norm`.
        rope: see :func:`rope`.
        gate: see :func:`gate`.
    """

    add_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    rope: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    gate: Callable[[Tensor], Tensor]


def add_norm(x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of two ``[b, 1, width]``, and its RMS norm times ``weight [width]``."""
    total = x + added
    return total, F.rms_norm(total, (total.shape[-1],), weight, eps)


def gate(both: Tensor) -> Tensor:
    """``silu(g) u`` of ``[b, 1, 2 width]``, of which g is the first half and u the second."""
    g, u = both.chunk(2, -1)
    return F.silu(g) * u


def rope(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q ``[b, q_heads, 1, d]`` and k ``[b, kv_heads, 1, d]`` at the angles ``[b or 1, 1, d]``, whose halves are alike;
    v as it is. In four kernels."""
    heads, half = q.shape[1], q.shape[-1] // 2
    both = _together(q, k)
    angle = sin.unsqueeze(1)[..., :half]
    out = both * cos.unsqueeze(1)
    out[..., :half].addcmul_(both[..., half:], angle, value=-1)
    out[..., half:].addcmul_(both[..., :half], angle)
    return out[:, :heads], out[:, heads:], v


def _together(q: Tensor, k: Tensor) -> Tensor:
    """``[b, q_heads + kv_heads, 1, d]``: a view where k stands behind q, as of one product for both."""
    batch, heads, _, dim = q.shape  # of one token: its stride says nothing
    follows = k.data_ptr() == q.data_ptr() + heads * dim * q.element_size()
    same = q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()
    if follows and same and [x.stride()[1::2] for x in (q, k)] == [(dim, 1)] * 2 and q.stride(0) == k.stride(0):
        return q.as_strided((batch, heads + k.shape[1], 1, dim), q.stride())
    return torch.cat((q, k), 1)


def rope_flat(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """What :func:`rope` gives, behind one another, ``[b (q_heads + 2 kv_heads) d]``: one kernel that writes each as a
    cache takes it, without strides. For compilers: without one it takes more kernels than :func:`rope`."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    half = q.shape[-1] // 2
    turned = [x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin for x in (q, k)]
    return torch.cat([x.flatten() for x in (*turned, v)])


def taken_apart(flat: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """:func:`rope` by a function that is :func:`rope_flat`."""

    def rope(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = flat(q, k, v, cos, sin).split([x.numel() for x in (q, k, v)])
        turned_q, turned_k, same_v = (part.view(x.shape) for part, x in zip(parts, (q, k, v), strict=True))
        return turned_q, turned_k, same_v

    return rope


EAGER = Pointwise(add_norm, rope, gate)


def compiled() -> Pointwise:
    """Each function one kernel, compiled as it is first called with tensors of a shape: not while a graph is captured.

    Raises:
        NotCompiledError: there is no Triton. Calls raise it, too.
    """
    if importlib.util.find_spec("triton") is None:
        raise NotCompiledError("triton is missing")
    return Pointwise(_compiled(add_norm), taken_apart(_compiled(rope_flat)), _compiled(gate))


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        options = _OPTIONS | ({_EARLY: True} if _EARLY in torch._inductor.list_options() else {})
        found = torch.compile(function, fullgraph=True, dynamic=False, options=options)
    except Exception as error:  # an option that this torch lacks, or a Python that it does not compile for
        raise NotCompiledError(_in_a_line(error)) from error

    def call(*arguments: Any) -> Any:
        try:
            return found(*arguments)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise NotCompiledError(_in_a_line(error)) from error

    return call


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
