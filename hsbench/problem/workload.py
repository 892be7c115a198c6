"""What shape is measured: a frozen :class:`Workload`, profiles of real models, and sizes such as ``128k``.

This module imports no torch, so that a command line can be checked before anything heavy is loaded.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from hsbench.errors import HsbenchError, UsageError
from hsbench.problem.elements import INPUTS, Element
from hsbench.problem.phase import PHASES, Phase

TENSORS = ("gaussian", "outliers")
HEAD_DIMS = (64, 128)
MAX_GROUP = 16
MAX_SPARSITY = 0.5

DEFAULT_WORKLOAD = "Llama-3.1-8B"
DEFAULT_SEQ = 32 * 1024
DEFAULT_SPARSITY = 0.5

# Kernels count tokens and heads in 32 bits, so a larger size is a typing error, not a benchmark.
MAX_SIZE = 2**31 - 1

_SIZE = re.compile(r"(\d+)(?:\.(\d+))?([kKmM]?)", re.ASCII)
_UNITS = {"": 1, "k": 1024, "m": 1024**2}
_NAMED = ("phase", "element")  # written by name
_CAPTURED = re.compile(r".+#layers\.\d+", re.DOTALL)


@dataclass(frozen=True)
class Profile:
    """Attention geometry of a published model, as its config states it.

    Attributes:
        name: what ``--workload`` takes.
        q_heads, kv_heads, head_dim: geometry of one attention layer.
        layers: attention layers in the model; each holds a KV cache of its own.
        max_seq: longest context, in tokens, that the config allows.
        source: URL of the config.
    """

    name: str
    q_heads: int
    kv_heads: int
    head_dim: int
    layers: int
    max_seq: int
    source: str


@dataclass(frozen=True)
class Workload:
    """One attention problem: phase, shape, dtype, what is pruned, and where the tensors come from.

    ``q`` is ``[batch, q_heads, q_len, head_dim]``; ``k`` and ``v`` are ``[batch, kv_heads, seq, head_dim]``.

    Attributes:
        phase: one of :data:`hsbench.problem.phase.PHASES`.
        name: a profile's name, ``custom`` where the heads are no profile's, or ``captured``.
        element: of q, k and v: one of :data:`hsbench.problem.elements.INPUTS`.
        q_len: queries; 1 in decode. The last query sees all of ``seq``.
        seq: tokens in the KV cache.
        key_sparsity, value_sparsity: share of the elements of eligible blocks that are pruned, 0 to 0.5.
        sink, local: tokens at the start and at the end whose blocks stay dense.
        tensors: ``gaussian``, ``outliers``, or ``FILE.safetensors#layers.N`` for captured tensors.
        seed: seed of the synthetic tensors.
    """

    phase: Phase
    name: str
    batch: int
    q_heads: int
    kv_heads: int
    head_dim: int
    element: Element
    q_len: int
    seq: int
    key_sparsity: float
    value_sparsity: float
    sink: int
    local: int
    tensors: str
    seed: int

    @property
    def group(self) -> int:
        """Query heads that share one KV head (GQA)."""
        return self.q_heads // self.kv_heads

    @property
    def dense_kv_bytes(self) -> int:
        """Bytes of K and V uncompressed."""
        return 2 * self.element.nbytes(self.batch * self.kv_heads * self.seq * self.head_dim)

    @property
    def query_bytes(self) -> int:
        """Bytes of q, which are those of an output, too."""
        return self.element.nbytes(self.batch * self.q_heads * self.q_len * self.head_dim)

    @property
    def dtype(self) -> str:
        """The element's name."""
        return self.element.name

    @property
    def is_chunk(self) -> bool:
        """Whether it is a part of a prefill: fewer queries than there are tokens."""
        return self.phase.causal and self.q_len != self.seq

    @property
    def mean_sparsity(self) -> float:
        """Mean of the key and the value sparsity; K and V have the same number of elements."""
        return (self.key_sparsity + self.value_sparsity) / 2

    @property
    def pairs(self) -> int:
        """(query, key) pairs under the causal mask, of one query head; the last query sees all keys."""
        return self.q_len * self.seq - self.q_len * (self.q_len - 1) // 2

    @property
    def flops(self) -> int:
        """Dense-equivalent FLOPs: a multiply and an add, in two products, per pair and head dimension."""
        return 4 * self.batch * self.q_heads * self.head_dim * self.pairs

    def to_dict(self) -> dict[str, Any]:
        """Every field, as JSON can hold it; phase and element by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            "dtype" if name == "element" else name: str(value) if name in _NAMED else value
            for name, value in values.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Workload:
        """The inverse of :meth:`to_dict`.

        Raises:
            KeyError, TypeError, UsageError: a field is missing, unknown, or of the wrong kind or value.
        """
        rest = {name: value for name, value in values.items() if name not in ("phase", "dtype")}
        return cls(phase=PHASES[values["phase"]], element=INPUTS[values["dtype"]], **rest)


def parse_size(text: str | int, option: str = "--seq", *, minimum: int = 1) -> int:
    """Read a size: ``4096``, ``128k`` (1024 each), ``2m`` (1024² each), ``0.5k`` where it comes out whole.

    Args:
        text: as typed; an int is only checked.
        option: named in the error.
        minimum: the least size allowed.

    Raises:
        UsageError: not a size, not a whole number, below ``minimum``, or 2³¹ and more.
    """
    shown = str(text).strip()
    match = _SIZE.fullmatch(shown.removeprefix("-"))
    if match is None or isinstance(text, bool | float):
        raise UsageError(option, shown or '""', "not a size; give a whole number, such as 4096 or 128k")
    whole, fraction, unit = match.groups(default="")
    # Whole-number arithmetic: a float would lose digits long before MAX_SIZE is refused.
    scaled, rest = divmod(int(whole + fraction) * _UNITS[unit.lower()], 10 ** len(fraction))
    if rest:
        raise UsageError(option, shown, "not a whole number; give a size such as 4096 or 128k")
    value = -scaled if shown.startswith("-") else scaled
    if value < minimum:
        raise UsageError(option, shown, f"must be at least {minimum}; give a size such as {max(minimum, 64)}")
    if value > MAX_SIZE:
        raise UsageError(option, shown, f"must be at most {MAX_SIZE}; give a size such as 128k")
    return value


def parse_sparsity(text: str | float, option: str = "--sparsity") -> float:
    """Read a sparsity, 0 to 0.5.

    Raises:
        UsageError: not a number, NaN, or outside the range.
    """
    shown = str(text).strip()
    try:
        value = float(shown)
    except ValueError:
        raise UsageError(option, shown or '""', "not a number; give a share from 0 to 0.5") from None
    if math.isnan(value):
        raise UsageError(option, shown, "not a number; give a share from 0 to 0.5")
    if value < 0:
        raise UsageError(option, shown, "must be 0 to 0.5; give 0 to keep every block dense")
    if value > MAX_SPARSITY:
        remedy = "must be 0 to 0.5; 2:4 prunes half of a block at most, so 0.5 makes every eligible block 2:4"
        raise UsageError(option, shown, remedy)
    return value + 0.0  # -0.0 and 0.0 are the same cell of a sweep and must print alike


def parse_choice(text: str, option: str, choices: Sequence[str]) -> str:
    """Read one of ``choices``, in any case.

    Raises:
        UsageError: none of them; the message lists them and names the closest.
    """
    for choice in choices:
        if text.strip().lower() == choice.lower():
            return choice
    remedy = f"unknown{_closest(text, choices)}; one of {', '.join(choices)}"
    raise UsageError(option, text.strip() or '""', remedy)


@lru_cache(maxsize=1)
def load_profiles() -> dict[str, Profile]:
    """Profiles of real models, by name, sorted by it.

    Raises:
        HsbenchError: the profiles are missing or damaged, which means a broken installation.
    """
    package = Path(__file__).resolve().parents[1]
    # A wheel carries them inside the package; a source tree has them beside it.
    folders = (package / "profiles", package.parent / "profiles")
    folder = next((path for path in folders if path.is_dir()), None)
    if folder is None:
        raise HsbenchError(f"no profiles in {folders[0]}: install hsbench again")
    profiles = [_read_profile(path) for path in folder.glob("*.toml")]
    return {profile.name: profile for profile in sorted(profiles, key=lambda profile: profile.name.lower())}


def find_profile(name: str, option: str = "--workload") -> Profile:
    """The profile of that name, in any case.

    Raises:
        UsageError: unknown; the message lists the known names and the closest.
    """
    profiles = load_profiles()
    return profiles[parse_choice(name, option, tuple(profiles))]


def check_geometry(
    q_heads: int, kv_heads: int, head_dim: int, *, option: str | None = None, value: object = None
) -> None:
    """Check what every method needs of the heads.

    Args:
        option, value: what the error names where the heads come from a file; else the heads' own options.

    Raises:
        UsageError: the query heads are no multiple of the KV heads, the group is above 16, or the head
            dimension is neither 64 nor 128.
    """
    if head_dim not in HEAD_DIMS:
        problem, typed = f"head_dim {head_dim} is not one of 64, 128", ("--head-dim", head_dim)
        remedy = "must be 64 or 128"
    elif q_heads % kv_heads:
        problem, typed = f"q_heads {q_heads} is no multiple of kv_heads {kv_heads}", ("--q-heads", q_heads)
        remedy = f"must be a multiple of --kv-heads {kv_heads}"
    elif q_heads // kv_heads > MAX_GROUP:
        group = f"{q_heads} query heads over {kv_heads} kv heads is a group of {q_heads // kv_heads}"
        problem, typed = f"{group}, above {MAX_GROUP}", ("--q-heads", q_heads)
        remedy = f"{group}; give at most {MAX_GROUP * kv_heads}, or more --kv-heads"
    else:
        return
    if option is None:
        raise UsageError(*typed, remedy)
    raise UsageError(option, value, f"{problem}; capture tensors of another model")


def make_workload(
    phase: str,
    *,
    workload: str | None = None,
    seq: int | str | None = None,
    batch: int | str | None = None,
    q_heads: int | str | None = None,
    kv_heads: int | str | None = None,
    head_dim: int | str | None = None,
    dtype: str | None = None,
    q_len: int | str | None = None,
    sparsity: float | str | None = None,
    key_sparsity: float | str | None = None,
    value_sparsity: float | str | None = None,
    sink: int | str | None = None,
    local: int | str | None = None,
    tensors: str | None = None,
    seed: int | str | None = None,
) -> Workload:
    """Build a workload from a profile and overrides, and check all of it.

    Every override is taken as typed (``"128k"``) or as a number; None keeps the default: the profile
    ``Llama-3.1-8B``, 32k tokens, batch 1, fp16, sparsity 0.5, sink and local 0, gaussian tensors, seed 0,
    and for prefill every token a query. Where the heads differ from the profile's, the name is ``custom``.

    Raises:
        UsageError: names the option, the value and the remedy.
    """
    chosen = PHASES[parse_choice(phase, "--phase", tuple(PHASES))]
    profile = find_profile(DEFAULT_WORKLOAD if workload is None else workload)

    def size(value: int | str | None, option: str, default: int, minimum: int = 1) -> int:
        return default if value is None else parse_size(value, option, minimum=minimum)

    heads = (
        size(q_heads, "--q-heads", profile.q_heads),
        size(kv_heads, "--kv-heads", profile.kv_heads),
        size(head_dim, "--head-dim", profile.head_dim),
    )
    check_geometry(*heads)
    tokens = size(seq, "--seq", DEFAULT_SEQ)
    both = DEFAULT_SPARSITY if sparsity is None else parse_sparsity(sparsity)
    return Workload(
        phase=chosen,
        name=profile.name if heads == (profile.q_heads, profile.kv_heads, profile.head_dim) else "custom",
        batch=size(batch, "--batch", 1),
        q_heads=heads[0],
        kv_heads=heads[1],
        head_dim=heads[2],
        element=_element(dtype),
        q_len=_queries(chosen, q_len, tokens),
        seq=tokens,
        key_sparsity=both if key_sparsity is None else parse_sparsity(key_sparsity, "--key-sparsity"),
        value_sparsity=both if value_sparsity is None else parse_sparsity(value_sparsity, "--value-sparsity"),
        sink=size(sink, "--sink", 0, minimum=0),
        local=size(local, "--local", 0, minimum=0),
        tensors=_tensors(tensors),
        seed=size(seed, "--seed", 0, minimum=0),
    )


def _queries(phase: Phase, q_len: int | str | None, seq: int) -> int:
    try:
        return phase.q_len(None if q_len is None else parse_size(q_len, "--q-len"), seq)
    except UsageError as error:
        raise UsageError("--q-len", str(q_len), error.remedy.replace("of seq;", "of --seq;")) from None


def _element(dtype: str | None) -> Element:
    names = tuple(INPUTS)
    return INPUTS[names[0] if dtype is None else parse_choice(dtype, "--dtype", names)]


def _tensors(text: str | None) -> str:
    if text is None:
        return TENSORS[0]
    return text if _CAPTURED.fullmatch(text) else parse_choice(text, "--tensors", TENSORS)


def _closest(text: str, choices: Iterable[str]) -> str:
    """`` (did you mean X?)`` where one of the choices is close to what was typed."""
    lowered = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(text.strip().lower(), lowered, n=1)
    return f" (did you mean {lowered[matches[0]]}?)" if matches else ""


def _read_profile(path: Path) -> Profile:
    try:
        return Profile(**tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise HsbenchError(f"profile {path} cannot be read ({error}): install hsbench again") from error
