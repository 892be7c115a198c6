"""How to measure: the settings of a run, and their defaults. Importing it is cheap, for the text of ``--help``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from hsbench.errors import UsageError, unknown

if TYPE_CHECKING:
    from hsbench.measure import StopRule

CacheState = Literal["cold", "warm"]
CACHES: tuple[CacheState, ...] = get_args(CacheState)
MAX_SUSTAIN_S = 60.0


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        budget_s: sampling time per method, seconds.
        min_samples: samples per method before its interval counts.
        max_samples: samples per method at most.
        target: half width of the median's interval, relative, that is narrow enough to stop.
        cache: ``cold`` or ``warm``.
        sustain_s: seconds for which a method's own run is repeated, untimed, before each of its samples, so that the
            clocks are those of its own load. ``budget_s`` pays for it: with more of this, give more of that.

    Raises:
        UsageError, TypeError: a value outside its range, or of another type.
    """

    budget_s: float = 4.0
    min_samples: int = 5
    max_samples: int = 200
    target: float = 0.01
    cache: CacheState = "cold"
    sustain_s: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, type(field.default) | int):
                raise TypeError(f"{field.name} {value!r}")
        if not 0 < self.budget_s < float("inf"):
            raise UsageError("budget_s", self.budget_s, "must be a number of seconds above 0, such as 4")
        if self.cache not in CACHES:
            raise unknown("cache", self.cache, CACHES)
        if not 0 <= self.sustain_s <= MAX_SUSTAIN_S:
            remedy = f"must be a number of seconds from 0 to {MAX_SUSTAIN_S:g}, such as 0.3"
            raise UsageError("sustain_s", self.sustain_s, remedy)
        object.__setattr__(self, "sustain_s", abs(float(self.sustain_s)))  # "-0" is 0

    def stop_rule(self) -> StopRule:
        """When a method has been sampled enough."""
        from hsbench.measure import StopRule

        return StopRule(self.min_samples, self.max_samples, self.target, self.budget_s)

    def to_dict(self) -> dict[str, Any]:
        """Every field, as JSON can hold it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """The inverse of :meth:`to_dict`; a setting that an older version did not have takes its default.

        Raises:
            TypeError, ValueError, UsageError: an unknown setting, or as the constructor.
        """
        settings = cls(**values)
        settings.stop_rule()  # refuses what it cannot stop by
        return settings
