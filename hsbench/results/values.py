"""Values as a file can hold them: plain, of their column's type, with as many digits as a measurement has."""

from __future__ import annotations

import math
from typing import Any


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: numpy and torch scalars unwrapped, non-finite floats None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def as_written(value: Any) -> Any:
    """Six significant digits, more than a timing holds, and the same in every format; all of a whole part."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if abs(value) < 1e6 else float(round(value))
