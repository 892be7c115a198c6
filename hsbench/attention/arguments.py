"""What the public API takes. Every argument is checked here, at the door, and comes out as the rest of hsbench wants
it: plain contiguous tensors, Python numbers. Nothing behind it checks these again."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from hsbench.cache.basis import LayerBasis
from hsbench.cache.hierarchical import HierarchicalKV
from hsbench.cache.pruner import PRUNERS, Pruner, pruner_of
from hsbench.errors import UnavailableError, UsageError
from hsbench.kernels import forks
from hsbench.problem.elements import (
    DEFAULT_INPUT,
    STORED,
    TORCH_INPUTS,
    CacheElements,
    MixedElements,
    StoredElements,
    elements_of,
)

_ALIGNMENT = 16
"""Bytes: the vector loads of CUDA kernels."""


def tensor(name: str, value: Any) -> Tensor:
    """``value`` as a plain tensor: contiguous, aligned, with no lazy negation or conjugation; itself if it is one.

    Raises:
        UsageError: no tensor, a subclass, not strided, quantised, one that wants a gradient, or one without memory.
        UnavailableError: on a CUDA device, in a forked process.
    """
    _check_kind(name, value)
    if value.is_cuda and torch.cuda._is_in_bad_fork():
        remedy = 'start it with multiprocessing.get_context("spawn") instead'
        raise UnavailableError(f"{name} is on {value.device}, which a forked process cannot use: {remedy}")
    if value.device.type == "meta" or not value.numel():
        return value  # refused by what looks at devices and shapes
    try:
        address = value.data_ptr()
    except RuntimeError:  # inside of a transform
        address = 0
    if not address:
        remedy = "give one that holds its values, outside of torch.func's transforms"
        raise UsageError(name, "without memory of its own", remedy)
    plain = value.detach()
    if plain.is_neg() or plain.is_conj() or not plain.is_contiguous():
        with forks.torch_operations():
            return plain.resolve_conj().resolve_neg().contiguous()
    return plain.clone() if plain.is_cuda and address % _ALIGNMENT else plain


def cache(name: str, value: Any) -> HierarchicalKV:
    """``value``, if it is a compressed cache.

    Raises:
        UsageError: it is something else.
    """
    if isinstance(value, HierarchicalKV):
        return value
    remedy = "not a compressed cache; give what hsbench.compress(k, v) returned"
    raise UsageError(name, f"of type {_type(value)}", remedy)


def sparsity(name: str, value: Any) -> float:
    """``value`` as a share of elements, 0 to 0.5.

    Raises:
        UsageError: outside of that, NaN, or no number.
    """
    return _at_most(0.5, name, value, "2:4 prunes at most half: give 0 to 0.5")


def share(name: str, value: Any) -> float:
    """``value`` as a share, 0 to 1.

    Raises:
        UsageError: outside of that, NaN, or no number.
    """
    return _at_most(1.0, name, value, "give a share, 0 to 1")


def _at_most(most: float, name: str, value: Any, remedy: str) -> float:
    if not _is_number(value, Real):
        raise UsageError(name, _shown(value), f"not a number; {_item(name, value) or remedy}")
    if not 0 <= value <= most:
        raise UsageError(name, value, remedy)
    return float(value)


def tokens(name: str, value: Any) -> int:
    """``value`` as a number of tokens, 0 or more.

    Raises:
        UsageError: negative, or no whole number.
    """
    remedy = "give a number of tokens, 0 or more"
    if not _is_number(value, Integral):
        raise UsageError(name, _shown(value), f"not a whole number; {_item(name, value) or remedy}")
    if value < 0:
        raise UsageError(name, value, remedy)
    return int(value)


def pruner(name: str, value: Any) -> Pruner:
    """``value`` as a pruner, by its name or itself.

    Raises:
        UsageError: there is no such pruner.
    """
    if isinstance(value, Pruner):
        return value
    if not isinstance(value, str):
        raise UsageError(name, _shown(value), f"not the name of a pruner; give one of {', '.join(PRUNERS)}")
    return pruner_of(value)


def cache_elements(elements: Any, key_elements: Any, value_elements: Any) -> CacheElements:
    """What a cache's values are: each by its name or itself; K's and V's are those of both where they are None.

    Raises:
        UsageError: there are no such elements.
    """
    both = elements if isinstance(elements, MixedElements) else _elements("elements", elements)
    key = both.key if key_elements is None else _elements("key_elements", key_elements)
    value = both.value if value_elements is None else _elements("value_elements", value_elements)
    return elements_of(key, value)


def _elements(name: str, value: Any) -> StoredElements:
    """``value`` as what the values of K or of V are.

    Raises:
        UsageError: there are no such elements.
    """
    if isinstance(value, StoredElements):
        return value
    if not isinstance(value, str) or value not in STORED:
        raise UsageError(name, _shown(value), f"not what a cache stores; give one of {', '.join(STORED)}")
    return STORED[value]


def basis(name: str, value: Any, kv_heads: int, head_dim: int) -> Tensor:
    """What a pruner takes of the basis of a layer: fp32 ``[kv_heads, head_dim]``.

    Raises:
        UsageError: no basis of a layer, or one of other heads.
    """
    if not isinstance(value, LayerBasis):
        remedy = "give hsbench.cache.basis.Basis.load(file).layer(number)"
        raise UsageError(name, f"of type {_type(value)}", f"not the basis of a layer; {remedy}")
    have = tuple(value.query_rms.shape)
    if have != (kv_heads, head_dim):
        remedy = f"k has {kv_heads} kv heads x {head_dim}; give the basis of its model and layer"
        raise UsageError(name, f"of {' x '.join(map(str, have))}", f"does not fit; {remedy}")
    return value.query_rms


def _is_number(value: Any, kind: type) -> bool:
    """Python's and NumPy's; a bool is a number to Python, but hardly meant as one."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_kind(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise UsageError(name, f"of type {_type(value)}", f"not a tensor; {_tensor_remedy(name, value)}")
    if type(value) not in (Tensor, torch.nn.Parameter):
        # What a subclass keeps, and where, only it knows.
        remedy = f"give {name}.as_subclass(torch.Tensor), or what it converts itself to"
        raise UsageError(name, f"of type {_type(value)}", f"not a plain tensor; {remedy}")
    if value.is_nested:
        raise UsageError(name, "nested", "needs one length for all; give one sequence at a time")
    if value.layout != torch.strided:
        raise UsageError(name, f"of layout {value.layout}", f"needs a strided tensor; give {name}.to_dense()")
    if value.is_quantized:
        remedy = f"give {name}.dequantize().to(torch.{DEFAULT_INPUT.torch_name})"
        raise UsageError(name, "quantised", f"needs {TORCH_INPUTS}; {remedy}")
    if value.requires_grad and torch.is_grad_enabled():
        remedy = f"the kernels have no backward; give {name}.detach(), or call under torch.no_grad()"
        raise UsageError(name, "that requires a gradient", remedy)


def _tensor_remedy(name: str, value: Any) -> str:
    if isinstance(value, HierarchicalKV):
        return f"a compressed cache comes second: decode(q, kv), prefill(q, kv); give the tensor {name}"
    if _type(value) == "numpy.ndarray":
        return f"give torch.from_numpy({name})"
    return f"give torch.from_dlpack({name})" if hasattr(type(value), "__dlpack__") else "give a torch.Tensor"


def _item(name: str, value: Any) -> str:
    """The remedy for a number in a box, such as a tensor without dimensions."""
    boxed = not isinstance(value, Real) and hasattr(value, "item") and getattr(value, "ndim", None) == 0
    return f"give {name}.item()" if boxed else ""


def _type(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _shown(value: Any) -> str:
    """A value in few words, on one line."""
    if value is None or isinstance(value, bool | float):
        return str(value)
    return repr(value) if isinstance(value, str) and len(value) <= 40 else f"of type {_type(value)}"
