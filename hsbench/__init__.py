"""hsbench: does semi-structured (2:4) sparsity in the KV cache pay, on this machine, for this model shape?

    kv = hsbench.compress(k, v, sparsity=0.5)
    out, lse = hsbench.decode(q, kv)
    rows = hsbench.load("sweep.csv")

Importing this package touches no device, loads no native library and imports no torch.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own takes long to import: no Ctrl-C is handled before the command line's entry point

from hsbench.kernels import forks as _forks  # noqa: F401, E402  it must know of every fork

__version__ = "0.1.0"

__all__ = ["Cache", "HierarchicalKV", "compress", "decode", "load", "prefill", "__version__"]

if TYPE_CHECKING:
    from typing import Any

    from hsbench.api import Cache, HierarchicalKV, compress, decode, prefill
    from hsbench.results.frame import load


def __getattr__(name: str) -> Any:
    if name in __all__:
        import importlib

        module = "hsbench.results.frame" if name == "load" else "hsbench.api"
        return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'hsbench' has no attribute {name!r}")
