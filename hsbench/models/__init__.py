"""Running a HuggingFace causal language model with our attention in place of its own (extra ``hsbench[models]``)."""

from __future__ import annotations

from typing import Any

__all__ = ["HierarchicalCache"]


def __getattr__(name: str) -> Any:
    # Not imported before it is asked for: what else is in this room does without transformers.
    if name != "HierarchicalCache":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hsbench.models.extra import require

    require("transformers")
    from hsbench.models.living import HierarchicalCache

    return HierarchicalCache
